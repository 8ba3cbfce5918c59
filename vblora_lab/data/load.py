"""`load_task`: one of the lab's own domains, generated from a seed, a file, or the E2E data."""

from __future__ import annotations

from pathlib import Path

from vblora_lab.data.csv_file import read_csv
from vblora_lab.data.domains import DOMAINS, RESTAURANTS, get_domain
from vblora_lab.data.e2e import load_e2e
from vblora_lab.data.instructions import NO_SLOTS, office, read_instructions
from vblora_lab.data.task import Task, make_task, split_examples
from vblora_lab.data.text_file import is_there, shown
from vblora_lab.errors import DataError


def load_task(name: str | Path = "restaurants", *, seed: int = 0) -> Task:
    """A task by domain name ("restaurants", "hotels", "museums", "films") or from a file.

    "office" is a small set of instructions that ships too, and "e2e" the data set of the E2E
    challenge, from the hub or its cache. A CSV file is in its format (`read_csv`); a file that ends
    in .jsonl holds instructions (`read_instructions`).

    seed: draws the generated task, or how the file's examples are split. Raises `DataError` for an
    unknown name, for a file that can't be read as what it should be, and where the hub is out of
    reach.
    """
    if str(name) in DOMAINS:
        return make_task(get_domain(str(name)), seed=seed)
    if str(name) == "office":
        return office()
    if str(name) == "e2e":
        return load_e2e()
    path = Path(name)
    if path.suffix.lower() == ".jsonl":
        return split_examples(path.stem, NO_SLOTS, read_instructions(path), seed=seed)
    if path.suffix.lower() == ".csv" or is_there(path):
        return split_examples(path.stem, RESTAURANTS, read_csv(path), seed=seed)
    raise DataError(
        f"no task is called {shown(name)!r}, and there is no such CSV file; "
        f"choose one of {sorted([*DOMAINS, 'office'])}, 'e2e' (from the hub), or the path of a CSV "
        "file with the columns mr and ref, or of a .jsonl file with the keys prompt and completion"
    )
