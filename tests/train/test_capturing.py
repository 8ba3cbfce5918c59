"""Captured steps train as eager ones do, or stay eager and say why."""

import copy
import logging

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM, TrainingArguments

import vblora_lab
from vblora_lab.errors import ConfigError
from vblora_lab.speed.captured import _Graph, check_room, why_not
from vblora_lab.train import CapturedStep, CapturingTrainer
from vblora_lab.train.prompts import Collator
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.peft import get_peft_model

CUDA = torch.cuda.is_available()
on_gpu = pytest.mark.skipif(not CUDA, reason="CUDA graphs need a CUDA GPU")


def adapted(dropout=0.0):
    torch.manual_seed(0)
    base = OPTForCausalLM(
        OPTConfig(
            vocab_size=64,
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
            word_embed_proj_dim=32,
            dropout=dropout,
        )
    )
    config = VBLoRAConfig(
        r=2, num_vectors=16, vector_length=8, target_modules=["q_proj", "v_proj", "fc1"]
    )
    return get_peft_model(base, config).train()


def batches(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    device = "cuda" if CUDA else "cpu"
    for length in lengths:
        tokens = torch.randint(4, 64, (3, length), generator=generator).to(device)
        yield {"input_ids": tokens, "labels": tokens}


def make_step(model, optimizer, extra=lambda loss: loss):
    def step(batch):
        loss = extra(model(**batch).loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def make_optimizer(model, **options):
    trained = [p for p in model.parameters() if p.requires_grad]
    if CUDA:
        options |= {"lr": torch.tensor(1e-2, device="cuda"), "capturable": True}
    return torch.optim.AdamW(trained, **{"lr": 1e-2, **options})


def eager_run(model, lengths):
    step = make_step(model, make_optimizer(model))
    torch.manual_seed(1)
    return [float(step(batch)) for batch in batches(lengths)]


@on_gpu
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_captured_steps_take_the_course_of_eager_ones(dropout):
    lengths = [8, 8, 12, 8, 12, 16, 8, 12]
    expected_model = adapted(dropout).cuda()
    expected = eager_run(expected_model, lengths)

    model = adapted(dropout).cuda()
    optimizer = make_optimizer(model)
    captured = CapturedStep(make_step(model, optimizer), model, optimizer)
    torch.manual_seed(1)
    losses = [float(captured(batch)) for batch in batches(lengths)]
    assert captured.reason is None
    assert len(captured._graphs) == 3  # the shapes
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    for (name, one), other in zip(
        model.named_parameters(), expected_model.parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=name)


@on_gpu
def test_a_changed_model_is_captured_anew():
    model = adapted().cuda()
    model.add_adapter("other", copy.deepcopy(model.peft_config["default"]))
    optimizer = make_optimizer(model)
    other = [p for name, p in model.named_parameters() if ".other" in name]
    optimizer.add_param_group({"params": other, "lr": torch.tensor(1e-2, device="cuda")})
    captured = CapturedStep(make_step(model, optimizer), model, optimizer)
    (batch,) = batches([8])
    captured(batch)
    before = [p.clone() for p in other]
    model.base_model.set_adapter("other")
    default = [p.clone() for n, p in model.named_parameters() if ".default" in n]
    with torch.no_grad():
        expected = model(**batch).loss
    torch.testing.assert_close(captured(batch), expected)
    assert captured.reason is None
    assert not all(torch.equal(a, b) for a, b in zip(before, other, strict=True))
    now = [p for n, p in model.named_parameters() if ".default" in n]
    assert all(torch.equal(a, b) for a, b in zip(default, now, strict=True))


@on_gpu
def test_a_step_that_asks_the_device_stays_eager_and_trains(caplog):
    lengths = [8, 8, 12]
    expected = eager_run(adapted(0.2).cuda(), lengths)
    model = adapted(0.2).cuda()
    optimizer = make_optimizer(model)

    def look(loss):
        assert loss.item() > 0
        return loss

    captured = CapturedStep(make_step(model, optimizer, look), model, optimizer)
    torch.manual_seed(1)
    with caplog.at_level(logging.WARNING):
        losses = [float(captured(batch)) for batch in batches(lengths)]
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    assert captured.reason.startswith("the step waits for a value from the device, at ")
    assert "test_capturing.py" in captured.reason
    assert "stay eager; capturing failed" in caplog.text
    assert not torch.cuda.is_current_stream_capturing()


@on_gpu
def test_gradients_of_several_batches_add_up_whatever_their_shapes():
    """Each graph writes gradients into memory that the replay of another may use."""
    lengths = [8, 12, 8, 16, 12, 12]
    expected, model = adapted().cuda(), adapted().cuda()

    def step(batch, model=model):
        loss = model(**batch).loss
        loss.backward()
        return loss.detach()

    captured = CapturedStep(step, model)
    for _ in range(2):  # captured, and then replayed
        for batch in batches(lengths):
            step(batch, expected)
            captured(batch)
        for (name, one), other in zip(model.named_parameters(), expected.parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None), name
            if one.grad is not None:
                torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)
        for each in (model, expected):
            each.zero_grad()
    assert captured.reason is None
    assert len(captured._graphs) == 3


@on_gpu
def test_checkpointed_steps_are_captured_if_they_keep_no_random_state():
    expected = eager_run(adapted().cuda(), [8, 12, 8])
    model = adapted().cuda()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    optimizer = make_optimizer(model)
    captured = CapturedStep(make_step(model, optimizer), model, optimizer)
    losses = [float(captured(batch)) for batch in batches([8, 12, 8])]
    assert captured.reason is None
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)


