"""Trains in a thread that is not the main one."""

import sys
import threading

from harmless import Harmless

import rltrain


def train() -> None:
    print(rltrain.train(env=Harmless, workers=int(sys.argv[1]), **eval(sys.argv[2])).fingerprint)


if __name__ == "__main__":
    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
