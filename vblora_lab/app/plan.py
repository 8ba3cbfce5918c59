"""``vblora-lab plan``: what a config would do to a model."""

from __future__ import annotations

import argparse
from typing import Any

from vblora_lab.app.options import add_config_options, config_of


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of `argparse`."""
    plan = commands.add_parser(
        "plan",
        help="show what a config would do to a model: targets, sizes, memory",
        description="Show what a VB-LoRA config would do to a model, from the model's config.json "
        "alone. Exit status 1 says that the config doesn't fit.",
    )
    plan.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        default="mini-opt",
        help="a hub name, a folder, smollm2-135m, minilm-l6, or mini-opt (the default)",
    )
    plan.add_argument("--preset", metavar="NAME", help="start from a preset; 'list' lists them")
    plan.add_argument("--json", action="store_true", help="print JSON, for scripts")
    plan.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the base weights (default: float32)",
    )
    for name, what in (("batch-size", "texts in a batch"), ("length", "tokens of a text")):
        plan.add_argument(
            f"--{name}", type=int, metavar="N", help=f"{what}; both together count activations too"
        )
    add_config_options(plan)
    plan.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    import torch

    from vblora_lab.bases import load_skeleton
    from vblora_lab.planning.plan import plan
    from vblora_lab.planning.presets import list_presets

    if args.preset == "list":
        print(list_presets())
        return 0
    config = config_of(args)
    model = load_skeleton(args.model, task_type=config.task_type, dtype=getattr(torch, args.dtype))
    result = plan(model, config, batch_size=args.batch_size, length=args.length)
    print(result.to_json() if args.json else result)
    return 0 if result.fits else 1
