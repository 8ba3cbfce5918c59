"""Thousands of requests to one store and one model, with writers, readers and kills meanwhile.

The short form is tests/serving/test_many_at_once.py.
"""

import os

import pytest

from tests.fuzz.amount import ALL
from tests.serving.conftest import adapters as adapters
from tests.serving.crowd import Crowd, answers_of
from tests.serving.test_many_at_once import all_at_once

AT_ONCE = 50  # rounds of a writer between two looks at the whole store
SHARE = 0.05  # of a long run: rounds of a writer; 16 times as many requests are asked


@pytest.mark.skipif(not ALL, reason="long; make fuzz")
@pytest.mark.skipif(os.name == "nt", reason="forks, and deletes files that are mapped")
@pytest.mark.parametrize("seed", range(max(1, round(SHARE * ALL / AT_ONCE))))
def test_every_request_is_right_or_refused(adapters, tmp_path, seed):
    ends = all_at_once(
        Crowd(tmp_path / "store", adapters, answers_of(adapters)), 1000 * seed, AT_ONCE
    )
    print(ends)
    asked = 2 * 4 * 2 * AT_ONCE
    assert ends["served"] + ends["refused"] + ends["no room"] == asked
    assert ends["served"] > asked / 2 and ends["refused"] > 0
