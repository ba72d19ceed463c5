"""`rldata`: shows, examines, exports and imports recorded data."""
