"""What a comparison says that it will cost, before it has been trained."""

import pytest

from vblora_lab.runs.events import Evaluated, Stepped
from vblora_lab.train.compare import CostOfAll


def stepped(step, total, per_second):
    return Stepped(
        step=step, total_steps=total, loss=1.0, learning_rates={}, tokens_per_second=1.0,
        steps_per_second=per_second, eta_seconds=0.0, seconds=1.0, peak_memory_bytes=3 * 2**29,
    )  # fmt: skip


@pytest.mark.parametrize(("total", "at"), [(600, 3), (2, 2)])
def test_it_is_told_once_from_the_first_steps(total, at):
    told = []
    cost = CostOfAll(told.append, methods=5, texts=100)
    cost(Evaluated(step=0, eval_loss=1.0))
    for step in range(1, at):
        cost(stepped(step, total, per_second=0.01))
    assert not told
    cost(stepped(at, total, per_second=4.0))
    cost(stepped(1, total, per_second=4.0))  # the next method's
    assert told == [
        f"5 methods of {total} steps: a step of the first takes 0.25 s here, so the steps of all "
        f"of them about {'12 min' if total == 600 else '2 s'}, and 100 texts each on top. "
        "Memory: 1.5 GiB at its peak so far."
    ]


def test_no_texts_are_told_of_where_none_are_written():
    told = []
    CostOfAll(told.append, methods=1, texts=0)(stepped(1, 1, per_second=2.0))
    assert told[0].startswith("1 method of 1 step: a step of the first takes 0.5 s here")
    assert "texts" not in told[0]
