"""An exercise, what is said about an answer, and the parts that checks are made of."""

from __future__ import annotations

import html
import math
import numbers
import re
import reprlib
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

State = Literal["open", "wrong", "right"]
MARKS: dict[State, str] = {"open": "○ still open", "wrong": "✗ not yet", "right": "✓ right"}
# A bar that stands out on white and on black; the words carry the meaning.
COLOURS: dict[State, str] = {"open": "#8a94a0", "wrong": "#d9822b", "right": "#2f9e5b"}
WIDTH = 88  # characters in a line of text
CODE = re.compile(r"`(?P<marked>[^`]+)`|lab\.(?:hint|solution)\([^()]*\)")  # in a verdict's text
WHOLE = 'style="white-space:nowrap"'


class Open(Exception):
    """There is no answer yet; the text says what to do, if it isn't just to write one."""


class Wrong(Exception):
    """The answer is wrong; the text says in what."""


class Unexplained(Wrong):
    """It is wrong, and not by a misunderstanding that is known here."""


Checker = Callable[[Any], None]
"""Takes an answer; returns nothing if it is right, and raises `Wrong` or `Open` if not."""


@dataclass(frozen=True)
class Verdict:
    """What is said about an answer; a notebook shows it.

    Attributes:
        name: of the exercise.
        state: "open", "wrong" or "right".
        text: what is missing, what is wrong, or why it is right.
    """

    name: str
    state: State
    text: str

    @property
    def right(self) -> bool:
        return self.state == "right"

    def __repr__(self) -> str:
        return textwrap.fill(f"{MARKS[self.state]}: {self.text}", WIDTH)

    def _repr_html_(self) -> str:
        return (
            f'<div style="border-left:4px solid {COLOURS[self.state]};padding:4px 12px;'
            f'max-width:48em;line-height:1.5"><b>{MARKS[self.state]}:</b> '
            f"{CODE.sub(_as_code, html.escape(self.text))}</div>"
        )


def _as_code(found: re.Match[str]) -> str:
    marked = found["marked"]  # by a learner's code, too: of any length
    return f"<code>{marked}</code>" if marked else f"<code {WHOLE}>{found[0]}</code>"


@dataclass(frozen=True)
class Advice:
    """A hint, or code, that a notebook shows as it is."""

    text: str
    is_code: bool = False

    def __repr__(self) -> str:
        return self.text if self.is_code else textwrap.fill(self.text, WIDTH)


@dataclass(frozen=True)
class Exercise:
    """One exercise. Its question stands in the notebook.

    Attributes:
        name: number of the chapter and a word: "02-tiles".
        hint: for someone who is stuck; doesn't give the answer away.
        checker: raises `Wrong` for an answer that is.
        because: said about a right answer, so that a lucky guess teaches something too.
        solution: Python that needs nothing from the notebook and sets `answer`.
    """

    name: str
    hint: str
    checker: Checker = field(repr=False)
    because: str
    solution: str = field(repr=False)

    def verdict(self, answer: Any) -> Verdict:
        try:
            if _is_open(answer):
                raise Open
            self.checker(answer)
        except Open as nothing:
            todo = str(nothing) or "put your answer in place of the three dots."
            help_ = f"lab.hint({self.name!r}) helps, and lab.solution({self.name!r}) shows one."
            return Verdict(self.name, "open", f"{todo} {help_}")
        except Unexplained as wrong:
            return Verdict(self.name, "wrong", f"{wrong} lab.hint({self.name!r}) helps.")
        except Wrong as wrong:
            return Verdict(self.name, "wrong", str(wrong))
        return Verdict(self.name, "right", self.because)


def _is_open(answer: Any) -> bool:
    return answer is None or answer is ...


# --- checks of numbers


def number(answer: Any) -> float:
    """An answer as a number, be it a Python, NumPy or torch one. Raises `Wrong` if it is none."""
    if getattr(answer, "ndim", None) == 0:
        answer = answer.item()
    if isinstance(answer, str):
        raise Wrong(f"{_short(answer)} is text; the answer is a number, written without quotes.")
    if isinstance(answer, bool) or not isinstance(answer, numbers.Real):
        kind = type(answer).__name__
        raise Wrong(f"{_short(answer)} is a {kind}; the answer is one number.")
    try:
        value = float(answer)
    except OverflowError:  # an integer of more than 300 digits
        value = math.inf
    if not math.isfinite(value):
        raise Wrong(f"{_short(answer)} is not a finite number, or far too large.")
    return value


