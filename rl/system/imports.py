"""Imports of torch without the search for garbage, which takes a tenth of their time."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def no_collection(freeze: bool = False) -> Iterator[None]:
    """Switch garbage collection off in a block that imports torch. No effect if torch is imported already.

    Args:
        freeze: later collections do not visit the objects that exist at the end of the block, of which none may be
                garbage.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        if freeze:
            gc.freeze()
    finally:
        gc.enable()
