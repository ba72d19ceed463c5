"""A simulator in a process of its own, which asks a server of rlserve for each action.

    rlserve runs/cartpole --sample --record recording
    python docs/examples/simulator.py --episodes 20
    rltrain --algo dqn --env CartPole-v1 --replay-from recording

The program needs neither rltrain nor torch. In place of `PoleOnCart` stands the simulator of a game, a robot or a
factory: it sends what it observes, and with it the reward and the end that followed from the last action. A server with
--record keeps them as episodes.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import random
from typing import Any
from urllib.parse import urlsplit


class PoleOnCart:
    """A pole on a cart: the equations of CartPole-v1 (Barto, Sutton and Anderson 1983)."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def reset(self) -> list[float]:
        self.steps = 0
        self.state = [self.rng.uniform(-0.05, 0.05) for _ in range(4)]
        return self.state

    def step(self, action: int) -> tuple[list[float], float, bool, bool]:
        """The next observation, the reward, and whether the pole fell or the time is over."""
        x, v, angle, spin = self.state
        force = 10.0 if action == 1 else -10.0
        push = (force + 0.05 * spin**2 * math.sin(angle)) / 1.1
        turn = 9.8 * math.sin(angle) - math.cos(angle) * push
        turn /= 0.5 * (4.0 / 3.0 - 0.1 * math.cos(angle) ** 2 / 1.1)
        pull = push - 0.05 * turn * math.cos(angle) / 1.1
        self.state = [x + 0.02 * v, v + 0.02 * pull, angle + 0.02 * spin, spin + 0.02 * turn]
        self.steps += 1
        fell = abs(self.state[0]) > 2.4 or abs(self.state[2]) > math.radians(12)
        return self.state, 1.0, fell, self.steps >= 500 and not fell


class Server:
    """Asks for actions over one connection."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
        self.headers = {"Content-Type": "application/json"}
        if token:
            self.headers["Authorization"] = f"Bearer {token}"

    def act(self, **request: Any) -> Any:
        """The action for one observation; None after the end of an episode."""
        self.connection.request("POST", "/v1/act", json.dumps(request), self.headers)
        answer = json.loads(self.connection.getresponse().read())
        if "error" in answer:
            raise SystemExit(answer["error"]["message"])
        return answer["action"]


def play(server: Server, simulator: PoleOnCart, name: str) -> float:
    """One episode; its return."""
    total = 0.0
    action = server.act(obs=simulator.reset(), episode=name, first=True)
    while action is not None:
        obs, reward, terminated, truncated = simulator.step(action)
        total += reward
        action = server.act(obs=obs, episode=name, reward=reward, terminated=terminated, truncated=truncated)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--token", help="if the server needs one")
    parser.add_argument("--episodes", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    server, simulator = Server(given.url, given.token), PoleOnCart(given.seed)
    returns = [play(server, simulator, f"simulator {given.seed}") for _ in range(given.episodes)]
    print(json.dumps({"episodes": len(returns), "mean_return": sum(returns) / len(returns)}))


if __name__ == "__main__":
    main()
