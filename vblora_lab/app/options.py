"""What commands share: a parser that says what is wrong, the fields of a config, whole numbers."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NoReturn

from vblora_lab.errors import did_you_mean

if TYPE_CHECKING:
    from vblora_lab.tuner.config import VBLoRAConfig

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

# What people write who know another tool, and what it is called here.
ALSO_CALLED = {
    "--rank": "--r",
    "--k": "--topk",
    "--top-k": "--topk",
    "--lr": "--bank-rate, --logits-rate",
    "--learning-rate": "--bank-rate, --logits-rate",
    "--epochs": "--steps",
    "--output-dir": "--out",
    "--dataset": "--task",
    "--dropout": "--vblora-dropout",
}


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line; so are those of its subcommands."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As argparse's, but an option that isn't known ends it, with the nearest that is."""
        found, unknown = super().parse_known_args(args, namespace)
        wrong = [text.partition("=")[0] for text in unknown if text.startswith("--")]
        if wrong:
            self.error(f"there is no option {wrong[0]}.{self._meant(wrong[0])}")
        return found, unknown

    def _meant(self, wrong: str) -> str:
        known = self._option_string_actions
        if wrong not in ALSO_CALLED:
            return did_you_mean(wrong, known)
        names = ALSO_CALLED[wrong].split(", ")
        return f" Here it is {' and '.join(names)}." if set(names) <= set(known) else ""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where help is, without all the options; ends with status 2."""
        end = "" if message.endswith((".", "?")) else "."
        self.exit(2, f"{self.prog}: {message}{end} Options: {self.prog} --help\n")


def add_config_options(parser: argparse.ArgumentParser) -> None:
    options: dict[str, dict[str, Any]] = {
        **{n: {"type": t, "metavar": "N" if t is int else "X"} for n, t in NUMBERS.items()},
        **{name: {"nargs": "+", "metavar": "NAME"} for name in NAMES},
        **OTHER_FIELDS,
    }
    group = parser.add_argument_group("fields of the config")
    for name, how in options.items():
        flag = "--" + name.replace("_", "-")
        group.add_argument(flag, dest=name, default=argparse.SUPPRESS, **how)


def config_of(args: argparse.Namespace, **defaults: Any) -> VBLoRAConfig:
    """The config that the options, and a preset, describe."""
    from vblora_lab.planning.presets import find_preset
    from vblora_lab.tuner.config import VBLoRAConfig

    given = {n: v for n, v in vars(args).items() if n in {*NUMBERS, *NAMES, *OTHER_FIELDS}}
    for name in ("target_modules", "exclude_modules"):
        if len(given.get(name, [])) == 1 and _is_expression(given[name][0]):
            given[name] = given[name][0]
    make = VBLoRAConfig if args.preset is None else find_preset(args.preset).config
    return make(**{**defaults, **given})


def _is_expression(text: str) -> bool:
    """Whether a lone name is meant as a regular expression, or is 'all-linear'."""
    return text.lower() == "all-linear" or any(sign in text for sign in "*+?()[]|\\^$")


def add_number_options(
    parser: argparse.ArgumentParser, numbers: Iterable[tuple[str, int, int, str]]
) -> None:
    """Add options for whole numbers: of each its name, its default, the least, and its meaning."""
    for option, default, least, meaning in numbers:
        parser.add_argument(
            f"--{option}",
            type=at_least(least),
            default=default,
            metavar="N",
            help=f"{meaning} (default: {default})",
        )


def at_least(least: int) -> Callable[[str], int]:
    """An argparse type: whole numbers from ``least`` on."""

    def number(text: str) -> int:
        if not text.strip().lstrip("+-").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, {least} or more")
        return int(text)

    return number
