"""`make_run`: the folder of a run, without training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

VERSIONS = {"gymnasium": "1.4.0", "rltrain": "0.1.0"}


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes run.json and metrics.jsonl below the working folder, which is an empty one."""
    monkeypatch.chdir(tmp_path)

    def make(
        name: str,
        returns: list[float | None],
        seed: int = 0,
        algo: str = "ppo",
        env: str = "CartPole-v1",
        steps: int = 1000,
        last: int | None = None,
        versions: dict[str, str] = VERSIONS,
        settings: dict[str, Any] | None = None,
        **config: Any,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        settings = {"lr": 0.001, **(settings or {})}
        config = {"eval_episodes": 20, "eval_every": 100, "stop_return": None, **config}
        config |= {"algo": algo, "env": env, "seed": seed, "steps": steps, "settings": settings}
        (folder / "run.json").write_text(json.dumps({"config": config, "versions": versions}))
        end = steps if last is None else last
        lines: list[dict[str, Any]] = [
            {"step": end * (place + 1) // len(returns), "seconds": 2.0 * (place + 1), "eval/return_mean": value}
            for place, value in enumerate(returns)
        ]
        lines.append({"step": end, "seconds": 2.0 * len(returns) + 1, "rollout/return_mean": 7.0})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder

    return make
