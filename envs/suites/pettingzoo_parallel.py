"""A faster version of PettingZoo's parallel view of an environment whose agents act in turns."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from pettingzoo.utils.conversions import aec_to_parallel_wrapper
from pettingzoo.utils.wrappers import AssertOutOfBoundsWrapper, OrderEnforcingWrapper

CHECKS = (OrderEnforcingWrapper, AssertOutOfBoundsWrapper)  # wrappers that check calls and change nothing


def faster_view(game: Any) -> Any:
    """`AecToParallel` in place of PettingZoo's own view; other games, and views with methods of a user, unchanged."""
    if type(game) is not aec_to_parallel_wrapper or any(hasattr(aec_to_parallel_wrapper, name) for name in vars(game)):
        return game
    return AecToParallel(game)


class AecToParallel(aec_to_parallel_wrapper[Any, Any, Any]):  # type: ignore[misc]
    """PettingZoo's view: in one step all agents act, one after the other. Results are equal if `observe` is pure.

    PettingZoo's own class observes each agent before it acts and ignores the result, and reads each attribute through
    all wrappers, about thirty times per agent. Here each agent is observed once per step, and attributes are read below
    the outer wrappers that only check. Actions still pass through all wrappers.

    Args:
        view: made by PettingZoo.
    """

    def __init__(self, view: aec_to_parallel_wrapper[Any, Any, Any]) -> None:
        self.__dict__.update(view.__dict__)
        inner = view.aec_env
        while type(inner) in CHECKS:
            inner = inner.env
        self._inner = inner

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        """Observations, rewards, terminations, truncations and infos by agent.

        Raises:
            AssertionError: the agents do not act in the order of `agents`.
        """
        env, inner = self.aec_env, self._inner
        rewards: dict[str, Any] = defaultdict(int)
        for agent in inner.agents:
            if agent != inner.agent_selection:
                raise AssertionError(
                    f"agent {agent!r} should act, and {inner.agent_selection!r} does: shown as a parallel environment, "
                    "agents act in the order of `agents`, and leave only at the end of a round"
                )
            env.step(actions[agent])
            for other in inner.agents:
                rewards[other] += inner.rewards[other]
        ends = dict(inner.terminations), dict(inner.truncations)
        infos, obs = dict(inner.infos), {agent: inner.observe(agent) for agent in inner.agents}
        while inner.agents and (inner.terminations[inner.agent_selection] or inner.truncations[inner.agent_selection]):
            env.step(None)
        self.agents = inner.agents
        return obs, rewards, *ends, infos
