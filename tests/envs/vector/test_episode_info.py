"""Numbers of the last info of each episode, and `set_progress` of environments, in training and in evaluation."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from pettingzoo import ParallelEnv

import rltrain
from rltrain import cli
from rltrain.envs.vector.episode_info import EpisodeOptions, numbers_in, numbers_of_agents, progress_method
from rltrain.reporting.metrics import read

TINY: dict[str, Any] = {
    "algo": "ppo", "preset": "none", "workers": 0, "streams": 4, "unroll": 16, "epochs": 1, "minibatches": 1,
    "widths": (8,), "eval_episodes": 3, "steps": 400, "eval_every": 200, "checkpoint_every": 150, "quiet": True,
}  # fmt: skip


class Lesson(gymnasium.Env[Any, Any]):
    """Episodes of 3 to 13 steps: longer ones later in the run. Its infos tell the progress that it got."""

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Discrete(2)

    def set_progress(self, progress: float) -> None:
        self.progress = progress

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.left = 3 + int(10 * self.progress) + int(self.np_random.integers(2))
        self.right = 0
        return self._obs(), {"progress": -1}

    def step(self, action: Any) -> Any:
        self.left -= 1
        self.right += int(action)
        info = {
            "is_success": bool(self.right % 2), "progress": self.progress, "text": "x", "stats": {"right": self.right},
            "array": np.array([0.5]), "steps": np.int64(7), "many": np.zeros(3),
        }  # fmt: skip
        return self._obs(), float(action), self.left == 0, False, info

    def _obs(self) -> np.ndarray:
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)


class Pair(ParallelEnv[str, Any, Any]):
    """Two agents; the first leaves after two steps, the second after four."""

    metadata = {"name": "pair"}  # noqa: RUF012
    possible_agents = ["first", "second"]  # noqa: RUF012

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Box(-1, 1, (2,))

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Discrete(2)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.agents, self.count = list(self.possible_agents), 0
        return self._all(np.zeros(2, np.float32)), self._all({})

    def step(self, actions: dict[str, Any]) -> Any:
        self.count += 1
        infos = {agent: {"is_success": agent == "first", "left_at": self.count} for agent in self.agents}
        ends = {agent: self.count == (2 if agent == "first" else 4) for agent in self.agents}
        result = self._all(np.zeros(2, np.float32)), self._all(1.0), ends, self._all(False), infos
        self.agents = [agent for agent in self.agents if not ends[agent]]
        return result

    def _all(self, value: Any) -> dict[str, Any]:
        return dict.fromkeys(self.agents, value)


KEYS = ("progress", "stats.right", "array", "steps", "text", "many", "gone")


def train(tmp_path: Path, env: Any = Lesson, **changes: Any) -> rltrain.Result:
    return rltrain.train(**{**TINY, "env": env, "out": str(tmp_path / "runs"), **changes})


def of_info(run: Path, prefix: str) -> list[dict[str, float]]:
    found = [{key: line[key] for key in line if key.startswith(f"{prefix}_info/")} for line in read(run)]
    return [values for values in found if values]


def test_numbers_in_infos() -> None:
    info = {"is_success": np.bool_(True), "a": {"b": 2, "c": {"d": 1.5}}, "a.x": 3, "none": None, "s": "1"}

    assert numbers_in(info, ("a.b", "a.c.d", "a.x", "none", "s", "a", "a.b.c", "gone")) == {
        "is_success": 1.0, "a.b": 2.0, "a.c.d": 1.5, "a.x": 3.0,
    }  # fmt: skip
    assert numbers_of_agents({"x": {"k": 1}, "y": {"k": 4, "is_success": True}, "z": None}, ("k",)) == {
        "is_success": 1.0, "is_success/y": 1.0, "k": 2.5, "k/x": 1.0, "k/y": 4.0,
    }  # fmt: skip


def test_last_infos_are_logged_in_training_in_evaluation_and_by_rleval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "lesson.py"
    file.write_text(Path(__file__).read_text())
    result = train(tmp_path, f"{file}:Lesson", log_info=KEYS, quiet=False)
    printed = capsys.readouterr().out

    logged = of_info(result.run, "rollout")[-1]
    assert {key.partition("/")[2] for key in logged} == {"is_success", "progress", "stats.right", "array", "steps"}
    assert logged["rollout_info/steps"] == 7
    assert logged["rollout_info/stats.right"] == pytest.approx(result.train_return)
    assert 0 < logged["rollout_info/is_success"] < 1
    assert of_info(result.run, "eval")[-1]["eval_info/progress"] == 1.0  # the whole task
    assert "log_info: the last info of no episode has a number under text, many, gone" in printed
    assert rltrain.evaluate(result.run, episodes=3, log_info=["steps"], trust=True).info["steps"] == 7.0
    assert cli.main_eval([str(result.run), "--episodes", "2", "--json", "--log-info", "array"]) == 0
    assert json.loads(capsys.readouterr().out)["info"]["array"] == 0.5
    assert cli.main_eval([str(result.run), "--episodes", "2"]) == 0
    assert "is_success " in capsys.readouterr().out


def test_infos_of_agents_are_of_their_own_last_steps(tmp_path: Path) -> None:
    result = train(tmp_path, Pair, log_info=("left_at",), eval_episodes=2)

    for prefix in ("rollout", "eval"):
        assert of_info(result.run, prefix)[-1] == {
            f"{prefix}_info/is_success": 0.5, f"{prefix}_info/is_success/first": 1.0,
            f"{prefix}_info/is_success/second": 0.0, f"{prefix}_info/left_at": 3.0,
            f"{prefix}_info/left_at/first": 2.0, f"{prefix}_info/left_at/second": 4.0,
        }  # fmt: skip


@pytest.mark.skipif(importlib.util.find_spec("ale_py") is None, reason="needs the extra atari")
def test_infos_of_native_vector_environments() -> None:
    from rltrain.envs.vector.native import _of_column

    info = {"k": np.array([1, 2]), "_k": np.array([True, False]), "t": {"a": np.array([3, 4])}, "one": 5}

    assert [_of_column(info, "k", column, 2) for column in (0, 1)] == [1, None]
    assert _of_column(info, "t", 1, 2) == {"a": 4}
    assert _of_column(info, "one", 0, 2) is None


# --- the progress ---


def test_progress_is_that_of_the_stream_and_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    class Diary(rltrain.Callback):
        def __init__(self) -> None:
            self.seen: list[tuple[float, int]] = []

        def on_episode(self, run: rltrain.RunView, episode: Any) -> None:
            self.seen.append((episode.info["progress"], episode.length))

    diaries = [Diary(), Diary()]
    one, two = (
        train(tmp_path, workers=n, log_info=("progress",), callbacks=[d]) for n, d in zip((0, 2), diaries, strict=True)
    )
    seen = diaries[0].seen

    assert one.fingerprint == two.fingerprint
    assert seen == diaries[1].seen
    assert [progress for progress, _ in seen].count(0.0) == 4  # the first episode of each stream
    assert 0.8 < max(progress for progress, _ in seen) < 1
    assert all(length in (3 + int(10 * progress), 4 + int(10 * progress)) for progress, length in seen)


def test_where_set_progress_is_found() -> None:
    class Answers(gymnasium.Wrapper[Any, Any, Any, Any]):
        def __getattr__(self, name: str) -> Any:
            return 5

    env = Lesson()
    assert progress_method(gymnasium.wrappers.TimeLimit(Answers(env), 5)) == env.set_progress
    assert progress_method(gymnasium.make("CartPole-v1")) is None
    assert EpisodeOptions((), 10.0).progress(5) == 0.5
    assert EpisodeOptions((), 10.0).progress(50) == EpisodeOptions().progress(0) == 1.0
