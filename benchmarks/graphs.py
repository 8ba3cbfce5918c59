"""How many graphs, breaks and recompilations `torch.compile` needs: here, and for PEFT's LoRA.

    python benchmarks/graphs.py             # writes results/graphs.txt; minutes on two cores

Small random models of five families, with few layers and with more than PyTorch compiles one piece
of code for (8), compiled as a whole and layer by layer. Each trains on batches of two sizes. The
backend is "eager", which compiles nothing: what is counted is what the compiler is given.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import peft
import torch
import transformers
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import vblora_lab

OUT = Path(__file__).parent / "results" / "graphs.txt"
DEPTHS = (2, 9)
SIZES = ((3, 7), (3, 7), (5, 9))


def encoder(layers: int) -> dict[str, int]:
    return {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    }


def opt(layers: int) -> nn.Module:
    sizes = {name: size for name, size in encoder(layers).items() if name != "intermediate_size"}
    return OPTForCausalLM(OPTConfig(**sizes, ffn_dim=32, word_embed_proj_dim=16))


def llama(layers: int) -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**encoder(layers), num_key_value_heads=1))


def gpt2(layers: int) -> nn.Module:
    sizes = {"n_embd": 16, "n_layer": layers, "n_head": 2, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, **sizes))


def t5(layers: int) -> nn.Module:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": layers, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(vocab_size=40, **sizes, decoder_start_token_id=0))


def bert(layers: int) -> nn.Module:
    return BertForMaskedLM(BertConfig(**encoder(layers)))


FAMILIES: dict[str, tuple[Callable[[int], nn.Module], list[str]]] = {
    "OPT": (opt, ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]),
    "Llama": (llama, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
    "GPT-2": (gpt2, ["c_attn", "c_proj", "c_fc"]),
    "T5": (t5, ["q", "k", "v", "o", "wi", "wo"]),
    "BERT": (bert, ["query", "key", "value"]),
}


def lora(base: nn.Module, targets: list[str]) -> nn.Module:
    return peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=targets))


def ours(base: nn.Module, targets: list[str]) -> nn.Module:
    sizes = {"r": 2, "num_vectors": 10, "vector_length": 4}
    config = vblora_lab.VBLoRAConfig(**sizes, target_modules=targets)
    return vblora_lab.get_peft_model(base, config)


def as_a_whole(model: nn.Module, layers: int, backend: Callable) -> Callable:
    return torch.compile(model, backend=backend)


def layer_by_layer(model: nn.Module, layers: int, backend: Callable) -> Callable:
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            for layer in module:
                layer.compile(backend=backend)
    return model


def counted(
    family: str,
    layers: int,
    adapt: Callable[[nn.Module, list[str]], nn.Module],
    compiled: Callable[[nn.Module, int, Callable], Callable],
) -> tuple[int, int, int]:
    """Graphs, breaks, and pieces of code that were compiled too often and given up."""
    torch._dynamo.reset()
    counters.clear()
    make, targets = FAMILIES[family]
    torch.manual_seed(0)
    backend = CompileCounterWithBackend("eager")
    call = compiled(adapt(make(layers), targets).train(), layers, backend)
    for size in SIZES:
        tokens = torch.randint(2, 40, size)
        options = {} if family == "BERT" else {"use_cache": False}
        call(input_ids=tokens, labels=tokens, **options).loss.backward()
    given_up = sum(counters["recompile_limit"].values())
    return backend.frame_count, sum(counters["graph_break"].values()), given_up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    lines = [
        f"python benchmarks/graphs.py, {versions}, peft {peft.__version__}",
        "graphs, breaks, given up                     PEFT LoRA     vblora_lab",
    ]
    for family in FAMILIES:
        for layers in DEPTHS:
            for compiled in (as_a_whole, layer_by_layer):
                both = [counted(family, layers, adapt, compiled) for adapt in (lora, ours)]
                how = compiled.__name__.replace("_", " ")
                name = f"{family}, {layers} layers, {how}"
                lines.append(f"{name:42}" + "".join(f"{counts!s:>14}" for counts in both))
                print(lines[-1], flush=True)
    args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
