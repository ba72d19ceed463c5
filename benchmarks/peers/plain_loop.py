"""The plainest loop over env.step, actions drawn beforehand: plain_loop.py ENV SECONDS START (of time.time)"""

from __future__ import annotations

import json
import sys
import time

import gymnasium


def main() -> None:
    env = gymnasium.make(sys.argv[1])
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(1024)]
    env.reset(seed=0)
    late = time.time() - float(sys.argv[3])
    if late > 0:
        sys.exit(f"plain_loop: ready {late:.1f} s too late to begin together")
    time.sleep(-late)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < float(sys.argv[2]):
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        count += len(actions)
    print(json.dumps({"steps_per_second": count / (time.perf_counter() - began)}))


if __name__ == "__main__":
    main()
