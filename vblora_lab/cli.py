"""The command line: ``vblora-lab demo``, ``plan``, ``doctor`` and others; ``--help`` lists them."""

from __future__ import annotations

import argparse
import codecs
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vblora_lab import __version__
from vblora_lab.errors import VBLoRAError

if TYPE_CHECKING:
    from vblora_lab.train import Trace
    from vblora_lab.tuner.config import VBLoRAConfig


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
    parser = argparse.ArgumentParser(
        prog="vblora-lab", description="VB-LoRA: one vector bank for all layers."
    )
    parser.add_argument("--version", action="version", version=f"vblora-lab {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="fine-tune the shipped model and leave curves, adapter and numbers in a folder",
        description="Fine-tune mini-OPT on restaurant descriptions with VB-LoRA (2 to 3 minutes "
        "on two CPU cores). No network is needed.",
    )
    demo.add_argument("--out", type=Path, default=Path("demo"), help="folder (default: demo)")
    demo.add_argument("--steps", type=_at_least(1), default=None, help="optimizer steps")
    demo.add_argument("--seed", type=_at_least(0), default=0, help="draws adapter and data order")
    demo.set_defaults(run=_demo)

    train = commands.add_parser(
        "train",
        help="fine-tune a model with VB-LoRA; keep checkpoints, adapter and trace in a folder",
        description="Fine-tune a base model with VB-LoRA on a data-to-text task. Ctrl-C ends the "
        "run after the step in progress; --resume goes on where it ended, also after a crash. With "
        "torchrun or accelerate launch, several processes share each batch: torchrun "
        "--standalone --nproc-per-node 2 -m -- vblora_lab.cli train ...",
    )
    train.add_argument(
        "--model",
        default="mini-opt",
        help="mini-opt (the default), a hub name such as facebook/opt-125m, or a folder",
    )
    train.add_argument(
        "--task", default="restaurants", help="name of a task (default: restaurants), or FILE.csv"
    )
    train.add_argument("--out", type=Path, required=True, help="folder of the run")
    train.add_argument("--resume", action="store_true", help="go on with the run in the folder")
    train.add_argument("--preset", metavar="NAME", help="start from a preset; 'list' lists them")
    for option, default, least, meaning in (
        ("steps", 200, 1, "optimizer steps"),
        ("batch-size", 8, 1, "pairs of meaning and text per step"),
        ("seed", 0, 0, "draws adapter and data order"),
        ("save-every", 50, 1, "steps between checkpoints"),
        ("keep", 2, 1, "checkpoints that stay"),
        ("eval-examples", 64, 0, "validation examples of an evaluation; 0: no evaluation"),
        ("eval-every", 0, 0, "steps between evaluations; 0: before and after"),
        ("sample-count", 3, 0, "sample texts; 0: none"),
        ("sample-every", 0, 0, "steps between sample texts; 0: before and after"),
    ):
        train.add_argument(
            f"--{option}",
            type=_at_least(least),
            default=default,
            metavar="N",
            help=f"{meaning} (default: {default})",
        )
    for kind in ("bank", "logits", "other"):
        train.add_argument(
            f"--{kind}-rate", type=float, metavar="X", help=f"peak learning rate: {kind}"
        )
    _add_config_options(train)
    train.set_defaults(run=_train)

    plan = commands.add_parser(
        "plan",
        help="tell what a config would do to a model: targets, sizes, memory",
        description="Tell what a VB-LoRA config would do to a model, from the model's config.json "
        "alone. Exit status 1 says that the config doesn't fit.",
    )
    plan.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        default="mini-opt",
        help="a hub name, a folder, or mini-opt (the default)",
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
    _add_config_options(plan)
    plan.set_defaults(run=_plan)

    export = commands.add_parser(
        "export-lora",
        help="write a VB-LoRA adapter as a LoRA adapter with the same update",
        description="Write a stored VB-LoRA adapter as a LoRA adapter, exactly. The base model "
        "isn't needed.",
    )
    export.add_argument("adapter", type=Path, metavar="ADAPTER", help="folder of the adapter")
    export.add_argument("out", type=Path, metavar="OUT", help="folder to write")
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
            f"--{option}", type=_at_least(1), default=default, help=f"default: {default}"
        )
    compress.add_argument(
        "--only-topk", action="store_true", help="store only the top k: smaller, no more training"
    )
    compress.add_argument("--seed", type=_at_least(0), default=0, help="draws the first bank")
    compress.set_defaults(run=_compress_lora)

    doctor = commands.add_parser(
        "doctor",
        help="look at this machine and environment, and say what to do about what is wrong",
        description="Look at Python, torch, the machine, the front end, the widgets and the model "
        "hub. Exit status 1 says that the lab can't run here.",
    )
    doctor.add_argument("--json", action="store_true", help="print JSON, for scripts")
    doctor.set_defaults(run=_doctor)

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
        help="a hub name, a folder, or mini-opt (the default)",
    )
    explore.add_argument("--ip", default="127.0.0.1", help="where to listen (default: 127.0.0.1)")
    explore.add_argument("--port", type=int, default=8866, help="default: 8866")
    explore.add_argument("--no-browser", action="store_true", help="only print the address")
    explore.set_defaults(run=_explore)
    return parser


# Options of `plan` and `train` for fields of VBLoRAConfig. They are listed here, since reading them
# from the class would load torch for every command; a test holds the list to the class.
NUMBERS = {
    "r": int,
    "num_vectors": int,
    "vector_length": int,
    "topk": int,
    "vblora_dropout": float,
    "init_vector_bank_bound": float,
    "init_logits_std": float,
}
NAMES = ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern")
OTHER_FIELDS: dict[str, dict[str, Any]] = {
    "layers_to_transform": {"nargs": "+", "type": int, "metavar": "N"},
    "save_only_topk_weights": {"action": argparse.BooleanOptionalAction},
    "bias": {"metavar": "MODE"},
    "task_type": {"metavar": "TASK"},
}


