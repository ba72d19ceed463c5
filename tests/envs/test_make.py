"""What --env takes: every form, every error in one line, in the folder of the user."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from rltrain.envs.errors import EnvError, EnvFault
from rltrain.envs.make import read_spec, resolve, vector, vector_kind
from rltrain.envs.names import register_env
from rltrain.envs.problems.probes import Counter
from rltrain.envs.spec import Leaf, from_json, to_json

MAZE = """
import gymnasium, numpy as np
from gymnasium import spaces

class Maze(gymnasium.Env):
    observation_space = spaces.Box(0, 1, (2,), np.float32)
    action_space = spaces.Discrete(3)
    def __init__(self, size=4, broken=False):
        self.size = size
        if broken:
            raise RuntimeError("the maze fell down")
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}
    def step(self, action):
        return np.ones(2, np.float32), 1.0, True, False, {}

def factory(**kwargs):
    return Maze(**kwargs)

NUMBER = 3
gymnasium.register("Maze-v0", "%s:Maze")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    registry = dict(gymnasium.registry)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith(("my_", "_env_file_")):
            del sys.modules[name]
    gymnasium.registry.clear()
    gymnasium.registry.update(registry)


def error(env, **kwargs) -> str:
    with pytest.raises(EnvError) as caught:
        resolve(env, kwargs).make()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "form", ["my_maze:Maze-v0", "my_maze:Maze", "my_maze:factory", "my_maze.py:Maze", "./my_maze.py:factory"]
)
def test_every_form_of_a_name_makes_the_same_environment(folder, form):
    (folder / "my_maze.py").write_text(MAZE % "my_maze")
    source = resolve(form, {"size": 9})
    env = source.make()
    assert type(env.unwrapped).__name__ == "Maze"
    assert env.unwrapped.size == 9
    assert read_spec(source, 0).action.nvec == (3,)
    assert sys.path[-1] == str(folder) or str(folder) in sys.path[1:]


def test_a_class_a_closure_and_a_registered_name(folder):
    size = 3

    def closure():
        env = Counter()
        env.size = size
        return env

    register_env("my-counter", closure)
    assert resolve("my-counter").make().size == 3
    assert isinstance(resolve(Counter).make(), Counter)
    assert resolve(Counter).name == "Counter"
    travelled = cloudpickle.loads(cloudpickle.dumps(resolve(closure)))
    assert travelled.make().size == 3


