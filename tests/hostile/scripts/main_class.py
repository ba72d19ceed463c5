"""Gives a class of the main script."""

import sys
from typing import Any

from harmless import Harmless

import rltrain


class Mine(Harmless):
    def step(self, action: Any) -> Any:
        assert helper() == 3
        return super().step(action)


def helper() -> int:
    return len(WORDS)


WORDS = ["a", "b", "c"]

if __name__ == "__main__":
    print(rltrain.train(env=Mine, workers=int(sys.argv[1]), **eval(sys.argv[2])).fingerprint)
