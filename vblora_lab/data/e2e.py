"""The data set of the E2E NLG challenge, from the hub or in files of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vblora_lab.data.domains import RESTAURANTS
from vblora_lab.data.task import Example, Task, group_examples, split_examples
from vblora_lab.errors import DataError

DATA_SET = "tuetschek/e2e_nlg"


def load_e2e() -> Task:
    """E2E as the challenge split it, through the `datasets` library, from the hub or its cache.

    Raises `DataError` where it can't be had.
    """
    advice = "pass the challenge's CSV files, or use the generated task 'restaurants'"
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(f"the `datasets` library is not installed; install it, {advice}") from error
    try:
        # The branch that the hub makes itself: plain tables, with no script to run.
        data = load_dataset(DATA_SET, revision="refs/convert/parquet")
    except Exception as error:  # whatever is wrong with the network or the hub
        raise DataError(f"{DATA_SET} can't be had from the hub ({error}); {advice}") from error
    return task_of([examples_of(data[name]) for name in ("train", "validation", "test")])


def examples_of(rows: Iterable[dict[str, str]]) -> tuple[Example, ...]:
    """From the rows of the data set as the hub has it."""
    return group_examples((row["meaning_representation"], row["human_reference"]) for row in rows)


def task_of(splits: Sequence[Sequence[Example]], seed: int = 0) -> Task:
    """A task of given train, validation and test examples; validation may be cut off train."""
    train, validation, test = splits
    if not validation:
        parts = split_examples("e2e", RESTAURANTS, train, seed=seed)
        train, validation = (*parts.train, *parts.test), parts.validation
    return Task("e2e", RESTAURANTS, tuple(train), tuple(validation), tuple(test))
