"""Tasks: data to text in the E2E format, generated or read from CSV, and instructions; and scores.

Start with `task`, then `grammar` (how texts are generated) and `metrics` (how they are scored).
This room imports `errors` alone.
"""

from vblora_lab.data.csv_file import read_csv
from vblora_lab.data.domains import DOMAINS, get_domain
from vblora_lab.data.instructions import Instruction, read_instructions
from vblora_lab.data.load import load_task
from vblora_lab.data.meaning import format_mr, parse_mr
from vblora_lab.data.metrics import bleu, slot_error_rate, slot_errors
from vblora_lab.data.task import Example, Task, make_task

__all__ = [
    "DOMAINS",
    "Example",
    "Instruction",
    "Task",
    "bleu",
    "format_mr",
    "get_domain",
    "load_task",
    "make_task",
    "parse_mr",
    "read_csv",
    "read_instructions",
    "slot_error_rate",
    "slot_errors",
]
