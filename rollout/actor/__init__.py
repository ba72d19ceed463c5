"""One actor: steps its environments with a policy and writes trajectories; noise, opponents, episodes."""
