"""``vblora-lab export-lora``, ``compress-lora``, ``save-adapter``: other forms of an adapter."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vblora_lab.app.options import at_least
from vblora_lab.errors import ConfigError
from vblora_lab.tables import readable


def add_to(commands: Any) -> None:
    """Add the commands to the subparsers of `argparse`."""
    export = commands.add_parser(
        "export-lora",
        help="write a VB-LoRA adapter as a LoRA adapter with the same update",
        description="Write a stored VB-LoRA adapter as a LoRA adapter, exactly. The base model "
        "isn't needed.",
    )
    export.add_argument("adapter", type=Path, metavar="ADAPTER", help="folder of the adapter")
    export.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    add_bank_option(export)
    export.add_argument(
        "--all",
        action="store_true",
        help="ADAPTER is a folder of adapters: each goes to a folder of its name in OUT. Called "
        "again, it goes on where it ended",
    )
    add_workers_option(export)
    export.set_defaults(run=_export_lora)

    compress = commands.add_parser(
        "compress-lora",
        help="fit a vector bank to a LoRA adapter and write it as VB-LoRA",
        description="Fit a vector bank and logits to a stored LoRA adapter and report the error. "
        "The base model isn't needed.",
    )
    compress.add_argument("adapter", type=Path, metavar="ADAPTER", help="folder of the LoRA")
    compress.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    for option, default in (("num-vectors", 256), ("vector-length", 256), ("topk", 2)):
        compress.add_argument(
            f"--{option}", type=at_least(1), default=default, help=f"default: {default}"
        )
    compress.add_argument(
        "--only-topk", action="store_true", help="store only the top k: smaller, no more training"
    )
    compress.add_argument("--seed", type=at_least(0), default=0, help="draws the first bank")
    compress.set_defaults(run=_compress_lora)
    _add_save_adapter(commands)


def _add_save_adapter(commands: Any) -> None:
    save = commands.add_parser(
        "save-adapter",
        help="write a VB-LoRA adapter in float16 or 8 bits, or back in float32",
        description="Write a stored VB-LoRA adapter in another precision. PEFT reads float16 and "
        "float32; 8 bits are for vblora_lab alone. The base model isn't needed.",
    )
    save.add_argument("adapter", type=Path, metavar="ADAPTER", help="folder of the adapter")
    save.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    save.add_argument(
        "--save-in",
        default="float32",
        metavar="PRECISION",
        help="float32 (the default), float16 or int8",
    )
    save.add_argument("--only-topk", action="store_true", help="leave out what training needs")
    save.set_defaults(run=_save_adapter)


def add_bank_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bank",
        metavar="BANK",
        help="folder or Hub id of an adapter that has the bank, for one that was stored without",
    )


def add_workers_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        type=at_least(1),
        metavar="N",
        help="how many are converted at a time (default: one for each processor)",
    )


def _export_lora(args: argparse.Namespace) -> int:
    from vblora_lab.convert.export import export_lora
    from vblora_lab.convert.many import export_loras

    if args.all:
        exported = export_loras(args.adapter, args.out, bank=args.bank, workers=args.workers)
        print(exported)
        return 1 if exported.failed else 0
    if args.workers is not None:
        raise ConfigError("--workers: is for many adapters; give --all too, or leave it out.")
    print(f"LoRA adapter in {export_lora(args.adapter, args.out, bank=args.bank)}")
    return 0


def _compress_lora(args: argparse.Namespace) -> int:
    from vblora_lab.convert.compress import compress_lora

    result = compress_lora(
        args.adapter,
        args.num_vectors,
        args.vector_length,
        args.topk,
        args.out,
        save_only_topk_weights=args.only_topk,
        seed=args.seed,
    )
    print(f"{result}\nVB-LoRA adapter in {args.out}")
    return 0


def _save_adapter(args: argparse.Namespace) -> int:
    from vblora_lab.convert.save import save_adapter

    save_adapter(args.adapter, args.out, args.save_in, only_topk=args.only_topk)
    size = sum(file.stat().st_size for file in args.out.glob("*.safetensors"))
    print(f"VB-LoRA adapter in {args.out}, weights of {readable(size)} ({size:,} bytes)")
    return 0
