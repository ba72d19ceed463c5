"""Callbacks: a user's own code at certain moments of a run, and callbacks that are ready for use."""
