"""Teams on games whose answer is known: QMIX finds what VDN cannot, and VDN's values are those of its algebra."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from gymnasium import spaces
from oracles.games import Toll
from pettingzoo.utils.env import ParallelEnv

import rltrain
from rltrain.envs.problems.games import Generations

pytestmark = pytest.mark.learning

QUICK: dict[str, Any] = {"workers": 0, "quiet": True, "checkpoint_every": 0}


def values(trained: Any, state: int) -> torch.Tensor:
    """[N, A] values of both agents where all see `state` of the two-step game: 0 the beginning, 1 and 2 the others."""
    obs = torch.zeros(16, 2, 3)
    obs[..., state] = 1.0
    found: torch.Tensor = trained.policy.q({"agent": obs})[0].detach()
    return found


@pytest.mark.parametrize("permuted", [False, True], ids=["as published", "permuted"])
@pytest.mark.parametrize("seed", range(10))
def test_qmix_reaches_eight(seed: int, permuted: bool, tmp_path: Path) -> None:
    """The preset is for both: permutations 1 to 7 turn round what actions mean."""
    permutation = 1 + seed % 7 if permuted else 0
    env_args = {"permutation": permutation}

    result = rltrain.train(algo="qmix", env="two-step", env_args=env_args, seed=seed, out=str(tmp_path), **QUICK)

    assert result.eval_return == 8.0


@pytest.mark.parametrize("permutation", [0, 3, 6])
@pytest.mark.parametrize("seed", range(3))
def test_vdn_stays_at_seven_and_says_six_and_a_half(seed: int, permutation: int, tmp_path: Path) -> None:
    """The least-squares fit of [[0, 1], [1, 8]] by a sum is [[-1.5, 2.5], [2.5, 6.5]]."""
    env_args = {"permutation": permutation}

    result = rltrain.train(algo="vdn", env="two-step", env_args=env_args, seed=seed, out=str(tmp_path), **QUICK)

    assert result.eval_return == 7.0
    other = 1 if permutation & 1 else 2  # the state with the 8
    assert float(values(rltrain.load(result.checkpoint), other).amax(-1).sum()) == pytest.approx(6.5, abs=0.3)


@pytest.mark.parametrize("memory", ["none", "gru"])
@pytest.mark.parametrize("algo", ["iql", "vdn", "qmix"])
def test_agents_that_die_and_are_born_learn_to_work(algo: str, memory: str, tmp_path: Path) -> None:
    """The best is action 1 of everybody for life; an agent that is never trained, or trained when dead, misses it."""
    result = rltrain.train(
        algo=algo,
        env="generations",
        steps=3_000,
        preset="none",
        out=str(tmp_path),
        unroll=7,
        warmup=200,
        memory=memory,
        updates_per_step=0.25 if memory == "none" else 0.5,
        widths=(32,),
        memory_size=32,
        lr=5e-3 if memory == "none" else 2e-2,
        lr_end=0.0,
        gamma=0.8,  # what is beyond a time limit is never learnt from: its value wanders, the more the more it counts
        target_every=50,
        epsilon_share=0.8,
        **QUICK,
    )

    assert rltrain.evaluate(result.run, episodes=1).agents == dict(
        zip(Generations().possible_agents, Generations.BEST, strict=True)
    )


@pytest.mark.parametrize("share", ["all", "none"])
def test_maddpg_teaches_agents_that_die_and_are_born(share: str, tmp_path: Path) -> None:
    """As above; with one network of each kind for all, and with one for each."""
    result = rltrain.train(
        algo="maddpg", env="generations", share=share, steps=3_000, preset="none", out=str(tmp_path), unroll=7,
        warmup=200, batch=64, updates_per_step=0.1, widths=(32,), **QUICK,
    )  # fmt: skip

    assert rltrain.evaluate(result.run, episodes=1).agents == dict(
        zip(Generations().possible_agents, Generations.BEST, strict=True)
    )


class Aim(ParallelEnv[str, np.ndarray, np.ndarray]):  # type: ignore[misc]
    """Two agents with actions of unequal size; each loses the square of how far it acts from what it is to do.

    One sees x and is to do -x / 2; the other sees y = -x / 2 and is to do (-2 y, 2 y). The best play loses nothing.
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "aim"}
    render_mode = None
    possible_agents: ClassVar[list[str]] = ["one", "other"]

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Box(-1.0, 1.0, (1,), np.float32)

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Box(-1.0, 1.0, (1 if agent == "one" else 2,), np.float32)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            self.generator = np.random.default_rng(seed)
        self.agents, self.time = list(self.possible_agents), 0
        return self.see(), {agent: {} for agent in self.agents}

    def see(self) -> dict[str, np.ndarray]:
        self.goal = self.generator.uniform(-0.8, 0.8)
        return {"one": np.array([self.goal], np.float32), "other": np.array([-self.goal / 2], np.float32)}

    def step(self, actions: dict[str, np.ndarray]) -> Any:
        apart = {
            "one": float(np.square(actions["one"] - -self.goal / 2).sum()),
            "other": float(np.square(actions["other"] - [self.goal, -self.goal]).sum()),
        }
        self.time += 1
        over = dict.fromkeys(self.agents, self.time == 5)
        back = self.see(), {agent: -lost for agent, lost in apart.items()}, dict.fromkeys(over, False), over
        if self.time == 5:
            self.agents = []
        return *back, {agent: {} for agent in over}


