"""Merged, split and filtered recordings hold the episodes to the bit, and an interrupted command leaves nothing."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rltrain.data import episodes as data_episodes
from rltrain.data import formats
from rltrain.data.episodes import EpisodeWriter, Recorded, episodes_of, write
from rltrain.envs.spec import ActionSpec, EnvSpec, Leaf
from rltrain.rollout.replay.replay import Replay
from rltrain.rollout.specs import ReplayPlan
from rltrain.storage import recording as record
from rltrain.storage.recording import INDEX, Recording

Rldata = Callable[..., str]
SPEC = EnvSpec("Pole-v1", Leaf("box", (4,), "float32"), ActionSpec("discrete", (), (2,)), max_steps=40)


def some(count: int, seed: int = 0, **changes: Any) -> list[Recorded]:
    """Episodes of 1 to 9 steps, with log-probabilities; the last one is cut off by the end of the data."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 10, count)
    return [
        Recorded(
            obs=[rng.normal(size=(steps + 1, 4)).astype(np.float32)],
            action=rng.integers(2, size=steps),
            reward=rng.normal(size=steps).astype(np.float32),
            terminated=bool(number % 2) and number < count - 1,
            truncated=not number % 2 and number < count - 1,
            extras={"log_prob": rng.normal(size=steps).astype(np.float32)},
            **changes,
        )
        for number, steps in enumerate(lengths.tolist())
    ]


def bits(one: Recorded) -> tuple[Any, ...]:
    arrays = (*one.obs, one.action, one.reward, *(one.extras[name] for name in sorted(one.extras)))
    return (one.terminated, one.truncated, one.whole, *one.extras, *((a.dtype, a.shape, a.tobytes()) for a in arrays))


def content(folder: Path) -> list[tuple[Any, ...]]:
    return [bits(one) for one in episodes_of(Recording.open(folder))]


def made(folder: Path, count: int, seed: int = 0, spec: EnvSpec = SPEC, **about: Any) -> list[tuple[Any, ...]]:
    episodes = some(count, seed)
    write(folder, spec, episodes, about)
    return [bits(one) for one in episodes]


@pytest.fixture(autouse=True)
def _several_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "FILE_BYTES", 3000)


def test_merge_has_all_episodes_in_order_to_the_bit(rldata: Rldata, tmp_path: Path) -> None:
    one, other = made(tmp_path / "a", 30), made(tmp_path / "b", 20, 1)
    formats.write_npz(tmp_path / "c.npz", some(10, 2), SPEC)
    third = [bits(episode) for episode in some(10, 2)]
    said = rldata("merge", tmp_path / "a", tmp_path / "b", tmp_path / "c.npz", tmp_path / "out")

    assert content(tmp_path / "out") == one + other + third
    assert said.startswith(f"{tmp_path / 'out'}: ")
    assert "60 episodes" in said
    assert len(list((tmp_path / "out").glob("unrolls-*"))) > 1


def test_merge_keeps_the_extras_that_all_have(rldata: Rldata, tmp_path: Path) -> None:
    made(tmp_path / "a", 5)
    write(tmp_path / "b", SPEC, [replace(one, extras={}) for one in some(4, 1)], {})
    said = rldata("merge", tmp_path / "a", tmp_path / "b", tmp_path / "out")

    assert said.startswith("log_prob is left out, because not all of the data has it in the same form")
    wanted = [bits(replace(one, extras={})) for one in [*some(5), *some(4, 1)]]
    assert content(tmp_path / "out") == wanted
    assert "also recorded: nothing" in rldata("show", tmp_path / "out")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_merge_looks_at_the_extras_of_all_episodes(place: int, rldata: Rldata, tmp_path: Path) -> None:
    made(tmp_path / "a", 5)
    episodes = some(3, 1)
    episodes[place] = replace(episodes[place], extras={"log_prob": np.zeros(episodes[place].steps)})  # float64
    write(tmp_path / "b", SPEC, episodes, {})
    said = rldata("merge", tmp_path / "a", tmp_path / "b", tmp_path / "out")

    assert said.startswith("log_prob is left out, because not all of the data has it in the same form")
    assert content(tmp_path / "out") == [bits(replace(one, extras={})) for one in [*some(5), *episodes]]


def test_a_recording_keeps_the_type_of_each_episodes_extras(tmp_path: Path) -> None:
    episodes = some(3)
    episodes[1] = replace(episodes[1], extras={"log_prob": np.full(episodes[1].steps, 0.1)})
    write(tmp_path / "a", SPEC, episodes, {})
    assert content(tmp_path / "a") == [bits(one) for one in episodes]


