"""The callback alone, in a Trainer that someone else set up."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from vblora_lab.bases import share_weights
from vblora_lab.inspection.reading import read_selection
from vblora_lab.train import (
    Evaluated,
    EventCallback,
    Finished,
    ProgressBar,
    Sampled,
    Selected,
    Started,
    Stepped,
    TraceRecorder,
    TrainingSession,
    write_samples,
)
from vblora_lab.train.prompts import Collator, encode_all
from vblora_lab.tuner.peft import get_peft_model


def users_trainer(base, task, config, folder, callback, **arguments):
    torch.manual_seed(0)
    model = get_peft_model(share_weights(base.model), config)
    rows = encode_all(base.tokenizer, task.train, 512)
    options = {
        "output_dir": str(folder), "max_steps": 4, "logging_steps": 1, "learning_rate": 1e-2,
        "per_device_train_batch_size": 2, "report_to": "none", "use_cpu": True,
        "include_num_input_tokens_seen": "non_padding", "disable_tqdm": True,
        "save_strategy": "no", **arguments,
    }  # fmt: skip
    return Trainer(
        model=model,
        args=TrainingArguments(**options),
        train_dataset=rows,
        eval_dataset=rows[:4],
        data_collator=Collator(base.tokenizer.pad_token_id),
        callbacks=[callback],
    )


def test_any_trainer_can_take_the_callback(base, task, config, tmp_path, capsys):
    events, recorder, bar = [], TraceRecorder(), ProgressBar()

    def emit(event):
        for listener in (events.append, recorder, bar):
            listener(event)

    callback = EventCallback(emit, select_every=2)
    trainer = users_trainer(
        base, task, config, tmp_path, callback, eval_strategy="steps", eval_steps=2
    )
    trainer.train()
    told = [type(e).__name__ for e in events]
    assert told == [
        "Started", "Working", "Stepped", "Selected", "Stepped", "Evaluated", "Stepped",
        "Selected", "Stepped", "Evaluated", "Finished",
    ]  # fmt: skip
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert [e.loss for e in events if isinstance(e, Stepped)] == logged
    evaluated = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    assert [e.eval_loss for e in events if isinstance(e, Evaluated)] == evaluated
    assert events[0].total_steps == 4 and events[-1].reason == "completed"
    assert recorder.trace.losses.shape == (4,) and recorder.trace.reason == "completed"
    now = read_selection(trainer.model)
    last = [e for e in events if isinstance(e, Selected)][-1].selection
    assert (last.indices == now.indices).all()
    assert "4/4" in capsys.readouterr().err


def test_speed_and_memory_are_measured(base, task, config, tmp_path):
    events = []
    trainer = users_trainer(base, task, config, tmp_path, EventCallback(events.append))
    trainer.train()
    last = [e for e in events if isinstance(e, Stepped)][-1]
    assert last.tokens_per_second * last.seconds == float(trainer.state.num_input_tokens_seen) or (
        abs(last.tokens_per_second * last.seconds - trainer.state.num_input_tokens_seen) < 1e-3
    )
    base_bytes = sum(p.nbytes for p in base.model.parameters())
    assert base_bytes < last.peak_memory_bytes < 64 * 2**30
    assert isinstance(events[0], Started) and isinstance(events[-1], Finished)


@pytest.mark.slow
def test_texts_are_written_while_training_and_change_nothing(base, task, config, tmp_path):
    options = {"steps": 5, "batch_size": 2, "eval_examples": 2, "sample_count": 1}
    plain = TrainingSession(base, config, task, **options).run()
    events = []
    session = TrainingSession(
        base, config, task, sample_every=2, eval_every=2, listeners=[events.append], **options
    )
    trace = session.run()
    assert [e.step for e in events if isinstance(e, Sampled)] == [0, 2, 4, 5]
    assert [e.step for e in events if isinstance(e, Evaluated)] == [0, 2, 4, 5]
    assert trace.losses.tolist() == plain.losses.tolist()
    last = [e for e in events if isinstance(e, Sampled)][-1]
    assert last.samples == write_samples(
        session.model, session.tokenizer, task.domain, task.validation[:1]
    )
