"""Registers a name with rltrain.register_env."""

import sys

from harmless import Harmless

import rltrain

rltrain.register_env("mine", lambda: Harmless())
if __name__ == "__main__":
    print(rltrain.train(env="mine", workers=int(sys.argv[1]), **eval(sys.argv[2])).fingerprint)
