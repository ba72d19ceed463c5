"""From settings to an algorithm: what it refuses is one line, what is wrong with its code is not."""

from __future__ import annotations

import pytest

from rltrain.config.load import load
from rltrain.errors import ConfigError
from rltrain.learner.algorithm import make_algorithm
from rltrain.setup.environment import open_environment


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (ValueError("device mps cannot hold the policy"), ConfigError),
        (TypeError("Cannot convert a MPS Tensor to float64 dtype\nmore"), ConfigError),
        (TypeError("missing 1 required positional argument"), TypeError),
    ],
)
def test_what_an_algorithm_refuses_is_one_line(monkeypatch, error, raised):
    def refuses(*_):
        raise error

    config = load({"algo": "ppo", "env": "probe:choice", "preset": "none"})
    monkeypatch.setattr("rltrain.algorithms.algorithm_class", lambda name: refuses)
    with pytest.raises(raised) as caught:
        make_algorithm(config, open_environment(config)[0].spec)
    if raised is ConfigError:
        assert str(caught.value) == str(error).splitlines()[0]
