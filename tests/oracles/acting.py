"""Unrolls made as in a run: the real environment, actor, feed and learner, in this process."""

from __future__ import annotations

from typing import Any

from rltrain.config.load import load
from rltrain.learner.algorithm import make_algorithm, torch_device
from rltrain.learner.learner import Learner
from rltrain.rollout.scheduler import Rollout
from rltrain.rollout.types import Trajectory
from rltrain.setup.environment import open_environment
from rltrain.setup.rollout import rollout_spec


def _no_restart(lost: Any) -> None:
    raise AssertionError(f"an actor was lost: {lost}")


class Bench:
    """A run taken apart: `collect` acts, `learn` updates and publishes. Settings as for `rltrain.train`.

    Args:
        others: policies of other runs, as for `rollout_spec`.
    """

    def __init__(self, algo: str, env: Any, others: Any = (), **settings: Any) -> None:
        config = load({"workers": 0, "preset": "none", "algo": algo, "env": env, **settings})
        here = open_environment(config)[0]
        self.config = config.settings
        self.spec = here.spec
        self.algorithm = make_algorithm(config, here.spec)
        self.policy = self.algorithm.policy
        self.learner = Learner(self.algorithm, torch_device("cpu"))
        plan = rollout_spec(config, here, self.algorithm.plan, None, others)
        self.rollout = Rollout(plan, self.learner.weights(0), _no_restart)

    def collect(self) -> Trajectory:
        """One unroll of all streams, as the learner gets it."""
        self.rollout.start()
        return self.learner.feed.delivery(self.rollout.gather())

    def learn(self, unrolls: Trajectory, progress: float = 0.0) -> dict[str, float]:
        """An update on `unrolls`, whose weights the next unroll acts with."""
        update = self.algorithm.update(unrolls, progress)
        self.algorithm.observe(unrolls)
        self.learner.version += 1
        self.rollout.publish(self.learner.weights(self.rollout.steps))
        return {name: float(value) for name, value in update.metrics.items()}
