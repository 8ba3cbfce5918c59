"""The exercises of the course: predict or write, check, and go on.

    import vblora_lab as lab

    answer = ...
    lab.check("02-tiles", answer)   # what is wrong, not only that it is
    lab.hint("02-tiles")
    lab.solution("02-tiles")        # the code of a right answer

The exercises of notebook 02 are in `chapter_02`, a module with a list called EXERCISES, and so on:
a new chapter is a new module, and nothing else has to know.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from vblora_lab.course.exercise import Advice, Exercise, Verdict
from vblora_lab.errors import ExerciseError, did_you_mean

_checked: dict[str, Any] = {}  # by exercise: the answer that was checked last


def exercises() -> dict[str, Exercise]:
    """All exercises by name, in the order of the chapters."""
    modules = sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name.startswith("chapter"))
    chapters = [importlib.import_module(f"{__name__}.{module}") for module in modules]
    return {exercise.name: exercise for chapter in chapters for exercise in chapter.EXERCISES}


def find(name: str) -> Exercise:
    """The exercise of this name.

    Raises:
        ExerciseError: there is none; the message names the nearest.
    """
    known = exercises()
    if name not in known:
        chapter = [other for other in known if other[:3] == str(name)[:3]]
        hint = did_you_mean(name, known) or f" There are {', '.join(chapter or known)}."
        raise ExerciseError(f"exercise {name!r}: there is none of that name.{hint}")
    return known[name]


def check(name: str, answer: Any) -> Verdict:
    """Say whether an answer is right and, if not, what is wrong with it.

    Args:
        name: of the exercise, such as "02-tiles".
        answer: a number, a string, a tensor or a function, as the exercise asks. `...`, None, and a
            function that returns one of them count as "not answered yet".

    Returns:
        A `Verdict`, which a notebook shows; `verdict.state` is "open", "wrong" or "right". A wrong
        answer raises nothing.

    Raises:
        ExerciseError: there is no such exercise.
    """
    verdict = find(name).verdict(answer)
    _checked[name] = answer
    return verdict


def yours(name: str, answer: Any) -> Any:
    """The answer if it is right, and otherwise that of the solution, so that a chapter can go on.

    All exercises of a chapter call theirs `answer`. Where this is another one's, since the cells
    ran in another order, the one that `check` was last given for this exercise counts. Says on a
    line which of them it is.

    Raises:
        ExerciseError: there is no such exercise.
    """
    exercise = find(name)
    checked = _checked.get(name)
    for written in (answer,) if checked is answer else (answer, checked):
        if exercise.verdict(written).right:
            print(f"{name}: yours")
            return written
    print(f"{name}: the worked solution, until yours is right")
    namespace: dict[str, Any] = {"__name__": f"{__name__}.solution"}
    exec(exercise.solution, namespace)
    return namespace["answer"]


def hint(name: str) -> Advice:
    """A push in the right direction. Raises `ExerciseError` if there is no such exercise."""
    return Advice(find(name).hint)


def solution(name: str) -> Advice:
    """Code that answers the exercise. Raises `ExerciseError` if there is no such exercise."""
    return Advice(find(name).solution, is_code=True)


__all__ = ["Exercise", "Verdict", "check", "exercises", "find", "hint", "solution", "yours"]
