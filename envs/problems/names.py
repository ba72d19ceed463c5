"""The names of the probe environments, `probe:name`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from rltrain.envs.errors import EnvError
from rltrain.envs.problems.faults import hangs, raises
from rltrain.envs.problems.probes import (
    Counter,
    Masked,
    MemoryTask,
    OfferingCounter,
    TwoSteps,
    box,
    box3,
    box_given_obs,
    choice,
    choice_given_obs,
    constant,
    discrete_start,
    endless,
    endless_box,
    image,
    multi_binary,
    multi_discrete,
    obs_reward,
    tree,
    unbounded,
)

PROBES: dict[str, Callable[..., gymnasium.Env[Any, Any]]] = {
    "constant": constant,
    "obs-reward": obs_reward,
    "two-steps": TwoSteps,
    "choice": choice,
    "choice-given-obs": choice_given_obs,
    "discrete-start": discrete_start,
    "box": box,
    "box-given-obs": box_given_obs,
    "box3": box3,
    "multi-discrete": multi_discrete,
    "multi-binary": multi_binary,
    "masked": Masked,
    "masked-obs": lambda: Masked(in_obs=True),
    "memory": MemoryTask,
    "dict": tree,
    "image": image,
    "board": lambda: image(10, 1, np.bool_),
    "endless": endless,
    "endless-box": endless_box,
    "counter": Counter,
    "offering-counter": OfferingCounter,
    "raises": raises,
    "hangs": hangs,
    "unbounded": unbounded,
}


def probe(name: str) -> Callable[..., gymnasium.Env[Any, Any]]:
    """The factory of a probe; raises EnvError that lists them."""
    try:
        return PROBES[name.replace("_", "-")]
    except KeyError:
        raise EnvError(f"there is no probe {name!r}; probes: {', '.join(PROBES)}") from None
