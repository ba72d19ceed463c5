"""Runs of several agents: refusals, worker counts, reports of each agent, recordings, what was trained in use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracles.games import Masked

import rltrain
from rltrain import cli
from rltrain.algorithms import settings_class
from rltrain.cli import parse
from rltrain.config.load import load
from rltrain.config.run_config import RunConfig
from rltrain.envs.make import read_spec, resolve
from rltrain.envs.problems.games import Generations
from rltrain.errors import ConfigError, RunFailed
from rltrain.evaluation import multi_agent as team
from rltrain.reporting.metrics import read
from rltrain.rollout.types import Episode

SMALL: dict[str, Any] = {
    "workers": 0,
    "preset": "none",
    "quiet": True,
    "steps": 400,
    "streams": 5,
    "unroll": 4,
    "widths": (8,),
    "memory_size": 4,
    "warmup": 60,
    "batch": 8,
    "updates_per_step": 0.2,
    "eval_episodes": 3,
    "checkpoint_every": 0,
}


def train(folder: Path, algo: str, env: Any, **settings: Any) -> Any:
    known = {*settings_class(algo).model_fields, *RunConfig.model_fields}
    small = {name: value for name, value in SMALL.items() if name in known}
    return rltrain.train(algo=algo, env=env, out=str(folder), **{**small, **settings})


@pytest.mark.usefixtures("fork_server")
@pytest.mark.parametrize(
    ("algo", "env", "settings"),
    [
        pytest.param("qmix", "generations", {"memory": "gru", "last_action": True}, marks=pytest.mark.sweep),
        pytest.param("qmix", "two-step", {}, marks=pytest.mark.learning),
        pytest.param("vdn", "tic-tac-toe", {"length": 2}, marks=pytest.mark.sweep),
        pytest.param("iql", "generations", {"share": "none"}, marks=pytest.mark.learning),
        ("ppo", "generations", {"memory": "gru", "normalize_obs": True, "normalize_return": True, "sequence": 2}),
        pytest.param("a2c", Masked, {}, marks=pytest.mark.learning),
        pytest.param("mappo", "two-step", {"share": "none"}, marks=pytest.mark.sweep),
        pytest.param("maddpg", "generations", {}, marks=pytest.mark.learning),
        pytest.param("maddpg", Masked, {"share": "none"}, marks=pytest.mark.sweep),
        pytest.param("maddpg", "spread", {"noise": 0.3, "noise_end": 0.0}, marks=pytest.mark.sweep),
        pytest.param("ppo", "tic-tac-toe", {"normalize_return": True, "widths": (16,)}, marks=pytest.mark.learning),
        pytest.param(
            "ppo",
            "tic-tac-toe",
            {"opponents": "pool", "pool_every": 50, "pool_size": 3, "widths": (16,)},
            marks=pytest.mark.sweep,
        ),
    ],
)
def test_any_number_of_workers(algo: str, env: str, settings: dict[str, Any], tmp_path: Path) -> None:
    expected = train(tmp_path, algo, env, **settings)
    spread = train(tmp_path, algo, env, workers=2, **settings)

    assert spread.fingerprint == expected.fingerprint
    assert (spread.eval_return, spread.train_return) == (expected.eval_return, expected.train_return)


@pytest.mark.sweep
@pytest.mark.parametrize(
    "algo", [pytest.param("qmix", marks=pytest.mark.sweep), pytest.param("ppo", marks=pytest.mark.sweep), "maddpg"]
)
def test_another_seed_is_another_run(algo: str, tmp_path: Path) -> None:
    one, other = (train(tmp_path, algo, "two-step", steps=100, seed=seed) for seed in (0, 1))

    assert one.fingerprint != other.fingerprint


@pytest.mark.usefixtures("fork_server")
@pytest.mark.parametrize(
    ("algo", "settings"),
    [
        ("qmix", {"memory": "gru", "last_action": True}),
        pytest.param("ppo", {"memory": "gru", "sequence": 2}, marks=pytest.mark.sweep),
        pytest.param("maddpg", {}, marks=pytest.mark.sweep),
    ],
)
def test_one_server_may_decide_for_all_agents(algo: str, settings: dict[str, Any], tmp_path: Path) -> None:
    central = train(tmp_path, algo, "generations", workers=2, inference="central", **settings)

    assert central.fingerprint == train(tmp_path, algo, "generations", **settings).fingerprint


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("--algo dqn --env two-step", "dqn is for environments of one agent, and two-step is one of"),
        (
            "--algo ppo --env tic-tac-toe --memory gru",
            "the agents of tic-tac-toe act in turns, which needs memory none",
        ),
        ("--algo qmix --env CartPole-v1", "qmix is for several agents; CartPole-v1 has one agent. Use a2c,"),
        ("--algo maddpg --env CartPole-v1", "maddpg is for several agents; CartPole-v1 has one agent. Use a2c,"),
        ("--algo maddpg --env tic-tac-toe", "the agents of tic-tac-toe act in turns, which maddpg cannot learn"),
        ("--algo maddpg --env two-step --gumbel 0", "--gumbel must be greater than 0, got 0"),
        ("--algo qmix --env spread", "qmix needs several agents with Discrete actions, and of spread"),
        ("--algo qmix --env two-step --share some", "--share "),
        ("--algo qmix --env two-step --share agent_0=a", "two-step: agent_1 has no policy in share"),
        ("--algo qmix --env two-step --share agent_0=,agent_1=b", "--share must name the policy of each agent in"),
        ("--algo qmix --env two-step --length 0", "--length must be at least 1, got 0"),
        ("--algo iql --env tic-tac-toe --opponents pool", "--opponents pool: iql learns from a replay; use ppo,"),
        ("--algo ppo --env CartPole-v1 --opponents pool", "--opponents pool: needs a game of at least two agents"),
        ("--algo ppo --env tic-tac-toe --opponents pool,pool", "--opponents must name pool once"),
        (
            "--algo ppo --env tic-tac-toe --opponents pool,,x",
            "--opponents must be newest, pool, or runs and checkpoints with",
        ),
        ("--algo ppo --env tic-tac-toe --opponents me", "--opponents "),
        ("--algo vdn --env two-step --mixer-width 3", "unknown flag --mixer-width"),
    ],
)
def test_a_wrong_call_is_answered_in_one_line(
    argv: str, words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main([*argv.split(), "--workers", "0", "--out", str(tmp_path)]) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"rltrain: {words}")
    assert not list(tmp_path.iterdir())


class Limited(Masked):
    max_cycles = 25


def test_whole_episodes_must_find_room(tmp_path: Path) -> None:
    """Where their length is known, before the run; else as soon as the replay is full and holds none."""
    small: dict[str, Any] = {"memory": "gru", "streams": 8, "warmup": 20}

    with pytest.raises(
        ConfigError, match="--capacity 100 keeps 13 steps of each of 8 streams, and an episode may have 25"
    ):
        train(tmp_path, "vdn", Limited, capacity=100, **small)
    assert not list(tmp_path.iterdir())
    with pytest.raises(RunFailed, match=r"no episode was over that the replay still held .* Ask for more --capacity"):
        train(tmp_path, "vdn", "generations", capacity=40, steps=600, **small)


def test_agents_with_memory_that_take_turns_need_all_observations(tmp_path: Path) -> None:
    result = train(tmp_path, "vdn", "tic-tac-toe", memory="gru", steps=100)
    policy = rltrain.load(result.checkpoint)
    obs = {agent: np.zeros((3, 9), np.int8) for agent in ("player_0", "player_1")}

    with pytest.raises(ValueError, match="give the observations of all agents that are present"):
        policy.act({"player_0": obs["player_0"]})
    assert set(policy.act(obs)) == set(obs)


MAP = {"agent_0": "left", "agent_1": "right"}


def test_policies_that_are_named_last_as_long_as_the_run(tmp_path: Path) -> None:
    """Through flags and files, run.json, checkpoints and resume, in use and in evaluations."""
    flags = "--algo vdn --env two-step --workers 0 --share agent_0=left,agent_*=right --preset none"
    assert parse(flags.split())[0].share == {"agent_0": "left", "agent_*": "right"}
    file = tmp_path / "run.toml"
    file.write_text('algo = "vdn"\nenv = "two-step"\n\n[share]\nagent_0 = "left"\nagent_1 = "right"\n')
    config = load({"preset": "none"}, file)
    assert config.share == MAP
    assert RunConfig.from_json(json.loads(json.dumps(config.to_json()))).share == MAP

    result = train(tmp_path, "vdn", "two-step", share=MAP, checkpoint_every=100)
    trained = rltrain.load(result.run)
    assert [group.name for group in trained.spec.groups] == ["left", "right"]
    assert len(trained.policy.net.nets) == 2
    assert set(trained.act(rltrain.make_env("two-step").reset(seed=1)[0])) == {"agent_0", "agent_1"}
    found = rltrain.evaluate(trained, episodes=2)
    assert set(found.groups) == {"left", "right"}
    assert result.fingerprint == train(tmp_path, "vdn", "two-step", share="none").fingerprint, "the same, unnamed"
    assert result.fingerprint != train(tmp_path, "vdn", "two-step").fingerprint
    longer = rltrain.train(resume=result.run, steps=500)
    assert rltrain.load(longer.run).spec == trained.spec


def test_each_agent_and_group_is_reported(tmp_path: Path) -> None:
    result = train(tmp_path, "vdn", Masked, epsilon_end=1.0)
    lines = read(result.run)
    (line,) = [line for line in lines if line["step"] == result.steps and "eval/return_mean" in line]

    assert result.eval_return == line["eval/return_mean"] == 18.0
    assert {name: line[f"eval_agents/{name}"] for name in ("scout_0", "scout_1", "guard_0")} == {
        "scout_0": 3.0,
        "scout_1": 9.0,
        "guard_0": 6.0,
    }
    assert (line["eval_groups/scout"], line["eval_groups/guard"]) == (12.0, 6.0)
    assert lines[-1]["rollout_agents/guard_0"] == 6.0
    found = rltrain.evaluate(result.run, episodes=4, env=Masked)
    assert (found.agents["scout_1"], found.groups) == (9.0, {"scout": 12.0, "guard": 6.0})


def test_means_by_agent_and_by_group() -> None:
    spec = read_spec(resolve(Masked), 0)
    episodes = [Episode(6.0, 2, (1.0, 2.0, 3.0)), Episode(12.0, 2, (3.0, 4.0, 5.0))]

    assert team.mean_returns(spec, episodes) == (
        {"scout_0": 2.0, "scout_1": 3.0, "guard_0": 4.0},
        {"scout": 5.0, "guard": 4.0},
    )
    assert team.mean_returns(spec, []) == ({}, {})


def test_rleval_prints_a_line_with_each_agent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = train(tmp_path, "vdn", "generations")

    assert cli.main_eval([str(result.run), "--episodes", "2"]) == 0
    assert ", of agent_0 " in capsys.readouterr().out
    assert cli.main_eval([str(result.run), "--episodes", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert sum(told["agents"].values()) == pytest.approx(told["return_mean"])


@pytest.mark.parametrize("memory", ["none", pytest.param("gru", marks=pytest.mark.sweep)])
def test_what_was_trained_acts_agent_by_agent(memory: str, tmp_path: Path) -> None:
    """By hand over PettingZoo's own interface, it earns what an evaluation says; masks and starts are obeyed."""
    result = train(tmp_path, "vdn", Masked, memory=memory)
    trained = rltrain.load(result.checkpoint)
    game = Masked()  # raises at an illegal action
    obs, infos = game.reset()
    trained.reset()
    while game.agents:
        masks = {agent: info["action_mask"] for agent, info in infos.items() if info}
        actions = trained.act(obs, action_mask=masks)
        assert list(actions) == ["scout_0", "scout_1", "guard_0"]
        obs, _, _, _, infos = game.step(actions)

    trained = rltrain.load(train(tmp_path, "vdn", "generations", memory=memory, steps=800).checkpoint)
    game = Generations()
    obs, _ = game.reset()
    earned = dict.fromkeys(game.possible_agents, 0.0)
    while game.agents:
        actions = trained.act({agent: obs[agent] for agent in game.agents})
        assert set(actions) == set(game.agents)
        obs, rewards, *_ = game.step(actions)
        for agent, reward in rewards.items():
            earned[agent] += reward
    assert earned == rltrain.evaluate(trained, episodes=1).agents


def test_strangers_and_other_shapes_are_named(tmp_path: Path) -> None:
    trained = rltrain.load(train(tmp_path, "vdn", "generations").checkpoint)

    with pytest.raises(ValueError, match="has no agent 'agent_9'"):
        trained.act({"agent_9": np.zeros(2)})
    with pytest.raises(ValueError, match=r"agent_1 of generations has observations of shape \(2,\); got \(3,\)"):
        trained.act({"agent_1": np.zeros(3)})


def test_a_recording_of_several_agents_teaches_as_they_did(tmp_path: Path) -> None:
    record = str(tmp_path / "record")
    train(tmp_path, "vdn", "generations", record=record)
    result = train(tmp_path, "qmix", "generations", replay_from=record, eval_every=0)

    assert result.steps >= 400
    assert np.isfinite(read(result.run)[-1]["learner/loss_q"])


def test_who_shares_is_a_setting_of_the_run() -> None:
    config = load({"algo": "vdn", "env": "generations", "share": "none"})

    assert len(read_spec(resolve(config.env, config.env_args, config.share), 0).groups) == 4
    assert len(read_spec(resolve(config.env), 0).groups) == 1
