"""Functions on many cores of this machine: `map`, `submit` and the command rljobs."""
