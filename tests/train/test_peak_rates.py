"""Peak rates: what is asked for is taken once, and a resumed run takes it at the same step."""

import pytest

from vblora_lab.errors import DataError
from vblora_lab.train import LearningRates
from vblora_lab.train.peak_rates import PeakRates

FIRST, SECOND, THIRD = (LearningRates(bank=bank) for bank in (1e-3, 2e-3, 3e-3))


def test_the_newest_that_was_asked_for_is_taken_once():
    rates = PeakRates(FIRST)
    assert rates.now == FIRST and rates.asked_for() is None
    rates.ask_for(SECOND)
    rates.ask_for(THIRD)
    assert rates.now == THIRD
    assert rates.asked_for() == THIRD and rates.asked_for() is None


def test_a_resumed_run_takes_what_was_noted_at_its_step():
    rates = PeakRates(FIRST)
    rates.recall({2: vars(SECOND), 5: vars(THIRD)}, first_step=4)
    assert rates.now == SECOND, "the checkpoint of step 4 has them"
    assert rates.recalled(2) is None and rates.recalled(4) is None
    assert rates.recalled(5) == THIRD == rates.now


def test_what_is_asked_for_replaces_what_was_noted_for_later():
    rates = PeakRates(FIRST)
    rates.recall({5: vars(SECOND)}, first_step=0)
    rates.ask_for(THIRD)
    assert rates.recalled(5) is None and rates.now == THIRD


@pytest.mark.parametrize("rates", [{"bank": 1.0}, {**vars(FIRST), "mood": 1.0}, {}])
def test_noted_rates_of_other_names_are_refused(rates):
    with pytest.raises(
        DataError, match=r"rates\.json .*after step 5; expected: \['bank', 'logits'"
    ):
        PeakRates(FIRST).recall({5: rates}, first_step=0)