OTHERS = {
    "id": replace(SPEC, id="Pole-v0"),
    "max_steps": replace(SPEC, max_steps=500),
    "action.nvec": replace(SPEC, action=ActionSpec("discrete", (), (3,))),
    "obs.shape": replace(SPEC, obs=Leaf("box", (5,), "float32")),
}


@pytest.mark.parametrize("part", OTHERS)
def test_data_of_another_environment_is_not_merged(part: str, refused: Rldata, tmp_path: Path) -> None:
    made(tmp_path / "a", 3)
    episodes = some(3, 1)
    if part == "obs.shape":
        episodes = [replace(one, obs=[np.pad(one.obs[0], ((0, 0), (0, 1)))]) for one in episodes]
    write(tmp_path / "b", OTHERS[part], episodes, {})

    line = refused("merge", tmp_path / "a", tmp_path / "b", tmp_path / "out")
    assert f"the environment of {tmp_path / 'b'} is not that of {tmp_path / 'a'}: {part}" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_split_gives_each_episode_to_one_part(rldata: Rldata, tmp_path: Path) -> None:
    source = made(tmp_path / "a", 40)
    rldata("split", tmp_path / "a", tmp_path / "train", tmp_path / "test", "--fraction", "80%", "--seed", "3")
    train, test = content(tmp_path / "train"), content(tmp_path / "test")

    assert (len(train), len(test)) == (32, 8)
    assert sorted(source, key=str) == sorted(train + test, key=str)
    assert [one for one in source if one in train] == train  # in their order
    rldata("split", tmp_path / "a", tmp_path / "again", tmp_path / "rest", "--fraction", "0.8", "--seed", "3")
    assert content(tmp_path / "again") == train
    rldata("split", tmp_path / "a", tmp_path / "other", tmp_path / "others", "--fraction", "0.8", "--seed", "4")
    assert content(tmp_path / "other") != train


def test_filter_takes_the_same_best_episodes_as_filter_top(rldata: Rldata, tmp_path: Path) -> None:
    made(tmp_path / "a", 60)
    rldata("filter", tmp_path / "a", tmp_path / "best", "--top", "20%")
    source = Recording.open(tmp_path / "a")
    plan = ReplayPlan(unroll=1, capacity=2000, batch=4000, warmup=0, updates_per_step=1.0, gamma=0.9)

    def rewards(folder: Path, top: float | None) -> set[float]:
        replay = Replay(source.spec, 1, plan, 0)
        for piece in Recording.open(folder).pieces():
            replay.append(piece)
        if top is not None:
            assert replay.keep_best(top) == 11  # of the 59 complete episodes
        return set(replay.sample(0.0).reward.tolist())

    assert rewards(tmp_path / "best", None) == rewards(tmp_path / "a", 0.2)
    assert len(content(tmp_path / "best")) == 11


def test_filter_by_return_and_length(rldata: Rldata, tmp_path: Path) -> None:
    made(tmp_path / "a", 60)
    complete = some(60)[:-1]
    for flags, wanted in {
        ("--min-return", "0.5"): [one for one in complete if one.ret >= 0.5],
        ("--max-return=-0.5", "--max-length", "5"): [one for one in complete if one.ret <= -0.5 and one.steps <= 5],
        ("--min-length", "3"): [one for one in complete if one.steps >= 3],
    }.items():
        folder = tmp_path / "-".join(flags).strip("-")
        rldata("filter", tmp_path / "a", folder, *flags)
        assert content(folder) == [bits(one) for one in wanted]


def test_reference_scores_stay_with_the_data(rldata: Rldata, tmp_path: Path) -> None:
    scores = {"random": 1.0, "expert": 9.0}
    for name, given in (("a", scores), ("b", scores), ("c", {"random": 0.0, "expert": 9.0})):
        made(tmp_path / name, 10, reference=given)
    rldata("filter", tmp_path / "a", tmp_path / "f", "--min-length", "1")
    rldata("split", tmp_path / "a", tmp_path / "s", tmp_path / "t")
    rldata("merge", tmp_path / "a", tmp_path / "b", tmp_path / "m")
    rldata("merge", tmp_path / "a", tmp_path / "c", tmp_path / "n")

    assert [Recording.open(tmp_path / name).run.get("reference") for name in "fstmn"] == [scores] * 4 + [None]


