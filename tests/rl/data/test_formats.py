"""Files of other programs: what a format can hold survives a round trip to the bit, and what it lacks is said."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rltrain
from rltrain.data import columnar, foreign, formats
from rltrain.data.episodes import Recorded, episodes_of, write
from rltrain.envs.make import read_spec, resolve
from rltrain.envs.spaces import action_reader
from rltrain.envs.spec import ActionSpec
from rltrain.storage.recording import Recording

QUIET: dict[str, Any] = {"workers": 0, "eval_every": 0, "checkpoint_every": 0, "preset": "none", "quiet": True}
Rldata = Callable[..., str]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The recording of a few steps in an environment."""
    folder, made = tmp_path_factory.mktemp("data"), dict[str, Path]()

    def of(env: str) -> Path:
        if env not in made:
            made[env] = folder / env.replace(":", "-")
            some = {"epochs": 1, "minibatches": 1, "widths": (8,), "streams": 2, "unroll": 16, "steps": 450}
            rltrain.train(algo="ppo", env=env, **QUIET, **some, out=str(folder / "runs"), record=made[env])
        return made[env]

    return of


def same(one: Path, other: Path) -> None:
    """Both recordings hold the same episodes, to the bit."""
    a, b = (list(episodes_of(Recording.open(folder))) for folder in (one, other))
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert (x.terminated, x.truncated, x.whole, sorted(x.extras)) == (
            y.terminated, y.truncated, y.whole, sorted(y.extras),
        )  # fmt: skip
        pairs = [*zip(x.obs, y.obs, strict=True), (x.action, y.action), (x.reward, y.reward)]
        pairs += [(x.extras[name], y.extras[name]) for name in x.extras]
        pairs += [] if x.mask is None or y.mask is None else [(x.mask, y.mask)]
        assert (x.mask is None) == (y.mask is None)
        for p, q in pairs:
            assert p.dtype == q.dtype
            np.testing.assert_array_equal(p, q)


@pytest.mark.parametrize(
    "env",
    [
        "CartPole-v1",
        pytest.param("Pendulum-v1", marks=pytest.mark.sweep),
        pytest.param("probe:dict", marks=pytest.mark.sweep),
        "probe:masked",
        pytest.param("probe:image", marks=pytest.mark.sweep),
    ],
)
def test_npz_holds_everything(env: str, recordings: Callable[[str], Path], rldata: Rldata, tmp_path: Path) -> None:
    source = recordings(env)
    rldata("export", source, tmp_path / "x.npz")
    rldata("import", tmp_path / "x.npz", tmp_path / "again")

    same(source, tmp_path / "again")
    assert rldata("show", tmp_path / "again").splitlines()[1:] == rldata("show", source).splitlines()[1:]


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_d4rl_holds_the_data_of_one_array(
    env: str, recordings: Callable[[str], Path], rldata: Rldata, tmp_path: Path
) -> None:
    h5py = pytest.importorskip("h5py")
    source = recordings(env)
    rldata("export", source, tmp_path / "x.hdf5")
    rldata("import", tmp_path / "x.hdf5", tmp_path / "again", "--env", env)
    same(source, tmp_path / "again")

    with h5py.File(tmp_path / "x.hdf5") as file:
        bound = np.abs(np.asarray(file["actions"], float)).max()
        assert bound > 1 if env == "Pendulum-v1" else bound == 1  # Pendulum's own actions are up to 2
        assert {"observations", "next_observations", "rewards", "terminals", "timeouts"} <= set(file)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", pytest.param("probe:dict", marks=pytest.mark.sweep)])
