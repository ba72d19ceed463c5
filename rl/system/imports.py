"""Imports of torch without the search for garbage, which takes a tenth of their time."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Switch garbage collection off in a block that imports torch, unless torch is there: it finds hardly anything.

    Later collections do not visit the objects that exist at the end of the block.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
