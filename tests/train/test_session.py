"""Sessions: the same adapter as a plain loop trains, in either thread, stopped when asked."""

import dataclasses
import random
import threading

import numpy as np
import pytest
import torch

from vblora_lab.bases import share_weights
from vblora_lab.data import load_task
from vblora_lab.errors import ConfigError, DataError, SessionError, TargetError
from vblora_lab.inspection.reading import read_selection
from vblora_lab.train import (
    Evaluated,
    Finished,
    LearningRates,
    Sampled,
    Selected,
    Started,
    Stepped,
    Trace,
    TrainingSession,
    Working,
)
from vblora_lab.train.prompts import Collator, encode_all
from vblora_lab.tuner.peft import get_peft_model

SMALL = {"batch_size": 2, "eval_examples": 2, "sample_count": 1}


def trained(session):
    return {n: p.detach().clone() for n, p in session.model.named_parameters() if p.requires_grad}


@pytest.fixture(scope="module")
def finished(base, task):
    """One run of six steps and everything it said, but for what it was doing meanwhile."""
    from vblora_lab.tuner.config import VBLoRAConfig

    config = VBLoRAConfig(r=2, num_vectors=16, vector_length=128, target_modules=["q_proj"])
    events = []
    session = TrainingSession(base, config, task, steps=6, listeners=[events.append], **SMALL)
    trace = session.run()
    return session, trace, [event for event in events if not isinstance(event, Working)]


def test_what_takes_longer_than_a_step_is_told_while_it_goes_on(base, task, config, tmp_path):
    said = []
    session = TrainingSession(
        base, config, task, steps=1, out=tmp_path, listeners=[said.append],
        batch_size=2, eval_examples=5, sample_count=1,
    )  # fmt: skip
    pairs = sum(len(example.references) for example in task.train)
    assert said[0] == Working(0, "reading", 0, pairs), "before the run, in which it can't be told"
    trace = session.run()

    def before(kind):
        """What was told from the last event of another kind up to the first one of this."""
        at = next(i for i, event in enumerate(said) if isinstance(event, kind))
        start = at
        while isinstance(said[start - 1], Working):
            start -= 1
        return said[start:at]

    texts, evaluated = before(Sampled), before(Evaluated)
    assert [str(work) for work in texts[:2]] == [
        "writing texts, 1 tokens of each", "writing texts, 2 tokens of each"
    ]  # fmt: skip
    rows = sum(len(example.references) for example in task.validation[:5])
    assert [work.done for work in evaluated] == [*range(0, rows, 2), rows]
    assert str(evaluated[1]) == f"measuring the loss, 2 of {rows} examples"
    kinds = [type(event) for event in said]
    first_step = said.index(Working(0, "taking the first step"))
    assert kinds.index(Evaluated) < first_step < kinds.index(Stepped)
    # It is of the moment: neither the trace nor its file keeps it.
    for events in (trace.events, Trace.load(tmp_path / "run.trace").events):
        assert not any(isinstance(event, Working) for event in events) and len(events) > 5


def test_events_come_in_order_and_say_what_happened(finished):
    session, trace, events = finished
    assert isinstance(events[0], Started) and isinstance(events[-1], Finished)
    assert [type(e) for e in events[1:4]] == [Sampled, Selected, Evaluated]
    assert [e.step for e in events if isinstance(e, Stepped)] == [1, 2, 3, 4, 5, 6]
    assert [e.step for e in events if isinstance(e, Selected)] == [0, 1, 2, 3, 4, 5, 6]
    assert [e.step for e in events if isinstance(e, Evaluated)] == [0, 6]
    assert [e.step for e in events if isinstance(e, Sampled)] == [0, 6]
    assert events[-1].reason == session.status == trace.reason == "completed"
    last = [e for e in events if isinstance(e, Stepped)][-1]
    assert last.eta_seconds == 0 and last.tokens_per_second > 0
    assert last.steps_per_second == pytest.approx(6 / last.seconds, rel=1e-6)


