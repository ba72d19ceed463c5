"""Environments: found by name, and stepped as vectors of streams that write the rows of an unroll."""
