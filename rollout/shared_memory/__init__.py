"""Memory that actors and the learner share: weights, observations, heartbeats."""
