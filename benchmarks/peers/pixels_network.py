"""What a network of images allows alone: pixels_network.py SEED [--threads N] [--steps N] [--play games] [--torso T]

Forward and backward of it on minibatches that lie ready, as often as PPO with 4 epochs asks for each step; and nothing
else: no environment, no actions, no values, no loss to speak of, no optimiser.

With --play the steps are played too, as barely, by a process for each thread, four games of Pong each. `network`: it
passes frames through the network to act, and there are no games. `games`: there are, and what they show is passed
through. That is what learning and playing by turns take in this arrangement without anything around them; other
arrangements may take less.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))

import torch

from rltrain.algorithms.networks.encoder import load_torso
from rltrain.algorithms.networks.mlp import MLP, turned
from rltrain.envs.make import resolve
from rltrain.envs.spec import ActionSpec, EnvSpec, Leaf

EPOCHS, ROWS = 4, 256
GAMES, WARM = 4, 50  # of a process that plays; steps of each before its time counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4096)
    parser.add_argument("--torso", default="nature")
    parser.add_argument("--play", choices=("network", "games"), help="the steps are played too")
    parser.add_argument("--player", action="store_true", help="plays only: one of the processes of --play")
    options = parser.parse_args()
    if options.player:
        told = played(options.seed, options.torso, options.steps, GAMES if options.play == "games" else 0)
        print(json.dumps({"steps_per_second": told}))
        return
    learnt, numbers = learned(options.seed, options.torso, options.steps, options.threads)
    if options.play:
        words = [sys.executable, __file__, "--player", "--play", options.play, "--torso", options.torso]
        words += ["--steps", str(options.steps // options.threads)]
        players = [
            subprocess.Popen([*words, str(options.seed + n)], stdout=subprocess.PIPE) for n in range(options.threads)
        ]
        said = [player.communicate()[0] for player in players]
        if any(player.returncode for player in players):
            sys.exit("a process that plays failed; its words are above")
        numbers["playing"] = sum(json.loads(words.splitlines()[-1])["steps_per_second"] for words in said)
        learnt = 1 / (1 / learnt + 1 / numbers["playing"])
    print(json.dumps({"steps_per_second": learnt, **numbers}))


def network(name: str, seed: int) -> tuple[Any, MLP]:
    """The torso, and one head of policy and value behind it."""
    generator = torch.Generator().manual_seed(seed)
    spec = EnvSpec("Pong", Leaf("image", (4, 84, 84), "uint8"), ActionSpec("discrete", (), (6,)))
    torso = load_torso(name, spec, generator)
    return torso, MLP(torso.features, (), 7, generator=generator)


def learned(seed: int, name: str, steps: int, threads: int) -> tuple[float, dict[str, float]]:
    """Steps that could be learnt from in a second."""
    torch.set_num_threads(threads)
    torso, head = network(name, seed)
    images = torch.randint(256, (ROWS, 4, 84, 84), dtype=torch.uint8)

    def work() -> None:
        head.forward(torso.forward(images)).square().mean().backward()  # type: ignore[no-untyped-call]

    work()
    times = steps * EPOCHS // ROWS
    began = time.perf_counter()
    for _ in range(times):
        work()
    seconds = time.perf_counter() - began
    return times * ROWS / EPOCHS / seconds, {"ms_per_minibatch": 1000 * seconds / times}


def played(seed: int, name: str, steps: int, games: int) -> float:
    """Steps that one process could play in a second; without games what the network of one that acts allows."""
    torch.set_num_threads(1)
    torso, head = map(turned, network(name, seed))
    made = [resolve("ALE/Pong-v5").make() for _ in range(games)]
    seen = torch.randint(256, (GAMES, 4, 84, 84), dtype=torch.uint8)
    for n, game in enumerate(made):
        seen[n] = torch.from_numpy(game.reset(seed=seed + n)[0])
    began = 0.0
    with torch.inference_mode():
        for step in range(WARM + steps // GAMES):
            if step == WARM:
                began = time.perf_counter()
            actions = head.forward(torso.forward(seen))[:, :6].argmax(-1).tolist()
            for n, (game, action) in enumerate(zip(made, actions, strict=False)):
                frames, _, terminated, truncated, _ = game.step(action)
                seen[n] = torch.from_numpy(game.reset()[0] if terminated or truncated else frames)
    return steps // GAMES * GAMES / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