def test_the_first_event_counts_what_is_trained_and_stored(finished, tmp_path):
    from safetensors.torch import load_file

    session, _, events = finished
    started = events[0]
    assert started.trained_parameters == sum(t.numel() for t in trained(session).values())
    session.model.peft_config["default"].save_only_topk_weights = True
    session.model.save_pretrained(tmp_path)
    session.model.peft_config["default"].save_only_topk_weights = False
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert started.stored_bytes == sum(t.nbytes for t in stored.values())
    assert started.lora_stored_bytes == 6 * 2 * (256 + 256) * 4  # layers, r, in + out, float32


def test_the_last_selection_is_the_models(finished):
    session, trace, _ = finished
    step, selection = trace.selections[-1]
    now = read_selection(session.model)
    assert step == 6
    assert np.array_equal(selection.indices, now.indices)
    assert np.array_equal(selection.weights, now.weights)


def test_the_learning_rates_warm_up_and_fall_linearly(finished):
    rates = [e.learning_rates for e in finished[2] if isinstance(e, Stepped)]
    # 6% of 6 steps is 1 step of warm-up (rounded up): 0, then linearly from the peak to 0
    expected = np.array([0, 5, 4, 3, 2, 1]) / 5
    assert [r["bank"] for r in rates] == pytest.approx(1e-2 * expected)
    assert [r["logits"] for r in rates] == pytest.approx(1e-1 * expected)


def test_training_is_that_of_a_plain_loop(base, task, config):
    """The same adapter, batches and rates in ten lines of torch end in the same parameters."""
    one_batch = task.train[:2]
    import dataclasses

    tiny = dataclasses.replace(task, train=one_batch)
    rates = LearningRates(bank=1e-3, logits=1e-2)  # higher ones let float32 drift further apart
    session = TrainingSession(base, config, tiny, steps=5, seed=3, learning_rates=rates, **SMALL)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = get_peft_model(share_weights(base.model), config)
    trace = session.run()

    bank = [p for n, p in model.named_parameters() if "vector_bank" in n and p.requires_grad]
    logits = [p for n, p in model.named_parameters() if "logits" in n]
    optimizer = torch.optim.AdamW(
        [{"params": bank, "lr": 1e-3}, {"params": logits, "lr": 1e-2}], weight_decay=0.0
    )
    batch = Collator(base.tokenizer.pad_token_id)(encode_all(base.tokenizer, one_batch, 512))
    losses = []
    for factor in (0, 1, 3 / 4, 2 / 4, 1 / 4):
        for group, peak in zip(optimizer.param_groups, (1e-3, 1e-2), strict=True):
            group["lr"] = factor * peak
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert trace.losses == pytest.approx(losses, rel=1e-4)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(
                dict(session.model.named_parameters())[name], parameter, rtol=1e-3, atol=1e-5
            )


@pytest.mark.slow
def test_background_and_foreground_train_the_same_adapter(base, task, config):
    sessions = [TrainingSession(base, config, task, steps=3, **SMALL) for _ in range(2)]
    sessions[0].run()
    sessions[1].start()
    trace = sessions[1].wait(timeout=120)
    assert sessions[1].status == "completed" and len(trace.steps) == 3
    for name, parameter in trained(sessions[0]).items():
        assert torch.equal(parameter, trained(sessions[1])[name]), name


def test_the_base_stays_as_it_was(base, task, config):
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in base.model.parameters()]
    config.bias = "all"
    TrainingSession(base, config, task, steps=2, **SMALL).run()
    after = base.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert flags == [parameter.requires_grad for parameter in base.model.parameters()]


def test_stop_ends_after_the_step_in_progress(base, task, config):
    session = TrainingSession(base, config, task, steps=1000, **SMALL)
    session.add_listener(lambda e: isinstance(e, Stepped) and e.step == 2 and session.stop())
    session.start()
    trace = session.wait(timeout=120)
    assert session.status == trace.reason == "stopped"
    assert trace.steps.tolist() == [1, 2]
    assert trace.eval_steps.tolist() == [0] and not trace.samples_after, "nobody waits for a look"


