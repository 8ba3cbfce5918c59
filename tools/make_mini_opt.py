"""Make mini-OPT from a seed: corpus, tokenizer, weights, pretraining curve.

    python tools/make_mini_opt.py --out vblora_lab/assets/mini-opt

mini-OPT is an `OPTForCausalLM` of 5.4 million parameters, pretrained from scratch on prose that
`tools/prose.py` writes. About 7 minutes on one data-centre GPU; `--steps 20 --documents 2000` tries
the whole road on a laptop. Needs torch, transformers and tokenizers, and no network.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
from prose import document  # noqa: E402  (the tool's neighbour)

VOCABULARY = 2048
CONTEXT = 512
BATCH = 64  # blocks of CONTEXT tokens: 32,768 tokens a step
LEARNING_RATE = 2e-3
WARM_UP = 300
SPECIAL = ["<pad>", "</s>", "<unk>"]  # "</s>" starts and ends every document, as in OPT


def write_corpus(documents: int, seed: int) -> list[str]:
    """``documents`` pieces of prose; the same for a seed, however many processes write them."""
    chunk = 1000
    with ProcessPoolExecutor() as pool:
        counts = [min(chunk, documents - i) for i in range(0, documents, chunk)]
        parts = pool.map(_write_chunk, counts, [f"{seed}/{i}" for i in range(len(counts))])
        return [text for part in parts for text in part]


def _write_chunk(count: int, seed: str) -> list[str]:
    rng = random.Random(seed)
    return [document(rng) for _ in range(count)]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE: any text can be written, also the brackets that the prose never has."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    start = tokenizer.token_to_id("</s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", pair="</s> $A $B", special_tokens=[("</s>", start)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="</s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=CONTEXT,
    )


def pack(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """All texts one after the other, cut into rows of CONTEXT tokens: (rows, CONTEXT) int64."""
    stream: list[int] = []
    for encoding in tokenizer.backend_tokenizer.encode_batch(texts):
        stream += encoding.ids
    rows = len(stream) // CONTEXT
    return torch.tensor(stream[: rows * CONTEXT]).view(rows, CONTEXT)


def make_model(tokenizer: PreTrainedTokenizerFast) -> OPTForCausalLM:
    config = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        word_embed_proj_dim=256,
        ffn_dim=1024,
        num_hidden_layers=6,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        dropout=0.0,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return OPTForCausalLM(config)


def loss_of(model: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross-entropy in nats."""
    logits = model(input_ids=rows, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())


def pretrain(
    model: OPTForCausalLM, rows: torch.Tensor, held_out: torch.Tensor, steps: int, seed: int
) -> list[dict[str, float]]:
    """AdamW, linear warm-up and cosine decay to a tenth; returns the curve every 100 steps."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows, held_out = rows.to(device), held_out.to(device)
    model.to(device).train()
    run = torch.compile(model) if device == "cuda" else model
    decay = [p for p in model.parameters() if p.ndim > 1]
    no_decay = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": no_decay, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        betas=(0.9, 0.95),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda i: (
            min(1.0, (i + 1) / WARM_UP)
            * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, i / steps))))
        ),
    )
    generator = torch.Generator(device=device).manual_seed(seed)
    curve, start = [], time.monotonic()
    for step in range(1, steps + 1):
        picked = torch.randint(len(rows), (BATCH,), generator=generator, device=device)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            loss = loss_of(run, rows[picked])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if step == 1 or step % 100 == 0 or step == steps:
            point = {"step": step, "loss": loss.item(), "seconds": time.monotonic() - start}
            if step % 1000 == 0 or step == steps:
                with torch.no_grad(), torch.autocast(device, torch.bfloat16, device == "cuda"):
                    losses = [loss_of(run, part) for part in held_out.split(BATCH)]
                point["held_out_loss"] = torch.stack(losses).mean().item()
                print(json.dumps(point), flush=True)
            curve.append(point)
    return curve


def name_tokenizer_class(path: Path) -> None:
    """Write the class name that every transformers release since 4 can load."""
    settings = json.loads(path.read_text())
    settings.pop("backend", None)
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(settings, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=800_000)
    parser.add_argument("--steps", type=int, default=14_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

    start = time.monotonic()
    texts = write_corpus(args.documents, args.seed)
    print(f"{len(texts):,} documents in {time.monotonic() - start:.0f} s", flush=True)
    tokenizer = train_tokenizer(texts[:40_000])
    split = max(1, len(texts) // 200)
    held_out, rows = pack(tokenizer, texts[:split]), pack(tokenizer, texts[split:])
    print(f"{rows.numel():,} tokens after {time.monotonic() - start:.0f} s", flush=True)

    model = make_model(tokenizer)
    curve = pretrain(model, rows, held_out, args.steps, args.seed)

    args.out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    name_tokenizer_class(args.out / "tokenizer_config.json")
    with open(args.out / "pretraining.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["step", "loss", "held_out_loss", "seconds"])
        writer.writeheader()
        writer.writerows(
            {k: v if k == "step" else round(v, 4) for k, v in point.items()} for point in curve
        )
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, {rows.numel():,} training tokens -> {args.out}")


if __name__ == "__main__":
    main()
