"""Tuned settings are found in a checkout and inside a wheel, and every file of configs/ can be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from rltrain.config import presets
from rltrain.config.load import load

ROOT = Path(__file__).resolve().parents[3]
FILES = sorted((ROOT / "configs").rglob("*.toml"))


def test_names_with_slashes_and_colons_have_files() -> None:
    assert presets.file_name("ALE/Pong-v5") == "ALE-Pong-v5.toml"
    assert presets.file_name("probe:two-steps") == "probe-two-steps.toml"


def test_a_file_in_the_checkout_comes_before_one_in_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presets, "PACKAGE", tmp_path / "rl")
    assert presets.find("ppo", "Task-v0") is None

    in_wheel = tmp_path / "rl" / "configs" / "ppo" / "Task-v0.toml"
    in_wheel.parent.mkdir(parents=True)
    in_wheel.write_text("steps = 1\n")
    assert presets.find("ppo", "Task-v0") == in_wheel

    in_checkout = tmp_path / "configs" / "ppo" / "Task-v0.toml"
    in_checkout.parent.mkdir(parents=True)
    in_checkout.write_text("steps = 2\n")
    assert presets.find("ppo", "Task-v0") == in_checkout
    assert presets.shown(in_checkout) == presets.shown(in_wheel) == "configs/ppo/Task-v0.toml"


@pytest.mark.parametrize("file", FILES, ids=[f"{file.parent.name}-{file.stem}" for file in FILES])
def test_every_tuned_file_loads(file: Path) -> None:
    """With 8 workers too, as the README runs it."""
    config = load({"algo": file.parent.name, "env": "Nothing-v0", "workers": 0}, file)

    assert config.streams >= 8 or "CartPole" not in file.name


def test_games_without_their_own_file_share_one() -> None:
    for env in ("ALE/NoSuchGame-v5", "atari:pong"):
        found = presets.find("ppo", env)
        assert found is not None
        assert found.name == "ALE.toml"
    assert presets.find("ppo", "ALEX/Task-v0") is None
    assert load({"algo": "ppo", "env": "atari:pong"}).settings.clip_reward  # type: ignore[attr-defined]
