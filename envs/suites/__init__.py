"""Environments of other packages: Atari, EnvPool and PettingZoo."""
