"""Runs that learn from recorded data alone: what a step is, which data is drawn, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import rltrain
from rltrain import algorithms, cli
from rltrain.algorithms.offline.bc import BC
from rltrain.data.episodes import episodes_of, write
from rltrain.errors import CheckpointError, ConfigError
from rltrain.reporting.metrics import read
from rltrain.setup import offline
from rltrain.storage import checkpoint
from rltrain.storage.recording import Recording

QUIET: dict[str, Any] = {"workers": 0, "eval_every": 0, "checkpoint_every": 0, "preset": "none", "quiet": True}
BC_RUN: dict[str, Any] = {"algo": "bc", "env": "CartPole-v1", **QUIET, "widths": (8,), "batch": 16, "steps": 30}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CartPole, 3 streams, the last episode of each cut off."""
    folder = tmp_path_factory.mktemp("data")
    some = {"epochs": 1, "minibatches": 1, "widths": (8,), "streams": 3, "unroll": 16, "steps": 500}
    rltrain.train(algo="ppo", env="CartPole-v1", **QUIET, **some, out=str(folder), record=str(folder / "rec"))
    return folder / "rec"


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The batches that BC gets from here on."""
    real, batches = BC.update, []
    monkeypatch.setattr(
        BC, "update", lambda self, batch, progress: batches.append(batch) or real(self, batch, progress)
    )
    return batches


def rows_of(batches: list[Any]) -> set[tuple[float, ...]]:
    return {(*b.obs[i].tolist(), float(b.action[i])) for b in batches for i in range(len(b.obs))}


def test_a_step_is_an_update_whatever_the_number_of_streams_and_workers(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = drawn(monkeypatch)
    asked = {"eval_every": 10, "eval_episodes": 2, "checkpoint_every": 10}
    one = rltrain.train(**BC_RUN | asked, data=data, out=str(tmp_path))

    assert (one.steps, len(batches), {len(batch.obs) for batch in batches}) == (30, 30, {16})
    assert checkpoint.load(one.checkpoint).meta["version"] == 30
    assert [line["step"] for line in read(one.run) if "eval/return_mean" in line] == [10, 20, 30]
    other = rltrain.train(**BC_RUN | {"streams": 5, "workers": 2}, replay_from=data, out=str(tmp_path))
    assert (other.steps, other.fingerprint) == (30, one.fingerprint)


def test_all_of_the_data_is_drawn(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a setting for the size of the replay: the whole recording is in it, however large it is."""
    batches = drawn(monkeypatch)
    rltrain.train(**BC_RUN | {"steps": 400}, data=data, out=str(tmp_path))

    pieces = list(Recording.open(data).pieces())
    legal = {(*p.obs[t, b].tolist(), float(p.action[t, b])) for p in pieces for t, b in np.argwhere(p.valid)}
    assert rows_of(batches) == legal


