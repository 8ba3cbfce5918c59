"""The command line: ``vblora-lab demo``, ``plan``, ``doctor`` and others; ``--help`` lists them."""

from __future__ import annotations

import argparse
import codecs
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vblora_lab import __version__
from vblora_lab.app import convert, fetch, plan, serve, store, train, tune
from vblora_lab.app.options import Parser, at_least
from vblora_lab.errors import VBLoRAError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. What the user got wrong is said in one line."""
    # OpenMP threads that wait for each other first spin, then sleep. By default they spin so long
    # that a busy neighbour on the same cores makes training many times slower; a short spin is
    # also the fastest on free cores. Read when torch is loaded, which is later.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where something else stands in for them
            stream.reconfigure(errors="vblora_lab.plain")
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args))
    except (VBLoRAError, OSError) as error:  # OSError: a full disk, a folder that can't be written
        print(f"vblora-lab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vblora-lab: interrupted", file=sys.stderr)
        return 130


# What is printed where the output has no such sign: a pipe on Windows has 256 signs, for one.
PLAIN = {"✓": "+", "✗": "x", "→": "->", "…": "...", "·": "*", "×": "x"}


def _plain(error: UnicodeError) -> tuple[str, int]:
    """A handler for `codecs` that writes plain signs for those that can't be encoded."""
    assert isinstance(error, UnicodeEncodeError)
    signs = error.object[error.start : error.end]
    return "".join(PLAIN.get(sign, "?") for sign in signs), error.end


codecs.register_error("vblora_lab.plain", _plain)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="vblora-lab", description="VB-LoRA: one vector bank for all layers.")
    parser.add_argument("--version", action="version", version=f"vblora-lab {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    _add_demo(commands)
    for command in (train, tune, plan, convert, store, serve, fetch):
        command.add_to(commands)

    _add_doctor(commands)
    _add_explore(commands)
    return parser


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo",
        help="fine-tune the shipped model and leave curves, adapter and numbers in a folder",
        description="Fine-tune mini-OPT on restaurant descriptions with VB-LoRA (2 to 3 minutes "
        "on two CPU cores). No network is needed.",
    )
    demo.add_argument("--out", type=Path, default=Path("demo"), help="folder (default: demo)")
    demo.add_argument("--steps", type=at_least(1), default=None, help="optimizer steps")
    demo.add_argument("--seed", type=at_least(0), default=0, help="draws adapter and data order")
    demo.set_defaults(run=_demo)


def _demo(args: argparse.Namespace) -> int:
    from vblora_lab.app.demo import (  # torch and matplotlib only when they are needed
        STEPS,
        run_demo,
    )

    run_demo(args.out, steps=STEPS if args.steps is None else args.steps, seed=args.seed)
    print(f"Left in {args.out}: adapter/, loss.png, selection.png, run.trace, summary.json")
    return 0


def _add_doctor(commands: Any) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="look at this machine and environment, and say what to do about what is wrong",
        description="Look at Python, torch, the machine, the front end, the widgets and the model "
        "hub. Exit status 1 says that the lab can't run here.",
    )
    doctor.add_argument("--json", action="store_true", help="print JSON, for scripts")
    doctor.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    from vblora_lab.app.doctor import doctor

    result = doctor()
    print(result.to_json() if args.json else result)
    return 0 if result.can_run else 1


def _add_explore(commands: Any) -> None:
    explore = commands.add_parser(
        "explore",
        help="try configs on a model in the browser, with no code shown",
        description="Serve the config explorer and a heatmap as a page. The model's config.json is "
        "enough; its weights are not loaded. Only this machine, and only with the token that is "
        "printed, can open the page.",
    )
    explore.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        default="mini-opt",
        help="a hub name, a folder, smollm2-135m, minilm-l6, or mini-opt (the default)",
    )
    explore.add_argument("--ip", default="127.0.0.1", help="where to listen (default: 127.0.0.1)")
    explore.add_argument("--port", type=int, default=8866, help="default: 8866")
    explore.add_argument("--no-browser", action="store_true", help="only print the address")
    explore.set_defaults(run=_explore)


def _explore(args: argparse.Namespace) -> int:
    from vblora_lab.app.explore import explore

    explore(args.model, ip=args.ip, port=args.port, browser=not args.no_browser)
    return 0


if __name__ == "__main__":
    sys.exit(main())
