"""The order of training: fair, reproducible, with little padding and no drift in length."""

import random
from collections import Counter

from vblora_lab.train.batches import arrange

ROWS = [{"input_ids": [i] * random.Random(i).randint(10, 100), "labels": []} for i in range(400)]


def lengths(rows, batch_size):
    cut = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    return [[len(row["input_ids"]) for row in batch] for batch in cut]


def test_two_passes_show_every_row_twice():
    order = arrange(ROWS, batch_size=8, batches=100, seed=0)
    assert set(Counter(row["input_ids"][0] for row in order).values()) == {2}


def test_the_seed_alone_decides():
    assert arrange(ROWS, 8, 30, seed=1) == arrange(ROWS, 8, 30, seed=1)
    assert arrange(ROWS, 8, 30, seed=1) != arrange(ROWS, 8, 30, seed=2)


def test_like_lengths_share_a_batch():
    def padding(order):
        batches = lengths(order, 8)
        return sum(8 * max(b) - sum(b) for b in batches) / sum(sum(b) for b in batches)

    shuffled = random.Random(0).sample(ROWS, 400)
    assert padding(shuffled) > 0.4
    assert padding(arrange(ROWS, 8, 50, seed=0)) < 0.1


def test_lengths_do_not_drift_over_a_run():
    means = [sum(b) / 8 for b in lengths(arrange(ROWS, 8, 50, seed=0), 8)]
    steps = range(50)
    centred = [(s - 24.5, m - sum(means) / 50) for s, m in zip(steps, means, strict=True)]
    covariance = sum(s * m for s, m in centred)
    spread = (sum(s * s for s, _ in centred) * sum(m * m for _, m in centred)) ** 0.5
    assert abs(covariance / spread) < 0.4  # correlation of step and length


def test_fewer_rows_than_a_batch_are_repeated():
    order = arrange(ROWS[:3], batch_size=8, batches=2, seed=0)
    assert len(order) == 16 and {row["input_ids"][0] for row in order} == {0, 1, 2}


def test_any_number_of_batches_is_cut_out_of_many_passes():
    for rows, batch_size, batches in [(5, 2, 30), (3, 8, 7), (400, 8, 1), (7, 7, 3)]:
        order = arrange(ROWS[:rows], batch_size, batches, seed=0)
        assert len(order) == batches * batch_size
        counts = Counter(row["input_ids"][0] for row in order)
        assert max(counts.values()) - min(counts.values()) <= 1 + batch_size // rows or rows == 400