def test_another_process_finds_the_users_module_by_its_folder(folder):
    (folder / "my_maze.py").write_text(MAZE % "my_maze")
    data = cloudpickle.dumps(resolve("my_maze:Maze"))
    home = Path(__file__).parents[2]
    code = (
        f"import sys; sys.path.insert(0, {str(home)!r}); import cloudpickle as c; print(c.loads({data!r}).make().size)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=home, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "4", done.stderr


def test_a_folder_called_envs_of_the_users_breaks_nothing(folder):
    (folder / "envs").mkdir()
    (folder / "envs" / "__init__.py").write_text("raise RuntimeError('the wrong envs')")
    (folder / "envs" / "my_maze.py").write_text("import my_part\n" + MAZE % "x")
    (folder / "envs" / "my_part.py").write_text("")
    assert resolve("envs/my_maze.py:Maze").make().size == 4
    assert resolve("probe:box").make() is not None
    assert "Use --env envs/my_maze.py:Maze" in error("envs.my_maze:Maze")


def test_errors_are_one_line_and_say_what_to_do(folder):
    (folder / "my_maze.py").write_text(MAZE % "my_maze")
    assert "Did you mean 'CartPole-v1'" in error("cartpole-v1")
    assert "Did you mean 'CartPole-v1'" in error("CartPole-v9")
    assert "Did you mean 'Maze'" in error("my_maze:Mase")
    assert "there is no module 'my_mace'" in error("my_mace:Maze")
    assert error("json.decodr:Env").endswith("Did you mean 'decoder'?")
    assert error("gymnasium.envs.toy_txt:Env").endswith("Did you mean 'toy_text'?")
    assert "there is no file" in error("nowhere.py:Maze")
    assert "my_maze.py:ClassOrFactory" in error("my_maze.py")
    assert "not a class or a function" in error("my_maze:NUMBER")
    assert "probes: constant" in error("probe:unknown")
    assert "not a gymnasium.Env" in error(lambda: 3)
    assert "registers no environment 'Maze-v7'" in error("my_maze:Maze-v7")
    assert "'sise'" in (text := error("my_maze:Maze", sise=3))
    assert "Did you mean 'size'" in text
    assert "'sise'" in error("my_maze:factory", sise=3)
    assert "'foo'" in error("CartPole-v1", foo=1)


def test_a_missing_extra_gives_the_command(monkeypatch):
    for module, env_id, extra in [("mujoco", "HalfCheetah-v5", "mujoco"), ("Box2D", "LunarLander-v3", "box2d")]:
        entry = gymnasium.registry[env_id].entry_point.partition(":")[0]
        with monkeypatch.context() as patch:
            for name in [n for n in sys.modules if n.startswith((module, entry, "gymnasium.envs." + extra))]:
                patch.delitem(sys.modules, name)
            patch.setitem(sys.modules, module, None)
            assert f"pip install 'rltrain[{extra}]'" in error(env_id)
        for name in [n for n in sys.modules if n.startswith("gymnasium.envs." + extra)]:
            del sys.modules[name]
    monkeypatch.setitem(sys.modules, "ale_py", None)
    assert "pip install 'rltrain[atari]'" in error("ALE/Pong-v5")


def test_packages_register_what_they_announce(monkeypatch):
    """MinAtar's ids are there once its entry point was called, which gymnasium does not do any more."""

    class Plugin:
        def load(self):
            return lambda: gymnasium.register("Announced/Counter-v1", Counter)

    asked = []
    monkeypatch.setattr("rltrain.envs.lookup.entry_points", lambda group, name: asked.append(name) or [Plugin()])
    monkeypatch.setattr(gymnasium.envs.registration, "registry", registry := dict(gymnasium.registry))
    monkeypatch.setattr(gymnasium, "registry", registry)

    assert resolve("Announced/Counter-v1").make().unwrapped.action_space.n == 3
    assert resolve("CartPole-v1").make() is not None
    assert asked == ["Announced"]

    monkeypatch.setattr("rltrain.envs.lookup.entry_points", lambda group, name: [])
    assert error("MinAtar/Breakout-v1") == "MinAtar/Breakout-v1 needs an extra: pip install 'rltrain[minatar]'"
    assert "unknown environment 'Announcer/Counter-v1'" in error("Announcer/Counter-v1")


def test_what_the_users_own_code_raises_keeps_its_traceback(folder):
    (folder / "my_maze.py").write_text(MAZE % "my_maze")
    (folder / "my_bad.py").write_text("import not_there_at_all")
    with pytest.raises(EnvFault) as caught:
        resolve("my_maze:Maze", {"broken": True}).make()
    assert caught.value.stream == -1
    assert "the maze fell down" in caught.value.detail
    assert "my_maze.py" in caught.value.detail
    with pytest.raises(EnvFault, match="not_there_at_all"):
        resolve("my_bad:Maze").make()


def test_a_time_limit_inside_a_factory_is_seen():
    assert read_spec(resolve("probe:endless"), 0).max_steps == 10
    assert read_spec(resolve("CartPole-v1", {"max_episode_steps": 7}), 0).max_steps == 7
    assert read_spec(resolve(Counter), 0).max_steps is None


@pytest.mark.parametrize("limit", [np.int64(7), "7", -1, None, 7.5])
def test_a_spec_or_a_limit_of_another_kind_is_passed_over(limit):
    class Limited(gymnasium.Wrapper):
        _max_episode_steps = limit
        spec = limit

    found = read_spec(resolve(lambda: Limited(Counter())), 0).max_steps
    assert (found, type(found)) == ((7, int) if isinstance(limit, np.integer) else (None, type(None)))


def test_native_is_chosen_by_the_total_only():
    cartpole = resolve("CartPole-v1")
    assert [vector_kind(cartpole, n) for n in (1, 127, 128, 1024)] == ["serial", "serial", "native", "native"]
    assert vector_kind(cartpole, 1024, "serial") == "serial"
    assert vector_kind(cartpole, 16, "native") == "native"
    assert vector_kind(resolve("Pendulum-v1"), 1024) == "serial"
    assert vector_kind(resolve(Counter), 1024) == "serial"
    with pytest.raises(EnvError, match="--vector serial"):
        vector_kind(resolve("Pendulum-v1"), 1024, "native")


def test_an_actor_owns_whole_blocks():
    source = resolve("CartPole-v1")
    spec = read_spec(source, 0)
    with pytest.raises(ValueError, match="whole blocks"):
        vector(source, spec, range(5), range(5), "none", "native", total=32)
    assert vector(source, spec, range(16, 32), range(16), "none", "native", total=32).streams == tuple(range(16, 32))


class Pixels(gymnasium.Env):
    """Frames of 5 x 6 pixels, alone or beside a number."""

    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, beside: bool = False, shape: tuple[int, ...] = (5, 6)) -> None:
        space = gymnasium.spaces.Box(0, 255, shape, np.uint8)
        number = gymnasium.spaces.Box(0, 1, (), np.float32)
        self.observation_space = gymnasium.spaces.Dict({"a": number, "b": space}) if beside else space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


