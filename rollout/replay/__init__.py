"""Experience replay: a ring of rows per stream, and the samples drawn from it."""
