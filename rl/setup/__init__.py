"""From settings to the parts of a run: environment, rollout, replay, cluster, offline data."""
