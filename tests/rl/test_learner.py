"""The learner: what it counts, and that it stops before bad weights reach a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import rl
from rl import checkpoint
from rl.learner import Learner


def test_a_diverged_run_stops_and_leaves_its_good_checkpoints_alone(tmp_path: Path) -> None:
    settings = {"algo": "ppo", "env": "probe:two-steps", "workers": 0, "out": str(tmp_path), "quiet": True}
    with pytest.raises(rl.RunFailed, match=r"diverged.*smaller --lr"):
        rl.train(**settings, steps=20_000, checkpoint_every=1000, eval_every=0, lr=1e20, max_grad_norm=0.0)
    (run,) = tmp_path.iterdir()
    for path in (run / "checkpoints").glob("step-*"):
        parts = checkpoint.load(path).state["learner"]["parts"]["policy"]
        assert all(abs(array).max() < float("inf") for array in parts.values() if array.size)


class Rebinds(torch.nn.Module):
    """A policy with a buffer that an update may put another tensor in the place of."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.register_buffer("seen", torch.zeros(1))


def test_weights_are_those_of_now_whatever_an_update_did_to_their_tensors() -> None:
    policy = Rebinds()
    learner = Learner(SimpleNamespace(policy=policy), torch.device("cpu"))
    learner.weights(0)
    changes: list[Callable[[], object]] = [
        lambda: policy.weight.data.fill_(1.0),  # in place
        lambda: setattr(policy, "seen", policy.seen + 2.0),  # another buffer
        lambda: setattr(policy.weight, "data", torch.full((2,), 3.0)),  # other memory
        lambda: setattr(policy, "weight", torch.nn.Parameter(torch.full((2,), 4.0))),  # another parameter
    ]
    for change in changes:
        change()
        found = learner.weights(0).arrays
        assert found.keys() == policy.state_dict().keys()
        for name, tensor in policy.state_dict().items():
            assert found[name].tolist() == tensor.tolist(), name