def _add_config_options(parser: argparse.ArgumentParser) -> None:
    options: dict[str, dict[str, Any]] = {
        **{n: {"type": t, "metavar": "N" if t is int else "X"} for n, t in NUMBERS.items()},
        **{name: {"nargs": "+", "metavar": "NAME"} for name in NAMES},
        **OTHER_FIELDS,
    }
    group = parser.add_argument_group("fields of the config")
    for name, how in options.items():
        flag = "--" + name.replace("_", "-")
        group.add_argument(flag, dest=name, default=argparse.SUPPRESS, **how)


def _plan(args: argparse.Namespace) -> int:
    import torch

    from vblora_lab.bases import load_skeleton
    from vblora_lab.planning.plan import plan
    from vblora_lab.planning.presets import list_presets

    if args.preset == "list":
        print(list_presets())
        return 0
    config = _config(args)
    model = load_skeleton(args.model, task_type=config.task_type, dtype=getattr(torch, args.dtype))
    result = plan(model, config, batch_size=args.batch_size, length=args.length)
    print(result.to_json() if args.json else result)
    return 0 if result.fits else 1


def _config(args: argparse.Namespace, **defaults: Any) -> VBLoRAConfig:
    """The config that the options, and a preset, describe."""
    from vblora_lab.planning.presets import find_preset
    from vblora_lab.tuner.config import VBLoRAConfig

    given = {n: v for n, v in vars(args).items() if n in {*NUMBERS, *NAMES, *OTHER_FIELDS}}
    for name in ("target_modules", "exclude_modules"):
        if len(given.get(name, [])) == 1 and _is_expression(given[name][0]):
            given[name] = given[name][0]
    make = VBLoRAConfig if args.preset is None else find_preset(args.preset).config
    return make(**{**defaults, **given})


def _train(args: argparse.Namespace) -> int:
    from vblora_lab.bases import load_base
    from vblora_lab.errors import DataError
    from vblora_lab.planning.presets import list_presets
    from vblora_lab.train import LearningRates, ProgressBar, TrainingSession

    if args.preset == "list":
        print(list_presets())
        return 0
    rates = {kind: getattr(args, f"{kind}_rate") for kind in ("bank", "logits", "other")}
    learning_rates = LearningRates(**{k: rate for k, rate in rates.items() if rate is not None})
    config = _config(args, task_type="CAUSAL_LM")
    try:  # nobody would see a run that is kept nowhere
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--out {str(args.out)!r} can't be used as a folder: {error}") from error
    options = (
        "steps", "batch_size", "seed", "out", "resume", "save_every", "keep", "eval_examples",
        "eval_every", "sample_count", "sample_every",
    )  # fmt: skip
    session = TrainingSession(
        load_base(args.model, device=_own_device()),
        config,
        args.task,
        learning_rates=learning_rates,
        listeners=[ProgressBar()],
        **{name: getattr(args, name) for name in options},
    )
    trace = session.run()
    if not session.is_first:
        return 0
    print(_report(session.base.label, trace))
    print(f"Left in {args.out}: adapter/, run.trace, run.json, checkpoints")
    if trace.reason == "stopped":
        print("Stopped early; the same command with --resume goes on.")
        return 130
    return 0


def _own_device() -> str | None:
    """The GPU of this process, where torchrun or accelerate started one for each."""
    import torch

    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{rank}" if rank is not None and torch.cuda.is_available() else None


def _report(base: str, trace: Trace) -> str:
    """The losses of a run and a text that it wrote."""
    lines = [f"{base}: {trace.reason} after step {trace.steps[-1] if len(trace.steps) else 0}"]
    if len(trace.eval_losses) > 1:
        before, after = trace.eval_losses[0], trace.eval_losses[-1]
        lines.append(f"validation loss {before:.3f} -> {after:.3f} nats per token")
    for sample in trace.samples_after[:1]:
        lines += [f"{sample.mr}", f"  {sample.text}"]
        lines.append(f"  slot errors: {'; '.join(sample.slot_errors) or 'none'}")
    return "\n".join(lines)


def _is_expression(text: str) -> bool:
    """Whether a lone name is meant as a regular expression, or is 'all-linear'."""
    return text.lower() == "all-linear" or any(sign in text for sign in "*+?()[]|\\^$")


def _demo(args: argparse.Namespace) -> int:
    from vblora_lab.app.demo import (  # torch and matplotlib only when they are needed
        STEPS,
        run_demo,
    )

    run_demo(args.out, steps=STEPS if args.steps is None else args.steps, seed=args.seed)
    print(f"Left in {args.out}: adapter/, loss.png, selection.png, run.trace, summary.json")
    return 0


def _export_lora(args: argparse.Namespace) -> int:
    from vblora_lab.convert.export import export_lora

    print(f"LoRA adapter in {export_lora(args.adapter, args.out)}")
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


def _doctor(args: argparse.Namespace) -> int:
    from vblora_lab.app.doctor import doctor

    result = doctor()
    print(result.to_json() if args.json else result)
    return 0 if result.can_run else 1


def _explore(args: argparse.Namespace) -> int:
    from vblora_lab.app.explore import explore

    explore(args.model, ip=args.ip, port=args.port, browser=not args.no_browser)
    return 0


def _at_least(least: int) -> Callable[[str], int]:
    """An argparse type: whole numbers from ``least`` on."""

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} must be {least} or more")
        return int(text)

    return number


if __name__ == "__main__":
    sys.exit(main())
