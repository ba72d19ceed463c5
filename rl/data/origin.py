"""What a recording says about its origin, and what of it a part or a mixture of recordings must say too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

REFERENCE = "reference"  # the returns for normalised scores
SELECTIONS = "selections"  # conditions on return or length that removed complete episodes, in the order of the filters
ENV_ARGS = "env_args"  # of the environment's constructor; of a mixture also a list of them
KEPT = (REFERENCE, "settings", "served", ENV_ARGS)
Run = Mapping[str, Any]  # the `run` of a recording


def of_part(run: Run) -> dict[str, Any]:
    """What some of the episodes of a recording keep."""
    about = {name: run[name] for name in KEPT if name in run}
    return {**about, SELECTIONS: selections(run)} if selections(run) else about


def of_mixture(runs: Sequence[Run]) -> dict[str, Any]:
    """What episodes of several recordings keep: what is true of all, and what restricts any of them."""
    about: dict[str, Any] = {}
    references = [run.get(REFERENCE) for run in runs]
    if references[0] is not None and all(other == references[0] for other in references):
        about[REFERENCE] = references[0]
    settings = [run["settings"] for run in runs if isinstance(run.get("settings"), Mapping)]
    if settings:
        longest = max(settings, key=lambda one: noise_steps({"settings": one}))
        if all(one == longest for one in settings) or noise_steps({"settings": longest}) > 1:
            about["settings"] = longest
    if any(run.get("served") for run in runs):
        about["served"] = True
    env_args = _distinct([run[ENV_ARGS] for run in runs if run.get(ENV_ARGS) is not None])
    if env_args:
        about[ENV_ARGS] = env_args[0] if len(env_args) == 1 else env_args
    if removed := _distinct([selections(run) for run in runs]):
        about[SELECTIONS] = removed
    return about


def noise_steps(run: Run) -> int:
    """The number of steps for which the recorded policy held its noise."""
    settings = run.get("settings")
    if not isinstance(settings, Mapping) or not settings.get("sde"):
        return 1
    every = settings.get("sde_every", 1)
    return every if isinstance(every, int) else 1


def selections(run: Run) -> list[Any]:
    """The conditions on return or length that removed complete episodes from the data."""
    said = run.get(SELECTIONS)
    if said is None and "filtered" in run:  # of version 0.1, which wrote the conditions alone
        return [{name: value for name, value in run.items() if name == "top" or name.startswith(("min_", "max_"))}]
    return said if isinstance(said, list) else []


def _distinct(entries: Sequence[Any]) -> list[Any]:
    """The entries, and in place of a list its entries, each once."""
    found: list[Any] = []
    for entry in entries:
        found += [one for one in (entry if isinstance(entry, list) else [entry]) if one not in found]
    return found
