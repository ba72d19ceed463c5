"""The world, made uniform: what can be named becomes a vector of streams that write rows of an unroll."""
