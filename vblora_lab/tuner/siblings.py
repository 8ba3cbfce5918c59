"""Layers that get the same input: q, k and v of an attention, gate and up of a gated MLP.

`speed.frozen_linear` computes them together, when the first of them is called. Which they are is
read in the code of the module that holds them, such as ::

    query = self.q_proj(hidden_states)
    key = self.k_proj(hidden_states)

rather than learned from a pass: gradient checkpointing calls layers twice, and has to find the same
operations both times. Whoever uses the outputs looks whether the input was the same (see
`speed.one_input`), so code that is read wrongly costs time and nothing else.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, cast

from torch import nn

from vblora_lab.speed.pool import MatrixPool
from vblora_lab.tuner.layer import Linear, VBLoRALayer

Place = tuple[int, int]  # line and column


def join_layers(model: nn.Module, pool: MatrixPool, layers: Mapping[str, VBLoRALayer]) -> None:
    """Tell layers where they get their matrices from, and which others get the same input.

    Args:
        model: the adapted base model.
        pool: of this model.
        layers: of it, by name.
    """
    pool.units = {}  # of layers that are known; those that FSDP made are looked for again
    for name, layer in layers.items():
        layer.pool, layer.name_in_pool = pool, name
    for name in dict.fromkeys(name.rpartition(".")[0] for name in layers):
        parent = model.get_submodule(name)
        for names in called_alike(cast(Any, type(parent))):
            children = [getattr(parent, each, None) for each in names]
            adapted = [each for each in children if isinstance(each, Linear)]
            if len({layer.in_features for layer in adapted}) == 1 < len(adapted):
                for layer in adapted:
                    layer.siblings = tuple(each for each in adapted if each is not layer)


def part_layers(pool: MatrixPool) -> None:
    """Let go of all layers of a pool, and let them go of each other."""
    for layers in pool.layers.values():
        for layer in layers.values():
            cast(VBLoRALayer, layer).siblings = ()
    pool.layers.clear()


@cache
def called_alike(kind: type[Any]) -> list[tuple[str, ...]]:
    """Names of submodules that a kind of module calls with the same argument, group by group.

    Empty if its code isn't there to be read.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind.forward)))
    except (OSError, TypeError, SyntaxError):
        return []
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    writes = [
        (_end(statement), name.id)
        for statement in statements
        for name in _within(statement)
        if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
    ]
    groups: dict[tuple[object, ...], list[str]] = {}
    for node in ast.walk(tree):
        # Each branch of an if is a group apart: what one calls, the other doesn't.
        for block in (getattr(node, "body", None), getattr(node, "orelse", None)):
            for statement in block if isinstance(block, list) else ():
                for child, x, place in _calls(statement):
                    before = sum(name == x and end <= place for end, name in writes)
                    groups.setdefault((id(block), x, before), []).append(child)
    return [names for group in groups.values() if len(names := tuple(dict.fromkeys(group))) > 1]


def _calls(statement: ast.stmt) -> Iterator[tuple[str, str, Place]]:
    """Of self.CHILD(X): the child, the name of its argument, and where in the code it is."""
    for node in _within(statement):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name("self"), attr=child),
                args=[ast.Name(x)],
                keywords=[],
            ):
                yield child, x, (node.lineno, node.col_offset)


def _within(statement: ast.stmt) -> Iterator[ast.AST]:
    """All that belongs to a statement, but for the statements in it."""
    left: list[ast.AST] = [statement]
    while left:
        node = left.pop()
        yield node
        left += (each for each in ast.iter_child_nodes(node) if not isinstance(each, ast.stmt))


def _end(node: ast.stmt) -> Place:
    return node.end_lineno or 0, node.end_col_offset or 0