def _short(answer: Any) -> str:
    """What a learner wrote, cut off where it gets long."""
    return textwrap.shorten(reprlib.repr(answer), 60, placeholder=" ...")


def equals(expected: float, mistakes: Mapping[float, str] | None = None) -> Checker:
    """A check for one number.

    Args:
        expected: the answer; within a millionth counts as equal.
        mistakes: what to say about numbers that a known misunderstanding gives.
    """
    known = {float(value): text for value, text in (mistakes or {}).items()}

    def checker(answer: Any) -> None:
        value = number(answer)
        if math.isclose(value, expected, rel_tol=1e-6, abs_tol=1e-9):
            return
        for wrong, text in known.items():
            if math.isclose(value, wrong, rel_tol=1e-6, abs_tol=1e-9):
                raise Wrong(f"{_as_written(value)}: {text}")
        raise Unexplained(_how_far_off(value, expected))

    return checker


def _as_written(value: float) -> str:
    return f"{value:,g}" if value != int(value) else f"{int(value):,}"


def _how_far_off(value: float, expected: float) -> str:
    said = _as_written(value)
    if value and expected and value * expected < 0:
        return f"{said} has the wrong sign."
    if expected != int(expected) and math.isclose(value, expected, rel_tol=0.01):
        return f"{said} is nearly right. Let Python work it out, and don't round."
    text = f"{said} is too {'large' if value > expected else 'small'}"
    small, large = sorted((abs(value), abs(expected)))
    times = large / small if small else 0.0
    if 2 <= times <= 1024 and times == int(times):
        text += f", by a factor of exactly {int(times)}: which part did you count too often, or not"
        return f"{text}?"
    return f"{text}."


# --- checks of functions and tensors


def called(function: Any, *args: Any) -> Any:
    """What a learner's function returns.

    Raises:
        Open: it returns nothing yet.
        Wrong: it is no function, or it raises.
    """
    if not callable(function):
        raise Wrong(f"the answer is a function; this is of type {type(function).__name__}.")
    try:
        result = function(*args)
    except Exception as error:  # whatever a learner's code raises is shown to the learner
        raise Wrong(f"your code raises {type(error).__name__}: {error}") from error
    if result is None:
        raise Open("the function returns nothing yet: write its body, and end it with `return`.")
    if result is ...:
        raise Open
    return result


def check_tensor(
    result: Any, expected: Tensor, mistakes: Mapping[str, Tensor] | None = None
) -> None:
    """Compare a tensor with the right one.

    Args:
        result: what a learner's code returned.
        expected: what it should be.
        mistakes: what to say about tensors that a known misunderstanding gives.

    Raises:
        Wrong: it is no tensor, has another shape, or other numbers; and where.
    """
    import torch

    if not isinstance(result, torch.Tensor):
        raise Wrong(f"this gives a {type(result).__name__}; give a torch.Tensor.")
    result = result.detach()
    for text, wrong in (mistakes or {}).items():
        if result.shape == wrong.shape and _close(result, wrong):
            raise Wrong(text)
    if result.shape != expected.shape:
        raise Wrong(f"the shape is {tuple(result.shape)}; it should be {tuple(expected.shape)}.")
    if torch.isnan(result).any():
        raise Wrong("there is a NaN in it: is 0 divided by 0 somewhere, or the log of 0 taken?")
    if not _close(result, expected):
        off = (result.double() - expected.double()).abs()
        at = tuple(int(i) for i in torch.unravel_index(off.argmax(), off.shape))
        where = f"[{', '.join(map(str, at))}]" if at else ""
        raise Wrong(
            f"the shape is right, the numbers aren't: result{where} is "
            f"{float(result[at]):.4f} and should be {float(expected[at]):.4f}."
        )


def _close(a: Tensor, b: Tensor) -> bool:
    import torch

    return torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-6)
