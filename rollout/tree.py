"""Trees of arrays, such as observations: maps a function over the leaves, flattens and rebuilds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Tree = Any  # an array or tensor, a dict[str, Tree], a tuple[Tree, ...], or None


def tree_map(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """Applies `function(leaf, *leaves of the others there)` to each leaf. Keys are sorted; None stays None."""
    if isinstance(tree, dict):
        return {key: tree_map(function, tree[key], *(other[key] for other in others)) for key in sorted(tree)}
    if isinstance(tree, tuple):
        return tuple(tree_map(function, *parts) for parts in zip(tree, *others, strict=True))
    return None if tree is None else function(tree, *others)


def leaves(tree: Tree) -> list[Any]:
    """The leaves in the order of `EnvSpec.leaves`: dicts by sorted keys, tuples by position; None has none."""
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree) for leaf in leaves(tree[key])]
    if isinstance(tree, tuple):
        return [leaf for child in tree for leaf in leaves(child)]
    return [] if tree is None else [tree]


def unflatten(like: Tree, flat: Sequence[Any]) -> Tree:
    """The tree that has the structure of `like` and the leaves `flat`: the inverse of `leaves`."""
    rest = iter(flat)
    return tree_map(lambda _: next(rest), like)