def test_of_the_best_episodes_alone(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the complete episodes, those of highest return: found here episode by episode."""
    batches = drawn(monkeypatch)
    rltrain.train(**BC_RUN | {"steps": 100}, filter_top=0.1, data=data, out=str(tmp_path))

    (piece,) = Recording.open(data).pieces()
    episodes = []
    for b in range(3):
        rows: list[int] = []
        for t in range(piece.rows):
            rows = [t] if piece.first[t, b] else [*rows, t]
            if piece.terminated[t, b] or piece.truncated[t, b]:
                episodes.append((float(piece.reward[rows, b].sum()), b, rows))
    best = sorted(episodes, key=lambda episode: -episode[0])[: len(episodes) // 10]
    legal = {(*piece.obs[t, b].tolist(), float(piece.action[t, b])) for _, b, rows in best for t in rows}

    assert len(best) >= 1
    assert rows_of(batches) == legal


def test_the_best_share_of_no_complete_episode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "rec")
    some = {"steps": 20, "warmup": 30, "streams": 1}
    rltrain.train(algo="sac", env="Pendulum-v1", **QUIET | some | {"warmup": 10}, out=str(tmp_path), record=folder)
    argv = ["--algo", "bc", "--env", "Pendulum-v1", "--data", folder, "--out", str(tmp_path), "--workers", "0"]

    assert cli.main([*argv, "--filter-top", "10%", "--quiet"]) == 2
    assert "holds no complete episode; leave it out" in capsys.readouterr().err


def test_the_statistics_of_observations_are_those_of_the_data(data: Path, tmp_path: Path) -> None:
    result = rltrain.train(**BC_RUN, normalize_obs=True, data=data, out=str(tmp_path))

    policy = checkpoint.load(result.checkpoint).state["learner"]["parts"]["policy"]
    pieces = list(Recording.open(data).pieces())
    rows = np.concatenate([piece.obs[:-1][piece.valid] for piece in pieces]).astype(np.float64)
    np.testing.assert_allclose(policy["normalizer.shift0"], rows.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(policy["normalizer.scale0"], 1 / rows.std(0), rtol=1e-3)


ALONE = [name for name in algorithms.names() if getattr(algorithms.settings_class(name), "data_only", False)]


@pytest.mark.parametrize("algo", ALONE)
def test_without_data_there_is_one_line(algo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--algo", algo, "--env", "CartPole-v1", "--out", str(tmp_path / "runs")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{algo} learns from recorded data: add --data DIR" in line
    assert not (tmp_path / "runs").exists()


def test_data_is_another_name_of_replay_from(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the command line, in a file and as a keyword; also of algorithms that could act."""
    (tmp_path / "run.toml").write_text(f'algo = "dqn"\nenv = "CartPole-v1"\ndata = "{data}"\n')
    words = ["--algo", "dqn", "--env", "CartPole-v1"]
    configs = [cli.parse([*words, "--data", str(data)])[0], cli.parse([*words, "--replay-from", str(data)])[0]]
    configs.append(cli.parse(["--config", str(tmp_path / "run.toml")])[0])
    assert {config.replay_from for config in configs} == {str(data)}


def test_data_of_another_environment_and_actions_that_cannot_be_cloned(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--algo", "bc", "--data", str(data), "--out", str(tmp_path), "--workers", "0"]
    assert cli.main([*argv, "--env", "Acrobot-v1"]) == 2
    assert "was recorded on another CartPole-v1 than Acrobot-v1 is" in capsys.readouterr().err
    assert cli.main([*argv, "--env", "probe:multi-discrete"]) == 2
    line = capsys.readouterr().err
    assert "bc needs Box or Discrete actions" in line
    assert "Use" not in line  # no algorithm of recorded data learns them
    assert cli.main(["--algo", "td3_bc", *argv[2:], "--env", "CartPole-v1"]) == 2
    assert "has discrete actions. Use awac, bc, cql, implicit_q or marwil" in capsys.readouterr().err


def test_a_longer_run_continues_a_shorter_one(data: Path, tmp_path: Path) -> None:
    first = rltrain.train(**BC_RUN, data=data, out=str(tmp_path))
    second = rltrain.train(resume=first.run, steps=60, quiet=True)
    whole = rltrain.train(**BC_RUN | {"steps": 60}, data=data, out=str(tmp_path))

    assert (second.steps, second.fingerprint) == (60, whole.fingerprint)


# --- several recordings ---


@pytest.fixture(scope="module")
def other_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CartPole again, with another seed and one stream."""
    folder = tmp_path_factory.mktemp("other")
    some = {"epochs": 1, "minibatches": 1, "widths": (8,), "streams": 1, "unroll": 16, "steps": 200, "seed": 9}
    rltrain.train(algo="ppo", env="CartPole-v1", **QUIET, **some, out=str(folder), record=str(folder / "rec"))
    return folder / "rec"


def legal_rows(folder: Path) -> set[tuple[float, ...]]:
    pieces = list(Recording.open(folder).pieces())
    return {(*p.obs[t, b].tolist(), float(p.action[t, b])) for p in pieces for t, b in np.argwhere(p.valid)}


@pytest.mark.parametrize("shares", [None, (0.2, 0.8)])
def test_rows_of_several_recordings_are_drawn_by_their_shares(
    shares: tuple[float, float] | None, data: Path, other_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = drawn(monkeypatch)
    given: Any = [data, other_data] if shares is None else dict(zip((data, other_data), shares, strict=True))
    rltrain.train(**BC_RUN | {"steps": 200, "batch": 32}, data=given, out=str(tmp_path))
    first, second = legal_rows(data), legal_rows(other_data)
    drawn_rows = [(*b.obs[i].tolist(), float(b.action[i])) for b in batches for i in range(len(b.obs))]
    share = sum(row in second for row in drawn_rows) / len(drawn_rows)
    wanted = len(second) / (len(first) + len(second)) if shares is None else 0.8

    assert not first & second
    assert set(drawn_rows) <= first | second
    assert abs(share - wanted) < 5 * (0.25 / len(drawn_rows)) ** 0.5


def test_forms_of_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "lr=0.3", "x,y"):
        Path(name).mkdir()
    assert offline.data_sets("a") == [(Path("a"), None)]
    assert offline.data_sets("a, b") == [(Path("a"), None), (Path("b"), None)]
    assert offline.data_sets("a=0.7,b=3") == [(Path("a"), 0.7), (Path("b"), 3.0)]
    assert offline.data_sets("lr=0.3,a") == [(Path("lr=0.3"), None), (Path("a"), None)]
    assert offline.data_sets("x,y") == [(Path("x,y"), None)]
    wrong = {
        "a=0,b=1": "above 0",
        "a=nan,b=1": "above 0",
        "a=x,b=1": "above 0",
        "a=0.3,b": "to all folders",
        "a,,b": "no name",
    }
    for text, words in wrong.items():
        with pytest.raises(ConfigError, match=words):
            offline.data_sets(text)


@pytest.fixture(scope="module")
def memory_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random actions in a task that only a memory solves; and those of its episodes that ended well."""
    folder = tmp_path_factory.mktemp("memory")
    words = ["record", "random", str(folder / "all"), "--env", "probe:memory", "--episodes", "600"]
    assert cli.main_data(words) == 0
    assert cli.main_data(["filter", str(folder / "all"), str(folder / "good"), "--min-return", "0.5"]) == 0
    return folder


@pytest.mark.parametrize(
    "algo",
    ["cql", *(pytest.param(name, marks=pytest.mark.sweep) for name in ("bc", "implicit_q", "awac", "marwil"))],
)
def test_with_a_memory_a_task_is_solved_that_needs_one(algo: str, memory_data: Path, tmp_path: Path) -> None:
    """And not without: then the cue at the start of an episode is lost, and the mean return is 0."""
    data = memory_data / ("good" if algo == "bc" else "all")
    memory = {"memory_size": 16, "length": 10, "burn_in": 5}
    run = {**QUIET, "env": "probe:memory", "data": data, "widths": (32,), "lr": 3e-3, "batch": 16, "out": str(tmp_path)}
    run |= {"algo": algo, "steps": 400, "eval_every": 400, "eval_episodes": 50}
    solved = rltrain.train(**run, memory="gru", **memory)
    assert solved.eval_return == 1.0
    assert abs(rltrain.train(**run).eval_return or 0.0) < 0.5
    assert rltrain.evaluate(solved.run, episodes=20).return_mean == 1.0


def test_how_many_sequences_can_be_learned_from_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sequence begins at each step that so many others follow."""
    monkeypatch.chdir(tmp_path)
    assert cli.main_data("record random data --env CartPole-v1 --episodes 1 --seed 3".split()) == 0
    steps = Recording.open(tmp_path / "data").steps
    words = "--algo bc --env CartPole-v1 --data data --memory gru --steps 2 --workers 0 --preset none".split()
    assert steps > 12
    assert cli.main([*words, "--burn-in", "4", "--length", "6", "--eval-every", "0", "--widths", "4"]) == 0
    assert f"; {steps - 9} sequences of 10 steps can be learned from" in capsys.readouterr().out

    assert cli.main([*words, "--burn-in", "4", "--length", str(steps)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        f"no sequence of {steps + 4} steps (--burn-in 4 and --length {steps}) begins in it: it has no stream of so "
        "many steps. Ask for shorter sequences, or record more"
    )


REFUSED = {
    "--filter-top and --memory do not go together": [
        "--algo",
        "bc",
        "--filter-top",
        "10%",
        "--memory",
        "gru",
        "--data",
        "DATA",
    ],
    "--filter-top and several folders do not go together": ["--algo", "bc", "--filter-top", "10%"],
    "give shares to all folders, or to none": ["--algo", "bc", "--data", "DATA=0.3,DATA"],
    "several folders and priorities do not go together": ["--algo", "rainbow"],
    "is not a recording": ["--algo", "bc", "--data", "DATA,nowhere"],
    "bc would imitate its own actions": ["--algo", "bc", "--data", "DATA", "--then-online", "10"],
    "then_online must be less than steps, got 50 of 50": ["--algo", "cql", "--then-online", "50"],
    "then_online follows learning from recorded data": ["--algo", "dqn", "--no-data", "--then-online", "10"],
}


@pytest.mark.parametrize("words", REFUSED)
def test_mixtures_that_make_no_sense(
    words: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["--env", "CartPole-v1", "--steps", "50", "--workers", "0", "--quiet"]
    given = [word.replace("DATA", str(data)) for word in REFUSED[words] if word != "--no-data"]
    argv += given if "--data" in given or "--no-data" in REFUSED[words] else [*given, "--data", f"{data},{data}"]

    assert cli.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not list(tmp_path.glob("runs/*"))


SCORED = {"env": "CartPole-v1", "random": 20.0, "expert": 500.0}


@pytest.mark.parametrize(
    ("said", "more", "scored"),
    [
        pytest.param([SCORED, SCORED], {}, True, marks=pytest.mark.sweep),
        ([SCORED, SCORED | {"expert": 400.0}], {}, False),
        pytest.param([SCORED, None], {}, False, marks=pytest.mark.sweep),
        pytest.param([SCORED | {"env": "CartPole-v0"}], {}, False, marks=pytest.mark.sweep),
        pytest.param([SCORED], {"eval_env_args": {"max_episode_steps": 7}}, False, marks=pytest.mark.sweep),
        pytest.param([SCORED | {"env_args": {"max_episode_steps": 7}}], {}, False, marks=pytest.mark.sweep),
        ([SCORED | {"env_args": {"max_episode_steps": 7}}], {"env_args": {"max_episode_steps": 7}}, True),
    ],
)
def test_evaluations_are_scored_where_the_references_are_of_the_same_environment(
    said: list[Any], more: dict[str, Any], scored: bool, data: Path, tmp_path: Path
) -> None:
    source = Recording.open(data)
    folders = [tmp_path / str(number) for number in range(len(said))]
    for folder, reference in zip(folders, said, strict=True):
        write(folder, source.spec, episodes_of(source), {} if reference is None else {"reference": reference})
    asked = BC_RUN | {"eval_every": 30, "eval_episodes": 2} | more
    result = rltrain.train(**asked, data=folders, out=str(tmp_path))
    (line,) = [line for line in read(result.run) if "eval/return_mean" in line]

    assert ("eval/score" in line) == scored
    if scored:
        assert line["eval/score"] == pytest.approx(100 * (line["eval/return_mean"] - 20) / 480)


# --- then online ---


@pytest.mark.parametrize(
    "algo",
    [
        *(pytest.param(name, marks=() if name == "marwil" else pytest.mark.sweep) for name in ALONE if name != "bc"),
        pytest.param("sac", marks=pytest.mark.sweep),
        "dqn",
    ],
)
def test_a_run_continues_online(algo: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last steps are steps of the environment, whose rows are drawn beside those of the data."""
    env = {"td3_bc": "Pendulum-v1"}.get(algo, "CartPole-v1")
    if env != "CartPole-v1":
        data = tmp_path / "rec"
        some = {"epochs": 1, "minibatches": 1, "widths": (8,), "streams": 1, "unroll": 16, "steps": 100}
        rltrain.train(algo="ppo", env=env, **QUIET, **some, out=str(tmp_path), record=str(data))
    more = {"unroll": 1, "streams": 1, "warmup": 5, "capacity": 1000} if algo in ("sac", "dqn") else {}
    asked = {"steps": 90, "then_online": 50, "eval_every": 30, "eval_episodes": 1, "checkpoint_every": 30}
    run = {"algo": algo, "env": env, **QUIET, "widths": (8,), "batch": 16, **more, **asked}
    result = rltrain.train(**run, data=data, out=str(tmp_path))
    state = checkpoint.load(result.checkpoint).state

    assert result.steps == 90
    assert [line["step"] for line in read(result.run) if "eval/return_mean" in line] == [30, 60, 90]
    assert state["feed"]["steps"] == 90
    if algo not in ("sac", "dqn"):
        assert state["feed"]["updates"] == 90
    online = state["feed"]["replay"]["replays"][1]
    assert int(online["head"].sum()) >= 49
    if env == "CartPole-v1":
        assert result.episodes >= 1


def test_workers_do_not_change_a_run_that_continues_online(data: Path, tmp_path: Path) -> None:
    run = {"algo": "cql", "env": "CartPole-v1", **QUIET, "widths": (8,), "batch": 16, "steps": 40, "then_online": 24}
    one = rltrain.train(**run, streams=2, data=data, out=str(tmp_path))
    other = rltrain.train(**run | {"workers": 2}, streams=2, data=data, out=str(tmp_path))

    assert (one.steps, one.fingerprint) == (other.steps, other.fingerprint)


def test_more_steps_on_resume_are_online(data: Path, tmp_path: Path) -> None:
    """The step at which actors begin stays, also if the run has not reached it."""
    run = {"algo": "cql", "env": "CartPole-v1", **QUIET, "widths": (8,), "batch": 16, "steps": 40, "then_online": 10}
    run |= {"checkpoint_every": 20}
    whole = rltrain.train(**run, data=data, out=str(tmp_path))
    paused = rltrain.train(**run, data=data, out=str(tmp_path), pause_at=20)
    for first in (whole, paused):
        longer = rltrain.train(resume=first.run, steps=60, quiet=True)
        online = checkpoint.load(longer.checkpoint).state["feed"]["replay"]["replays"][-1]
        assert longer.steps == 60
        assert 30 <= int(online["head"].sum()) + 1 <= 35


GAMES = str(Path(__file__).parents[1] / "oracles" / "games.py")
BEST = {"ThreeAtOnce": 33.0, "ThreeInTurns": 24.0}  # the team's return if every action is 3


@pytest.fixture(scope="module")
def games(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Games of several agents, by name, as a policy played them that has learnt nothing."""
    folder = tmp_path_factory.mktemp("games")
    some = {"epochs": 1, "minibatches": 1, "widths": (4,), "streams": 4, "unroll": 16, "lr": 1e-9, "gamma": 0.9}
    for name in BEST:
        run = {"env": f"{GAMES}:{name}", **QUIET, **some, "steps": 2000, "out": str(folder)}
        rltrain.train(algo="ppo", **run, record=str(folder / name))
    return folder


SEVERAL: dict[str, Any] = {**QUIET, "widths": (32,), "batch": 64, "lr": 3e-3, "steps": 300, "eval_every": 300}


@pytest.mark.parametrize(
    ("algo", "game"),
    [
        ("cql", "ThreeAtOnce"),
        ("marwil", "ThreeInTurns"),
        *(
            pytest.param(algo, game, marks=pytest.mark.sweep)
            for game in BEST
            for algo in ("cql", "awac", "implicit_q", "marwil")
            if (algo, game) not in (("cql", "ThreeAtOnce"), ("marwil", "ThreeInTurns"))
        ),
    ],
)
def test_several_agents_learn_from_what_was_recorded(algo: str, game: str, games: Path, tmp_path: Path) -> None:
    """Random actions have 1.5 of 3; the best actions are found from these."""
    some = {"lr_q": 3e-3, "conservative": 0.1} if algo == "cql" else {"advantage_factor": 8.0}
    run = {"algo": algo, "env": f"{GAMES}:{game}", **SEVERAL, **some, "gamma": 0.5, "data": games / game}
    result = rltrain.train(**run, out=str(tmp_path), eval_episodes=5)

    assert result.eval_return > 0.9 * BEST[game]
    assert rltrain.evaluate(result.run, episodes=5).return_mean == pytest.approx(result.eval_return, rel=0.05)


@pytest.mark.parametrize("game", BEST)
def test_of_several_agents_the_best_games_are_imitated(game: str, games: Path, tmp_path: Path) -> None:
    run = {"algo": "bc", "env": f"{GAMES}:{game}", **SEVERAL, "data": games / game, "eval_episodes": 5}
    best = rltrain.train(**run, out=str(tmp_path), filter_top=0.02)

    assert best.eval_return > 0.65 * BEST[game]  # the data has half of it


@pytest.mark.parametrize(
    ("game", "pause", "settings"),
    [
        ("ThreeAtOnce", 40, {"memory": "gru", "memory_size": 8, "length": 4, "burn_in": 2}),
        ("ThreeInTurns", 10, {}),
        *(pytest.param("ThreeAtOnce", pause, {}, marks=pytest.mark.sweep) for pause in (10, 40)),
    ],
)
def test_several_agents_continue_online_with_the_same_bits(
    game: str, pause: int, settings: dict[str, Any], games: Path, tmp_path: Path
) -> None:
    """For any number of workers, and through a pause before or after the switch."""
    run = {"algo": "cql", "env": f"{GAMES}:{game}", **QUIET, "widths": (8,), "batch": 16, "steps": 60, **settings}
    run |= {"streams": 2, "then_online": 40, "checkpoint_every": 10, "data": games / game, "out": str(tmp_path)}
    whole = rltrain.train(**run)
    workers = rltrain.train(**run | {"workers": 2})
    resumed = rltrain.train(resume=rltrain.train(**run, pause_at=pause).run, quiet=True)

    assert workers.fingerprint == resumed.fingerprint == whole.fingerprint
    (group,) = checkpoint.load(whole.checkpoint).state["feed"]["replay"]["groups"]
    assert int(group["replays"][-1]["head"].sum()) >= 30


def test_learners_share_the_updates_of_several_agents(games: Path, tmp_path: Path) -> None:
    run = {"algo": "implicit_q", "env": f"{GAMES}:ThreeAtOnce", **QUIET, "widths": (8,), "batch": 32, "steps": 20}
    one = rltrain.train(**run, data=games / "ThreeAtOnce", out=str(tmp_path))
    two = rltrain.train(**run, data=games / "ThreeAtOnce", out=str(tmp_path), learners=2)
    first, second = (checkpoint.load(result.checkpoint).state["learner"]["parts"]["policy"] for result in (one, two))

    assert one.fingerprint != two.fingerprint  # sums in another order
    for name in first:
        np.testing.assert_allclose(first[name], second[name], atol=2e-5, err_msg=name)


def test_several_data_sets_of_several_agents(games: Path, tmp_path: Path) -> None:
    run = {"algo": "cql", "env": f"{GAMES}:ThreeAtOnce", **QUIET, "widths": (8,), "batch": 16, "steps": 10}
    (tmp_path / "again").symlink_to(games / "ThreeAtOnce")
    shares = {games / "ThreeAtOnce": 0.25, tmp_path / "again": 0.75}
    result = rltrain.train(**run, data=shares, out=str(tmp_path))

    (group,) = checkpoint.load(result.checkpoint).state["feed"]["replay"]["groups"]
    assert len(group["replays"]) == 2


def test_data_of_agents_that_shared_otherwise_is_one_line(
    games: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--algo", "bc", "--env", f"{GAMES}:ThreeAtOnce", "--data", str(games / "ThreeAtOnce"), "--steps", "5"]

    assert cli.main([*words, "--share", "none", "--workers", "0"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        "was recorded with another --share: (a_0, a_1, a_2) share a policy there, and (a_0) and (a_1) and (a_2) here; "
        "give the --share of the recording"
    )


def test_samples_of_whole_episodes_are_not_mixed(
    games: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = games / "ThreeAtOnce"
    words = ["--algo", "iql", "--env", f"{GAMES}:ThreeAtOnce", "--data", f"{data},{data}", "--steps", "50"]

    assert cli.main([*words, "--memory", "gru", "--workers", "0", "--batch", "2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        "--data: several folders and samples of whole episodes, which the memory here needs, do not go together"
    )


def test_agents_with_other_spaces_are_not_called_another_share(games: Path) -> None:
    recording = Recording.open(games / "ThreeAtOnce")
    (group,) = recording.spec.groups
    wide = dataclasses.replace(group, obs=dataclasses.replace(group.obs, shape=(7,)), agents=group.agents[:2])
    last = dataclasses.replace(group, name="last", agents=group.agents[2:])

    with pytest.raises(CheckpointError, match="was recorded on another"):
        Recording.open(games / "ThreeAtOnce", dataclasses.replace(recording.spec, groups=(wide, last)))


@pytest.mark.parametrize("algo", ["bc", "marwil", "td3_bc", "cql", "implicit_q", "awac"])
def test_an_action_without_dimensions_can_be_learned(algo: str, tmp_path: Path) -> None:
    few = {**QUIET, "widths": (8,), "env": NoAxis, "out": str(tmp_path)}
    rltrain.train(algo="ppo", **few, streams=2, unroll=16, steps=64, record=str(tmp_path / "rec"))

    assert rltrain.train(algo=algo, **few, batch=8, steps=5, data=tmp_path / "rec").steps == 5


class NoAxis(gymnasium.Env[Any, Any]):
    """Its action is one number."""

    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 2, (), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.left = 9
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        self.left -= 1
        return self.observation_space.sample(), float(action), self.left == 0, False, {}
