"""PettingZoo's parallel view of an environment in turns, which asks less of it and takes less time."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from pettingzoo.utils.conversions import aec_to_parallel_wrapper
from pettingzoo.utils.wrappers import AssertOutOfBoundsWrapper, OrderEnforcingWrapper

CHECKS = (OrderEnforcingWrapper, AssertOutOfBoundsWrapper)  # wrappers that look at calls, and change nothing


def quicker(game: Any) -> Any:
    """`AecToParallel` for PettingZoo's own view; any other game, and a view with a user's own methods, as it is."""
    if type(game) is not aec_to_parallel_wrapper or any(hasattr(aec_to_parallel_wrapper, name) for name in vars(game)):
        return game
    return AecToParallel(game)


class AecToParallel(aec_to_parallel_wrapper[Any, Any, Any]):  # type: ignore[misc]
    """The same view: everybody acts once, and then all is told. It tells the same where observing changes nothing.

    PettingZoo's own asks each agent for its observation before it acts, which nobody looks at, and asks for each
    attribute through all wrappers, some thirty times an agent. Here nobody is observed twice, and attributes are read
    where wrappers that only check cannot have changed them. Actions go through all of them, as ever.

    Args:
        view: what PettingZoo made.
    """

    def __init__(self, view: aec_to_parallel_wrapper[Any, Any, Any]) -> None:
        self.__dict__.update(view.__dict__)
        told = view.aec_env
        while type(told) in CHECKS:
            told = told.env
        self._told = told

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        """Observations, rewards, terminations, truncations and infos by agent.

        Raises:
            AssertionError: an agent is not the one to act: the environment does not go round.
        """
        env, told = self.aec_env, self._told
        rewards: dict[str, Any] = defaultdict(int)
        for agent in told.agents:
            if agent != told.agent_selection:
                raise AssertionError(
                    f"agent {agent!r} should act, and {told.agent_selection!r} does: shown as a parallel environment, "
                    "agents act in the order of `agents`, and die at the end of a round only"
                )
            env.step(actions[agent])
            for each in told.agents:
                rewards[each] += told.rewards[each]
        ends = dict(told.terminations), dict(told.truncations)
        infos, obs = dict(told.infos), {each: told.observe(each) for each in told.agents}
        while told.agents and (told.terminations[told.agent_selection] or told.truncations[told.agent_selection]):
            env.step(None)
        self.agents = told.agents
        return obs, rewards, *ends, infos
