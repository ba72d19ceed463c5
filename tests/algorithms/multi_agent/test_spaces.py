"""Every algorithm of several agents with every kind of space: it trains, or one line says what it needs."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from pettingzoo import ParallelEnv
from pettingzoo.utils.conversions import parallel_to_aec

from rltrain.config.load import load
from rltrain.envs.errors import EnvError
from rltrain.envs.make import read_spec, resolve
from rltrain.errors import ConfigError
from rltrain.learner.algorithm import make_algorithm, make_policy, torch_device
from rltrain.learner.learner import Learner
from rltrain.rollout.actor.play import play
from rltrain.rollout.scheduler import Rollout
from rltrain.setup.environment import Environment
from rltrain.setup.replay import DataSource, make_feed
from rltrain.setup.rollout import rollout_spec

AGENTS = ("a_0", "a_1", "b_0")  # the first two have equal spaces


class Game(ParallelEnv):  # type: ignore[type-arg]
    """Three agents that observe random values of their spaces, and act inside of theirs; b_0 leaves first."""

    metadata = {"name": "game"}  # noqa: RUF012
    render_mode = None

    def __init__(self, observation: Any, action: Any, state: bool = False, masks: bool = False) -> None:
        self.possible_agents = list(AGENTS)
        self._observation = dict(zip(AGENTS, (observation[0], observation[0], observation[-1]), strict=True))
        self._action = dict(zip(AGENTS, (action[0], action[0], action[-1]), strict=True))
        self._masks = masks
        if state:  # PettingZoo's own raises NotImplementedError
            self.state = lambda: np.arange(6, dtype=np.float32).reshape(2, 3)  # type: ignore[method-assign]

    def observation_space(self, agent: str) -> Any:
        return self._observation[agent]

    def action_space(self, agent: str) -> Any:
        return self._action[agent]

    def _result(self, agents: Any) -> Any:
        infos = {
            agent: {"action_mask": np.ones(self._action[agent].n, np.int8)} if self._masks else {} for agent in agents
        }
        return {agent: self._observation[agent].sample() for agent in agents}, infos  # fmt: skip

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        for number, agent in enumerate(AGENTS):
            self._observation[agent].seed(None if seed is None else seed + number)
        self.agents, self._time = list(AGENTS), 0
        return self._result(self.agents)

    def step(self, actions: dict[str, Any]) -> Any:
        for agent, action in actions.items():
            assert self._action[agent].contains(action), (agent, action)
        self._time += 1
        acting = self.agents
        ends = {agent: self._time >= (4 if agent == "b_0" else 6) for agent in acting}
        obs, infos = self._result(acting)
        self.agents = [agent for agent in acting if not ends[agent]]
        return obs, dict.fromkeys(acting, 1.0), ends, dict.fromkeys(acting, False), infos


IMAGE = spaces.Box(0, 255, (12, 12, 3), np.uint8)
BOX = spaces.Box(-1, 1, (3,), np.float32)
OBSERVATIONS = {
    "box": [BOX],
    "matrix": [spaces.Box(-2, 2, (2, 2), np.float64), BOX],
    "image": [IMAGE],
    "discrete": [spaces.Discrete(3), spaces.Discrete(4, start=2)],
    "multi-discrete": [spaces.MultiDiscrete([2, 3], start=[1, 0]), spaces.MultiDiscrete([[2, 2], [3, 2]])],
    "multi-binary": [spaces.MultiBinary(3), spaces.MultiBinary((2, 2))],
    "dict": [spaces.Dict({"x": BOX, "n": spaces.Discrete(3), "m": spaces.MultiDiscrete([2, 3])})],
    "tuple": [spaces.Tuple((BOX, spaces.MultiBinary(2))), spaces.Discrete(2)],
    "nested": [spaces.Dict({"in": spaces.Tuple((spaces.Dict({"i": IMAGE}), spaces.Discrete(3))), "x": BOX}), IMAGE],
}
ACTIONS = {
    "discrete": [spaces.Discrete(3)],
    "start": [spaces.Discrete(3, start=4), spaces.Discrete(2, start=-1)],
    "multi-discrete": [spaces.MultiDiscrete([2, 3]), spaces.MultiDiscrete([4])],
    "multi-binary": [spaces.MultiBinary(2)],
    "mixed": [spaces.Discrete(2), spaces.MultiDiscrete([2, 2])],
    "box": [spaces.Box(-2, 3, (2,), np.float64)],
    "boxes": [spaces.Box(0, 9, (2,), np.int32), spaces.Box(-0.1, 0.1, (1,), np.float32)],
    "unbounded": [spaces.Box(-np.inf, np.inf, (2,), np.float32)],
    "box and discrete": [spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(2)],
}
NEEDS = {  # actions that an algorithm refuses: words of its line
    "qmix": "needs several agents with Discrete actions",
    "vdn": "needs several agents with Discrete actions",
    "iql": "needs several agents with Discrete actions",
    "maddpg": "maddpg needs agents whose actions are all Discrete or all Box",
}
ON_POLICY = ("a2c", "appo", "impala", "mappo", "ppo")
LEARNERS = (*ON_POLICY, *NEEDS)
SMALL = {"widths": (8,), "streams": 2, "workers": 0, "steps": 100, "vector": "serial"}
REPLAYS = {"warmup": 12, "batch": 2, "unroll": 4, "capacity": 64}
SETTINGS = {"appo": {"wait": 2}, "qmix": {"memory": "none"}, "vdn": {"memory": "none"}, "iql": {"memory": "none"}}


def train(algo: str, make: Any, **more: Any) -> int:
    """The number of updates in a few unrolls, after which the policy plays two episodes."""
    data = REPLAYS if algo in NEEDS else {"unroll": 8}
    config = load({"algo": algo, "env": make, **SMALL, **data, **SETTINGS.get(algo, {}), **more})
    source = resolve(make, action_bound=config.action_bound)
    spec = read_spec(source, 0)
    algorithm = make_algorithm(config, spec)
    environment = Environment(source, spec, "serial", ((0,), (1,)), "none")
    feed = make_feed(config, DataSource(algorithm.plan, spec, 2))
    learner = Learner(algorithm, torch_device("cpu"), feed)
    plan = rollout_spec(config, environment, algorithm.plan)
    rollout = Rollout(plan, learner.weights(0), lambda lost: pytest.fail(lost.detail))
    try:
        while rollout.steps < 40:
            rollout.start()
            learner.step(rollout.gather(), 0.5)
            rollout.publish(learner.weights(rollout.steps))
    finally:
        rollout.close()
    policy = make_policy(config, spec)()
    policy.load_state_dict(algorithm.policy.state_dict())
    episodes = play(source.make, spec, policy, [1, 2])
    assert all(episode.ret > 0 for episode in episodes)
    return learner.version


def allowed(algo: str, action: str) -> bool:
    """Whether an algorithm can learn these actions."""
    if algo in ("qmix", "vdn", "iql"):
        return action in ("discrete", "start")
    if algo == "maddpg":
        return action in ("discrete", "start", "box", "boxes")
    return action != "box and discrete"


PAIRS = [
    *((algo, observation, "discrete") for algo, observation in itertools.product(LEARNERS, OBSERVATIONS)),
    *((algo, "dict", action) for algo, action in itertools.product(LEARNERS, ACTIONS)),
]
# Each kind of space once with one family of algorithms, and each algorithm once; the others: scripts/test -m sweep
FEW = {
    "ppo": ("box", "discrete", "tuple", "multi-binary", "mixed"),
    "qmix": ("image", "multi-discrete"),
    "maddpg": ("matrix", "boxes"),
    "a2c": ("box",),
    "appo": ("discrete",),
    "impala": ("nested",),
    "mappo": ("nested",),
    "vdn": ("nested",),
    "iql": ("tuple",),
}


def mark(algo: str, observation: str, action: str) -> Any:
    kind = observation if action == "discrete" else action
    return () if kind in FEW[algo] or not allowed(algo, action) else pytest.mark.sweep


CASES = [  # every other one has a global state
    pytest.param(*pair, number % 2 == 0, marks=mark(*pair)) for number, pair in enumerate(PAIRS)
]
CASES += [
    pytest.param(
        "mappo",
        observation,
        "start",
        state,
        marks=() if state and observation == "multi-discrete" else pytest.mark.sweep,
    )
    for observation in OBSERVATIONS
    for state in (False, True)
]


@pytest.mark.parametrize(("algo", "observation", "action", "state"), CASES)
def test_it_trains_or_says_what_it_needs(algo: str, observation: str, action: str, state: bool) -> None:
    def make() -> Any:
        return Game(OBSERVATIONS[observation], ACTIONS[action], state)

    if allowed(algo, action):
        assert train(algo, make) > 0
        return
    with pytest.raises((ConfigError, EnvError)) as caught:
        train(algo, make)
    assert "\n" not in str(caught.value)
    assert NEEDS.get(algo, "") in str(caught.value) or action in ("unbounded", "box and discrete")


@pytest.mark.parametrize(
    "algo",
    [pytest.param(name, marks=() if name in ("impala", "iql", "maddpg") else pytest.mark.sweep) for name in LEARNERS],
)
@pytest.mark.parametrize(
    "observation", ["dict", *(pytest.param(name, marks=pytest.mark.sweep) for name in ("box", "nested"))]
)
def test_agents_that_take_turns_train_on_any_observation(algo: str, observation: str) -> None:
    def make() -> Any:
        return parallel_to_aec(Game(OBSERVATIONS[observation], ACTIONS["start"], masks=observation == "dict"))

    if algo == "maddpg":
        with pytest.raises(ConfigError, match="act in turns, which maddpg cannot learn from"):
            train(algo, make)
    else:
        assert train(algo, make) > 0


def test_a_replay_of_actions_without_bounds_names_the_flag() -> None:
    def make() -> Any:
        return Game([BOX], ACTIONS["unbounded"])

    with pytest.raises(ConfigError, match=r"--action-bound 1\.0"):
        train("maddpg", make)
    assert train("maddpg", make, action_bound=2.0) > 0
