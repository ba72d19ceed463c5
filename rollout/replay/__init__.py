"""Replay of experience: a ring of rows, uniform, prioritised, n-step and sequence samples."""
