"""Algorithms that learn from a replay: DQN, SAC, TD3, DDPG."""
