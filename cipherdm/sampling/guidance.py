"""Classifier-free guidance: the U-Net is asked twice in one batch, without the prompt and with it.

Combining the two outputs costs nothing, because the factors go into the schedule's table
(`cipherdm.schedules.guided_coefficients`). What the U-Net computes before it first attends to the prompt is equal in both
branches: it is computed once, and copied where it is read.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import jax.numpy as jnp

from ..engine import Node


@dataclass(frozen=True)
class Branches:
    """Copy a value of images [B, ...] for each of several branches: [count * B, ...]. Free on shares."""

    count: int
    __name__ = "branches"

    def __call__(self, value):
        return jnp.concatenate([value] * self.count)


def with_branches(nodes: Sequence[Node], of_prompt: Iterable[str], count: int) -> list[Node]:
    """Add copies for all branches to the nodes of a U-Net, where a node first needs them.

    The nodes are in order of execution, from "sample" to "eps"; `of_prompt` names values that were made from the prompts of
    all branches. With one branch nothing changes.
    """
    if count == 1:
        return list(nodes)
    branched: set[str] = set(of_prompt)
    shared = {"sample"}  # values of images that are equal in all branches
    names: dict[str, str] = {}  # of their copies
    result: list[Node] = []

    def copied(name: str) -> str:
        if name not in shared:
            return name
        if name not in names:
            names[name] = f"{name}.branches"
            result.append(Node("guidance", Branches(count), (name,), (names[name],)))
        return names[name]

    for node in nodes:
        if branched.isdisjoint(node.inputs) and node.outputs != ("eps",):
            if not shared.isdisjoint(node.inputs):
                shared.update(node.outputs)
            result.append(node)
            continue
        inputs = tuple(copied(name) for name in node.inputs)
        branched.update(node.outputs)
        result.append(replace(node, inputs=inputs))
    return result
