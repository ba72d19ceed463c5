"""The world, made uniform: what can be named becomes a vector of streams that write rows of an unroll."""

DISTRIBUTION = "rltrain"  # so that another package of this name can be told from ours