class Noisy(gymnasium.ObservationWrapper):
    def observation(self, observation):
        return observation


def frames_of(env: gymnasium.Env) -> list[tuple[int, str]]:
    return [(leaf.stack, leaf.padding) for leaf in read_spec(resolve(lambda: env), 0).leaves()]


def test_a_stack_of_frames_is_known_from_its_wrapper() -> None:
    stack = gymnasium.wrappers.FrameStackObservation
    assert frames_of(Pixels()) == [(0, "reset")]
    assert frames_of(stack(Pixels(), 4)) == [(4, "reset")]
    assert frames_of(gymnasium.wrappers.TimeLimit(stack(Pixels(), 3, padding_type="zero"), 9)) == [(3, "zero")]
    assert frames_of(stack(Pixels(beside=True), 4)) == [(0, "reset"), (4, "reset")]
    assert frames_of(Noisy(stack(Pixels(), 4))) == [(0, "reset")]  # whatever it does to the frames
    assert frames_of(stack(Pixels(), 4, padding_type=np.ones((5, 6), np.uint8))) == [(0, "reset")]
    assert frames_of(stack(Pixels(), 1)) == [(0, "reset")]
    assert frames_of(stack(Pixels(shape=(5, 6, 3)), 4)) == [(0, "reset")]  # no image to us


def test_what_lies_outside_of_the_stack_must_hand_on_each_observation() -> None:
    """Else the replay would keep single frames of stacks that do not roll."""

    class Halves(gymnasium.RewardWrapper):
        def reward(self, reward):
            return reward / 2

    class Skips(gymnasium.Wrapper):
        def step(self, action):
            self.env.step(action)
            return self.env.step(action)

    class Doubled(gymnasium.wrappers.FrameStackObservation):
        def step(self, action):
            obs, *rest = super().step(action)
            return 2 * obs, *rest

    wrappers = gymnasium.wrappers
    stack = wrappers.FrameStackObservation(Pixels(), 4)
    kept, alone = [(4, "reset")], [(0, "reset")]
    for known in (wrappers.RecordEpisodeStatistics, wrappers.NormalizeReward, wrappers.OrderEnforcing, Halves):
        assert frames_of(known(stack)) == kept, known
    assert frames_of(gymnasium.Wrapper(wrappers.TimeLimit(Halves(stack), 9))) == kept
    assert frames_of(Skips(stack)) == alone
    assert frames_of(wrappers.TimeLimit(Skips(stack), 9)) == alone
    assert frames_of(Doubled(Pixels(), 4)) == alone
    assert frames_of(wrappers.MaxAndSkipObservation(stack)) == alone
    assert frames_of(wrappers.RepeatAction(stack, 2)) == alone


def test_what_is_known_of_stacks_survives_json() -> None:
    spec = read_spec(resolve(lambda: gymnasium.wrappers.FrameStackObservation(Pixels(), 4, padding_type="zero")), 0)
    old = to_json(spec)
    assert from_json(old) == spec
    assert isinstance(spec.obs, Leaf)
    for name in ("stack", "padding"):
        del old["obs"]["leaf"][name]  # written before they were known
    assert from_json(old) == replace(spec, obs=replace(spec.obs, stack=0, padding="reset"))


