"""`rlope` and `rltrain.estimate`: the value of a policy from episodes that another policy recorded."""
