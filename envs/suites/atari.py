"""Atari 2600 games from ale-py, with the preprocessing of Machado et al. 2018 (arXiv:1709.06009).

Sticky actions and no-op starts are drawn here, from the stream's generator, and each game begins in the same state of
the emulator. So a game is a function of its seed and its actions, and it can be saved and restored exactly. That is not
possible with ale-py's own environments: their randomness comes from an internal generator that can only be seeded by
loading the game again.
"""

from __future__ import annotations

import functools
import importlib
import math
import re
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from rltrain.envs.errors import EnvError, did_you_mean
from rltrain.envs.spaces import EPISODE_CONTINUES

PREFIX = "atari:"  # atari:Pong is ALE/Pong-v5
INSTALL = "pip install 'rltrain[atari]'"


class Atari(gymnasium.Env[np.ndarray, Any]):
    """One game. Observation: the newest `stack` frames [stack, S, S], uint8, gray, the oldest first. Rewards are raw.

    A frame is the maximum of the last two screens of a step. An episode begins with `stack` copies of its first frame.

    Args:
        game:                       ale-py's name, such as "ms_pacman".
        repeat_action_probability:  that an emulated frame repeats the action of the frame before; 0.25 as in
                                    Machado et al.
        frameskip:                  emulated frames per step.
        noop_max:                   an episode begins with 1 to `noop_max` frames without an action; 0: with none.
        screen_size:                S, pixels per side.
        stack:                      frames in an observation.
        full_action_space:          use all 18 actions, not only those that have an effect in this game.
        terminal_on_life_loss:      a lost life ends the episode for learning; reported episodes are games.
        max_num_frames_per_episode: emulated frames after which the episode is truncated.
        mode, difficulty:           of the game; None: the default.
        render_mode:                None or "rgb_array".
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012  gymnasium's own form

    def __init__(
        self,
        game: str,
        *,
        repeat_action_probability: float = 0.25,
        frameskip: int = 4,
        noop_max: int = 30,
        screen_size: int = 84,
        stack: int = 4,
        full_action_space: bool = False,
        terminal_on_life_loss: bool = False,
        max_num_frames_per_episode: int = 108_000,
        mode: int | None = None,
        difficulty: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        _check("frameskip", frameskip, 1)
        _check("screen_size", screen_size, 1)
        _check("stack", stack, 1)
        _check("noop_max", noop_max, 0)
        _check("max_num_frames_per_episode", max_num_frames_per_episode, 1)
        if not 0 <= repeat_action_probability < 1:
            raise EnvError(f"repeat_action_probability must be in [0, 1), got {repeat_action_probability}")
        self._py, self._cv2 = packages(game)
        self.render_mode = render_mode
        self.stack = stack
        self._skip, self._sticky, self._noops = frameskip, repeat_action_probability, noop_max
        self._side, self._by_life = screen_size, terminal_on_life_loss
        self._ale = ale = self._py.ALEInterface()
        ale.setInt("random_seed", 0)
        ale.setFloat("repeat_action_probability", 0.0)
        ale.setInt("max_num_frames_per_episode", max_num_frames_per_episode)
        ale.loadROM(self._py.roms.get_rom_path(game))
        for name, value, known in (
            ("mode", mode, ale.getAvailableModes()),
            ("difficulty", difficulty, ale.getAvailableDifficulties()),
        ):
            if value is not None and value not in known:
                raise EnvError(f"{game} has no {name} {value}; it has {', '.join(map(str, known))}")
        if mode is not None:
            ale.setMode(mode)
        if difficulty is not None:
            ale.setDifficulty(difficulty)
        self._actions = ale.getLegalActionSet() if full_action_space else ale.getMinimalActionSet()
        ale.reset_game()
        ale.act(self._py.Action.NOOP)  # a state right after a reset lacks some of the hardware's registers
        self._start = ale.cloneState()
        self._screens = np.zeros((2, *ale.getScreenDims()), np.uint8)  # of the last two frames
        self._frames = np.zeros((stack, screen_size, screen_size), np.uint8)
        self._last = self._py.Action.NOOP  # the action of the newest frame
        self._lives = 0
        self._goes_on = False  # a life was lost and the game continues: the next reset only clears the frames
        self.observation_space = spaces.Box(0, 255, self._frames.shape, np.uint8)
        self.action_space = spaces.Discrete(len(self._actions))
        self.spec = EnvSpec(title(game), max_episode_steps=math.ceil(max_num_frames_per_episode / frameskip))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """A new game. After a lost life and without a seed: the same game, with new frames."""
        super().reset(seed=seed)
        ale = self._ale
        if not self._goes_on or seed is not None:
            ale.restoreState(self._start)
            self._last = self._py.Action.NOOP
            for _ in range(int(self.np_random.integers(1, self._noops + 1)) if self._noops else 0):
                ale.act(self._last)
                if ale.game_over():
                    ale.restoreState(self._start)
            ale.getScreenGrayscale(self._screens[1])
            self._screens[0] = self._screens[1]
        self._goes_on = False
        self._lives = ale.lives()
        frame = self._frame(np.empty_like(self._frames[0]))
        self._frames = np.repeat(frame[None], self.stack, 0)
        return self._frames, {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        ale, skip, last = self._ale, self._skip, self._last
        act, asked, reward = ale.act, self._actions[action], 0
        sticky = (self.np_random.random(skip) < self._sticky).tolist() if self._sticky else [False] * skip
        for k in range(skip):
            if not sticky[k]:
                last = asked
            reward += act(last)  # 0 and no frame once the game is over
            if k == skip - 2:
                ale.getScreenGrayscale(self._screens[0])
        if skip == 1:
            self._screens[0] = self._screens[1]
        ale.getScreenGrayscale(self._screens[1])
        self._last = last
        frames = np.empty_like(self._frames)
        frames[:-1] = self._frames[1:]
        self._frame(frames[-1])
        self._frames = frames
        terminated = ale.game_over(with_truncation=False)
        truncated = not terminated and ale.game_truncated()
        info = {}
        if self._by_life and not (terminated or truncated):
            lives = ale.lives()
            self._goes_on = 0 < lives < self._lives
            self._lives = lives
            if self._goes_on:
                terminated, info = True, {EPISODE_CONTINUES: True}
        return frames, float(reward), terminated, truncated, info

    def get_state(self) -> dict[str, Any]:
        """Plain data from which `set_state` restores the game exactly."""
        return {
            "emulator": np.frombuffer(self._ale.cloneState().__getstate__(), np.uint8),
            "generator": self.np_random,
            "screens": self._screens,
            "frames": self._frames,
            "last": int(self._last.value),
            "lives": self._lives,
            "goes_on": self._goes_on,
        }

    def set_state(self, saved: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        """Restore the result of `get_state`; returns the newest observation and an empty info."""
        state = self._py.ALEState.__new__(self._py.ALEState)
        state.__setstate__(saved["emulator"].tobytes())
        self._ale.restoreState(state)
        self.np_random = saved["generator"]
        self._screens[...] = saved["screens"]
        self._frames = saved["frames"]
        self._last = self._py.Action(saved["last"])
        self._lives, self._goes_on = saved["lives"], saved["goes_on"]
        return self._frames, {}

    def render(self) -> np.ndarray | None:
        """The screen [210, 160, 3] in colour, or None without a render mode."""
        return None if self.render_mode is None else self._ale.getScreenRGB()

    def _frame(self, out: np.ndarray) -> np.ndarray:
        """Write the frame [S, S] of the newest two screens into `out`."""
        screen = np.maximum(self._screens[0], self._screens[1])
        self._cv2.resize(screen, (self._side, self._side), dst=out, interpolation=self._cv2.INTER_AREA)
        return out


def find(name: str) -> Callable[..., Atari] | None:
    """The factory of the game `name`, such as "ALE/Pong-v5" or "atari:Pong"; None if the name is of another form.

    Raises:
        EnvError: there is no such game, or the extra is missing; one line.
    """
    if name.startswith(PREFIX):
        asked = name.removeprefix(PREFIX)
    elif name.startswith("ALE/") and name.endswith("-v5"):
        asked = name[len("ALE/") : -len("-v5")]
    else:
        return None
    py, _ = packages(name)
    games = {title(game): game for game in py.roms.get_all_rom_ids()}
    folded = {game.replace("_", ""): game for game in games.values()}
    game = folded.get(asked.lower().replace("_", "").replace("-", ""))
    if game is None:
        raise EnvError(f"unknown game {name!r}." + did_you_mean(f"ALE/{asked}-v5", games))
    return functools.partial(Atari, game)


def title(game: str) -> str:
    """ "ms_pacman" to "ALE/MsPacman-v5"."""
    return f"ALE/{re.sub('(?:^|_)([a-z0-9])', lambda match: match[1].upper(), game)}-v5"


def packages(name: str) -> tuple[Any, Any]:
    """The modules ale_py and cv2; EnvError with the command that installs them if they are missing."""
    try:
        py, cv2 = importlib.import_module("ale_py"), importlib.import_module("cv2")
    except ImportError:
        raise EnvError(f"{name} needs an extra: {INSTALL}") from None
    py.ALEInterface.setLoggerMode(py.LoggerMode.Error)
    cv2.setNumThreads(1)  # an actor has one core
    return py, cv2


def _check(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise EnvError(f"{name} must be a whole number of at least {least}, got {value!r}")
