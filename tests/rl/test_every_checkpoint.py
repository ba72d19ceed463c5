"""A run that is resumed from any of its checkpoints ends as if it had not been interrupted, to the bit.

Equal are the complete last checkpoint, every evaluation, the best policy and the names of the checkpoints. The runs are
those of `benchmarks/resume.py`, which has more of them.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.usefixtures("fork_server")

RUNS = ["impala-pool"]  # it acts and learns at the same time with --deterministic
MORE = [  # the other algorithms, and an end by --stop-return
    "sac", "appo", "dqn-replay", "qmix-gru", "td3_bc-online", "ppo-gru", "mappo", "ppo-goal", "ppo-sde", "ppo-learners",
    "a2c-gru", "a3c", "rainbow", "dqn-gru", "sac-lstm", "redq", "droq", "tqc",
    "crossq", "td3", "ddpg", "vdn", "iql", "maddpg", "bc", "bc-box", "td3_bc", "cql-mixture",
    "cql-online", "implicit_q-online", "marwil-online", "implicit_q",
    "implicit_q-box", "implicit_q-gru", "td3_bc-lstm", "cql", "cql-box", "awac", "awac-box", "marwil", "marwil-box",
]  # fmt: skip


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    file = Path(__file__).parents[2] / "benchmarks" / "resume.py"
    spec = importlib.util.spec_from_file_location("resume_benchmark", file)
    assert spec is not None
    assert spec.loader is not None
    sys.modules["resume_benchmark"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", [*RUNS, *(pytest.param(name, marks=pytest.mark.sweep) for name in MORE)])
def test_a_resume_from_any_checkpoint_ends_as_the_uninterrupted_run(
    benchmark: ModuleType, name: str, tmp_path: Path
) -> None:
    resumes, wrong = benchmark.differences(name, tmp_path)

    assert wrong == []
    assert resumes >= 3
