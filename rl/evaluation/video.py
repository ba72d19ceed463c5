"""Writes an episode to a video file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rltrain.errors import ConfigError


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

    def _options(self) -> dict[str, Any]:
        return {"duration": 1000 / self.rate, "loop": 0} if self.path.suffix == ".gif" else {"fps": self.rate}
