"""What vLLM takes for the rows of `serving_vllm.py`, which runs this in vLLM's environment.

Arguments: a JSON file with what is asked, and one for what was found.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import vllm
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest


def main(asked: dict[str, Any]) -> dict[str, Any]:
    users = len(asked["prompts"])
    engine = LLM(
        asked["base"],
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=256,
        max_num_seqs=users,
        enable_lora=True,
        max_loras=users,
        max_lora_rank=asked["rank"],
        enable_prefix_caching=False,  # every call computes its prompts
    )
    prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
    each = [LoRARequest(Path(p).name, i + 1, p) for i, p in enumerate(asked["loras"])]

    def write(tokens: int, adapters: list[LoRARequest] | None) -> list[list[int]]:
        options = SamplingParams(
            max_tokens=tokens, min_tokens=0, ignore_eos=True, temperature=0, detokenize=False
        )
        outputs = engine.generate(prompts, options, lora_request=adapters, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def milliseconds(tokens: int, adapters: list[LoRARequest] | None) -> float:
        start = time.perf_counter()
        write(tokens, adapters)
        return 1e3 * (time.perf_counter() - start)

    ways = {"no adapter": None, "one adapter": each[:1] * users, "one for each": each}
    calls = [(way, tokens) for way in ways for tokens in (1, 1 + asked["tokens"])]
    times: dict[tuple[str, int], list[float]] = {call: [] for call in calls}
    for turn in range(1 + asked["rounds"]):  # the first warms up, and loads the adapters
        for way, tokens in calls:
            taken = milliseconds(tokens, ways[way])
            if turn:
                times[way, tokens].append(taken)
    found = {}
    for way in ways:
        first, all_of_them = (median(times[way, n]) for n in (1, 1 + asked["tokens"]))
        found[f"vLLM, {way}"] = {
            "prefill": round(first, 3),
            "token": round((all_of_them - first) / asked["tokens"], 3),
        }
    return {
        "ms": found,
        "tokens": write(asked["tokens"], each),
        "versions": {"vllm": vllm.__version__, "vllm's torch": torch.__version__},
    }


if __name__ == "__main__":
    question, answer = map(Path, sys.argv[1:])
    answer.write_text(json.dumps(main(json.loads(question.read_text()))))
