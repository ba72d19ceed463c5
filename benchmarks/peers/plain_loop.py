"""The plainest loop over env.step, actions drawn beforehand: plain_loop.py ENV STREAMS SECONDS START (of time.time)"""

from __future__ import annotations

import json
import sys
import time

import gymnasium


def main() -> None:
    name, streams, seconds, start = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
    envs = [gymnasium.make(name) for _ in range(streams)]
    envs[0].action_space.seed(0)
    actions = [[envs[0].action_space.sample() for _ in envs] for _ in range(1024 // streams)]
    for seed, env in enumerate(envs):
        env.reset(seed=seed)
    late = time.time() - start
    if late > 0:
        sys.exit(f"plain_loop: ready {late:.1f} s too late to begin together")
    time.sleep(-late)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        for row in actions:
            for env, action in zip(envs, row, strict=True):
                _, _, terminated, truncated, _ = env.step(action)
                if terminated or truncated:
                    env.reset()
        count += streams * len(actions)
    print(json.dumps({"steps_per_second": count / (time.perf_counter() - began)}))


if __name__ == "__main__":
    main()
