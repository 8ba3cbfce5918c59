"""The order in which examples are trained on: similar lengths together, batches in random order.

A batch is padded to its longest row, so rows of similar length waste little. Sorting all rows would
train on short texts first and on long ones last; so batches are formed by length, then shuffled.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import islice

Row = dict[str, list[int]]

POOL = 50  # batches that are sorted together: with more, less is padded, and less left to chance


def arrange(rows: Sequence[Row], batch_size: int, batches: int, seed: int) -> list[Row]:
    """``batches`` x ``batch_size`` rows, to be cut into batches in this order.

    Passes over all rows follow each other, each in a new random order, before batches are formed.
    The same arguments give the same order.
    """
    rng = random.Random(seed)
    # Never more than one pass, or the copies of a row would be sorted into one batch.
    pool_size = batch_size * max(1, min(POOL, len(rows) // batch_size))
    stream = _endless(rows, rng)
    arranged: list[Row] = []
    while len(arranged) < batches * batch_size:
        pool = list(islice(stream, pool_size))
        pool.sort(key=lambda row: len(row["input_ids"]))
        cut = [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
        rng.shuffle(cut)
        arranged += [row for batch in cut for row in batch]
    return arranged[: batches * batch_size]


def _endless(rows: Sequence[Row], rng: random.Random) -> Iterator[Row]:
    while True:
        yield from rng.sample(rows, len(rows))
