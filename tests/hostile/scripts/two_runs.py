"""Two runs in one process, after a run whose environment raised."""

import contextlib
import sys

from endings import Asserts
from harmless import Harmless

import rltrain

settings = {"workers": int(sys.argv[1]), **eval(sys.argv[2])}
if __name__ == "__main__":
    with contextlib.suppress(Exception):
        rltrain.train(env=lambda: Asserts("later"), **settings)
    first = rltrain.train(env=Harmless, **settings)
    second = rltrain.train(env=Harmless, **settings)
    assert first.fingerprint == second.fingerprint
    print(second.fingerprint)
