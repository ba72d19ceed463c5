"""Comparing runs: `rlcompare` and `rlplot`. Reads the files of finished runs and imports nothing of training."""
