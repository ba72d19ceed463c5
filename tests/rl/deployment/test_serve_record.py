"""`rlserve --record`: what clients ask and get becomes a recording that a run learns from."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from oracles.games import ThreeInTurns
from oracles.walk import Walk
from rl_policies import AGENTS, agents_spec, save, saved, spec_of
from rl_server import Client, app_of, ask, counted, plain, with_client

import rltrain
from rltrain.deployment.export.observations import random_observations
from rltrain.deployment.server.recording import Episodes, Writer, policy_units
from rltrain.deployment.server.requests import Outcome, Row, numbers_of
from rltrain.deployment.server.schema import openapi
from rltrain.envs.problems.games import TicTacToe, two_step
from rltrain.envs.spaces import action_reader, env_spec
from rltrain.errors import ConfigError, RunFailed
from rltrain.rollout.tree import leaves, tree_map
from rltrain.rollout.types import Trajectory
from rltrain.storage.recording import Recording


def checkpoint_of(env: Any, factory: pytest.TempPathFactory) -> Path:
    """PPO after one round."""
    result = rltrain.train(algo="ppo", env=env, workers=0, streams=4, unroll=16, steps=64, widths=(8,), eval_every=0,
                           preset="none", quiet=True, out=str(factory.mktemp("runs")))  # fmt: skip
    return Path(result.checkpoint)


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint_of("CartPole-v1", tmp_path_factory)


@pytest.fixture(scope="module")
def tic_tac_toe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint_of("tic-tac-toe", tmp_path_factory)


@pytest.fixture(scope="module")
def three_in_turns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint_of(ThreeInTurns, tmp_path_factory)


def test_cartpole_over_http_is_recorded_and_learned_from(cartpole: Path, tmp_path: Path) -> None:
    """Every observation, action, reward, end and log-probability; then a run learns from the recording."""
    env, folder = gymnasium.make("CartPole-v1", max_episode_steps=20), tmp_path / "recording"
    played: list[dict[str, list[Any]]] = []
    with rltrain.serve(cartpole, sample=True, record=folder) as served:
        for number in range(6):
            obs, _ = env.reset(seed=number)
            episode: dict[str, list[Any]] = {key: [] for key in ("obs", "action", "log_prob", "reward", "end")}
            question: dict[str, Any] = {"first": True}
            played.append(episode)
            while True:
                episode["obs"].append(obs)
                answer = ask(served.url, obs=obs.tolist(), episode=f"client {number % 2}", **question)
                assert answer["recorded"] is True
                if answer["action"] is None:
                    break
                obs, reward, terminated, truncated, _ = env.step(answer["action"])
                question = {"reward": float(reward), "terminated": terminated, "truncated": truncated}
                for key, value in zip(
                    ("action", "log_prob", "reward", "end"),
                    (answer["action"], answer["log_prob"], reward, (terminated, truncated)),
                    strict=True,
                ):
                    episode[key].append(value)
    pieces = list(Recording.open(folder).pieces())
    assert len(pieces) == 6
    for piece, episode in zip(pieces, played, strict=True):
        np.testing.assert_array_equal(piece.obs[:, 0], np.array(episode["obs"], np.float32))
        np.testing.assert_array_equal(piece.action[:, 0], episode["action"])
        np.testing.assert_array_equal(piece.extras["log_prob"][:, 0], np.array(episode["log_prob"], np.float32))
        np.testing.assert_array_equal(piece.reward[:, 0], episode["reward"])
        assert [(bool(a), bool(b)) for a, b in zip(piece.terminated, piece.truncated, strict=True)] == episode["end"]
        assert piece.first[:, 0].tolist() == [True] + [False] * len(episode["action"])
        assert piece.episodes == ((sum(episode["reward"]), len(episode["action"]), (), 0, -1, {}, ()),)
    result = rltrain.train(
        algo="dqn", env="CartPole-v1", replay_from=str(folder), steps=40, batch=8, widths=(8,), workers=0,
        eval_every=0, preset="none", quiet=True, out=str(tmp_path / "runs"),
    )  # fmt: skip
    assert result.steps >= 40


EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "simulator.py"


def test_the_example_asks_from_another_process(cartpole: Path, tmp_path: Path) -> None:
    """docs/examples/simulator.py, without rltrain; its physics is that of CartPole-v1; its episodes are recorded."""
    with rltrain.serve(cartpole, record=tmp_path / "recording") as served:
        command = [sys.executable, "-I", str(EXAMPLE), "--url", served.url, "--episodes", "3", "--seed", "5"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    pieces = list(Recording.open(tmp_path / "recording").pieces())
    returns = [piece.episodes[0].ret for piece in pieces]
    assert json.loads(done.stdout) == {"episodes": 3, "mean_return": pytest.approx(sum(returns) / 3)}
    env = gymnasium.make("CartPole-v1").unwrapped
    for piece in pieces:
        env.reset()
        env.state = tuple(piece.obs[0, 0].tolist())  # type: ignore[attr-defined]
        for t in range(piece.rows):
            obs, _, terminated, _, _ = env.step(int(piece.action[t, 0]))
            np.testing.assert_allclose(obs, piece.obs[t + 1, 0], atol=1e-4)
            assert terminated == piece.terminated[t, 0]


def test_the_example_serves_learns_and_serves_the_result(tmp_path: Path) -> None:
    """docs/examples/serve_learn_serve.py, with few updates: what was recorded is what the clients got."""
    words = ["--folder", str(tmp_path), "--steps", "200", "--episodes", "12", "--updates", "20"]
    done = subprocess.run(
        [sys.executable, str(EXAMPLE.with_name("serve_learn_serve.py")), *words], capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    returns = [piece.episodes[0].ret for piece in Recording.open(tmp_path / "recording").pieces()]
    assert len(returns) == 12
    assert result["recorded"] == pytest.approx(np.mean(returns))
    assert 1 <= result["learned"] <= 500
    assert [run.name.partition("-")[0] for run in sorted((tmp_path / "runs").iterdir())] == ["cql", "ppo"]


CASES = "ppo-discrete ppo-dict-gru ppo-images ppo-binary ppo-box-lstm ppo-whole ppo-one-sided sac"


@pytest.mark.parametrize("name", CASES.split())
def test_every_kind_of_space_is_recorded(name: str, tmp_path: Path) -> None:
    """Two episodes at a time: counts from 0, masks, actions of the policy whose scaled values were the answers."""
    app = app_of(saved(tmp_path, name), sample=True, record=tmp_path / "recording")
    assert app.episodes is not None
    spec = app.episodes.spec
    seen = random_observations(spec, 12, 0)
    answers: dict[str, list[Any]] = {"a": [], "b": []}

    async def work(client: Client) -> None:
        for t in range(12):
            session = "ab"[t % 2]
            obs = counted(spec, tree_map(lambda array, t=t: array[t], seen.obs))
            mask = {} if seen.mask is None else {"action_mask": plain(seen.mask[t])}
            told = {"reward": t / 4, "truncated": t > 9} if t > 1 else {"first": True}
            answer = await client.act(obs=plain(obs), session=session, **mask, **told)
            assert answer["recorded"] is True
            answers[session].append(answer)

    with_client(app, work)
    for number, (session, piece) in enumerate(zip("ab", app.episodes.take(), strict=True)):
        for leaf, array in zip(leaves(seen.obs), leaves(piece.obs), strict=True):
            np.testing.assert_array_equal(array[:, 0], leaf[number::2])
        assert piece.reward[:, 0].tolist() == [t / 4 for t in range(number + 2, 12, 2)]
        assert piece.truncated[:, 0].tolist() == [False] * 4 + [True]
        assert answers[session][-1]["action"] is None
        wanted = [answer["action"] for answer in answers[session][:-1]]
        scaled = np.stack(list(action_reader(spec.action)(piece.action[:, 0])))
        np.testing.assert_allclose(scaled, np.array(wanted), rtol=1e-6, atol=1e-6)
        assert piece.action.dtype == spec.action.dtype
        log_prob = [answer["log_prob"] for answer in answers[session][:-1]]
        np.testing.assert_allclose(piece.extras["log_prob"][:, 0], log_prob)
        if seen.mask is not None:
            assert piece.action_mask is not None
            np.testing.assert_array_equal(piece.action_mask[:, 0], seen.mask[number::2])


def test_several_agents_leave_and_are_recorded(tmp_path: Path) -> None:
    """An agent that ends, and one that is missing, are not alive from then on; the answers leave them out."""
    app = app_of(saved(tmp_path, "ippo"), record=tmp_path / "recording")
    one, dictionary = [0.1, 0.2, 0.3], {"a": [0, 0, 0], "b": 2, "c": [0, 0, 0], "d": [0, 0]}

    async def work(client: Client) -> None:
        ask = {"obs": {"a": one, "b": one, "c": dictionary}, "episode": "x"}
        assert set((await client.act(**ask, first=True))["action"]) == {"a", "b", "c"}
        told = {"reward": {"a": 1, "b": -2.5}, "terminated": {"a": True}}
        assert set((await client.act(**ask, **told))["action"]) == {"b", "c"}
        assert set((await client.act(obs={"c": dictionary}, episode="x", reward={"c": 3}))["action"]) == {"c"}
        last = await client.act(obs={"c": dictionary}, episode="x", reward={"c": 4}, truncated=True)
        assert (last["action"], last["recorded"]) == (None, True)
        wrong = await client.act(400, **ask, reward={"a": 1, "z": 2})
        assert wrong["error"]["field"] == "reward.z"

    with_client(app, work)
    assert app.episodes is not None
    (piece,) = app.episodes.take()
    assert piece.alive[:, 0].tolist() == [[True] * 3, [False, True, True], [False, False, True], [False] * 3]
    assert piece.reward[:, 0].tolist() == [[1, -2.5, 0], [0, 0, 3], [0, 0, 4]]
    assert piece.terminated[:, 0].tolist() == [[True, False, False], [False, True, False], [False] * 3]
    assert piece.truncated[:, 0].tolist() == [[False] * 3, [False] * 3, [False, False, True]]
    assert piece.episodes == ((5.5, 3, (1.0, -2.5, 7.0), 0, -1, {}, ()),)


def test_wrong_results_are_refused(cartpole: Path, tmp_path: Path) -> None:
    """The result of an action belongs to an episode, comes with one observation, and is a number."""
    app, obs = app_of(cartpole, record=tmp_path / "recording"), [0, 0, 0, 0]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"obs": obs, "reward": 1}, "episode"),
        ({"obs": obs, "terminated": True}, "episode"),
        ({"obs": obs, "episode": "x", "first": True, "reward": 1}, "reward"),
        ({"obs": obs, "episode": "x", "first": True, "truncated": True}, "truncated"),
        ({"obs": obs, "episode": "x", "reward": 1e39}, "reward"),
        ({"obs": obs, "episode": "x", "reward": "1"}, "reward"),
        ({"obs": obs, "episode": "x", "terminated": 1}, "terminated"),
        ({"obs": obs, "episode": ""}, "episode"),
        ({"obs": obs, "episode": "x" * 129}, "episode"),
        ({"batch": [obs], "episode": "x"}, "episode"),
    ]

    async def work(client: Client) -> None:
        for request, field in cases:
            error = (await client.act(400, **request))["error"]
            assert error["field"] == field, (request, error)
        assert "recorded" not in await client.act(obs=obs)

    with_client(app, work)
    assert app.episodes is not None
    assert len(app.episodes) == 0


def test_an_end_gets_no_action_also_without_a_recording(cartpole: Path) -> None:
    app = app_of(cartpole)

    async def work(client: Client) -> None:
        answer = await client.act(obs=[0, 0, 0, 0], episode="x", reward=1, terminated=True, id=7)
        assert answer | {"step": 0} == {"action": None, "policy": "policy", "step": 0, "id": 7}

    with_client(app, work)


def episodes_of(most: int = 10, seconds: float = 10.0) -> Episodes:
    box = gymnasium.spaces.Box(-np.inf, np.inf, (4,))
    return Episodes(env_spec("four numbers", box, gymnasium.spaces.Discrete(2), None), most, seconds)


def note(episodes: Episodes, name: str, number: int, first: bool = False, reward: float | None = 1.0, end: bool = False,
         now: float = 0.0) -> bool:  # fmt: skip
    row = Row([np.full(4, number, np.float32)], None, None, ())
    told = None if first else Outcome(None if reward is None else np.array(reward, np.float32), np.array(end),
                                      np.array(False), end)  # fmt: skip
    action = None if end else np.array([number % 2])
    return episodes.note(name, first, row, told, action, None, 3, now)


def test_an_episode_without_a_reward_is_cut_and_goes_on(tmp_path: Path) -> None:
    """What was recorded stays; a replay bootstraps at the cut, and no row leads over it."""
    episodes = episodes_of()
    assert note(episodes, "x", 0, first=True)
    assert note(episodes, "x", 1)
    assert not note(episodes, "x", 2, reward=None)
    assert note(episodes, "x", 3)
    assert note(episodes, "x", 4, end=True)
    assert not note(episodes, "x", 5, end=True)
    pieces = episodes.take()
    assert [piece.obs[:, 0, 0].tolist() for piece in pieces] == [[0, 1], [2, 3, 4]]
    assert [piece.first[0, 0] for piece in pieces] == [True, False]
    assert [piece.episodes for piece in pieces] == [(), ()]
    assert np.isnan(pieces[0].extras["log_prob"]).all()
    writer = Writer(tmp_path, episodes.spec, {})
    writer.write(pieces)
    writer.close()
    assert [int(piece.row[0]) for piece in Recording.open(tmp_path).pieces()] == [0, 2]


def test_open_episodes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """In number, in time and in bytes; a long one is delivered in parts that follow each other."""
    episodes = episodes_of(most=2, seconds=5.0)
    for number in range(4):
        note(episodes, str(number), 0, first=True)
        note(episodes, str(number), 1, now=float(number))
    assert len(episodes) == 2
    episodes.purge(8.0)
    assert len(episodes) == 0
    assert len(episodes.take()) == 4
    monkeypatch.setattr("rltrain.deployment.server.recording.PART_BYTES", 5000)
    note(episodes, "x", 0, first=True)
    for number in range(1, 30):
        note(episodes, "x", number)
    note(episodes, "x", 30, end=True)
    parts = episodes.take()
    assert len(parts) > 2
    assert [int(part.row[0]) for part in parts] == np.cumsum([0, *(part.rows for part in parts[:-1])]).tolist()
    joined = np.concatenate([part.obs[:-1, 0, 0] for part in parts])
    assert joined.tolist() == list(range(30))
    assert [bool(part.first[0, 0]) for part in parts] == [True] + [False] * (len(parts) - 1)
    assert parts[-1].episodes[0].length == 30


def test_a_server_continues_a_recording_of_an_earlier_one(cartpole: Path, tmp_path: Path) -> None:
    """Rows count on. Another recording, other spaces and a second server are one line."""
    folder = tmp_path / "recording"
    for server in range(2):
        with rltrain.serve(cartpole, record=folder) as served:
            with pytest.raises(ConfigError, match="another server writes into it"):
                rltrain.serve(cartpole, record=folder)
            for t in range(4):
                told = {"reward": 1, "terminated": t == 3} if t else {"first": True}
                assert ask(served.url, obs=[server, t, 0, 0], episode="x", **told)["recorded"]
    pieces = list(Recording.open(folder).pieces())
    assert [piece.obs[:, 0, :2].tolist() for piece in pieces] == [[[s, t] for t in range(4)] for s in range(2)]
    assert int(pieces[1].row[0]) >= 3
    with pytest.raises(ConfigError, match="other spaces"):
        rltrain.serve(saved(tmp_path, "sac"), best=True, record=folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "note").write_text("")
    with pytest.raises(ConfigError, match="something else: note"):
        rltrain.serve(cartpole, record=tmp_path / "other")
    with pytest.raises(ConfigError, match="--record"):
        rltrain.serve(cartpole, record=tmp_path / "other" / "note")


def test_a_full_disk_is_one_line_and_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                    capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    """What it did not take is written when there is space again; at the end it is an error."""
    episodes = episodes_of()
    writer = Writer(tmp_path, episodes.spec, {})

    def episode(number: int) -> list[Trajectory]:
        note(episodes, "x", number, first=True)
        note(episodes, "x", number, end=True)
        return episodes.take()

    def full(*_: Any) -> None:
        raise RunFailed("unrolls-000000.safetensors cannot be written: no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("rltrain.storage.files.replace_file", full)
        patch.setattr("rltrain.deployment.server.recording.FLUSH_SECONDS", -1.0)
        for number in range(3):
            writer.write(episode(number))
        assert capsys.readouterr().err.count("no space left on device; it is tried again") == 1
        with pytest.raises(RunFailed, match="no space left"):
            writer.flush()
    writer.write(episode(3))
    writer.close()
    assert [piece.obs[0, 0, 0] for piece in Recording.open(tmp_path).pieces()] == [0, 1, 2, 3]


def test_units_of_the_policy_are_the_inverse_of_those_of_the_environment() -> None:
    for name in ("ppo-box-lstm", "ppo-whole", "ppo-one-sided", "ppo-discrete", "ppo-binary"):
        spec = spec_of(name)
        rng = np.random.default_rng(0)
        if spec.action.kind == "box":
            chosen: Any = rng.uniform(-1.2, 1.2, (50, *spec.action.shape)).astype(np.float32)
        else:
            chosen = rng.integers(0, spec.action.nvec or 2, (50, *spec.action.shape))
        taken = np.stack(list(action_reader(spec.action)(chosen)))
        again = np.stack([policy_units(spec)(one) for one in taken])
        np.testing.assert_allclose(np.stack(list(action_reader(spec.action)(again))), taken, rtol=1e-6, atol=1e-6)


def require_rows_of_run(piece: Trajectory, walk: Walk) -> None:
    """Check that an episode over HTTP has the rows that an actor stores."""
    rows, length = walk.rows, walk.t
    for name in ("reward", "terminated", "truncated"):
        np.testing.assert_array_equal(getattr(piece, name)[:, 0], getattr(rows, name)[:length, 0])
    for name in ("alive", "acting"):
        np.testing.assert_array_equal(getattr(piece, name)[:, 0], getattr(rows, name)[: length + 1, 0])
    for ours, theirs in zip(leaves(piece.obs), leaves(rows.obs), strict=True):
        np.testing.assert_array_equal(ours[:, 0], theirs[: length + 1, 0])
    there = rows.alive[: length + 1, 0].copy()
    there[1:] |= rows.truncated[:length, 0]  # they bootstrap from this observation
    size = walk.spec.action.mask_size // len(walk.spec.agents)
    assert piece.action_mask is not None
    masks = [array[: length + 1, 0].reshape(length + 1, -1, size) for array in (piece.action_mask, rows.action_mask)]
    np.testing.assert_array_equal(masks[0][there], masks[1][there])


def test_a_game_in_turns_is_recorded_and_learned_from(tic_tac_toe: Path, tmp_path: Path) -> None:
    """A client that plays through PettingZoo's own interface records the rows that a run records."""
    game, folder = TicTacToe(), tmp_path / "recording"
    walk, step = Walk("tic-tac-toe"), 0
    with rltrain.serve(tic_tac_toe, sample=True, record=folder) as served:
        game.reset()
        told: dict[str, Any] = {"first": True}
        log_probs = []
        while True:
            over, agent = all(game.terminations.values()), game.agent_selection
            views = {name: game.observe(name) for name in game.possible_agents}
            request: dict[str, Any] = {"obs": {name: view["observation"].tolist() for name, view in views.items()}}
            if not over:
                request |= {"turn": agent, "action_mask": {agent: views[agent]["action_mask"].tolist()}}
            answer = ask(served.url, episode="x", seed=step, **request, **told)
            assert answer["recorded"] is True
            if over:
                assert answer["action"] is None
                break
            assert set(answer["action"]) == {agent}
            cell = answer["action"][agent]
            log_probs.append(answer["log_prob"])
            walk.step(*((cell, 0) if agent == "player_0" else (0, cell)))
            game.step(cell)
            step += 1
            told = {"reward": game.rewards, "terminated": game.terminations}
    (piece,) = list(Recording.open(folder).pieces())
    require_rows_of_run(piece, walk)
    np.testing.assert_allclose(piece.extras["log_prob"][:, 0], log_probs)
    for t in range(step):
        assert piece.action[t, 0, 1 - t % 2] == piece.extras["log_prob"][t, 0, 1 - t % 2] == 0
        assert piece.extras["log_prob"][t, 0, t % 2] < 0 or t == 8  # one cell is left
    assert piece.episodes[0].length == step
    for algo in ("iql", "vdn"):
        result = rltrain.train(
            algo=algo, env="tic-tac-toe", replay_from=str(folder), steps=16, workers=0, streams=1, eval_every=0,
            widths=(8,), preset="none", quiet=True, out=str(tmp_path / "runs"),
        )  # fmt: skip
        assert result.steps >= 16


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("late", [False, True])
def test_the_documented_client_of_a_game_in_turns_is_recorded(
    late: bool, parts: bool, three_in_turns: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program in docs/serving.md, as printed. An agent dies or is out of time in the middle."""
    text = (EXAMPLE.parents[1] / "serving.md").read_text()
    (program,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "agent_selection" in block]
    if parts:
        monkeypatch.setattr("rltrain.deployment.server.recording.PART_BYTES", 1500)
    cut: list[Any] = []
    part = Episodes._part
    monkeypatch.setattr(Episodes, "_part", lambda self, episode: (cut.append(episode), part(self, episode)))
    actions: list[dict[str, int]] = []
    with rltrain.serve(three_in_turns, sample=True, record=tmp_path / "recording") as served:

        def asks(**request: Any) -> Any:
            answer = ask(served.url, **request)
            assert answer["recorded"] is True
            actions.append(answer["action"])
            return answer

        exec(program, {"game": ThreeInTurns(late), "ask": asks})
    walk = Walk(lambda: ThreeInTurns(late))
    for chosen in actions[:-1]:
        walk.step(*(chosen.get(agent, 0) for agent in walk.spec.agents))
    (piece,) = list(Recording.open(tmp_path / "recording").pieces())
    assert bool(cut) is parts
    require_rows_of_run(piece, walk)
    (episode,) = piece.episodes
    assert (episode.ret, episode.length) == (walk.rows.reward[: walk.t, 0].sum(), walk.t)


def test_a_global_state_is_recorded_and_learned_from(tmp_path: Path) -> None:
    """MatrixGame has a state; QMIX, whose mixer needs it, learns from what clients sent."""
    run = rltrain.train(
        algo="qmix", env="two-step", workers=0, steps=64, warmup=32, batch=8, widths=(8,), eval_every=0,
        preset="none", quiet=True, out=str(tmp_path / "runs"),
    )  # fmt: skip
    folder, states = tmp_path / "recording", []
    with rltrain.serve(run.checkpoint, sample=True, record=folder) as served:
        for number in range(4):
            game = two_step()
            obs, _ = game.reset()
            told: dict[str, Any] = {"first": True}
            while True:
                states.append(game.state())
                request = {"obs": plain(obs), "state": plain(states[-1]), "episode": f"game {number}", **told}
                answer = ask(served.url, **request)
                assert answer["recorded"] is True
                if answer["action"] is None:
                    break
                obs, reward, terminated, truncated, _ = game.step(answer["action"])
                told = {"reward": reward, "terminated": terminated, "truncated": truncated}
    pieces = list(Recording.open(folder).pieces())
    assert len(pieces) == 4
    np.testing.assert_array_equal(np.concatenate([piece.state[:, 0] for piece in pieces]), states)
    result = rltrain.train(
        algo="qmix", env="two-step", replay_from=str(folder), steps=16, workers=0, streams=1, eval_every=0,
        widths=(8,), preset="none", quiet=True, out=str(tmp_path / "runs"),
    )  # fmt: skip
    assert result.steps >= 16


def test_a_recording_needs_the_turn_and_the_state(tic_tac_toe: Path, tmp_path: Path) -> None:
    """They are asked for where episodes are recorded, and only there; wrong ones are refused everywhere."""
    board = np.zeros((3, 9)).tolist()
    both = {"obs": {"player_0": board, "player_1": board}}
    one = {"obs": {"player_1": board}}

    async def turns(client: Client, recorded: bool) -> None:
        needs = 400 if recorded else 200
        found = await client.act(needs, **both, episode="x", first=True)
        assert not recorded or found["error"]["field"] == "turn"
        found = await client.act(needs, **both, session="x", first=True)
        assert not recorded or found["error"]["field"] == "turn"
        assert set((await client.act(**both))["action"]) == {"player_0", "player_1"}
        assert set((await client.act(**both, turn="player_1"))["action"]) == {"player_1"}
        assert set((await client.act(**one))["action"]) == {"player_1"}
        for request, field in (
            ({**one, "turn": "player_0"}, "turn"),
            ({**both, "turn": "nobody"}, "turn"),
            ({**both, "turn": 1}, "turn"),
            ({**both, "state": [1.0]}, "state"),
            ({"batch": [both["obs"]], "turn": "player_0"}, "turn"),
            ({"batch": [both["obs"]], "state": [1.0]}, "state"),
            ({**both, "turn": "player_0", "episode": "x", "terminated": {"player_0": True}}, "turn"),
        ):
            assert (await client.act(400, **request))["error"]["field"] == field, request

    for number, record in enumerate((None, tmp_path / "recording")):
        app = app_of(tic_tac_toe, record=record)
        with_client(app, lambda client, number=number: turns(client, bool(number)))

    async def state(client: Client) -> None:
        vector = {"obs": {"agent_0": [1, 0, 0], "agent_1": [1, 0, 0]}}
        assert (await client.act(400, batch=[vector["obs"]], state=[1, 0, 0]))["error"]["field"] == "state"
        for request in ({}, {"state": [1, 0]}, {"state": [1, 0, "x"]}, {"state": [1, 0, 1e39]}):
            found = await client.act(400, **vector, episode="x", first=True, **request)
            assert found["error"]["field"].startswith("state")
        assert (await client.act(**vector))["action"].keys() == vector["obs"].keys()
        assert (await client.act(**vector, state=[1, 0, 0], episode="x", first=True))["recorded"]

    run = rltrain.train(
        algo="vdn", env="two-step", workers=0, steps=64, warmup=32, batch=8, widths=(8,), eval_every=0,
        preset="none", quiet=True, out=str(tmp_path / "runs"),
    )  # fmt: skip
    with_client(app_of(Path(run.checkpoint), record=tmp_path / "states"), state)


def test_what_contradicts_a_game_in_turns_is_refused(three_in_turns: Path, tmp_path: Path) -> None:
    """Each refusal leaves the episode as it was, so it can go on; nothing is lost."""
    app = app_of(three_in_turns, record=tmp_path / "recording")
    all_of = {f"a_{number}": [1.0] for number in range(3)}
    rest = {"a_1": [1.0], "a_2": [1.0]}
    nothing = dict.fromkeys(all_of, 0.0)

    async def work(client: Client) -> None:
        async def refused(field: str, **request: Any) -> None:
            error = (await client.act(400, episode="x", **request))["error"]
            assert error["field"] == field, error

        assert (await client.act(obs=all_of, turn="a_0", episode="x", first=True))["recorded"]
        await refused("obs.a_1", obs={"a_0": [1.0]}, terminated={"a_0": True}, reward=nothing)
        await refused("obs.a_2", obs={"a_0": [1.0], "a_1": [1.0]}, turn="a_1", reward=nothing)
        await refused("obs.a_0", obs=rest, turn="a_1", truncated={"a_0": True}, reward=nothing)
        assert (await client.act(obs=rest, turn="a_1", terminated={"a_0": True}, reward=nothing, episode="x"))[
            "recorded"
        ]
        await refused("turn", obs=all_of, turn="a_0", reward=nothing)
        late = {**nothing, "a_0": 7.0, "a_1": 2.0}  # what comes after an agent's end counts nothing
        assert (await client.act(obs=all_of, turn="a_2", reward=late, episode="x"))["recorded"]
        assert not (await client.act(obs=rest, turn="a_1", episode="x"))["recorded"]  # a reward is missing: it is cut
        await refused("turn", obs=all_of, turn="a_0", reward=nothing)
        assert (await client.act(obs=rest, truncated=True, reward=nothing, episode="x"))["recorded"]

    with_client(app, work)
    assert app.episodes is not None
    before, after = app.episodes.take()
    assert before.alive[:, 0].astype(int).tolist() == [[1, 1, 1], [0, 1, 1], [0, 1, 1]]
    assert before.acting[:, 0].astype(int).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert before.terminated[:, 0].astype(int).tolist() == [[1, 0, 0], [0, 0, 0]]
    assert before.reward[:, 0].tolist() == [[0, 0, 0], [0, 2, 0]]
    assert after.alive[:, 0].astype(int).tolist() == [[0, 1, 1], [0, 0, 0]]
    assert after.truncated[:, 0].astype(int).tolist() == [[0, 1, 1]]
    assert not after.terminated.any()


def test_the_description_and_the_size_of_requests_count_turn_and_state() -> None:
    spec = replace(agents_spec("qmix-gru", turns=True), state_shape=(100, 3))
    body = openapi(spec)["paths"]["/v1/act"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["turn"]["enum"] == ["a", "b", "c"]
    assert body["properties"]["state"]["maxItems"] == 100
    assert numbers_of(spec) == numbers_of(replace(spec, state_shape=None)) + 300


def test_the_memory_of_states_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part is written when observations and states together are large."""
    monkeypatch.setattr("rltrain.deployment.server.recording.PART_BYTES", 100_000)
    spec = replace(agents_spec("qmix-gru"), state_shape=(4000,))
    episodes = Episodes(spec, 10, 10.0)
    there = np.ones(3, bool)
    for t in range(40):
        told = Outcome(np.zeros(3, np.float32), ~there, ~there, False) if t else None
        obs = [np.zeros(leaf.shape, leaf.dtype) for leaf in spec.leaves()]
        row = Row(obs, None, there, (), there, None, np.full(4000, t, np.float32))
        episodes.note("x", t == 0, row, told, np.zeros(3, np.int64), None, 3, 0.0)
    parts = episodes.take()
    assert len(parts) > 4
    assert [part.state[t, 0, 0] for part in parts for t in range(part.rows)] == list(range(sum(p.rows for p in parts)))


def test_agents_with_a_memory_are_all_seen_in_a_game_in_turns(tmp_path: Path) -> None:
    """As `rltrain.load(...).act`: an observation of one agent would leave a gap in the others' memories."""
    algo, _, settings = AGENTS["mappo-gru"]
    app = app_of(save(tmp_path, "mappo-gru", agents_spec("mappo-gru", turns=True), algo, settings))

    async def work(client: Client) -> None:
        one = [0.1, 0.2, 0.3]
        error = (await client.act(400, obs={"a": one}, session="x", first=True))["error"]
        assert error["field"] == "obs"
        assert "memory" in error["message"]
        error = (await client.act(400, batch=[{"a": one, "b": one}, {"b": one}], first=True))["error"]
        assert error["field"] == "batch[1]"
        answer = await client.act(obs={"a": one, "b": one}, turn="b", session="x", first=True)
        assert answer["action"].keys() == {"b"}

    with_client(app, work)
