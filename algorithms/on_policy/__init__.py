"""Algorithms that learn from what the newest policy collected: PPO, A2C, A3C, IMPALA, APPO."""