WRONG = {
    "no episode is complete and satisfies the conditions": ["filter", "a", "out", "--min-return", "99"],
    "needs a condition: --top, --min-return": ["filter", "a", "out"],
    "--top: must be a share above 0 and at most 1": ["filter", "a", "out", "--top", "200%"],
    "--min-return: must be a number": ["filter", "a", "out", "--min-return", "nan"],
    "--max-length: must be a whole number from 0 on": ["filter", "a", "out", "--max-length", "-3"],
    "both parts need at least one episode": ["split", "a", "out", "rest", "--fraction", "0.01"],
    "the two parts need two names": ["split", "a", "out", "./out"],
    "needs at least two recordings": ["merge", "a", "out"],
    "OUT is needed": ["merge", "a"],
    "there is no such file or folder": ["merge", "a", "nowhere", "out"],
    "exists already": ["merge", "a", "a", "a"],
    "s/t is inside s": ["split", "a", "s", "s/t"],
    "s/t is inside ./s": ["split", "a", "s/t", "./s"],
    "a/inside is inside a": ["filter", "a", "a/inside", "--min-length", "1"],
    "a/x/y.npz is inside a": ["export", "a", "a/x/y.npz"],
    "both parts need at least one": ["split", "a", "new/folder/out", "new/rest", "--fraction", "0.01"],
}


@pytest.mark.parametrize("words", WRONG)
def test_mistakes_have_one_line(words: str, refused: Rldata, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made(tmp_path / "a", 10)

    assert words.replace("no episode", "") in refused(*WRONG[words])
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_output_inside_a_link_to_the_data_is_refused(refused: Rldata, tmp_path: Path) -> None:
    made(tmp_path / "a", 10)
    (tmp_path / "link").symlink_to("a")
    before = sorted(tmp_path.rglob("*"))
    assert "is inside" in refused("merge", tmp_path / "a", tmp_path / "a", tmp_path / "link" / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_in_place_of_an_empty_folder_has_one_line(refused: Rldata, tmp_path: Path) -> None:
    made(tmp_path / "a", 10)
    (tmp_path / "x.npz").mkdir()
    assert f"{tmp_path / 'x.npz'}: is a directory; choose another" in refused(
        "export", tmp_path / "a", tmp_path / "x.npz"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "x.npz"]


COMMANDS = {
    "merge": ["a", "a", "out"],
    "split": ["a", "out", "rest"],
    "filter": ["a", "out", "--min-length", "0"],
    "import": ["a", "out"],
    "export": ["a", "out.npz"],
}


@pytest.mark.parametrize("verb", COMMANDS)
def test_an_interrupted_command_leaves_nothing(
    verb: str, rldata: Rldata, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = made(tmp_path / "a", 20)

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(EpisodeWriter, "close", stop)
        patched.setattr(np, "savez_compressed", lambda path, **_: (Path(path).write_bytes(b"half"), stop()))
        rldata(verb, *COMMANDS[verb], status=130)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert content(tmp_path / "a") == before
    rldata(verb, *COMMANDS[verb])
    assert (tmp_path / COMMANDS[verb][1]).exists()


@pytest.mark.parametrize(
    "verb", [pytest.param("merge", marks=pytest.mark.sweep), pytest.param("split", marks=pytest.mark.sweep), "filter"]
)
def test_data_is_read_piece_by_piece(
    verb: str, rldata: Rldata, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(record, "FILE_BYTES", 200_000)
    rng = np.random.default_rng(0)
    steps = 100
    spec = replace(SPEC, obs=Leaf("box", (100,), "float32"), max_steps=None)
    one = some(2)[0]
    episodes = (
        replace(one, obs=[rng.normal(size=(steps + 1, 100)).astype(np.float32)], action=np.zeros(steps, np.int64),
                reward=np.ones(steps, np.float32), extras={}, terminated=True, truncated=False)
        for _ in range(200)
    )  # fmt: skip
    write(tmp_path / "a", spec, episodes, {})
    size = sum(path.stat().st_size for path in (tmp_path / "a").iterdir())
    rldata("filter", "a", "warm", "--min-length", "0")  # imports
    tracemalloc.start()
    rldata(verb, *COMMANDS[verb])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert size > 8_000_000
    assert peak < size / 4


def test_a_long_group_of_episodes_is_written_by_its_size(tmp_path: Path) -> None:
    """Not by its steps alone: frames are large."""
    made(tmp_path / "a", 300)
    assert Recording.open(tmp_path / "a").steps < data_episodes.PIECE_STEPS
    assert len(list((tmp_path / "a").glob("unrolls-*"))) > 5


def test_json(rldata: Rldata, tmp_path: Path) -> None:
    made(tmp_path / "a", 10)
    values = json.loads(rldata("filter", tmp_path / "a", tmp_path / "out", "--top", "50%", "--json"))
    assert (values["out"], values["episodes"], values["of"]) == (str(tmp_path / "out"), 4, 10)
    assert (tmp_path / "out" / INDEX).exists()
