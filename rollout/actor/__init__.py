"""The actor: steps environments with a policy and writes trajectories; noise, opponents, evaluation."""
