"""Registers its environment with gymnasium.register in the main script, which has no __main__ guard."""

import sys

import gymnasium
from harmless import Harmless

import rltrain

gymnasium.register("Own-v0", Harmless, max_episode_steps=50)
print(rltrain.train(env="Own-v0", workers=int(sys.argv[1]), **eval(sys.argv[2])).fingerprint)
