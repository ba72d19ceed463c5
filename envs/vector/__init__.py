"""Many streams of one environment as a vector that writes rows of an unroll, and restores them exactly."""
