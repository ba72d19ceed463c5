"""Algorithms for several agents: QMIX, VDN, MAPPO, IQL, MADDPG."""
