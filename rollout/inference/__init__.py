"""Central inference: a server that holds the policy on the learner's device and acts for all actors."""
