"""Time per step of turn-based PettingZoo environments in parallel form: PettingZoo's own wrapper against ours."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from functools import partial
from typing import Any

from paired import HERE, Bench, Numbers, Ratio, Variant, arguments

METRICS = {"us_per_step": "us"}
GAMES = {  # module: settings
    "mpe2.simple_spread_v3": {"max_cycles": 100},
    "mpe2.simple_tag_v3": {"max_cycles": 100},
    "mpe2.simple_crypto_v3": {"max_cycles": 100},
    "pettingzoo.sisl.multiwalker_v9": {},
}
NOTE = (
    "A step of all agents with random actions, resets included, outside of rltrain's own loop. Both views tell the "
    "same, step for step: `tests/envs/suites/test_pettingzoo_parallel.py`."
)


def stepped(module: str, view: str, steps: int, seed: int) -> Numbers:
    """Measures the time per step in this process."""
    sys.path.append(str(HERE.parent))
    from rltrain.envs.suites.pettingzoo_parallel import faster_view

    env: Any = importlib.import_module(module).parallel_env(**GAMES[module])
    if view == "ours":
        env = faster_view(env)
    env.reset(seed=seed)
    for number, agent in enumerate(env.possible_agents):
        env.action_space(agent).seed(seed + number)
    actions = [{agent: env.action_space(agent).sample() for agent in env.possible_agents} for _ in range(64)]
    began = time.perf_counter()
    for step in range(steps):
        if not env.agents:
            env.reset()
        env.step({agent: actions[step % 64][agent] for agent in env.agents})
    return {"us_per_step": 1e6 * (time.perf_counter() - began) / steps}


def main() -> None:
    options = arguments(__doc__, game={"choices": GAMES, "help": argparse.SUPPRESS}, view={"help": argparse.SUPPRESS})
    steps = 200 if options.quick else 4_000
    if options.game:
        print(json.dumps(stepped(options.game, options.view, steps, 0)))
        return
    bench = Bench("cycle", options, METRICS)
    variants, ratios = [], []
    for module in GAMES:
        for view in ("PettingZoo's", "ours"):
            command = [sys.executable, str(HERE / "cycle.py"), "--game", module, "--view", view]
            command += ["--quick"] * options.quick
            variants.append(Variant(f"{module}, {view}", bench.shown(command), partial(run, bench, command)))
        ratios.append(Ratio(module, [f"{module}, ours"], f"{module}, PettingZoo's", "us_per_step", "at most", 1.0))
    bench.report(variants, bench.alternate(variants), ratios, NOTE)


def run(bench: Bench, command: list[str], _: int) -> Numbers:
    """A function that runs the command once."""
    return bench.call(command, env={"OMP_NUM_THREADS": "1", "SDL_VIDEODRIVER": "dummy"})


if __name__ == "__main__":
    main()
