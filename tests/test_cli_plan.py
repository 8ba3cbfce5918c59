"""`vblora-lab plan`: what it prints, its exit status, and that it reads no weights."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

from vblora_lab import PRESETS, VBLoRAConfig, get_peft_model, load_base
from vblora_lab.app import options as config_options
from vblora_lab.bases import load_skeleton
from vblora_lab.cli import main
from vblora_lab.errors import BaseModelError
from vblora_lab.planning.plan import plan


def printed_json(capsys, *arguments):
    status = main(["plan", *arguments, "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_the_numbers_are_those_of_the_model_with_its_weights(capsys):
    status, planned = printed_json(
        capsys, "mini-opt", "--r", "8", "--num-vectors", "90", "--vector-length", "64", "--topk",
        "3", "--target-modules", "q_proj", "fc1", "--save-only-topk-weights", "--bias", "all",
    )  # fmt: skip
    config = VBLoRAConfig(
        r=8, num_vectors=90, vector_length=64, topk=3, target_modules=["q_proj", "fc1"],
        save_only_topk_weights=True, bias="all",
    )  # fmt: skip
    model = get_peft_model(load_base("mini-opt", device="cpu").model, config)
    assert status == 0 and planned["fits"] is True
    assert planned["trained_parameters"] == model.get_nb_trainable_parameters()[0]
    assert planned["stored_bytes"] == model.stored_bytes()
    assert [t["name"] for t in planned["targets"]] == model.base_model.targeted_module_names


def test_activations_are_counted_for_a_batch(capsys):
    _, planned = printed_json(capsys, "--batch-size", "2", "--length", "8")
    expected = plan(load_skeleton("mini-opt"), VBLoRAConfig(), batch_size=2, length=8)
    assert planned["memory"]["activations"] == expected.memory.activations > 0
    assert main(["plan", "--batch-size", "2"]) == 2
    assert "length isn't given" in capsys.readouterr().err


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_and_options_that_change_it(name, capsys):
    _, planned = printed_json(capsys, "--preset", name, "--r", "2")
    expected = plan(load_skeleton("mini-opt"), PRESETS[name].config(r=2))
    assert planned == json.loads(expected.to_json())
    assert planned["r"] == 2


def test_presets_are_listed(capsys):
    assert main(["plan", "--preset", "list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(PRESETS)


def test_a_config_that_does_not_fit_is_status_1_and_told_with_what_would(capsys):
    assert main(["plan", "mini-opt", "--target-modules", "o_proj", "--vector-length", "256"]) == 1
    out = capsys.readouterr().out
    assert "does NOT fit" in out and "Did you mean 'out_proj'?" in out
    assert "target_modules=['out_proj']" in out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--r", "0"], "r=0: must be at least 1"),
        (["--preset", "basik"], "Did you mean 'basic'?"),
        (["--bias", "some"], "bias='some'"),
        (["--topk", "9", "--num-vectors", "8"], "topk=9"),
        (["--target-modules", ".*(q"], "regular expression"),
        (["mini_opt"], "did you mean 'mini-opt'?"),
        (["--layers-to-transform", "1", "--preset", "all-linear"], "layers_to_transform"),
        (["no/such-model"], "not in the local cache"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments, part, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert part in error
    assert error.startswith("vblora-lab: ") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "field"),
    [
        (["all-linear"], "all-linear"),
        ([r".*\.(q|v)_proj"], r".*\.(q|v)_proj"),
        (["q_proj"], {"q_proj"}),
        (["q_proj", "fc1"], {"q_proj", "fc1"}),
    ],
)
def test_a_lone_expression_is_one_and_a_lone_name_is_a_list(given, field, capsys):
    _, planned = printed_json(capsys, "--target-modules", *given)
    expected = plan(load_skeleton("mini-opt"), VBLoRAConfig(target_modules=field))
    assert planned == json.loads(expected.to_json())


def test_there_is_an_option_for_every_field_of_the_config_but_one():
    fields = set(VBLoRAConfig.__annotations__)
    options = {*config_options.NUMBERS, *config_options.NAMES, *config_options.OTHER_FIELDS} - {
        "task_type"
    }
    assert fields - options == {"fan_in_fan_out"}  # read from the layers, so nothing to say
    assert options <= fields


def test_only_the_config_file_is_read(tmp_path, capsys):
    config = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    config.architectures = ["T5ForConditionalGeneration"]
    config.save_pretrained(tmp_path)
    skeleton = load_skeleton(tmp_path, dtype=torch.bfloat16)
    assert type(skeleton) is T5ForConditionalGeneration
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in skeleton.parameters())
    status, planned = printed_json(capsys, str(tmp_path), "--vector-length", "8")
    real = plan(T5ForConditionalGeneration(config), VBLoRAConfig(vector_length=8))
    assert status == 0 and planned == json.loads(real.to_json())


def test_a_task_brings_its_head_and_dtypes_their_bytes(tmp_path, capsys):
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    config = BertConfig(**sizes, num_attention_heads=2, max_position_embeddings=32)
    config.architectures = ["BertForMaskedLM"]
    config.save_pretrained(tmp_path)
    assert type(load_skeleton(tmp_path)) is BertForMaskedLM
    where = (str(tmp_path), "--vector-length", "8")
    _, planned = printed_json(capsys, *where, "--task-type", "SEQ_CLS", "--dtype", "float16")
    assert planned["model"] == "BertForSequenceClassification"
    assert planned["other_parameters"] == 16 * 2 + 2
    _, full = printed_json(capsys, *where, "--task-type", "SEQ_CLS")
    buffers = 32 * 8 * 2  # position and token type numbers, int64 whatever the dtype
    assert full["memory"]["weights"] - buffers == 2 * (planned["memory"]["weights"] - buffers)


def test_folders_and_models_that_cannot_be_planned(tmp_path):
    with pytest.raises(BaseModelError, match=r"has no config\.json"):
        load_skeleton(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BaseModelError, match=r"has no config\.json"):
        load_skeleton(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(BaseModelError, match=r"can't build .* for task_type='TOKEN_CLS'"):
        load_skeleton(tmp_path, task_type="TOKEN_CLS")


@pytest.mark.slow
def test_the_command_from_a_shell(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "vblora_lab.cli", "plan", "mini-opt", "--preset", "larger-bank"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("VB-LoRA plan for OPTForCausalLM: fits")
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert not list(tmp_path.iterdir())
