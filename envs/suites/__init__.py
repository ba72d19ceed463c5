"""Environments from other packages: Atari, EnvPool, PettingZoo, and what their interfaces need."""
