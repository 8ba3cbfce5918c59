"""`vblora-lab serve` serves adapters of a store by name, and fails one request at a time.

    python tools/serve_check.py --python .venv/serving/bin/python

`make serve-check` makes the environment that vLLM has to itself, and calls this. A server is
started on this machine, on the base model that ships and a store made here. Three users are served
in one batch, and what each gets is compared, token for token, with what this package generates.
Then come requests that can't be served. Each must fail by itself, with a sentence.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

import vblora_lab as lab
from vblora_lab.serving.store import AdapterStore
from vblora_lab.tuner.adapted import adapted_layers

BASE = "mini-opt"
USERS = ("ada", "grace", "mary")
PROMPT = "name[Loch Fyne], food[Thai], area[riverside] ->"
TOKENS = 60
CONFIG = {
    "r": 4,
    "num_vectors": 64,
    "vector_length": 128,
    "topk": 2,
    "target_modules": ["q_proj", "v_proj", "fc1"],
    "save_only_topk_weights": True,
    "init_vector_bank_bound": 0.3,
}
OPTIONS = (
    "--dtype float32 --enforce-eager --max-model-len 256 --max-num-seqs 8 --max-loras 4 "
    "--max-lora-rank 8"
)
ROOM = 3.5  # users whose LoRA the cache may hold
START = 600  # seconds that a server may take, the first time on a machine
ONE_REQUEST = 120


# --- what is served


def make_store(folder: Path) -> tuple[AdapterStore, dict[str, list[int]]]:
    """A store, and the tokens that each user is to get, and the base model under the name ""."""
    torch.manual_seed(0)
    base = lab.load_base(BASE, device="cpu")
    start = base.tokenizer(PROMPT, return_tensors="pt")

    def tokens(model: torch.nn.Module) -> list[int]:
        made = model.generate(**start, max_new_tokens=TOKENS, do_sample=False)
        return made[0, start["input_ids"].shape[1] :].tolist()

    expected = {"": tokens(base.model)}
    store = AdapterStore(folder / "store")
    model = lab.get_peft_model(base.model, lab.VBLoRAConfig(**CONFIG), "first")
    for name in (*USERS, "latecomer", "damaged"):
        lab.add_adapter(model, name, lab.VBLoRAConfig(**CONFIG), bank_of="first")
        with_random_logits(model, name)
        model.set_adapter(name)
        expected[name] = tokens(model)
        store.add(model, name, adapter_name=name)
    for name, changes in {
        "with-a-head": {"modules_to_save": ["lm_head"]},
        "with-biases": {"bias": "vblora_only"},
        "of-another-bank": {},
    }.items():
        alone = lab.load_base(BASE, device="cpu").model
        alone.config.tie_word_embeddings = "modules_to_save" not in changes
        store.add(lab.get_peft_model(alone, lab.VBLoRAConfig(**CONFIG | changes)), name)
    small = lab.load_base(BASE, device="cpu").model.config
    small.hidden_size = small.word_embed_proj_dim = 128
    other = type(base.model)(small)
    store.add(lab.get_peft_model(other, lab.VBLoRAConfig(**CONFIG)), "of-another-model")
    flip_a_bit(store["damaged"].folder)
    flip_a_bit(store["of-another-bank"].bank_folder)
    return store, expected


def with_random_logits(model: torch.nn.Module, name: str) -> None:
    for layer in adapted_layers(model, name).values():
        for logits in layer.logits(name):
            logits.data = torch.randn_like(logits)


def flip_a_bit(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


# --- the server


def surroundings() -> dict[str, str]:
    """The environment variables of a vLLM on a CPU of few cores, offline."""
    ours = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return ours | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


@contextmanager
def server(python: Path, store: AdapterStore, cache: Path):
    """vLLM's own server on a free port of this machine; its address."""
    lora = store.path.parent / "one"
    store.export(lora, [USERS[0]])
    room = ROOM * (lora / USERS[0] / "adapter_model.safetensors").stat().st_size
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "-m", "vblora_lab.cli", "serve", BASE, "--store", store.path]
    command += ["--port", port, "--cache", cache, "--cache-bytes", int(room), f"--vllm={OPTIONS}"]
    log = store.path.parent / "vllm.log"
    with open(log, "w") as out:
        process = subprocess.Popen(
            list(map(str, command)),
            env=surroundings(),
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=store.path.parent,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + START
        while not is_up(address):
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"vLLM did not start:\n{log.read_text()[-4000:]}")
            time.sleep(1)
        yield address
    except BaseException:
        print(log.read_text()[-6000:], file=sys.stderr)
        raise
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def is_up(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def ask(address: str, name: str) -> tuple[int, dict]:
    """Status and answer of vLLM to a request for a completion by an adapter."""
    body = {"model": name or BASE, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0}
    request = urllib.request.Request(
        f"{address}/v1/completions",
        json.dumps(body | {"return_token_ids": True}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=ONE_REQUEST) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


# --- the check


def check(address: str, expected: dict[str, list[int]]) -> None:
    """Raise `SystemExit` for the first answer that isn't right."""
    served = ("", *USERS)
    for round_name in ("first", "second"):  # in the second all are known
        with ThreadPoolExecutor(len(served) * 2) as pool:
            answers = list(pool.map(lambda name: ask(address, name), served * 2))
        for name, (status, answer) in zip(served * 2, answers, strict=True):
            found = answer["choices"][0]["token_ids"] if status == 200 else answer
            if found != expected[name]:
                raise SystemExit(f"{name or BASE}: {found}\nexpected {expected[name]}")
        say(f"{round_name} round: {len(answers)} requests at once, {len(served)} models, all right")
    refusals = {
        "nobody": "does not exist",
        "../store/ada": "does not exist",
        "..": "does not exist",
        "damaged": "is damaged",
        "of-another-bank": "is damaged",
        "of-another-model": "doesn't fit this model",
        "with-a-head": "modules_to_save=['lm_head']",
        "with-biases": "bias='vblora_only'",
        "latecomer": "has no room for it",
    }
    for name, sentence in refusals.items():
        status, answer = ask(address, name)
        message = answer.get("error", {}).get("message", str(answer))
        say(f"{name}: {status} {message}")
        if status not in (400, 404) or sentence not in message:
            raise SystemExit(f"{name}: expected a refusal that says {sentence!r}")
        status, answer = ask(address, USERS[0])
        if status != 200 or answer["choices"][0]["token_ids"] != expected[USERS[0]]:
            raise SystemExit(f"after {name}, {USERS[0]} gets {answer}")
    say(f"{len(refusals)} requests refused, each alone")


def say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", type=Path, required=True, help="of vLLM's environment")
    python = parser.parse_args().python
    work = Path(tempfile.mkdtemp())
    try:
        store, expected = make_store(work)
        if len({tuple(tokens) for tokens in expected.values()}) < len(expected):
            raise SystemExit("users can't be told apart by what they get")
        begun = time.monotonic()
        with server(python.absolute(), store, work / "cache") as address:
            say(f"vLLM is up after {time.monotonic() - begun:.0f} s")
            check(address, expected)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
