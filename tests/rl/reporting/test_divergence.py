"""Values and temperatures that diverge are reported once; those that the rewards allow are not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import rltrain
from rltrain.reporting.divergence import Divergence


def note(values: dict[str, float], reward: float = 2.0, longest: float = 50.0, **settings: Any) -> str | None:
    names = {f"learner/{name}": value for name, value in values.items()}
    return Divergence(SimpleNamespace(**{"gamma": 0.9, **settings})).note(names, reward, longest)


@pytest.mark.parametrize(
    ("values", "settings", "words"),
    [
        ({"q_mean": 201.0}, {}, "the mean value is 201, but the rewards so far, of at most 2, allow a return of 20"),
        ({"q_mean": -201.0}, {}, "the mean value is 201"),
        ({"q_mean": 101.0}, {"clip_reward": True}, "allow a return of 10"),
        ({"q_mean": 1001.0}, {"gamma": 1.0}, "allow a return of 100"),  # episodes of 50 steps
        ({"loss_value": 0.5 * 201.0**2}, {}, "the mean error of the value is 201"),
        ({"temperature": 21.0, "q_mean": 1e9}, {}, "the temperature is 21: one nat of entropy is worth more"),
    ],
)
def test_what_no_reward_allows_is_reported(values: dict[str, float], settings: dict[str, Any], words: str) -> None:
    text = note(values, **settings)

    assert text is not None
    assert words in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("values", "settings"),
    [
        ({"q_mean": 199.0, "loss_value": 0.5 * 199.0**2}, {}),
        ({"temperature": 19.0, "entropy": -2.0, "q_mean": 1000.0}, {}),  # the bonus of the entropy is in the value
        ({"loss_value": 1e9}, {"normalize_return": True}),  # in another unit
        ({"q_mean": 99.0}, {"reward": 0.001}),  # an untrained network
        ({"q_mean": 1e9}, {"reward": 0.0}),  # no rewards known: of gradients
        ({"q_mean": 1e9}, {"gamma": 1.0, "longest": 0}),
        ({}, {}),
    ],
)
def test_what_rewards_allow_is_not(values: dict[str, float], settings: dict[str, Any]) -> None:
    assert note(values, **settings) is None


def test_it_is_reported_once() -> None:
    divergence, values = Divergence(SimpleNamespace(gamma=0.9)), {"learner/q_mean": 1e6}

    assert divergence.note(values, 1.0, 1) is not None
    assert divergence.note(values, 1.0, 1) is None


@pytest.mark.parametrize(
    ("settings", "count"),
    [({"lr": 1e3, "max_grad_norm": 0.0, "target_every": 1}, 1), ({}, 0)],
    ids=["diverges", "learns"],
)
def test_a_run_says_so_while_it_runs(
    settings: dict[str, Any], count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"steps": 400, "warmup": 50, "capacity": 1000, "workers": 0, "eval_every": 0, "out": str(tmp_path)}
    rltrain.train(algo="dqn", env="probe:endless", widths=(8,), **small, **settings)

    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if "the values diverge" in line]) == count
