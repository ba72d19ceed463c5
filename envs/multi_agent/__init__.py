"""Several agents as one environment: joint spaces, joint steps, padding, groups that share a policy."""
