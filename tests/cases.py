"""Tiny models with fixed weights, and a way to put the same adapter on them twice."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import NamedTuple

import peft
import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)
from transformers.pytorch_utils import Conv1D

import vblora_lab.tuner.peft as lab
from vblora_lab.tuner.config import VBLoRAConfig

VOCABULARY = 40


class TwoLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 12)
        self.second = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class TwoConv1D(TwoLinear):
    def __init__(self) -> None:
        super().__init__()
        self.first = Conv1D(12, 8)  # Conv1D(out, in)
        self.second = Conv1D(4, 12)
        nn.init.normal_(self.first.bias)


def opt() -> OPTForCausalLM:
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            ffn_dim=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
            word_embed_proj_dim=16,
            init_std=0.2,
        )
    )


def llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32,
            initializer_range=0.2,
        )
    )


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    )


def _features(batch: int = 3) -> Tensor:
    return torch.randn(batch, 8, generator=torch.Generator().manual_seed(1))


def _tokens(batch: int = 3) -> Tensor:
    return torch.randint(VOCABULARY, (batch, 7), generator=torch.Generator().manual_seed(1))


class Case(NamedTuple):
    """A kind of base model, a config that suits it, and inputs."""

    make: Callable[[], nn.Module]
    config: dict
    inputs: Callable[..., Tensor]

    def base(self) -> nn.Module:
        """The same weights every time."""
        torch.manual_seed(7)
        return self.make().eval()

    def output(self, model: nn.Module, batch: int = 3, **kwargs) -> Tensor:
        inputs = self.inputs(batch)
        if inputs.is_floating_point():
            inputs = inputs.to(next(model.parameters()).dtype)
        out = model(inputs, **kwargs)
        return out if isinstance(out, Tensor) else out.logits

    def ours(self, **changes) -> peft.PeftModel:
        return lab.get_peft_model(self.base(), VBLoRAConfig(**{**self.config, **changes}))

    def stock(self, **changes) -> peft.PeftModel:
        """PEFT's own tuner on the same base."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fan_in_fan_out, which PEFT corrects and says so
            config = peft.VBLoRAConfig(**{**self.config, **changes})
            return peft.get_peft_model(self.base(), config)


SMALL = {"r": 2, "num_vectors": 10, "vector_length": 4, "topk": 3, "init_vector_bank_bound": 0.5}
CASES = {
    "linear": Case(TwoLinear, {**SMALL, "target_modules": ["first", "second"]}, _features),
    "conv1d": Case(TwoConv1D, {**SMALL, "target_modules": ["first", "second"]}, _features),
    "opt": Case(opt, {**SMALL, "target_modules": ["q_proj", "v_proj", "fc1", "fc2"]}, _tokens),
    "llama": Case(llama, {**SMALL, "target_modules": "all-linear"}, _tokens),
    "gpt2": Case(gpt2, {**SMALL, "target_modules": ["c_attn", "c_proj"]}, _tokens),
}


def scramble(model: nn.Module) -> None:
    """Give the adapters random numbers, as training would."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "vblora_" in name:
            numbers = torch.randn(parameter.shape, generator=generator)
            parameter.data = numbers.to(parameter)


def state_of(model: nn.Module) -> dict:
    """All that must not change when a call fails: modules, their mode, parameters, attributes."""
    return {
        "modules": [(name, id(module), module.training) for name, module in model.named_modules()],
        "parameters": [
            (name, id(p), p.requires_grad, p.detach().clone())
            for name, p in model.named_parameters()
        ],
        "attributes": sorted(model.__dict__),
        "config": str(getattr(model, "config", None)),
    }


def assert_unchanged(model: nn.Module, before: dict) -> None:
    after = state_of(model)
    for part in ("modules", "attributes", "config"):
        assert after[part] == before[part]
    for old, new in zip(before["parameters"], after["parameters"], strict=True):
        assert old[:3] == new[:3]
        assert torch.equal(old[3], new[3])


def assert_close(actual: Tensor, expected: Tensor, relative: float = 1e-6) -> None:
    """The difference is small against the expected tensor as a whole."""
    assert actual.shape == expected.shape
    assert (actual - expected).norm() <= relative * expected.norm(), (actual, expected)


def calls_of(call: Callable[[], object]) -> int:
    """How many functions a call calls: the same however busy the machine is."""
    count = 0

    def seen(_frame, event, _argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(seen)
    try:
        call()
    finally:
        sys.setprofile(None)
    return count
