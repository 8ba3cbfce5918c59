"""Losses that go wrong, and batches that are too large."""

import pytest
import torch

from vblora_lab.bases import Base, share_weights
from vblora_lab.errors import BatchTooLargeError, DivergedError
from vblora_lab.train import Finished, LearningRates, Stepped, TrainingSession
from vblora_lab.train.guard import largest_that_fits

SMALL = {"batch_size": 4, "eval_examples": 0, "sample_count": 0}


def trained(session):
    return {n: p.detach().clone() for n, p in session.model.named_parameters() if p.requires_grad}


class Spoilt:
    """Multiply the loss of a session's model by a number, from one call on."""

    def __init__(self, session, call, factor):
        self.session, self.call, self.factor, self.calls = session, call, factor, 0
        self.states = []  # trained parameters at each call
        session.model.get_base_model().register_forward_hook(self)

    def __call__(self, module, inputs, output):
        self.calls += 1
        self.states.append(trained(self.session))
        if self.calls >= self.call:
            output.loss = output.loss * self.factor
        return output


def assert_state(session, state):
    assert all(torch.equal(state[name], now) for name, now in trained(session).items())


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (float("nan"), "the loss of step 4 is nan"),
        (float("inf"), "the loss of step 4 is inf"),
        (100.0, r"the loss exploded to \d+\.\d at step 4"),
    ],
)
def test_a_bad_loss_stops_at_its_step_with_the_last_good_state(base, task, config, factor, words):
    events = []
    session = TrainingSession(base, config, task, steps=9, listeners=[events.append], **SMALL)
    spoilt = Spoilt(session, 4, factor)
    with pytest.raises(DivergedError, match=words) as failure:
        session.run()
    assert "learning rates are too high" in str(failure.value)
    assert session.status == "failed" and isinstance(events[-1], Finished)
    assert events[-1].error is failure.value
    assert [e.step for e in events if isinstance(e, Stepped)] == [1, 2, 3]
    assert_state(session, spoilt.states[2])  # the last that gave a good loss


def test_bad_gradients_are_seen_before_they_reach_a_parameter(base, task, config):
    session = TrainingSession(base, config, task, steps=9, **SMALL)
    spoilt = Spoilt(session, 99, 1.0)
    bank = session.model.base_model.vblora_vector_bank["default"]
    bank.register_hook(lambda grad: grad * (float("nan") if spoilt.calls == 3 else 1))
    with pytest.raises(DivergedError, match="the gradients of step 3 are not finite"):
        session.run()
    assert_state(session, spoilt.states[2])
    assert all(p.isfinite().all() for p in session.model.parameters())


def test_rates_that_are_far_too_high_really_explode_and_are_named(base, task, config, tmp_path):
    rates = LearningRates(bank=300.0, logits=1e-2)
    session = TrainingSession(
        base, config, task, steps=30, learning_rates=rates, out=tmp_path, **SMALL
    )
    with pytest.raises(DivergedError, match=r"learning rates are too high \(bank="):
        session.run()
    from safetensors.torch import load_file

    kept = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert torch.equal(
        kept["base_model.vblora_vector_bank"], session.model.base_model.vblora_vector_bank.default
    )


def test_a_broken_base_is_named(base, task, config):
    broken = share_weights(base.model)
    layer = broken.get_parameter("model.decoder.layers.3.fc1.weight")
    layer.data = layer.data.clone()
    layer.data[0, 0] = float("nan")
    session = TrainingSession(Base(broken, base.tokenizer), config, task, steps=3, **SMALL)
    start = trained(session)
    with pytest.raises(DivergedError, match=r"own .*layers\.3\.fc1\.weight holds NaN.*No step"):
        session.run()
    assert_state(session, start)


def test_a_batch_without_labels_is_named(base, task, config):
    session = TrainingSession(base, config, task, steps=3, **SMALL)
    for row in session._encoded:
        row["labels"] = [-100] * len(row["labels"])
    with pytest.raises(DivergedError, match="No token of the batch has a label"):
        session.run()


# --- memory


class SmallDevice:
    """A forward pass that has room for a number of tokens, and says so as CUDA does."""

    def __init__(self, session, tokens):
        self.tokens, self.asked = tokens, []
        session.model.get_base_model().register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module, args, kwargs):
        shape = tuple(kwargs["input_ids"].shape)
        self.asked.append(shape)
        if shape[0] * shape[1] > self.tokens:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def equal_rows(session, length):
    """Make all rows of a session equally long, so that shapes are known."""
    session._encoded = [
        {"input_ids": [7] * length, "labels": [7] * length} for _ in session._encoded
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (50, r"4 x 24 tokens does not fit .*; 2 x 24 fits\. Choose batch_size=2\.$"),
        (30, r"1 x 24 fits\. Choose batch_size=1\.$"),
        (10, r"1 x 6 fits\. Choose batch_size=1 and texts of at most 6 tokens\.$"),
        (0, r"not a single token does"),
    ],
)
def test_out_of_memory_names_what_was_found_to_fit(base, task, config, tokens, message):
    session = TrainingSession(base, config, task, steps=3, **SMALL)
    equal_rows(session, 24)
    SmallDevice(session, tokens)
    start = trained(session)
    with pytest.raises(BatchTooLargeError, match=message):
        session.run()
    assert_state(session, start)
    assert all(p.grad is None for p in session.model.parameters())


def test_the_batch_that_is_named_fits_the_longest_texts_too(base, task, config):
    session = TrainingSession(base, config, task, steps=1, **SMALL)
    equal_rows(session, 16)
    for row in session._encoded[:2]:  # too few to be among the four of one step
        row.update({"input_ids": [7] * 24, "labels": [7] * 24})
    SmallDevice(session, 2 * 24)
    message = r"a batch of 4 x 16 tokens .*; 2 x 24 fits\. Choose batch_size=2\.$"
    with pytest.raises(BatchTooLargeError, match=message):
        session.run()


def test_the_batch_that_is_named_trains(base, task, config):
    options = {**SMALL, "batch_size": 2}
    session = TrainingSession(base, config, task, steps=3, **options)
    equal_rows(session, 24)
    SmallDevice(session, 50)
    assert session.run().reason == "completed"


@pytest.mark.slow
def test_the_search_halves_rows_and_then_length():
    tried = []

    def attempt(part):
        tried.append(tuple(part["input_ids"].shape))
        raise torch.cuda.OutOfMemoryError

    batch = {"input_ids": torch.zeros(6, 5), "labels": torch.zeros(6, 5)}
    assert largest_that_fits(attempt, batch) is None
    assert tried == [(3, 5), (1, 5), (1, 2), (1, 1)]
