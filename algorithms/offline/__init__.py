"""Algorithms that learn from recorded data alone. See `rltrain.algorithms` for their names."""
