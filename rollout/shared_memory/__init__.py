"""What actors and learner share without copies: weights, observations, heartbeats."""