class Bare(gymnasium.Env[Any, Any]):
    """One observation of zeros; `Bare.like(...)` changes its attributes."""

    observation_space: Any = spaces.Box(0, 1, (2,), np.float32)
    action_space: Any = spaces.Discrete(2)

    @classmethod
    def like(cls, **attributes: Any) -> Any:
        return type("Like", (cls,), attributes)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), 0.0, False, True, {}


def nan_box() -> spaces.Box:
    space = spaces.Box(0, 1, (2,), np.float32)
    space.low[1] = np.nan
    return space


def reversed_box() -> spaces.Box:
    space = spaces.Box(0, 1, (2,), np.float32)
    space.low[1] = 3
    return space


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (spaces.Box(0, 1, (0,), np.float32), "is empty"),
        (spaces.Box(0, 1, (3, 0), np.float32), "is empty"),
        (spaces.Dict({}), "is empty"),
        (spaces.Tuple(()), "is empty"),
        (spaces.Dict({"a": spaces.Dict({})}), "['a'] is Dict(), which is empty"),
        (spaces.MultiDiscrete([]), "is empty"),
        (spaces.Dict({"a": spaces.Discrete(2), 1: spaces.Discrete(2)}), "has the key 1 of type int"),
        (spaces.Dict({0: spaces.Discrete(2)}), "has the key 0 of type int"),
        (spaces.Dict({("a", 1): spaces.Discrete(2)}), "of type tuple; keys of a Dict must be strings"),
        (spaces.Text(5), "is Text, which is not supported. Supported: Box"),
        (spaces.Sequence(spaces.Discrete(2)), "is Sequence, which"),
        (spaces.Graph(spaces.Discrete(2), None), "is Graph, which"),
        (spaces.OneOf((spaces.Discrete(2), spaces.Discrete(3))), "is OneOf, which"),
        (spaces.Dict({"a": spaces.Sequence(spaces.Discrete(2))}), "['a'] is Sequence"),
        (nan_box(), "has the bounds low nan and high 1.0 at [1]"),
        (reversed_box(), "has the bounds low 3.0 and high 1.0 at [1]; low must not be above high"),
        (None, "needs an attribute observation_space, a space of gymnasium.spaces; it has none"),
        (7, "it has 7"),
        ("Box", "it has a str"),
    ],
)  # fmt: skip
def test_a_space_that_cannot_be_used_is_one_line(space: Any, words: str) -> None:
    with pytest.raises(EnvError) as caught:
        read_spec(resolve(Bare.like(observation_space=space)), 0)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (spaces.Box(0, 1, (0,), np.float32), "is empty"),
        (spaces.MultiDiscrete([]), "is empty"),
        (spaces.MultiDiscrete([[2, 3]]), "is MultiDiscrete, which is not supported"),
        (spaces.Dict({"a": spaces.Discrete(2)}), "is Dict, which is not supported. Supported: Discrete"),
        (spaces.Dict({"a": spaces.Dict({"b": spaces.Discrete(2)})}), "is Dict"),
        (spaces.Text(5), "is Text"),
        (nan_box(), "nan"),
        (None, "needs an attribute action_space"),
    ],
)  # fmt: skip
def test_actions_that_cannot_be_used_are_one_line(space: Any, words: str) -> None:
    with pytest.raises(EnvError) as caught:
        read_spec(resolve(Bare.like(action_space=space)), 0)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_reset_without_a_seed_is_one_line() -> None:
    def reset(self: Any) -> Any:
        return np.zeros(2, np.float32), {}

    with pytest.raises(EnvError, match=r"its reset takes no seed.*Define reset\(self, \*, seed=None, options=None\)"):
        read_spec(resolve(Bare.like(reset=reset)), 0)
    limited = gymnasium.wrappers.TimeLimit(Bare.like(reset=reset)(), 5)
    with pytest.raises(EnvError, match="its reset takes no seed"):
        read_spec(resolve(lambda: limited), 0)


def test_an_environment_that_answers_to_every_name_is_no_other_kind() -> None:
    class Answers(Bare):
        def __getattr__(self, name: str) -> Any:
            return lambda *args, **kwargs: None

    from rltrain.envs.vector.restore_check import verify

    spec = read_spec(resolve(Answers), 0)
    assert (spec.groups, spec.action.kind, spec.max_steps) == ((), "discrete", None)
    assert verify(Answers, spec, 0) == "rng"