def test_an_interrupt_is_a_clean_stop(base, task, config):
    def interrupt(event):
        if isinstance(event, Stepped) and event.step == 2:
            raise KeyboardInterrupt

    session = TrainingSession(base, config, task, steps=1000, listeners=[interrupt], **SMALL)
    trace = session.run()
    assert trace.reason == "stopped" and trace.steps.tolist() == [1, 2]


def test_a_failure_is_told_and_raised_in_the_waiting_thread(base, task, config):
    def fail(event):
        if isinstance(event, Stepped):
            raise RuntimeError("no more space on screen")

    session = TrainingSession(base, config, task, steps=5, listeners=[fail], **SMALL)
    session.start()
    with pytest.raises(RuntimeError, match="no more space on screen"):
        session.wait(timeout=120)
    assert session.status == session.trace.reason == "failed"


@pytest.mark.parametrize("background", [True, False])
def test_a_listener_that_fails_at_the_end_is_heard_of(base, task, config, background):
    """And those after it hear the end all the same."""
    heard = []

    def fail(event):
        if isinstance(event, Finished):
            raise RuntimeError("no more space on screen")

    session = TrainingSession(base, config, task, steps=1, listeners=[fail, heard.append], **SMALL)
    with pytest.raises(RuntimeError, match="no more space on screen"):
        if background:
            session.start()
            session.wait(timeout=120)
        else:
            session.run()
    assert isinstance(heard[-1], Finished) and heard[-1].reason == "completed"
    TrainingSession(base, config, task, steps=1, **SMALL).run()  # nothing is held for ever


def test_a_task_without_training_examples_is_refused(base, task, config):
    with pytest.raises(DataError, match="no training examples"):
        TrainingSession(base, config, dataclasses.replace(task, train=()), **SMALL)


def test_waiting_has_a_limit(base, task, config):
    go_on = threading.Event()

    def hold(event):
        if isinstance(event, Stepped):  # in the training's own thread
            go_on.wait(60)

    session = TrainingSession(base, config, task, steps=1, listeners=[hold], **SMALL)
    session.start()
    with pytest.raises(TimeoutError, match="still training"):
        session.wait(timeout=0.05)
    go_on.set()
    session.wait(timeout=120)


def test_a_session_trains_once(finished):
    with pytest.raises(SessionError, match="trains once"):
        finished[0].run()


def test_the_global_random_state_is_left_alone(base, task, config):
    torch.manual_seed(5)
    random.seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    TrainingSession(base, config, task, **SMALL)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"steps": True}, "steps=True"),
        ({"seed": False}, "seed=False"),
        ({"batch_size": 2.5}, r"batch_size=2\.5"),
        ({"sample_count": -1}, "sample_count=-1"),
        ({"seed": 2**32 + 5}, r"seed=4294967301 must be below 2\*\*32; 5 would do"),
    ],
)
def test_wrong_numbers_are_refused_by_name(base, task, config, wrong, message):
    with pytest.raises(ConfigError, match=message):
        TrainingSession(base, config, task, **wrong)


def test_a_config_that_does_not_fit_changes_nothing(base, task, config):
    config.vector_length = 100
    modules = dict(base.model.named_modules())
    with pytest.raises(TargetError, match="vector_length=100"):
        TrainingSession(base, config, task)
    assert dict(base.model.named_modules()) == modules


def test_rates_of_zero_leave_the_adapter_where_it_started(base, task, config):
    rates = LearningRates(bank=0, logits=0)
    session = TrainingSession(base, config, task, steps=2, learning_rates=rates, **SMALL)
    start = trained(session)
    session.run()
    assert all(torch.equal(start[name], now) for name, now in trained(session).items())


@pytest.mark.slow
def test_tasks_and_bases_may_be_named(config):
    session = TrainingSession("mini-opt", config, "hotels", steps=1)
    assert session.task == load_task("hotels")