@pytest.mark.parametrize(("form", "package"), [("minari", "h5py"), ("minari-arrow", "pyarrow")])
def test_minari_loads_what_was_written_and_it_is_read_again(
    form: str, package: str, env: str, recordings: Callable[[str], Path], rldata: Rldata, tmp_path: Path
) -> None:
    pytest.importorskip(package)
    minari = pytest.importorskip("minari")
    source = recordings(env)
    rldata("export", source, tmp_path / "set", "--format", form, "--env", env)
    rldata("import", tmp_path / "set", tmp_path / "again")
    same(source, tmp_path / "again")

    loaded = minari.MinariDataset(tmp_path / "set" / "data")
    episodes = list(episodes_of(Recording.open(source)))
    acts = action_reader(Recording.open(source).spec.action)
    assert (loaded.total_episodes, loaded.total_steps) == (len(episodes), sum(one.steps for one in episodes))
    for theirs, ours in zip(loaded.iterate_episodes(), episodes, strict=True):
        np.testing.assert_array_equal(theirs.rewards, ours.reward)
        np.testing.assert_array_equal(np.asarray(theirs.actions), np.asarray(acts(ours.action)))
        assert (theirs.terminations[-1], theirs.truncations[-1]) == (ours.terminated, ours.truncated)
        if form == "minari-arrow":
            np.testing.assert_array_equal(theirs.infos["extras.log_prob"][:-1], ours.extras["log_prob"])
        if env != "probe:dict":
            np.testing.assert_array_equal(theirs.observations, ours.obs[0])


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "probe:dict", "probe:masked", "probe:image"])
def test_parquet_holds_everything(env: str, recordings: Callable[[str], Path], rldata: Rldata, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    source = recordings(env)
    rldata("export", source, tmp_path / "x.parquet")
    rldata("import", tmp_path / "x.parquet", tmp_path / "again")

    same(source, tmp_path / "again")
    table = parquet.read_table(tmp_path / "x.parquet")
    assert len(table) == Recording.open(source).steps
    assert {"episode", "observations.0", "next_observations.0", "actions", "rewards", "terminations"} <= set(
        table.column_names
    )


def test_parquet_is_written_in_groups_of_rows(
    recordings: Callable[[str], Path], rldata: Rldata, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(columnar, "GROUP_BYTES", 4000)
    rldata("export", recordings("CartPole-v1"), tmp_path / "x.parquet")
    assert parquet.ParquetFile(tmp_path / "x.parquet").num_row_groups > 3
    rldata("import", tmp_path / "x.parquet", tmp_path / "again")
    same(recordings("CartPole-v1"), tmp_path / "again")


def test_parquet_of_another_program(rldata: Rldata, refused: Rldata, tmp_path: Path) -> None:
    """A row for each step, with lists of numbers; the names may be those of gymnasium."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    episodes = pendulum()
    columns = {
        "obs": [row.tolist() for one in episodes for row in one.obs[0][:-1]],
        "new_obs": [row.tolist() for one in episodes for row in one.obs[0][1:]],
        "action": [[float(x[0]) * 2] for one in episodes for x in one.action],
        "reward": [float(x) for one in episodes for x in one.reward],
        "terminated": [False] * 60,
        "truncated": [t == 19 for _ in episodes for t in range(20)],
    }
    parquet.write_table(pa.table(columns), tmp_path / "x.parquet")
    found, _ = imported(tmp_path / "x.parquet", tmp_path / "in", rldata)
    for one, other in zip(found, episodes, strict=True):
        np.testing.assert_allclose(one.action, other.action, rtol=1e-6)
        np.testing.assert_array_equal(one.obs[0], other.obs[0])
        assert (one.terminated, one.truncated) == (False, True)

    assert "add --env ENV" in refused("show", tmp_path / "x.parquet")
    env = ["--env", "Pendulum-v1"]
    for name, change, words in [
        ("reward", None, "it has no column rewards (reward)"),
        ("obs", [[0.0] * 3] * 59 + [[0.0] * 2], "the lists of a column have different lengths"),
        ("reward", [None] + [0.0] * 59, "a column has empty values"),
        ("reward", ["x"] * 60, "and not numbers"),
        ("obs", [[0.0] * 2] * 60, "observations have the shape (2,), and the space's is (3,)"),
    ]:
        wrong = {key: value for key, value in columns.items() if key != name} | (
            {} if change is None else {name: change}
        )
        parquet.write_table(pa.table(wrong), tmp_path / "y.parquet")
        assert words in refused("show", tmp_path / "y.parquet", *env)


def pendulum(count: int = 3, steps: int = 20) -> list[Recorded]:
    rng = np.random.default_rng(0)
    return [
        Recorded(
            obs=[rng.normal(size=(steps + 1, 3)).astype(np.float32)],
            action=rng.uniform(-1, 1, (steps, 1)).astype(np.float32),
            reward=rng.normal(size=steps).astype(np.float32),
            terminated=False,
            truncated=True,
        )
        for _ in range(count)
    ]


def other_parquet(path: Path, **columns: Any) -> Path:
    """A parquet file of Pendulum of another program: 40 rows without ends, unless `columns` say them."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    one = pendulum(1, 40)[0]
    own = {"obs": one.obs[0][:-1].tolist(), "action": one.action.tolist(), "reward": one.reward}
    parquet.write_table(pa.table(own | {name: value for name, value in columns.items() if value is not None}), path)
    return path


AFTER = pendulum(1, 40)[0].obs[0][1:].tolist()
DONE, LIMIT = (np.isin(np.arange(40), places) for places in ([9, 19, 39], [19, 39]))


@pytest.mark.parametrize("done", ["done", "dones"])
@pytest.mark.parametrize("limit", ["timeouts", "truncated", "TimeLimit.truncated"])
def test_done_is_no_termination_at_a_time_limit(done: str, limit: str, rldata: Rldata, tmp_path: Path) -> None:
    path = other_parquet(tmp_path / "x.parquet", next_obs=AFTER, **{done: DONE, limit: LIMIT})
    found, _ = imported(path, tmp_path / "in", rldata)
    assert [(x.steps, x.terminated, x.truncated) for x in found] == [
        (10, True, False), (10, False, True), (20, False, True)
    ]  # fmt: skip


def test_done_alone_does_not_say_which_ends_are_time_limits(rldata: Rldata, tmp_path: Path) -> None:
    _, said = imported(other_parquet(tmp_path / "x.parquet", next_obs=AFTER, dones=DONE), tmp_path / "in", rldata)
    assert "the file does not say which of these ends are time limits" in said
    path = other_parquet(tmp_path / "y.parquet", next_obs=AFTER, terminated=DONE, truncated=LIMIT, done=DONE)
    found, said = imported(path, tmp_path / "other", rldata)
    assert "time limits" not in said
    assert [one.terminated for one in found] == [True] * 3  # as the file says


@pytest.mark.parametrize("name", ["episode", "episode_id", "episode_index"])
@pytest.mark.parametrize("kind", [int, str])
def test_episodes_of_another_program_end_where_their_number_changes(
    name: str, kind: type, rldata: Rldata, tmp_path: Path
) -> None:
    ids = [kind(t // 20) for t in range(40)]
    ends = {"terminated": [False] * 40, name: ids}
    found, _ = imported(other_parquet(tmp_path / "x.parquet", next_obs=AFTER, **ends), tmp_path / "in", rldata)
    assert [one.steps for one in found] == [20, 20]
    found, said = imported(other_parquet(tmp_path / "y.parquet", **ends), tmp_path / "other", rldata)
    assert [one.steps for one in found] == [19, 19]  # without the steps whose last observation is not there
    assert "joined" not in said


def test_what_does_not_say_where_episodes_end_has_a_note(rldata: Rldata, tmp_path: Path) -> None:
    words = "an episode that ends without a termination is joined with the next one"
    ends = DONE.copy()
    assert words in imported(other_parquet(tmp_path / "x.parquet", terminated=ends), tmp_path / "in", rldata)[1]
    file = d4rl_file(tmp_path / "x.hdf5", pendulum(), next_observations=None, timeouts=None)
    assert words in imported(file, tmp_path / "d4rl", rldata)[1]
    mixed = {"episode": [t % 2 for t in range(40)], "terminated": ends}
    said = imported(other_parquet(tmp_path / "y.parquet", next_obs=AFTER, **mixed), tmp_path / "other", rldata)[1]
    assert "numbers of episodes come back in later rows" in said


@pytest.mark.parametrize("name", ["x.npz", "x.hdf5", "x.parquet"])
@pytest.mark.parametrize("lacks", [0, 1, 2])
def test_an_export_says_which_extras_it_leaves_out(name: str, lacks: int, rldata: Rldata, tmp_path: Path) -> None:
    if name != "x.npz":
        pytest.importorskip("h5py" if name == "x.hdf5" else "pyarrow")
    spec = read_spec(resolve("Pendulum-v1", {}, folder="."), 0)
    extras = {"log_prob": np.zeros(20, np.float32), "value": np.ones(20, np.float32)}
    episodes = [replace(one, extras=extras) for one in pendulum()]
    episodes[lacks] = replace(episodes[lacks], extras={"value": extras["value"]})
    write(tmp_path / "rec", spec, episodes, {})
    said = rldata("export", tmp_path / "rec", tmp_path / name)
    assert said.startswith("log_prob is left out, because not all of the data has it in the same form")
    found, _ = imported(tmp_path / name, tmp_path / "in", rldata)
    assert [list(one.extras) for one in found] == [["value"]] * 3


def test_damaged_parquet_and_arrow(
    recordings: Callable[[str], Path], rldata: Rldata, refused: Rldata, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    source = recordings("CartPole-v1")
    rldata("export", source, tmp_path / "x.parquet")
    data = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(data[:-100])
    assert "is no parquet file" in refused("show", tmp_path / "cut.parquet")
    (tmp_path / "text.parquet").write_text("x")
    assert "is no parquet file" in refused("show", tmp_path / "text.parquet")
    table = parquet.read_table(tmp_path / "x.parquet")
    order = np.arange(len(table))
    order[[3, 4]] = 4, 3
    parquet.write_table(table.take(pa.array(order)), tmp_path / "mixed.parquet")
    assert "its rows are not in their order" in refused("show", tmp_path / "mixed.parquet")
    parquet.write_table(table.drop_columns(["rewards"]), tmp_path / "without.parquet")
    assert "it has no column rewards" in refused("show", tmp_path / "without.parquet")
    monkeypatch.setattr(foreign, "free_memory", lambda: 1000)
    assert "does not fit into memory" in refused("show", tmp_path / "x.parquet")
    monkeypatch.undo()

    rldata("export", source, tmp_path / "set", "--format", "minari-arrow", "--env", "CartPole-v1")
    first = tmp_path / "set" / "data" / "0" / "part-0.arrow"
    first.write_bytes(first.read_bytes()[:200])
    assert "is no data set of Minari" in refused("show", tmp_path / "set")
    first.unlink()
    assert "there are 0 files of this episode" in refused("show", tmp_path / "set")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert 'pip install "rltrain[parquet]"' in refused("show", tmp_path / "x.parquet")


def d4rl_file(path: Path, episodes: list[Recorded], **changes: Any) -> Path:
    """A file as D4RL ships them: with the environment's actions only, perhaps without some arrays (None)."""
    h5py = pytest.importorskip("h5py")
    ends = np.cumsum([one.steps for one in episodes]) - 1
    count = int(ends[-1]) + 1
    arrays: dict[str, Any] = {
        "observations": np.concatenate([one.obs[0][:-1] for one in episodes]),
        "next_observations": np.concatenate([one.obs[0][1:] for one in episodes]),
        "actions": np.concatenate([one.action for one in episodes]) * np.float32(2),
        "rewards": np.concatenate([one.reward for one in episodes]),
        "terminals": np.zeros(count, bool),
        "timeouts": np.isin(np.arange(count), ends),
    }
    with h5py.File(path, "w") as file:
        for name, array in (arrays | changes).items():
            if array is not None:
                file[name] = array
    return path


def imported(path: Path, out: Path, rldata: Rldata) -> tuple[list[Recorded], str]:
    said = rldata("import", path, out, "--env", "Pendulum-v1")
    return list(episodes_of(Recording.open(out))), said


def test_actions_of_a_foreign_file_are_scaled_to_the_policys(rldata: Rldata, tmp_path: Path) -> None:
    episodes = pendulum()
    found, _ = imported(d4rl_file(tmp_path / "x.hdf5", episodes), tmp_path / "in", rldata)

    for one, other in zip(found, episodes, strict=True):
        np.testing.assert_allclose(one.action, other.action, rtol=1e-6)
        np.testing.assert_array_equal(one.obs[0], other.obs[0])


def test_without_next_observations_no_value_is_taken_from_the_next_episode(rldata: Rldata, tmp_path: Path) -> None:
    """D4RL's own trap: the row after a time limit belongs to another episode. The last step cannot be learnt from."""
    episodes = pendulum()
    file = d4rl_file(tmp_path / "x.hdf5", episodes, next_observations=None)
    found, said = imported(file, tmp_path / "in", rldata)

    assert "the last steps of 3 episodes without a termination are left out" in said
    for one, other in zip(found, episodes, strict=True):
        assert (one.steps, one.terminated, one.truncated) == (19, False, True)
        np.testing.assert_array_equal(one.obs[0], other.obs[0][:-1])


def test_a_termination_keeps_its_last_step_without_next_observations(rldata: Rldata, tmp_path: Path) -> None:
    episodes = pendulum()
    ends = np.isin(np.arange(60), [19, 39, 59])
    file = d4rl_file(tmp_path / "x.hdf5", episodes, next_observations=None, terminals=ends, timeouts=None)
    found, said = imported(file, tmp_path / "in", rldata)

    assert "left out" not in said
    assert [(one.steps, one.terminated, one.truncated) for one in found] == [(20, True, False)] * 3


def test_an_end_that_is_not_flagged_is_found_by_next_observations(rldata: Rldata, tmp_path: Path) -> None:
    file = d4rl_file(tmp_path / "x.hdf5", pendulum(), timeouts=None)
    found, _ = imported(file, tmp_path / "in", rldata)

    assert [(one.steps, one.terminated, one.truncated) for one in found] == [(20, False, False)] * 3


@pytest.mark.parametrize(
    ("kind", "shape", "low", "high", "start", "nvec"),
    [
        ("box", (2,), (-2.0, 0.5), (2.0, 3.0), (), ()),
        ("box", (1,), (-1.0,), (1.0,), (), ()),
        ("box", (2,), (-np.inf, 0.0), (np.inf, np.inf), (), ()),
        ("discrete", (), (), (), (3,), (4,)),
    ],
)
def test_the_policys_actions_are_the_inverse_of_the_environments(
    kind: Any, shape: Any, low: Any, high: Any, start: Any, nvec: Any
) -> None:
    spec = ActionSpec(kind, shape, nvec, low, high, start)
    rng = np.random.default_rng(0)
    own = rng.uniform(-1, 1, (50, *shape)).astype(np.float32) if kind == "box" else rng.integers(4, size=50)
    back = formats.policy_actions(np.asarray(action_reader(spec)(own)), spec)
    limits = np.where(np.isfinite(np.array(low)), -1.0, -np.inf) if kind == "box" else None
    wanted = own if limits is None else np.maximum(own, limits.astype(np.float32))

    np.testing.assert_allclose(back, wanted, atol=1e-6)
    assert back.dtype == own.dtype


def test_mistakes_have_one_line(
    recordings: Callable[[str], Path], rldata: Rldata, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = recordings("CartPole-v1")
    assert "no such file or folder" in rldata("show", tmp_path / "nowhere", status=2)
    assert "rldata has no 'shwo'; it has show, check" in rldata("shwo", source, status=2)
    assert "the name does not say the format" in rldata("export", source, tmp_path / "x.bin", status=2)
    assert "exists already" in rldata("export", source, source, status=2)
    (tmp_path / "x.npz").write_bytes(b"PK no zip")
    assert "is no npz file of rldata" in rldata("show", tmp_path / "x.npz", status=2)
    np.savez(tmp_path / "y.npz", a=np.array([{}], dtype=object))
    assert "is no npz file of rldata" in rldata("show", tmp_path / "y.npz", status=2)  # a pickle is not opened
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    assert 'pip install "rltrain[offline]"' in rldata("export", source, tmp_path / "x.hdf5", status=2)


def test_what_a_recording_cannot_hold_is_not_imported(rldata: Rldata, tmp_path: Path) -> None:
    episodes = pendulum()
    episodes[1].reward[3] = np.nan
    line = rldata("import", d4rl_file(tmp_path / "x.hdf5", episodes), tmp_path / "in", "--env", "Pendulum-v1", status=2)
    assert "rewards of 1 of 3 episodes (numbers 1) are NaN or infinite; nothing was imported" in line
    assert not (tmp_path / "in").exists()


def test_check_says_so_by_its_exit_status(recordings: Callable[[str], Path], rldata: Rldata, tmp_path: Path) -> None:
    source = recordings("CartPole-v1")
    assert "nothing is wrong" in rldata("check", source)
    assert json.loads(rldata("check", source, "--json")) == {"sound": True, "findings": []}
    episodes = list(episodes_of(Recording.open(source)))
    formats.write_npz(tmp_path / "twice.npz", [*episodes, *episodes], Recording.open(source).spec)
    assert rldata("check", tmp_path / "twice.npz", status=1).startswith("duplicates: ")
    shown = json.loads(rldata("show", source, "--json"))
    assert (shown["env"], shown["episodes"]) == ("CartPole-v1", len(episodes))
