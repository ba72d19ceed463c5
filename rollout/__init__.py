"""Experience: collect it, move it, keep it. Users import `rltrain`, not this."""
