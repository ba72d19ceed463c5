"""A build step of setuptools: copies the tuned settings of configs/ into the wheel, as rltrain/configs."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent.parent


def presets() -> list[Path]:
    return sorted((ROOT / "configs").rglob("*.toml"))


class BuildPy(build_py):
    """`build_py` that also copies configs/, except for an editable install, which reads them in place."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for file in presets():
            target = Path(self.build_lib) / "rltrain" / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)

    def get_source_files(self) -> list[str]:
        """The files of a source distribution, including this file and the settings."""
        extra = [Path(__file__).resolve(), *presets()]
        return super().get_source_files() + [str(file.relative_to(ROOT)) for file in extra]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        copied = [str(Path(self.build_lib) / "rltrain" / file.relative_to(ROOT)) for file in presets()]
        return super().get_outputs(include_bytecode) + ([] if self.editable_mode else copied)
