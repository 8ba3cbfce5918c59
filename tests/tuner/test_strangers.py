"""Files from strangers: what a config stores is loaded, and nothing else ever gets into a model."""

import json

import peft
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification

import vblora_lab.tuner.peft as lab
from tests.cases import CASES, SMALL, assert_unchanged, scramble, state_of
from vblora_lab.errors import CheckpointError, VBLoRAError
from vblora_lab.tuner.config import VBLoRAConfig

OPT = CASES["opt"]
PREFIX = "base_model.model."


def stored(tmp_path, **changes):
    model = OPT.ours(**changes)
    scramble(model)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def change(folder, edit):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file({k: t.contiguous() for k, t in tensors.items()}, path, metadata={"format": "pt"})


def refused_by_every_way_in(folder, match):
    """Onto a base, beside another adapter, by PEFT's classes, and into an adapter that is there."""
    base = OPT.base()
    before = state_of(base)
    with pytest.raises(CheckpointError, match=match):
        lab.from_pretrained(base, folder)
    with lab.using(), pytest.raises(CheckpointError, match=match):
        PeftModel.from_pretrained(base, folder)
    assert_unchanged(base, before)
    config = peft.VBLoRAConfig.from_pretrained(folder)
    for name in ("default", "other"):
        model = OPT.ours(bias=config.bias, modules_to_save=config.modules_to_save)
        if name == "other" and config.bias != "none":
            continue  # refused already: one adapter of a model trains biases
        before = state_of(model)
        with lab.using(), pytest.raises(CheckpointError, match=match):
            model.load_adapter(folder, name)
        assert_unchanged(model, before)
        assert list(model.peft_config) == ["default"]


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.weight",
        "model.decoder.embed_tokens.weight",
        "model.decoder.final_layer_norm.weight",
        "model.decoder.layers.0.fc1.base_layer.weight",
        "model.decoder.layers.0.fc1.weight",
        "model.decoder.layers.0.fc1.bias",
        "model.decoder.layers.0.fc1.base_layer.bias",
        "model.decoder.layers.0.self_attn.k_proj.weight",
        "lm_head.original_module.weight",
    ],
)
def test_no_weight_of_the_base_is_written(tmp_path, name):
    folder = stored(tmp_path)
    shape = dict(OPT.base().state_dict()).get(name.replace("base_layer.", ""), torch.zeros(40, 16))
    change(folder, lambda tensors: tensors.update({PREFIX + name: torch.zeros(shape.shape)}))
    refused_by_every_way_in(folder, r"is not what its config stores|is a weight of the base model")


def test_peft_itself_writes_it(tmp_path):
    folder = stored(tmp_path)
    zeros = torch.zeros(40, 16)
    change(folder, lambda tensors: tensors.update({PREFIX + "lm_head.weight": zeros}))
    model = PeftModel.from_pretrained(OPT.base(), folder)
    assert not model.unload().lm_head.weight.any()


def test_embeddings_that_are_the_model_s_own_may_be_there(tmp_path):
    model = OPT.ours()
    scramble(model)
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    keys = load_file(tmp_path / "adapter_model.safetensors").keys()
    assert PREFIX + "lm_head.weight" in keys
    base = OPT.base()
    head = base.lm_head.weight.clone()
    loaded = lab.from_pretrained(base, tmp_path)
    assert torch.equal(OPT.output(loaded), OPT.output(model.eval()))
    assert torch.equal(loaded.unload().lm_head.weight, head)


def test_a_head_that_is_adapted_is_stored_too_and_not_written(tmp_path):
    folder = stored(tmp_path, target_modules=["lm_head", "q_proj"])
    key = PREFIX + "lm_head.base_layer.weight"
    lab.from_pretrained(OPT.base(), folder)
    change(folder, lambda tensors: tensors[key].zero_())
    with pytest.raises(CheckpointError, match="is a weight of the base model and differs"):
        lab.from_pretrained(OPT.base(), folder)


def test_biases_that_its_config_says_are_missed(tmp_path):
    folder = stored(tmp_path, bias="all")
    change(folder, lambda t: [t.pop(key) for key in list(t) if key.endswith("bias")])
    refused_by_every_way_in(folder, "bias is missing")


