"""Comparisons: methods on the same batches, measured alike; runs kept by name and read again."""

import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import peft
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

import vblora_lab as lab
from vblora_lab.bases import share_weights
from vblora_lab.errors import ConfigError, DataError, SessionError
from vblora_lab.plots import loss_curves
from vblora_lab.train import (
    Comparison,
    LearningRates,
    Result,
    Runs,
    Started,
    Stepped,
    Trace,
    TrainingSession,
)
from vblora_lab.train.compare import MethodSession
from vblora_lab.train.methods import METHODS
from vblora_lab.train.prompts import Collator

pytestmark = pytest.mark.slow

SMALL = {"steps": 4, "batch_size": 2, "eval_examples": 4}
RATES = {name: LearningRates(bank=1e-2, logits=1e-1, other=1e-3) for name in METHODS}


@pytest.fixture(scope="module")
def compared(base, task, tmp_path_factory):
    """Three methods, their kept runs, and the ids of all training batches in order."""
    config = lab.VBLoRAConfig(
        r=2, num_vectors=16, vector_length=128, target_modules=["q_proj", "v_proj"],
        task_type="CAUSAL_LM",
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("kept") / "runs"
    batches = []
    call = Collator.__call__

    def spy(self, rows):
        batches.append([row["input_ids"] for row in rows])
        return call(self, rows)

    before = {name: p.clone() for name, p in base.model.named_parameters()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Collator, "__call__", spy)
        comparison = lab.compare(
            base, task, config=config, learning_rates=RATES, test_examples=3, runs=folder, **SMALL
        )
    for name, parameter in base.model.named_parameters():
        assert torch.equal(parameter, before[name])  # the base is as it was
    return comparison, Runs(folder), batches, config


def test_all_methods_see_the_same_batches(compared):
    comparison, _, batches, _ = compared
    assert list(comparison.results) == list(METHODS)
    third = len(batches) // 3
    assert len(batches) == 3 * third and third >= 4
    assert batches[:third] == batches[third : 2 * third] == batches[2 * third :]
    # LoRA's B is zero at first, so it starts from the base's own loss, as full fine-tuning does.
    losses = {name: trace.losses for name, trace in comparison.traces.items()}
    assert losses["LoRA"][0] == pytest.approx(losses["full fine-tuning"][0], rel=1e-5)
    assert losses["LoRA"][-1] != losses["full fine-tuning"][-1]


def test_vblora_is_trained_as_a_session_trains_it(compared, base, task):
    comparison, _, _, config = compared
    alone = TrainingSession(
        base, config, task, learning_rates=RATES["VB-LoRA"], sample_count=0, **SMALL
    ).run()
    assert np.array_equal(alone.losses, comparison.traces["VB-LoRA"].losses)
    assert len(comparison.traces["VB-LoRA"].selections) == 5
    assert comparison.traces["LoRA"].selections == ()


def test_sizes_are_those_of_the_models_and_their_files(compared, base):
    comparison, runs, _, _ = compared
    rank, layers, width, num_vectors = 2, 12, 256, 16
    expected = {
        "VB-LoRA": num_vectors * 128 + layers * rank * 2 * (width // 128) * num_vectors,
        "LoRA": layers * rank * (width + width),
        "full fine-tuning": sum(p.numel() for p in base.model.parameters()),
    }
    for name, result in comparison.results.items():
        assert result.trained_parameters == expected[name]
        (file,) = runs[name].adapter.glob("*.safetensors")
        with safe_open(file, framework="pt") as tensors:
            stored = sum(tensors.get_tensor(key).nbytes for key in tensors.keys())  # noqa: SIM118
        assert result.stored_bytes == stored


def test_every_number_is_measured(compared):
    comparison, _, _, _ = compared
    for name, result in comparison.results.items():
        trace = comparison.traces[name]
        assert result.loss == pytest.approx(trace.eval_losses[-1])
        assert result.loss < trace.eval_losses[0]
        assert 0 <= result.bleu <= 100 and result.slot_error_rate >= 0
        assert result.seconds_per_step == trace.seconds_per_step > 0


def test_the_table_has_a_row_for_each_method_in_text_and_html(compared):
    comparison, _, _, _ = compared
    text, page = str(comparison), comparison._repr_html_()
    for name, result in comparison.results.items():
        for cell in (name, f"{result.trained_parameters:,}", f"{result.bleu:.1f}"):
            assert cell in text and cell in page
    assert text.splitlines()[0] == "mini-opt · restaurants · 4 steps · 2 pairs per step · seed 0"
    assert page.count("<tr ") == 4


def test_kept_adapters_load_onto_the_base_and_give_the_trained_models(compared, base, task):
    _, runs, _, config = compared
    session = MethodSession("LoRA", base, config, task, learning_rates=RATES["LoRA"], **SMALL)
    session.run()
    ids = torch.arange(3, 20)[None]
    models = {
        "VB-LoRA": lab.from_pretrained(share_weights(base.model), runs["VB-LoRA"].adapter),
        "LoRA": peft.PeftModel.from_pretrained(share_weights(base.model), runs["LoRA"].adapter),
        "full": AutoModelForCausalLM.from_pretrained(runs["full fine-tuning"].adapter),
    }
    with torch.no_grad():
        outputs = {name: model.eval()(ids).logits for name, model in models.items()}
        assert torch.allclose(outputs["LoRA"], session.model(ids).logits, rtol=1e-4, atol=1e-4)
        plain = base.model(ids).logits
    assert all((output - plain).abs().max() > 1e-3 for output in outputs.values())


def test_runs_are_read_in_another_process_without_torch(compared):
    comparison, runs, _, _ = compared
    script = f"""
import sys
for name in ("torch", "transformers", "peft"):
    sys.modules[name] = None
from vblora_lab import Runs
runs = Runs({str(runs.folder)!r})
print(runs.compare())
print(runs["LoRA"].trace.losses.tolist(), runs["LoRA"].settings["method"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    assert sorted(table[2:]) == sorted(str(comparison).splitlines()[2:])
    assert table[0] == str(comparison).splitlines()[0]
    assert last == f"{comparison.traces['LoRA'].losses.tolist()} LoRA"


def test_curves_are_the_traces_and_differ_without_colour(compared):
    comparison, _, _, _ = compared
    (axes,) = loss_curves(comparison.traces).axes
    lines = {line.get_label(): line for line in axes.lines}
    for name, trace in comparison.traces.items():
        assert lines[name].get_xdata().tolist() == trace.steps.tolist()
        assert lines[name].get_ydata()[-1] == pytest.approx(trace.losses.mean(), rel=1e-5)
    assert len({lines[name].get_linestyle() for name in METHODS}) == 3
    assert all(f"{name}: from " in axes.figure.alt for name in METHODS)
    assert axes.get_xlabel() == "training step" and "nats per token" in axes.get_ylabel()


def test_what_can_t_be_compared_is_refused_before_training(base, task, config, tmp_path):
    (tmp_path / "LoRA").mkdir()
    Trace().save(tmp_path / "LoRA" / "run.trace")
    unknown = {"full": LearningRates()}
    for message, error, options in (
        ("'lora'.*did you mean 'LoRA'", ConfigError, {"methods": ["VB-LoRA", "lora"]}),
        ("'full', only.*'full fine-tuning'", ConfigError, {"learning_rates": unknown}),
        ("a run 'LoRA' in", SessionError, {"runs": tmp_path}),
    ):
        with pytest.raises(error, match=message):
            lab.compare(base, task, config=config, listeners=[pytest.fail], **options)


def test_any_config_of_peft_is_compared_by_its_name(base, task, config, tmp_path):
    where = {"target_modules": ["k_proj", "fc2"], "task_type": "CAUSAL_LM"}
    methods = {
        "a small bank": dataclasses.replace(config, num_vectors=8),
        "LoRA": peft.LoraConfig(r=1, **where),  # and not the one of METHODS
        "IA3": peft.IA3Config(feedforward_modules=["fc2"], **where),
    }
    before = {name: its.to_dict() for name, its in methods.items()}
    rates = {"IA3": LearningRates(other=1e-2)}
    comparison = lab.compare(
        base, task, methods, learning_rates=rates, test_examples=0, runs=tmp_path, **SMALL
    )
    assert {name: its.to_dict() for name, its in methods.items()} == before
    sizes = {name: result.trained_parameters for name, result in comparison.results.items()}
    layers, width, wide = 6, 256, 1024
    assert sizes == {
        "a small bank": 8 * 128 + layers * 2 * 2 * 2 * 2 * 8,
        "LoRA": layers * (2 * width + width + wide),
        "IA3": layers * (width + wide),  # scales what comes out of k_proj, and goes into fc2
    }
    assert [len(trace.selections) for trace in comparison.traces.values()] == [5, 0, 0]
    losses = [trace.eval_losses[0] for trace in comparison.traces.values()]
    assert losses[1] == pytest.approx(losses[2], rel=1e-5)  # both begin as the base
    run = Runs(tmp_path)["IA3"]
    assert run.settings["method"] == "IA3" and run.settings["config"]["peft_type"] == "IA3"
    assert run.settings["learning_rates"]["other"] == 1e-2
    loaded = peft.PeftModel.from_pretrained(share_weights(base.model), run.adapter)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert (loaded.eval()(ids).logits - base.model(ids).logits).abs().max() > 1e-3


def test_a_config_that_peft_can_t_use_is_refused_before_training(base, task, config, tmp_path):
    lora = peft.LoraConfig(target_modules=["nowhere"])
    for message, last in (("'last': PEFT can't use this LoraConfig.*nowhere", lora), ("'last'", 3)):
        with pytest.raises(ConfigError, match=message):
            lab.compare(
                base, task, {"first": config, "last": last}, runs=tmp_path, listeners=[pytest.fail]
            )
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=r"'lst', only .*did you mean 'last'"):
        rates = {"lst": LearningRates()}
        lab.compare(base, task, {"last": config}, learning_rates=rates)


def test_what_ends_a_comparison_leaves_all_that_was_on_screen(base, task, config, tmp_path):
    def interrupt(event):
        if isinstance(event, Started):
            started.append(event)
        if isinstance(event, Stepped) and event.step == 3 and len(started) == 2:
            # Had the process been killed now, this would be what the next one finds.
            found.update({name: runs[name] for name in runs})
            raise KeyboardInterrupt

    runs, started, found = Runs(tmp_path / "runs"), [], {}
    comparison = lab.compare(
        base, task, config=config, test_examples=0, runs=runs, listeners=[interrupt], **SMALL
    )
    assert list(comparison.results) == ["VB-LoRA"]
    assert math.isnan(comparison.results["VB-LoRA"].bleu) and "–" in str(comparison)

    assert list(found) == ["LoRA", "VB-LoRA"]
    assert found["LoRA"].trace.steps.tolist() == [1, 2, 3] and found["LoRA"].trace.reason == ""
    assert found["LoRA"].settings["method"] == "LoRA"
    assert math.isnan(found["LoRA"].result.loss), "that of step 0 would be another state's"
    assert str(found["VB-LoRA"].result) == str(comparison.results["VB-LoRA"])  # NaN is NaN
    assert (found["VB-LoRA"].adapter / "adapter_config.json").exists()
    assert runs["LoRA"].trace.reason == "stopped"
    assert not list((tmp_path / "runs").glob("*/checkpoint-*")), "three models would fill a disk"


def test_sessions_are_kept_by_name(base, task, config, tmp_path):
    runs = Runs(tmp_path / "mine")
    assert list(runs) == [] and "none yet" in repr(runs) and "none yet" in runs._repr_html_()
    session = TrainingSession(base, config, task, sample_count=1, **SMALL)
    with pytest.raises(SessionError, match="is ready"):
        runs.keep("first", session)
    trace = session.run()
    run = runs.keep("first", session)
    assert list(runs) == ["first"] and run.trace.losses.tolist() == trace.losses.tolist()
    assert run.settings == json.loads(json.dumps(session.settings, default=sorted))
    assert run.result.trained_parameters == trace.trained_parameters
    TrainingSession(base, config, task, out=runs.place("second"), **SMALL).run()
    assert runs.names() == ["first", "second"]
    assert runs["second"].trace.losses.tolist() == trace.losses.tolist()
    assert list(runs.compare().results) == ["first", "second"]
    for name in ("first", "../out", "", ".hidden"):
        with pytest.raises(SessionError, match=r"already|can't be called"):
            runs.keep(name, session)
    with pytest.raises(DataError, match=r"'frist'.*did you mean 'first'"):
        runs["frist"]


def test_names_in_a_table_are_text(tmp_path):
    comparison = Comparison({"<b>": Result(1, 2)}, {"<b>": Trace()})
    assert "<b>" not in comparison._repr_html_() and "&lt;b&gt;" in comparison._repr_html_()
    assert dataclasses.asdict(Result(1, 2))["stored_bytes"] == 2


def test_random_weights_are_named_in_the_caption():
    comparison = Comparison({}, {}, {"base": "opt-125m-random (random weights)"})
    assert "random weights" in str(comparison) and "random weights" in comparison._repr_html_()