@on_gpu
def test_no_more_graphs_than_allowed(monkeypatch, caplog):
    monkeypatch.setattr("vblora_lab.speed.captured.MAX_GRAPHS", 2)
    lengths = [8, 12, 16, 20, 8]
    expected = eager_run(adapted().cuda(), lengths)
    model = adapted().cuda()
    optimizer = make_optimizer(model)
    captured = CapturedStep(make_step(model, optimizer), model, optimizer)
    losses = [float(captured(batch)) for batch in batches(lengths)]
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    assert len(captured._graphs) == 2
    assert caplog.text.count("further shapes") == 1


def trainer(model, tmp_path, **changes):
    rows = [
        {"input_ids": (ids := torch.randint(4, 64, (length,)).tolist()), "labels": ids}
        for length in [5, 7, 9, 11] * 8
    ]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        **{
            "max_steps": 6,
            "per_device_train_batch_size": 4,
            "train_sampling_strategy": "sequential",
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "label_names": ["labels"],
            "use_cpu": not CUDA,
            **changes,
        },
    )
    return arguments, {"train_dataset": rows, "data_collator": Collator(1, multiple=4)}


def captured_trainer(**parts):
    from transformers import Trainer

    class Own(Trainer):
        """As TRL makes its trainers: it passes on what it gets."""

        def training_step(self, *args, **kwargs):
            return super().training_step(*args, **kwargs)

    made = vblora_lab.capture(Own(**parts), pad_to=4)
    assert isinstance(made, Own)
    assert type(made).__name__ == "Own"
    assert vblora_lab.capture(made) is made
    return made


def test_capture_takes_a_trainer_and_pads_what_its_collator_pads(tmp_path):
    from transformers import DataCollatorForSeq2Seq, Trainer

    with pytest.raises(ConfigError, match=r"trainer: must be a transformers.Trainer .* not int"):
        vblora_lab.capture(3)
    for own, pad_to, expected in ((None, 64, 64), (8, 64, 8), (None, None, None)):
        arguments, data = trainer(model := adapted(), tmp_path)
        data["data_collator"] = DataCollatorForSeq2Seq(None, pad_to_multiple_of=own)
        made = Trainer(model=model, args=arguments, **data)
        with pytest.raises(ConfigError, match=r"pad_to=0: must be a positive number"):
            vblora_lab.capture(made, pad_to=0)
        assert type(made) is Trainer
        assert vblora_lab.capture(made, pad_to=pad_to).data_collator.pad_to_multiple_of == expected


def losses_of(trainer):
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_trainer_takes_the_course_of_the_plain_one(tmp_path, accumulate, caplog, monkeypatch):
    """On a CPU it is the plain one, and says so."""
    from transformers import Trainer

    replayed, replay = [], _Graph.replay
    monkeypatch.setattr(
        _Graph, "replay", lambda graph, batch: replayed.append(1) or replay(graph, batch)
    )
    runs = []
    for kind in (Trainer, CapturingTrainer, captured_trainer):
        model = adapted(0.2)
        arguments, data = trainer(model, tmp_path, gradient_accumulation_steps=accumulate)
        torch.manual_seed(3)
        with caplog.at_level(logging.INFO, "vblora_lab"):
            made = kind(model=model, args=arguments, **data)
            runs.append((losses_of(made), made))
    (expected, _), *others = runs
    for losses, capturing in others:
        torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-4)
        assert capturing._captured is None  # graphs would hold memory as long as the trainer lives
    told = [r.message for r in caplog.records if "stay eager" in r.message]
    if CUDA:
        assert not told
        assert replayed
    else:
        assert len(told) == 2
        assert all("isn't on one CUDA device" in line for line in told)


def test_what_cannot_be_captured():
    model = adapted()
    assert why_not(model) == "the model isn't on one CUDA device"
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert why_not(model) == "nothing is trained"


@on_gpu
def test_what_cannot_be_captured_on_a_gpu():
    model = adapted().cuda()
    assert why_not(model) is None
    plain = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    assert "capturable" in why_not(model, plain)
    model.gradient_checkpointing_enable()
    assert "preserve_rng_state" in why_not(model)
    model.gradient_checkpointing_enable({"preserve_rng_state": False, "use_reentrant": True})
    assert "checkpointing" in why_not(model)


@pytest.mark.parametrize(
    "free, fraction, enough",
    [(3.1e9, 1.0, True), (2.9e9, 1.0, False), (8e9, 0.5, True), (8e9, 0.4, False)],
)
def test_a_graph_is_not_begun_where_its_memory_is_not_free(monkeypatch, free, fraction, enough):
    """Steps took 5 GB at most, and 2 GB are in use between them; 10 GB is all there is."""
    says = {
        "empty_cache": lambda: None,
        "max_memory_allocated": lambda device: 5e9,
        "memory_allocated": lambda device: 2e9,
        "memory_reserved": lambda device: 2e9,
        "mem_get_info": lambda device: (free, 10e9),
        "get_per_process_memory_fraction": lambda device: fraction,
    }
    for name, answer in says.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    if enough:
        check_room(torch.device("cuda"))
    else:
        with pytest.raises(RuntimeError, match=r"needs about 3.0 GB, and [\d.]+ are free"):
            check_room(torch.device("cuda"))


def test_eager_steps_train(caplog):
    if CUDA:
        pytest.skip("on a GPU they are captured")
    model = adapted()
    optimizer = make_optimizer(model)
    with caplog.at_level(logging.INFO, "vblora_lab"):
        captured = CapturedStep(make_step(model, optimizer), model, optimizer)
    losses = [float(captured(batch)) for batch in batches([8, 8, 12])]
    assert losses == eager_run(adapted(), [8, 8, 12])
    assert "the model isn't on one CUDA device" in caplog.text
