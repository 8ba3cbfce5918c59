"""What `speed.py` measures: models of named shapes, four ways to adapt them, a training step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn
from transformers import (
    AutoConfig,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

import vblora_lab
from vblora_lab.bases import share_weights
from vblora_lab.speed.captured import CapturedStep

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
TARGETS = {
    "qv": ["q_proj", "v_proj"],
    "all": ALL_LINEAR,
    "llama-qv": ["q_proj", "v_proj"],
    "llama-all": [
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    ],
}
MINI_OPT = Path(vblora_lab.__file__).parent / "assets" / "mini-opt"
OPT_SIZES = {
    "opt-125m": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "opt-1.3b": {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 32},
}
LLAMA_SIZES = {
    "llama-3-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "llama-160m": {  # the width and depth of opt-125m
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "vocab_size": 32000,
    },
}


@dataclass(frozen=True)
class Row:
    """One model, batch and adapter: what a line of the training table measures."""

    model: str
    batch: int
    length: int
    targets: str
    r: int = 4
    num_vectors: int = 256
    vector_length: int = 256
    topk: int = 2
    layers: int | None = None  # how many are adapted, from the first on; None for all
    nf4: bool = False  # whether the base is stored in 4 bits
    suffix: str = ""  # of the name, for what else it should tell

    @property
    def name(self) -> str:
        bits = "-nf4" if self.nf4 else ""
        return f"{self.model}-{self.batch}x{self.length}-{self.targets}{bits}{self.suffix}"

    def where(self) -> dict[str, Any]:
        which = {} if self.layers is None else {"layers_to_transform": list(range(self.layers))}
        return {"target_modules": TARGETS[self.targets]} | which

    def fields(self) -> dict[str, Any]:
        names = ("r", "num_vectors", "vector_length", "topk")
        return {n: getattr(self, n) for n in names} | self.where()


GPU_ROWS = [
    Row(model, batch, length, targets)
    for model, batch, length in (("opt-125m", 4, 64), ("opt-125m", 8, 512), ("opt-1.3b", 8, 512))
    for targets in ("qv", "all")
]
CPU_ROWS = [
    Row("mini-opt", 16, 64, "all", r=16, num_vectors=192, vector_length=128, topk=4),
    Row("opt-125m", 4, 64, "qv"),
    Row("opt-125m", 4, 64, "all"),
]


def selected(rows: Sequence[Row], names: Sequence[str] | None) -> list[Row]:
    """The rows of these names; all if none is named."""
    return [row for row in rows if not names or row.name in names]


def base_model(name: str) -> PreTrainedModel:
    """A model of the named shape with random weights: bf16 on a GPU, float32 on a CPU."""
    dtype = torch.bfloat16 if CUDA else torch.float32
    if name in LLAMA_SIZES:
        torch.manual_seed(0)
        config = LlamaConfig(**LLAMA_SIZES[name], dtype=dtype)
        with DEVICE:
            return LlamaForCausalLM._from_config(config, dtype=dtype).train()
    if name == "mini-opt":
        config = AutoConfig.from_pretrained(MINI_OPT)
    else:
        size = OPT_SIZES[name]
        width = size["hidden_size"]
        config = OPTConfig(**size, ffn_dim=4 * width, word_embed_proj_dim=width)
    torch.manual_seed(0)
    with DEVICE:
        model = OPTForCausalLM(config)
    return model.to(dtype).train()


def frozen(base: nn.Module, row: Row) -> nn.Module:
    return base.requires_grad_(False)


def lora(base: nn.Module, row: Row) -> nn.Module:
    config = peft.LoraConfig(r=row.r, lora_alpha=row.r, **row.where())
    return peft.get_peft_model(base, config)


def peft_vblora(base: nn.Module, row: Row) -> nn.Module:
    return peft.get_peft_model(base, peft.VBLoRAConfig(**row.fields()))


def ours(base: nn.Module, row: Row) -> nn.Module:
    return vblora_lab.get_peft_model(base, vblora_lab.VBLoRAConfig(**row.fields()))


METHODS: dict[str, Callable[[nn.Module, Row], nn.Module]] = {
    "frozen base": frozen,
    "PEFT LoRA": lora,
    "PEFT VB-LoRA": peft_vblora,
    "vblora_lab": ours,
}


def adapted(method: str, base: nn.Module, row: Row, input_gradients: bool = True) -> nn.Module:
    """A model over the base's weights, whose inputs get gradients as in any training from text.

    The frozen base has nothing to train, so its backward pass is that of the activations alone.
    """
    model = METHODS[method](share_weights(base), row)
    if input_gradients:
        getattr(model, "enable_input_require_grads")()  # noqa: B009
    return model


def make_optimizer(model: nn.Module, **options: Any) -> torch.optim.Optimizer | None:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, **{"lr": 1e-3, "fused": True, **options}) if trained else None


def make_step(
    model: nn.Module, optimizer: torch.optim.Optimizer | None
) -> Callable[[Any], torch.Tensor]:
    """Forward, backward and optimizer."""

    def step(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16) if CUDA else nullcontext():
            loss = model(**batch).loss
        loss.backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()

    return step


def captured_step(model: nn.Module) -> CapturedStep:
    lr = torch.tensor(1e-3, device=DEVICE)
    optimizer = make_optimizer(model, lr=lr, capturable=True)
    return CapturedStep(make_step(model, optimizer), model, optimizer)


def batch_of(row: Row, vocabulary: int) -> dict[str, torch.Tensor]:
    tokens = torch.randint(4, vocabulary, (row.batch, row.length), device=DEVICE)
    return {"input_ids": tokens, "labels": tokens}
