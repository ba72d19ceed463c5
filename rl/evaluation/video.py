"""Writes an episode to a video file."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
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
            writer = VideoWriter(Path(path), self._spec.id)
            play(self._make, self._spec, self._policy, [seed], frame=writer.add, at_random=self._at_random)
            writer.write()
            return writer.small()
        except (ConfigError, EnvError) as error:
            return str(error)

    def close(self) -> None:
        """No-op: environments are closed at the end of each call."""


HOW = "its constructor must take render_mode='rgb_array', and its render() return an image [height, width, 3] of uint8"


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
    """Collects the frames of an episode.

    Args:
        name: of the environment, for messages.

    Raises:
        ConfigError: the package that writes videos is missing.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self._name = path, name
        self.frames: list[np.ndarray] = []
        try:
            import imageio.v3  # noqa: F401
        except ImportError:
            raise ConfigError("--video needs imageio: pip install 'rltrain[video]'") from None

    def add(self, env: Any) -> None:
        """Add the current frame of the environment; ConfigError if it returns none."""
        try:
            frame = np.asarray(env.render())
        except Exception as error:
            detail = " ".join(str(error).split()) or type(error).__name__
            what = "it has no render()" if isinstance(error, NotImplementedError) else f"its render() raised: {detail}"
            raise ConfigError(f"--video: {self._name} cannot be filmed: {what}; {HOW}") from None
        if frame.ndim == 2 and frame.dtype == np.uint8:
            frame = np.repeat(frame[..., None], 3, -1)
        if frame.ndim != 3 or frame.shape[-1] != 3 or frame.dtype != np.uint8 or 0 in frame.shape:
            raise ConfigError(f"--video: {self._name} cannot be filmed: its render() returned no image; {HOW}")
        if self.frames and frame.shape != self.frames[0].shape:
            raise ConfigError(f"--video: {self._name} cannot be filmed: the size of its images changes")
        self.frames.append(frame)
        self.rate = int(env.metadata.get("render_fps") or 30)

    def write(self) -> None:
        """Write the file; its suffix determines the format."""
        import imageio.v3

        try:
            with quiet_encoder():
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
        if self.path.suffix == ".gif":
            return {"duration": 1000 / self.rate, "loop": 0}
        return {"fps": self.rate}


def filmed(source: EnvSource) -> Callable[[], Any]:
    """Makes the environment for a video: with render_mode rgb_array, if its constructor takes that."""
    with_images = replace(source, kwargs={**source.kwargs, "render_mode": "rgb_array"})

    def make() -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of Gymnasium, for a mode that is not in the metadata
                return with_images.make()
        except EnvError as error:
            if "render_mode" not in str(error):
                raise
            return source.make()

    return make


@contextlib.contextmanager
def quiet_encoder() -> Iterator[None]:
    """In the block imageio does not warn that it makes a video a few pixels larger."""
    logger = logging.getLogger("imageio_ffmpeg")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
