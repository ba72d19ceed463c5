"""Experience: collect it, move it, keep it. Users import `rl`, not this."""

DISTRIBUTION = "rltrain"
