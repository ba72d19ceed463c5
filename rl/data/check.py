"""What is wrong with recorded episodes: each finding says what was seen, where, and what it does to learning."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from rltrain.data.episodes import Recorded
from rltrain.envs.spec import EnvSpec

FEW = 5  # episodes that a finding names
SAME_LENGTH = 5  # episodes of one length from which a time limit is likely
ROWS = 20_000  # rows to which a reward is fitted
LEAST = 400  # rows from which that makes sense
WAVES = 150  # of the function that is fitted
CLEAR = 0.2  # share of the reward's variance that is left at most, if the function says anything
BETTER = 3.0  # factor by which less must be left with another alignment
REPEATED = 0.5  # share of episodes


class Finding(NamedTuple):
    """One thing that is wrong."""

    kind: str
    text: str


def findings(episodes: Sequence[Recorded], spec: EnvSpec) -> list[Finding]:
    """All findings, in the order in which they should be mended."""
    checks: list[Callable[[Sequence[Recorded], EnvSpec], Iterator[Finding]]] = [
        _spaces, _numbers, _ranges, _ends, _time_limits, _last_observations, _rewards, _duplicates
    ]  # fmt: skip
    found: list[Finding] = []
    for check in checks:
        found += check(episodes, spec)
        if found and check in (_spaces, _numbers):
            break  # the other checks need numbers, and arrays of one shape
    return found


def _named(places: Sequence[int], total: int) -> str:
    more = ", ..." if len(places) > FEW else ""
    return f"{len(places):,} of {total:,} episodes (numbers {', '.join(map(str, places[:FEW]))}{more})"


def _spaces(episodes: Sequence[Recorded], spec: EnvSpec) -> Iterator[Finding]:
    """Shapes and types that are not those of the spaces."""
    leaves = spec.leaves()
    wanted = [(f"observation leaf {i}", leaf.shape, leaf.dtype) for i, leaf in enumerate(leaves)]
    wanted += [("action", spec.action.shape, spec.action.dtype), ("reward", (), "float32")]
    wanted += [("action mask", (spec.action.mask_size,), "bool")] if spec.action_mask else []
    for place, (name, shape, dtype) in enumerate(wanted):
        wrong, seen = [], ""
        for number, episode in enumerate(episodes):
            obs = episode.obs if len(episode.obs) == len(leaves) else [None] * len(leaves)
            array = [*obs, episode.action, episode.reward, episode.mask][place]
            if array is None or array.shape[1:] != shape or array.dtype != dtype:
                wrong.append(number)
                seen = "missing" if array is None else f"{array.dtype} {array.shape[1:]}"
        if wrong:
            text = f"{name} is {seen} in {_named(wrong, len(episodes))}; its space is {dtype} {shape}: mixed spaces"
            yield Finding("mixed spaces", text)
    extras = [{name: (array.shape[1:], array.dtype) for name, array in one.extras.items()} for one in episodes]
    wrong = [number for number, kinds in enumerate(extras) if kinds != extras[0]]
    if wrong:
        text = f"what is also recorded of {_named(wrong, len(episodes))} is not that of the first one: mixed spaces"
        yield Finding("mixed spaces", text)
    lengths = [
        number
        for number, episode in enumerate(episodes)
        if any(len(leaf) != episode.steps + 1 for leaf in [*episode.obs, *_masks(episode)])
        or any(len(array) != episode.steps for array in (episode.action, *episode.extras.values()))
    ]
    if lengths:
        text = f"{_named(lengths, len(episodes))} have not one more observation than actions and rewards"
        yield Finding("missing observations", text)


def _masks(episode: Recorded) -> list[np.ndarray]:
    return [] if episode.mask is None else [episode.mask]


def structure(episodes: Sequence[Recorded], spec: EnvSpec) -> list[Finding]:
    """What keeps the episodes from being joined or counted: mixed spaces and missing observations."""
    return list(_spaces(episodes, spec))


def _numbers(episodes: Sequence[Recorded], spec: EnvSpec) -> Iterator[Finding]:
    """NaN and infinity."""
    for name in ("observation", "action", "reward"):
        wrong = []
        for number, episode in enumerate(episodes):
            arrays = {"observation": episode.obs, "action": [episode.action], "reward": [episode.reward]}[name]
            if any(array.dtype.kind == "f" and not np.isfinite(array).all() for array in arrays):
                wrong.append(number)
        if wrong:
            yield Finding("not finite", f"{name}s of {_named(wrong, len(episodes))} are NaN or infinite")


def _ranges(episodes: Sequence[Recorded], spec: EnvSpec) -> Iterator[Finding]:
    """Actions and whole numbers outside of their spaces, and actions that a mask forbids."""
    action, wrong, illegal = spec.action, [], []
    sizes = np.array(action.nvec).reshape(action.shape) if action.nvec else None
    for number, episode in enumerate(episodes):
        if sizes is not None:
            wrong += [number] * bool(((episode.action < 0) | (episode.action >= sizes)).any())
        elif not action.unbounded:
            wrong += [number] * bool((np.abs(episode.action) > 1 + 1e-6).any())
        if episode.mask is not None and action.kind == "discrete" and number not in wrong[-1:]:
            taken = np.take_along_axis(episode.mask[:-1], episode.action[:, None], 1)
            illegal += [number] * bool((~taken).any())
    if wrong:
        bounds = "the bounds of their space" if sizes is None else f"0 to {action.nvec} - 1"
        text = f"actions of {_named(wrong, len(episodes))} are outside of {bounds}; Box actions are clipped when they "
        yield Finding("out of range", text + "are learnt from")
    if illegal:
        text = f"{_named(illegal, len(episodes))} have actions that their action mask forbids"
        yield Finding("illegal actions", text)
    for i, leaf in enumerate(spec.leaves()):
        if leaf.nvec:
            most = np.array(leaf.nvec).reshape(leaf.shape)
            bad = [n for n, one in enumerate(episodes) if ((one.obs[i] < 0) | (one.obs[i] >= most)).any()]
            if bad:
                text = f"observation leaf {i} of {_named(bad, len(episodes))} is outside of 0 to {leaf.nvec} - 1"
                yield Finding("out of range", text)


def _ends(episodes: Sequence[Recorded], spec: EnvSpec) -> Iterator[Finding]:
    """Episodes without an end flag, or with both."""
    open_ends = [n for n, one in enumerate(episodes) if not (one.terminated or one.truncated)]
    if len(open_ends) > max(1, len(episodes) // 2):
        text = (
            f"{_named(open_ends, len(episodes))} neither terminate nor reach a time limit: the ends were not stored; "
        )
        yield Finding("wrong ends", text + "their last values are bootstrapped")
    both = [n for n, one in enumerate(episodes) if one.terminated and one.truncated]
    if len(both) > len(episodes) // 10:
        text = f"{_named(both, len(episodes))} terminate and are truncated at once; the termination counts"
        yield Finding("wrong ends", text)
    late = [n for n, one in enumerate(episodes) if spec.max_steps is not None and one.steps > spec.max_steps]
    if late:
        text = (
            f"{_named(late, len(episodes))} are longer than the time limit of {spec.max_steps} steps: ends are missing"
        )
        yield Finding("wrong ends", text)


def _time_limits(episodes: Sequence[Recorded], spec: EnvSpec) -> Iterator[Finding]:
    """Many terminations at the greatest length: a time limit that was stored as one."""
    lengths = Counter(one.steps for one in episodes if one.terminated and not one.truncated)
    longest = max((one.steps for one in episodes), default=0)
    limit = spec.max_steps if spec.max_steps is not None else longest
    at_limit = lengths.get(limit, 0)
    if at_limit >= SAME_LENGTH and limit == longest:
        text = f"{at_limit:,} episodes terminate after exactly {limit} steps, the greatest length: time limits were "
        text += "likely stored as terminations, so values are learnt as if nothing followed; store them as truncations"
        yield Finding("time limits", text)


def _last_observations(episodes: Sequence[Recorded], spec: EnvSpec) -> Iterator[Finding]:
    """Last observations that repeat the one before, or are the first one of the next episode, or are all 0."""
    longer = [(n, one) for n, one in enumerate(episodes) if one.steps >= 2]
    still = sum(_same(one.obs, i, i + 1) for _, one in longer for i in range(min(one.steps - 1, 20)))
    usual = still / max(sum(min(one.steps - 1, 20) for _, one in longer), 1)
    repeated = [n for n, one in longer if _same(one.obs, -2, -1)]
    if len(repeated) > max(REPEATED * len(longer), 1) and usual < REPEATED / 2:
        text = f"the last observation of {_named(repeated, len(episodes))} repeats the one before: the true one is "
        text += "missing, "
        yield Finding("last observations", text + "so values at time limits are wrong")
    zero = [n for n, one in longer if not any(leaf[-1].any() for leaf in one.obs) and any(x[-2].any() for x in one.obs)]
    if len(zero) > max(REPEATED * len(longer), 1):
        yield Finding("last observations", f"the last observation of {_named(zero, len(episodes))} is 0 in all numbers")
    following = [
        n
        for n, (one, other) in enumerate(pairwise(episodes))
        if all(np.array_equal(a[-1], b[0]) for a, b in zip(one.obs, other.obs, strict=True))
    ]
    starts = {hashlib.sha256(b"".join(leaf[0].tobytes() for leaf in one.obs)).digest() for one in episodes}
    if len(following) > max(REPEATED * len(longer), 1) and len(starts) > len(episodes) / 2:
        text = f"the last observation of {_named(following, len(episodes))} is the first one of the next episode"
        yield Finding("last observations", text)


def _same(obs: list[np.ndarray], i: int, j: int) -> bool:
    return all(np.array_equal(leaf[i], leaf[j]) for leaf in obs)


def _rewards(episodes: Sequence[Recorded], spec: EnvSpec) -> Iterator[Finding]:
    """Rewards that fit the step before or after much better than their own."""
    errors = {shift: _unexplained(episodes, shift) for shift in (-1, 0, 1)}
    best = min(errors, key=lambda shift: errors[shift])
    if best and errors[best] < CLEAR and errors[best] < errors[0] / BETTER:
        which = "of the step before" if best < 0 else "of the step after"
        text = f"rewards fit the observations and actions {which} ({errors[best]:.2%} of their variance unexplained, "
        yield Finding("shifted rewards", f"{text}{errors[0]:.2%} by their own): they are shifted by one step")


def _unexplained(episodes: Sequence[Recorded], shift: int) -> float:
    """Share of the variance of reward[t] that a smooth function of row t + shift leaves, on rows it was not fitted to.

    The function is a sum of random waves of the observation, the action and the next observation.
    """
    inputs, rewards, count = [], [], 0
    for one in episodes:
        steps = np.arange(1, one.steps - 1)
        if not len(steps) or count > ROWS:
            continue
        at = steps + shift
        x = [leaf[rows].reshape(len(rows), -1)[:, :64] for leaf in one.obs for rows in (at, at + 1)]
        x.append(one.action[at].reshape(len(at), -1))
        inputs.append(np.concatenate(x, 1).astype(np.float64))
        rewards.append(one.reward[steps].astype(np.float64))
        count += len(steps)
    if count < LEAST:
        return 1.0
    rows, target = np.concatenate(inputs), np.concatenate(rewards)
    if target.std() < 1e-9:
        return 1.0
    rows, target = (rows - rows.mean(0)) / (rows.std(0) + 1e-9), target - target.mean()
    rng, size = np.random.default_rng(0), rows.shape[1]
    waves = rows @ rng.normal(0, 1 / np.sqrt(size), (size, WAVES)) + rng.uniform(0, 2 * np.pi, WAVES)
    rows = np.concatenate([np.ones((len(rows), 1)), rows, np.cos(waves)], 1)
    half = np.arange(len(rows)) % 2 == 0
    square = rows[half].T @ rows[half] + 1e-6 * np.eye(rows.shape[1])
    if not np.isfinite(square).all():
        return 1.0  # the numbers are too large to be squared
    weight = np.linalg.solve(square, rows[half].T @ target[half])
    return float(((target[~half] - rows[~half] @ weight) ** 2).mean() / target[~half].var())


def _duplicates(episodes: Sequence[Recorded], spec: EnvSpec) -> Iterator[Finding]:
    """Episodes that are there twice."""
    seen: dict[bytes, int] = {}
    again = []
    for number, one in enumerate(episodes):
        digest = hashlib.sha256()
        for array in (*one.obs, one.action, one.reward):
            digest.update(np.ascontiguousarray(array).tobytes())
        if digest.digest() in seen:
            again.append(number)
        seen.setdefault(digest.digest(), number)
    if again:
        yield Finding("duplicates", f"{_named(again, len(episodes))} are equal to an earlier one in each number")
