"""The hidden tests of chapter 11 for a model with a reader's layers in it, and for its file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vblora_lab.course.building import seeded
from vblora_lab.course.exercise import Wrong, called, check_tensor

if TYPE_CHECKING:
    from torch import Tensor, nn

ENDINGS = ("q_proj", "v_proj")
SIZES = 16, 8, 3  # bank vectors, their length, rank


# --- injection


def small_opt() -> nn.Module:
    """An OPT of two layers: the smallest that has all its kinds of layers."""
    from transformers import OPTConfig, OPTForCausalLM

    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "word_embed_proj_dim": 16,
        "ffn_dim": 32,
        "vocab_size": 32,
    }
    config = OPTConfig(
        **sizes, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=16
    )
    return OPTForCausalLM(config).eval()


@seeded
def check_injection(answer: Any) -> None:
    import torch
    from torch import nn

    model = small_opt()
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    wanted = {n: m for n, m in linears.items() if n.endswith(ENDINGS)}
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        before = model(tokens).logits
    bank = called(answer, model, list(ENDINGS), *SIZES, 2)
    adapted = {n: m for n, m in model.named_modules() if hasattr(m, "logits_A")}
    _check_places(adapted, wanted, linears)
    if not all(getattr(layer, "bank", None) is bank for layer in adapted.values()):
        raise Wrong("the layers hold another bank than the one that is returned: one for all.")
    mine = [p for m in adapted.values() for n, p in m.named_parameters() if "logits" in n]
    own = {id(bank), *map(id, mine)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in own:
            raise Wrong(
                f"{name} is still trained. Freeze the whole model first: "
                "model.requires_grad_(False)."
            )
        if not parameter.requires_grad and id(parameter) in own:
            raise Wrong(
                f"{name} is frozen: freeze the model before you put your layers in, not after."
            )
    with torch.no_grad():
        after = called(model, tokens).logits
    if torch.allclose(after, before):
        raise Wrong("the layers are in, but what the model says is the same as before.")


def _check_places(
    adapted: Mapping[str, Any], wanted: Mapping[str, Any], linears: Mapping[str, Any]
) -> None:
    if not adapted:
        raise Wrong(
            "no layer of the model has changed. A layer is an attribute of its parent: "
            "setattr(parent, last_name, layer) replaces it."
        )
    missing, extra = (
        sorted(a.keys() - b.keys()) for a, b in ((wanted, adapted), (adapted, wanted))
    )
    if extra and extra[0] not in linears:
        raise Wrong(
            f"{extra[0]} is inside one of your own layers. Gather the names in a list first, and "
            "replace them then."
        )
    if missing:
        raise Wrong(
            f"{len(missing)} of the {len(wanted)} are not replaced, for example {missing[0]}."
        )
    if extra:
        raise Wrong(f"{extra[0]} is replaced too; its last name is none of {', '.join(ENDINGS)}.")
    for name, layer in adapted.items():
        if getattr(layer, "base", None) is not wanted[name]:
            raise Wrong(f"the base of {name} is not the linear layer that stood there.")


# --- the file


@seeded
def check_file(answer: Any) -> None:
    import torch
    from safetensors.torch import save

    from vblora_lab.course.worked import inject
    from vblora_lab.tuner.formats import pack

    model = small_opt()
    k = 3
    bank = inject(model, ENDINGS, *SIZES, k)
    expected = {"base_model.vblora_vector_bank": bank.detach()}
    for name, layer in model.named_modules():
        if hasattr(layer, "logits_A"):
            for matrix in ("A", "B"):
                indices, weights = pack(getattr(layer, f"logits_{matrix}").detach(), k)
                key = f"base_model.model.{name}.vblora_logits_{matrix}"
                expected |= {f"{key}_topk_indices": indices, f"{key}_topk_weights": weights}
    tensors = called(answer, model)
    _check_keys(tensors, expected)
    for key, tensor in expected.items():
        if not isinstance(tensors[key], torch.Tensor):
            raise Wrong(f"{key} is a {type(tensors[key]).__name__}; files hold tensors.")
        _check_stored(key, tensors[key], tensor, k)
    try:
        save({key: tensors[key].detach() for key in expected})
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise Wrong(
            f"safetensors can't write these tensors: {reason} Does .contiguous() help?"
        ) from error


def _check_keys(tensors: Any, expected: Mapping[str, Tensor]) -> None:
    if not isinstance(tensors, dict):
        raise Wrong(f"this gives a {type(tensors).__name__}; give a dict of names and tensors.")
    if not tensors:
        raise Wrong("the dict is empty: which layers of the model have logits_A?")
    missing = [key for key in expected if key not in tensors]
    extra = [key for key in tensors if key not in expected]
    if missing:
        also = f" There is {extra[0]!r}, which PEFT doesn't know." if extra else ""
        raise Wrong(f"{missing[0]!r} is missing ({len(missing)} of {len(expected)} are).{also}")
    if extra:
        text = f"{extra[0]!r} doesn't belong into the file"
        whole = str(extra[0]).endswith(("logits_A", "logits_B"))
        raise Wrong(f"{text}: with the choices, nobody needs all logits." if whole else f"{text}.")


def _check_stored(key: str, stored: Tensor, expected: Tensor, k: int) -> None:
    import torch

    if key.endswith("_topk_indices"):
        if stored.dtype != torch.uint8:
            raise Wrong(
                f"{key} is {stored.dtype}, of {stored.element_size()} bytes for each choice; "
                "indices below 256 fit into torch.uint8, of one."
            )
    elif not stored.is_floating_point():
        raise Wrong(f"{key} is {stored.dtype}; weights and bank are float32.")
    if key.endswith("_topk_weights") and stored.shape[-1] == k:
        raise Wrong(
            f"{key} has all {k} weights of a sub-vector. They sum to 1, so the last one isn't "
            "stored."
        )
    if stored.requires_grad:
        raise Wrong(f"{key} still hangs on the graph of gradients: detach() it.")
    try:
        check_tensor(stored, expected)
    except Wrong as wrong:
        raise Wrong(f"{key}: {wrong}") from None
