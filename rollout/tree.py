"""Observations are trees: an array, a dict or a tuple of trees. Map, zip and take them apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Tree = Any  # an array or tensor, a dict[str, Tree], or a tuple[Tree, ...]


def tree_map(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """`function(leaf, *same leaves of the others)` at each leaf; dicts come back in sorted order."""
    if isinstance(tree, dict):
        return {key: tree_map(function, tree[key], *(other[key] for other in others)) for key in sorted(tree)}
    if isinstance(tree, tuple):
        return tuple(tree_map(function, *parts) for parts in zip(tree, *others, strict=True))
    return function(tree, *others)


def leaves(tree: Tree) -> list[Any]:
    """The leaves: dicts in the order of their sorted keys, tuples in theirs. The order of `EnvSpec.leaves`."""
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree) for leaf in leaves(tree[key])]
    if isinstance(tree, tuple):
        return [leaf for child in tree for leaf in leaves(child)]
    return [tree]


def unflatten(like: Tree, flat: Sequence[Any]) -> Tree:
    """A tree of the shape of `like` whose leaves are `flat`, in the order of `leaves`."""
    rest = iter(flat)
    return tree_map(lambda _: next(rest), like)
