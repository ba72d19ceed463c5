"""Gives a function that closes over values of the main script."""

import sys

from harmless import Harmless

import rltrain


def main() -> None:
    lock = ["harmless"]

    def make() -> Harmless:
        assert lock == ["harmless"]
        return Harmless()

    print(rltrain.train(env=make, workers=int(sys.argv[1]), **eval(sys.argv[2])).fingerprint)


main()
