"""Usual choices of target modules, for whatever lets a person or a search choose among them."""

from __future__ import annotations

from collections.abc import Collection

QUERY_OR_VALUE = {"q_proj", "v_proj", "q_lin", "v_lin", "query", "value", "q", "v", "c_attn"}
SHORTEST_VECTOR = 4
"""Shorter ones are not offered: the logits to train would outnumber LoRA's weights many times."""


def target_choices(linears: Collection[str]) -> dict[str, list[str]]:
    """Usual choices of target modules among the linear layers of these full names, by last name.

    Of "query and value", "attention" and "all linear", those that have any modules.
    """
    names = list(dict.fromkeys(last_name(name) for name in linears))
    attention = {last_name(name) for name in linears if "att" in name.rpartition(".")[0]}
    choices = {
        "query and value": [name for name in names if name in QUERY_OR_VALUE],
        "attention": [name for name in names if name in attention],
        "all linear": names,
    }
    return {choice: chosen for choice, chosen in choices.items() if chosen}


def last_name(name: str) -> str:
    """The part of a module's full name that is its own: "q_proj" of "layers.0.q_proj"."""
    return name.rpartition(".")[2]
