"""Writes an episode to a video file."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rltrain.envs.closing import close
from rltrain.envs.errors import EnvError
from rltrain.envs.lookup import EnvSource
from rltrain.envs.spec import EnvSpec
from rltrain.errors import ConfigError
from rltrain.rollout.actor.play import play
from rltrain.rollout.types import Policy

TENSORBOARD_FRAMES, TENSORBOARD_PIXELS = 200, 256  # of a film in TensorBoard, at most; the file has all


class Film(NamedTuple):
    """An episode that was filmed to a file, and as a small GIF."""

    gif: bytes
    shape: tuple[int, int]  # height and width


class Filmer:
    """Plays and films one episode per call, in a worker.

    Args:
        make: makes one environment that renders.
    """

    def __init__(
        self, spec: EnvSpec, make: Callable[[], Any], make_policy: Callable[[], Policy], at_random: bool
    ) -> None:
        self._spec, self._make, self._at_random = spec, make, at_random
        self._policy = make_policy()
        self._parameters = {name: tensor.numpy() for name, tensor in self._policy.state_dict().items()}

    def film(self, arrays: dict[str, np.ndarray], seed: int, path: str) -> Film | str:
        """Film an episode with these weights to a file; one line if the environment cannot be filmed."""
        for name, array in self._parameters.items():
            array[...] = arrays[name]
        try:
            writer = VideoWriter(Path(path))
            play(self._make, self._spec, self._policy, [seed], frame=writer.add, at_random=self._at_random)
            writer.write()
            return writer.small()
        except (ConfigError, EnvError) as error:
            return str(error)

    def close(self) -> None:
        """No-op: environments are closed at the end of each call."""


def shown(source: EnvSource) -> EnvSource:
    """The source of environments that show themselves in a window.

    Raises:
        ConfigError: there is no screen, or the environment cannot be shown; one line.
    """
    screens = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
    if sys.platform == "linux" and not any(os.environ.get(name) for name in screens):
        raise ConfigError("--render needs a screen, and DISPLAY is not set; --video FILE.mp4 writes a film instead")
    human = replace(source, kwargs={**source.kwargs, "render_mode": "human"})
    if "render_mode" in human.unknown_arguments():
        raise ConfigError(f"--render: the constructor of {source.name} takes no render_mode, so it cannot be shown")
    env = source.make()
    try:
        modes = (getattr(getattr(env, "game", env), "metadata", None) or {}).get("render_modes", [])
        known = "human" in modes or (env.spec is not None and "rgb_array" in modes)  # gymnasium.make shows these
    finally:
        close(env)
    if not known:
        raise ConfigError(
            f"--render: {source.name} cannot be shown in a window (its render modes: {', '.join(modes) or 'none'})"
        )
    return human


class VideoWriter:
    """Collects the frames of an episode. ConfigError if the package that writes videos is missing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.frames: list[np.ndarray] = []
        try:
            import imageio.v3  # noqa: F401
        except ImportError:
            raise ConfigError("--video needs imageio: pip install 'rltrain[video]'") from None

    def add(self, env: Any) -> None:
        """Add the current frame of the environment."""
        try:
            frame = env.render()
        except Exception as error:
            raise ConfigError(f"--video: the environment cannot be rendered: {str(error).splitlines()[0]}") from None
        if frame is not None:
            self.frames.append(np.asarray(frame))
        self.rate = int(env.metadata.get("render_fps", 30))

    def write(self) -> None:
        """Write the file; its suffix determines the format."""
        import imageio.v3

        if not self.frames:
            raise ConfigError("--video: the environment returned no frames (render_mode rgb_array)")
        try:
            imageio.v3.imwrite(self.path, np.stack(self.frames), **self._options())
        except Exception as error:
            raise ConfigError(f"--video {self.path}: {str(error).splitlines()[0]}") from None

    def small(self) -> Film:
        """The film as a GIF with fewer frames and pixels."""
        import imageio.v3

        every = -(-len(self.frames) // TENSORBOARD_FRAMES)
        frames = np.stack(self.frames[::every])
        step = -(-max(frames.shape[1:3]) // TENSORBOARD_PIXELS)
        frames = frames[:, ::step, ::step]
        gif = imageio.v3.imwrite("<bytes>", frames, extension=".gif", duration=1000 * every / self.rate, loop=0)
        return Film(bytes(gif), (frames.shape[1], frames.shape[2]))

    def _options(self) -> dict[str, Any]:
        return {"duration": 1000 / self.rate, "loop": 0} if self.path.suffix == ".gif" else {"fps": self.rate}