def test_maddpg_with_box_actions_of_unequal_size_finds_each_agents_own(tmp_path: Path) -> None:
    """Doing nothing loses 0.27 and 2.1 an episode on average."""
    result = rltrain.train(
        algo="maddpg", env=Aim, steps=6_000, preset="none", out=str(tmp_path), warmup=500, batch=64, lr=3e-3,
        updates_per_step=0.25, widths=(32, 32), noise=0.3, regularize=0.0, **QUICK,
    )  # fmt: skip
    earned = rltrain.evaluate(result.run, episodes=50, env=Aim).agents

    assert earned["one"] > -0.05
    assert earned["other"] > -0.2


@pytest.mark.parametrize("memory", ["none", "gru"])
@pytest.mark.parametrize("algo", ["ppo", "mappo"])
def test_agents_learn_as_if_each_were_alone(algo: str, memory: str, tmp_path: Path) -> None:
    """PPO so is IPPO; MAPPO's value sees what all see."""
    result = rltrain.train(
        algo=algo,
        env="generations",
        steps=8_000,
        preset="none",
        out=str(tmp_path),
        unroll=14,
        sequence=7,
        memory=memory,
        widths=(16,),
        memory_size=8,
        lr=1e-2,
        lr_end=0.0,
        minibatches=4,
        gamma=0.8,
        entropy=0.0,
        **QUICK,
    )

    assert rltrain.evaluate(result.run, episodes=1).agents == dict(
        zip(Generations().possible_agents, Generations.BEST, strict=True)
    )


@pytest.mark.parametrize("algo", ["iql", "vdn", "qmix"])
def test_turns_of_others_are_no_choices(algo: str, tmp_path: Path) -> None:
    """Who takes a row in which it could do nothing for one with action 0 pays the toll in each turn: 180."""
    settings = {"lr": 3e-3, "lr_end": 0.0, "warmup": 200, "updates_per_step": 0.5, "widths": (16,), "gamma": 0.9}

    result = rltrain.train(
        algo=algo,
        env=Toll,
        steps=4_000,
        preset="none",
        target_every=50,
        epsilon_share=0.8,
        out=str(tmp_path),
        **settings,
        **QUICK,
    )

    assert result.eval_return == 200.0


def test_vdn_on_the_climbing_game_takes_the_safe_end(tmp_path: Path) -> None:
    """The sum's fit puts (2, 2) first, which pays 5 of 11."""
    settings = {"lr": 3e-3, "lr_end": 0.0, "epsilon_end": 1.0, "warmup": 200, "batch": 64, "updates_per_step": 0.25}

    result = rltrain.train(
        algo="vdn", env="climbing", steps=3_000, preset="none", out=str(tmp_path), **settings, **QUICK
    )

    assert result.eval_return == 5.0
