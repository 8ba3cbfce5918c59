"""What a stored adapter calls its base: nothing of this machine's folders."""

import json

import peft
import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

import vblora_lab as lab
from vblora_lab.bases import load_base
from vblora_lab.tuner.base_names import public_name

CONFIG = lab.VBLoRAConfig(target_modules=["q_proj"], num_vectors=16, vector_length=64)


def told(folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    card = ModelCard.load(folder / "README.md")
    return (
        config["base_model_name_or_path"],
        card.data.base_model,
        (folder / "README.md").read_text(),
    )


@pytest.mark.parametrize("adapter", ["default", "other"])
def test_mini_opt_is_called_by_the_name_that_loads_it(tmp_path, adapter):
    base = load_base(device="cpu")
    model = lab.get_peft_model(base.model, CONFIG, adapter)
    path = str(base.model.name_or_path)
    model.save_pretrained(tmp_path)
    inner = tmp_path if adapter == "default" else tmp_path / adapter
    config = json.loads((inner / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "mini-opt"
    card = (tmp_path / "README.md").read_text()
    assert ModelCard.load(tmp_path / "README.md").data.base_model == "mini-opt"
    assert path not in card and path not in (inner / "adapter_config.json").read_text()
    assert model.peft_config[adapter].base_model_name_or_path == path  # in memory, as in PEFT
    again = load_base(config["base_model_name_or_path"], device="cpu")
    lab.from_pretrained(again.model, inner)


def test_a_folder_is_called_as_its_config_says(tmp_path):
    model = load_base(device="cpu").model
    model.save_pretrained(tmp_path / "base")
    path = tmp_path / "base" / "config.json"
    fields = json.loads(path.read_text())
    for called, expected in (
        ("somebody/a-model", "somebody/a-model"),
        (str(tmp_path), str(tmp_path / "base")),
        ("../up", str(tmp_path / "base")),
        (None, str(tmp_path / "base")),
    ):
        path.write_text(json.dumps({**fields, "_name_or_path": called}))
        assert public_name(str(tmp_path / "base")) == expected
    path.write_text(json.dumps({**fields, "_name_or_path": "somebody/a-model"}))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    lab.get_peft_model(base, CONFIG).save_pretrained(tmp_path / "adapter")
    name, of_card, text = told(tmp_path / "adapter")
    assert name == of_card == "somebody/a-model" and str(tmp_path) not in text


def test_other_names_stay():
    for name in ("facebook/opt-125m", "opt-125m-random", ""):
        assert public_name(name) == name


def test_peft_still_writes_the_folder(tmp_path):
    model = load_base(device="cpu").model
    config = peft.VBLoRAConfig(target_modules=["q_proj"], num_vectors=16, vector_length=64)
    peft.get_peft_model(model, config).save_pretrained(tmp_path)
    name, of_card, _ = told(tmp_path)
    assert name == of_card == str(model.name_or_path)