def test_a_module_that_its_config_saves_is_missed(tmp_path):
    folder = stored(tmp_path, modules_to_save=["lm_head"])
    change(folder, lambda tensors: tensors.pop(PREFIX + "lm_head.weight"))
    refused_by_every_way_in(folder, "lm_head.weight is missing")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"bias": "all"}, "model.decoder.final_layer_norm.bias"),
        ({"bias": "vblora_only"}, "model.decoder.layers.1.fc1.base_layer.bias"),
        ({"modules_to_save": ["lm_head"]}, "lm_head.weight"),
    ],
)
def test_what_is_trained_besides_is_finite(tmp_path, fields, name, number):
    folder = stored(tmp_path, **fields)
    change(folder, lambda tensors: tensors[PREFIX + name].view(-1)[:1].fill_(number))
    refused_by_every_way_in(folder, f"{name} is NaN or infinite")


LOGITS = PREFIX + "model.decoder.layers.0.fc1.vblora_logits_A"


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool, torch.float8_e4m3fn])
@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({}, LOGITS),
        ({}, "base_model.vblora_vector_bank"),
        ({"save_only_topk_weights": True}, LOGITS + "_topk_weights"),
        ({"bias": "all"}, PREFIX + "model.decoder.final_layer_norm.bias"),
        ({"modules_to_save": ["lm_head"]}, PREFIX + "lm_head.weight"),
    ],
)
def test_numbers_are_floats(tmp_path, fields, key, dtype):
    folder = stored(tmp_path, **fields)
    change(folder, lambda tensors: tensors.update({key: tensors[key].to(dtype)}))
    refused_by_every_way_in(folder, f"{dtype}.*floats")


def test_a_head_s_new_classes_load_as_before(tmp_path):
    """What a task's config saves, biases and all, in each way in which PEFT stores them."""
    config = {**SMALL, "target_modules": ["query"], "bias": "all", "task_type": "SEQ_CLS"}
    torch.manual_seed(0)
    bert = BertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        vocab_size=40,
    )
    base = BertForSequenceClassification(bert)
    model = lab.get_peft_model(base, VBLoRAConfig(**config))
    scramble(model)
    for name, parameter in model.named_parameters():
        if "classifier" in name or name.endswith("bias"):
            parameter.data.normal_()
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    loaded = lab.from_pretrained(BertForSequenceClassification(bert), tmp_path)
    tokens = torch.arange(8)[None]
    assert torch.equal(loaded(tokens).logits, model.eval()(tokens).logits)


def test_an_interrupted_load_leaves_the_numbers(tmp_path, monkeypatch):
    folder = stored(tmp_path, bias="all")
    model = OPT.ours(bias="all")
    before = state_of(model)
    done = []
    plain = torch.Tensor.copy_

    def copy_(self, *args, **kwargs):
        done.append(self)
        if len(done) == 5:
            raise KeyboardInterrupt
        return plain(self, *args, **kwargs)

    with lab.using(), pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "copy_", copy_)
        model.load_adapter(folder, "default")
    assert_unchanged(model, before)


def test_a_config_s_json_may_be_anything(tmp_path):
    """Values of every JSON type in every field: a sentence of ours, and nothing adapted."""
    folder = stored(tmp_path)
    path = folder / "adapter_config.json"
    plain = json.loads(path.read_text())
    values = [None, True, -1, 10**400, 1.5, "", "(", "a" * 20_000, [], [[]], {}, {"a": 1}, [None]]
    values += ["(" * 5_000, "a{99999999999999999999}", [1e308], "NaN"]
    for field in VBLoRAConfig.__dataclass_fields__:
        for value in values:
            path.write_text(json.dumps({**plain, field: value}))
            base = OPT.base()
            before = state_of(base)
            try:
                lab.from_pretrained(base, folder)
            except VBLoRAError:
                assert_unchanged(base, before)


def test_peft_still_leaves_a_random_adapter_after_a_load_that_failed(tmp_path):
    folder = stored(tmp_path)
    change(folder, lambda tensors: tensors.update({LOGITS: tensors[LOGITS][:1].clone()}))
    model = OPT.stock()
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_adapter(folder, "other")
    assert "other" in model.peft_config
