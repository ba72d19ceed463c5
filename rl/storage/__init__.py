"""What is written to disk: run folders, checkpoints, replay segments, recordings."""
