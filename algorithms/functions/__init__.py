"""Pure functions of the papers: targets, losses, optimisers, random generators."""
