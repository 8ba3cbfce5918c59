"""Files: PEFT's, key for key and byte for byte; and one clear sentence for each broken one."""

import copy
import json
import pickle
import re
import shutil
import subprocess
import sys
import warnings

import peft
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from peft.tuners.vblora import VBLoRAModel as StockModel
from peft.utils import load_peft_weights
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForTokenClassification

import vblora_lab.tuner.peft as lab
from tests.cases import (
    CASES,
    SMALL,
    VOCABULARY,
    Case,
    _tokens,
    assert_close,
    assert_unchanged,
    scramble,
    state_of,
)
from vblora_lab.errors import CheckpointError, ConfigError, InferenceOnlyError, TargetError
from vblora_lab.inspection.reading import read_selection
from vblora_lab.tuner import formats
from vblora_lab.tuner.adapted import adapted_layers
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.model import VBLoRAModel

WEIGHTS = "adapter_model.safetensors"
both_formats = pytest.mark.parametrize("only_topk", [False, True], ids=["full", "topk"])


def saved(model, folder, with_ours):
    """Save through this package's classes or through PEFT's own."""
    if with_ours:
        with lab.using():
            model.save_pretrained(folder)
    else:
        model.save_pretrained(folder)
    return load_file(folder / WEIGHTS)


def assert_same_tensors(found, expected):
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype
        assert torch.equal(found[key], tensor), key


# --- both ways


@both_formats
def test_the_same_model_gives_the_same_file_as_in_peft(case, only_topk, tmp_path):
    changes = {"save_only_topk_weights": only_topk, "bias": "all"}
    ours, stock = case.ours(**changes), case.stock(**changes)
    scramble(stock)
    ours.load_state_dict(stock.state_dict())
    expected = saved(stock, tmp_path / "stock", with_ours=False)
    found = saved(ours, tmp_path / "ours", with_ours=True)
    assert_same_tensors(found, expected)
    assert any(key.endswith("_topk_indices") for key in found) == only_topk
    assert_same_tensors(saved(ours, tmp_path / "ours_by_peft", with_ours=False), expected)
    configs = [
        json.loads((tmp_path / f / "adapter_config.json").read_text()) for f in ("ours", "stock")
    ]
    for config in configs:
        if isinstance(config["target_modules"], list):
            config["target_modules"].sort()
    assert configs[0] == configs[1]


@both_formats
@pytest.mark.parametrize("written_by", ["ours", "stock"])
def test_files_load_both_ways(case, only_topk, written_by, tmp_path):
    writer = getattr(case, written_by)(save_only_topk_weights=only_topk)
    scramble(writer)
    output = case.output(writer)
    writer.save_pretrained(tmp_path)
    stock = PeftModel.from_pretrained(case.base(), tmp_path)
    ours = lab.from_pretrained(case.base(), tmp_path)
    assert isinstance(stock.base_model, StockModel)
    assert isinstance(ours.base_model, VBLoRAModel)
    assert_same_tensors(ours.state_dict(), stock.state_dict())
    assert_close(case.output(ours), case.output(stock))
    assert_close(case.output(ours), output, relative=1e-4 if only_topk else 1e-6)
    assert not any(p.requires_grad for p in ours.parameters())
    assert not ours.training


@pytest.mark.parametrize("num_vectors", [255, 256, 2**15 - 1, 2**15])
@pytest.mark.parametrize("written_by", ["ours", "stock"])
def test_every_size_of_index_loads_both_ways(num_vectors, written_by, tmp_path):
    case = CASES["linear"]
    writer = getattr(case, written_by)(num_vectors=num_vectors, save_only_topk_weights=True)
    scramble(writer)
    for name, parameter in writer.named_parameters():
        if "vblora_logits" in name:
            parameter.data[..., -1] = 9  # the largest index is chosen, here and there
            parameter.data[..., 0] = 8
    tensors = saved(writer, tmp_path, with_ours=written_by == "ours")
    indices = tensors["base_model.model.first.vblora_logits_A_topk_indices"]
    assert indices.dtype == formats.index_dtype(num_vectors)
    assert indices[..., 0].unique().tolist() == [num_vectors - 1]
    for load in (lab.from_pretrained, PeftModel.from_pretrained):
        loaded = load(case.base(), tmp_path)
        assert_close(case.output(loaded), case.output(writer), relative=1e-4)


@given(
    r=st.integers(1, 5),
    num_vectors=st.integers(4, 300),
    vector_length=st.sampled_from([1, 2, 4]),
    topk=st.integers(1, 4),
    targets=st.sampled_from([["first"], ["second"], ["first", "second"], "all-linear"]),
    only_topk=st.booleans(),
    ours_writes=st.booleans(),
)
@settings(max_examples=25, deadline=None)
@pytest.mark.filterwarnings("ignore:topk=1")
def test_any_adapter_loads_both_ways(
    tmp_path_factory, r, num_vectors, vector_length, topk, targets, only_topk, ours_writes
):
    case = CASES["linear"]
    changes = {
        "r": r,
        "num_vectors": num_vectors,
        "vector_length": vector_length,
        "topk": topk,
        "target_modules": targets,
        "save_only_topk_weights": only_topk,
    }
    writer = case.ours(**changes) if ours_writes else case.stock(**changes)
    scramble(writer)
    folder = tmp_path_factory.mktemp("adapter")
    saved(writer, folder, with_ours=ours_writes)
    for load in (lab.from_pretrained, PeftModel.from_pretrained):
        loaded = load(case.base(), folder)
        assert_close(case.output(loaded), case.output(writer), relative=1e-4)


@pytest.mark.slow
def test_a_second_process_gets_the_same_output(opt_case, tmp_path):
    """Save here, load there with PEFT alone and then with this package; compare the logits."""
    base = opt_case.base()
    base.save_pretrained(tmp_path / "base")
    tensors = {"tokens": opt_case.inputs()}
    for name, only_topk in (("full", False), ("topk", True)):
        model = opt_case.ours(save_only_topk_weights=only_topk)
        scramble(model)
        model.save_pretrained(tmp_path / name)
        tensors[name] = opt_case.output(model).detach()
    save_file(tensors, tmp_path / "tensors")
    script = """
import sys, torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import OPTForCausalLM
folder = sys.argv[1]
tensors = load_file(folder + "/tensors")

def check(load):
    for name, most in (("full", 1e-5), ("topk", 1e-4)):
        model = load(OPTForCausalLM.from_pretrained(folder + "/base"), folder + "/" + name)
        with torch.no_grad():
            difference = model(tensors["tokens"]).logits - tensors[name]
        error = (difference.norm() / tensors[name].norm()).item()
        assert error < most, (name, error)

check(PeftModel.from_pretrained)
assert "vblora_lab" not in sys.modules
from vblora_lab.tuner.peft import from_pretrained
check(from_pretrained)
print("checked")
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "checked", done.stderr


def test_other_trained_parts_come_along(opt_case, tmp_path):
    changes = {"bias": "all", "modules_to_save": ["lm_head"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this base ties lm_head to the embedding
        model = opt_case.ours(**changes)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = torch.randn_like(parameter)
        model.save_pretrained(tmp_path)
        for loaded in (
            lab.from_pretrained(opt_case.base(), tmp_path),
            PeftModel.from_pretrained(opt_case.base(), tmp_path),
        ):
            assert_close(opt_case.output(loaded), opt_case.output(model))


def token_classifier():
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    return BertForTokenClassification(config)


OTHER_PARTS = {
    "all biases, and a head that has one": (
        Case(token_classifier, {**SMALL, "task_type": "TOKEN_CLS"}, _tokens),
        {"target_modules": ["query"], "bias": "all"},
        "base_model.model.classifier.modules_to_save.bias",
    ),
    "an adapted output head": (
        CASES["llama"],
        {"target_modules": ["q_proj", "lm_head"]},
        "base_model.model.lm_head.base_layer.weight",
    ),
}


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("what", OTHER_PARTS)
@pytest.mark.parametrize("with_ours", [True, False])
def test_what_peft_stores_on_its_own_account_loads_too(what, with_ours, tmp_path):
    case, changes, key = OTHER_PARTS[what]
    model = case.ours(**changes)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter)
    assert key in saved(model.eval(), tmp_path, with_ours=with_ours)
    for load in (lab.from_pretrained, PeftModel.from_pretrained):
        assert_close(case.output(load(case.base(), tmp_path).eval()), case.output(model), 1e-5)


def test_several_adapters_save_and_load(opt_case, tmp_path):
    model = opt_case.ours()
    second = {**opt_case.config, "num_vectors": 6, "vector_length": 2, "topk": 2}
    model.add_adapter("other", VBLoRAConfig(**second, save_only_topk_weights=True))
    scramble(model)
    model.save_pretrained(tmp_path)
    loaded = lab.from_pretrained(opt_case.base(), tmp_path)
    same = lab.from_pretrained(loaded, tmp_path / "other", "renamed")
    assert same is loaded
    assert loaded.active_adapters == ["default"]
    for name, new_name in (("default", "default"), ("other", "renamed")):
        model.set_adapter(name)
        loaded.set_adapter(new_name)
        assert_close(opt_case.output(loaded), opt_case.output(model), relative=1e-4)
    # PEFT's own way to add an adapter, with PEFT's own entries in its tables, and with ours.
    loaded.load_adapter(tmp_path / "other", "by_peft")
    with lab.using():
        loaded.load_adapter(tmp_path / "other", "by_us")
    for name in ("by_peft", "by_us"):
        loaded.set_adapter(name)
        assert_close(opt_case.output(loaded), opt_case.output(model), relative=1e-4)
    # Whoever loads them, the layers notice logits of which only the top k were stored.
    layers = adapted_layers(loaded).values()
    complete = {"default": True, "renamed": False, "by_peft": False, "by_us": False}
    assert all(layer.logits_are_complete == complete for layer in layers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loading_without_first_drawing_random_numbers(opt_case, dtype, tmp_path):
    """low_cpu_mem_usage: the file's own float32 numbers, on a half-precision base too."""
    model = lab.get_peft_model(opt_case.base().to(dtype), VBLoRAConfig(**opt_case.config))
    scramble(model)
    model.save_pretrained(tmp_path)
    loaded = lab.from_pretrained(opt_case.base().to(dtype), tmp_path, low_cpu_mem_usage=True)
    for name, parameter in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], parameter), name
    assert torch.equal(opt_case.output(loaded), opt_case.output(model))
    assert not any(p.requires_grad for p in loaded.parameters())


def test_training_goes_on_from_all_logits(opt_case, tmp_path):
    model = opt_case.ours()
    scramble(model)
    model.save_pretrained(tmp_path)
    loaded = lab.from_pretrained(opt_case.base(), tmp_path, is_trainable=True)
    for each in (model.train(), loaded.train()):
        torch.manual_seed(3)  # the base has dropout
        opt_case.output(each).pow(2).mean().backward()
    gradients = {name: p.grad for name, p in loaded.named_parameters()}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert_close(gradients[name], parameter.grad)


class WritesAFile:
    """Pickled, it is a malicious file: reading it runs code."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickled_weights_are_refused_and_never_run(opt_case, tmp_path):
    model = opt_case.ours()
    scramble(model)
    model.save_pretrained(tmp_path / "honest", safe_serialization=False)
    base = opt_case.base()
    message = refused(lambda: lab.from_pretrained(base, tmp_path / "honest"), base)
    assert "is a pickle" in message
    # What the message says to do, done.
    exec(
        re.search(r"convert it once: (.*)\.$", message)[1],
        {"safetensors": safetensors, "torch": torch},
    )
    assert_close(
        opt_case.output(lab.from_pretrained(base, tmp_path / "honest")), opt_case.output(model)
    )

    shutil.copytree(tmp_path / "honest", tmp_path / "evil")
    (tmp_path / "evil" / WEIGHTS).unlink()
    torch.save({BANK: WritesAFile(tmp_path / "ran")}, tmp_path / "evil" / "adapter_model.bin")
    base = opt_case.base()
    assert "is a pickle" in refused(lambda: lab.from_pretrained(base, tmp_path / "evil"), base)
    # PEFT's own loader reads pickles, but as mere weights.
    with lab.using(), pytest.raises(pickle.UnpicklingError):
        PeftModel.from_pretrained(opt_case.base(), tmp_path / "evil")
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "evil" / "adapter_model.bin", weights_only=False)[BANK].close()
    assert (tmp_path / "ran").exists(), "the probe would see it"


@pytest.mark.filterwarnings("ignore:exclude_modules")
def test_a_peft_adapter_with_a_name_that_matches_nothing_loads(opt_case, tmp_path):
    """PEFT lets such a name pass; its files must load all the same."""
    stock = opt_case.stock(target_modules=["q_proj", "query"], exclude_modules=["key"])
    stock.save_pretrained(tmp_path)
    for is_trainable in (False, True):
        with pytest.warns(UserWarning, match="'query'"):
            loaded = lab.from_pretrained(opt_case.base(), tmp_path, is_trainable=is_trainable)
        assert_close(opt_case.output(loaded.eval()), opt_case.output(stock))


# --- the format


@pytest.mark.parametrize(
    ("num_vectors", "dtype"),
    [(255, torch.uint8), (256, torch.int16), (2**15 - 1, torch.int16), (2**15, torch.int32)],
)
def test_indices_take_the_smallest_type_that_peft_takes(num_vectors, dtype):
    assert formats.index_dtype(num_vectors) == dtype
    logits = torch.zeros(2, num_vectors)
    logits[:, -1] = 1  # the largest index
    indices, weights = formats.pack(logits, 2)
    assert indices.dtype == dtype
    assert indices[:, 0].long().tolist() == [num_vectors - 1] * 2
    assert weights.shape == (2, 1)


@given(
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    num_vectors=st.integers(4, 40),
    topk=st.integers(1, 4),
    peak=st.sampled_from([0.0, 0.1, 1.0, 20.0, 400.0]),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=60, deadline=None)
def test_packing_keeps_the_choice_at_any_precision(dtype, num_vectors, topk, peak, seed):
    """The mixture that a file gives is that of the logits, in float64, as far as float32 can."""
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(20, num_vectors, generator=generator) * peak).to(dtype)
    indices, weights = formats.pack(logits, topk)
    assert indices.dtype == formats.index_dtype(num_vectors)
    assert weights.dtype == torch.float32
    assert weights.shape == (20, topk - 1)
    rebuilt = formats.unpack(indices, weights, num_vectors)
    assert rebuilt.dtype == torch.float32
    assert (rebuilt.isfinite().sum(-1) == topk).all()
    assert rebuilt.isneginf().sum() == 20 * (num_vectors - topk)

    def shares(any_logits):
        values, chosen = any_logits.double().topk(topk)
        return torch.zeros(20, num_vectors).double().scatter(1, chosen, values.softmax(-1))

    if peak:  # equal logits leave the choice open
        torch.testing.assert_close(shares(rebuilt), shares(logits.float()), rtol=0, atol=2e-6)


def peaked_logits(topk):
    """Logits whose rounded first topk - 1 weights sum to more than 1, as training can give."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 10, generator=generator)
    peaks = logits.argsort(-1, descending=True)[:, : topk - 1]
    return logits.scatter_add(1, peaks, torch.full(peaks.shape, 25.0))


def peft_s_logits(indices, weights, num_vectors):
    """What PEFT makes of the stored choice of one layer, and NaN where it fails."""
    weights = torch.cat([weights, 1 - weights.sum(-1, keepdim=True)], -1)
    empty = torch.full((len(weights), num_vectors), -torch.inf)
    return empty.scatter(-1, indices.long(), torch.log(weights))


@pytest.mark.parametrize("topk", [3, 4])
def test_files_never_give_nan_in_peft_however_peaked_the_logits(topk):
    logits = peaked_logits(topk)
    rounded = logits.topk(topk).values.softmax(-1)[:, :-1]
    assert (rounded.sum(-1) > 1).any(), "no case in which PEFT's own files fail"
    indices, weights = formats.pack(logits, topk)
    assert not peft_s_logits(indices, weights, 10).isnan().any()
    shift = (weights - rounded).abs().max()
    assert 0 < shift < 1e-6
    # In any order of summation.
    assert (weights.flip(-1).cumsum(-1)[:, -1] <= 1).all()
    assert (weights.double().sum(-1) < 1).all()


def test_a_choice_outside_the_bank_is_refused():
    with pytest.raises(CheckpointError, match="num_vectors=5"):
        formats.unpack(torch.tensor([[1, 5]]), torch.tensor([[0.5]]), 5)


# --- sizes


@pytest.mark.parametrize("num_vectors", [10, 300])
@both_formats
def test_stored_bytes_are_those_of_the_file(case, num_vectors, only_topk, tmp_path):
    extras = {"bias": "vblora_only"} if case.make is CASES["opt"].make else {}
    model = case.ours(num_vectors=num_vectors, save_only_topk_weights=only_topk, **extras)
    model.add_adapter("other", VBLoRAConfig(**{**case.config, "num_vectors": 7}))
    model.save_pretrained(tmp_path, selected_adapters=["default"])
    tensors = load_file(tmp_path / WEIGHTS)
    assert model.stored_bytes() == sum(tensor.nbytes for tensor in tensors.values())
    assert model.stored_bytes(only_topk=only_topk) == model.stored_bytes()
    assert model.stored_bytes(only_topk=not only_topk) != model.stored_bytes()
    # The rest of the file is a header: eight bytes for its length, and JSON padded to eight.
    header = int.from_bytes((tmp_path / WEIGHTS).read_bytes()[:8], "little")
    assert (tmp_path / WEIGHTS).stat().st_size == 8 + header + model.stored_bytes()
    vblora, others = model.get_nb_savable_parameters()
    ours = {key: tensor for key, tensor in tensors.items() if "vblora_" in key}
    assert vblora == sum(tensor.nbytes for tensor in ours.values()) // 4
    assert others == sum(tensor.numel() for key, tensor in tensors.items() if key not in ours)


def test_sizes_count_as_in_peft(case, capsys):
    for changes in ({}, {"save_only_topk_weights": True}):
        ours, stock = case.ours(**changes), case.stock(**changes)
        assert ours.get_nb_savable_parameters() == stock.get_nb_savable_parameters()
        ours.print_savable_parameters()
        stock.print_savable_parameters()
        printed = capsys.readouterr().out.splitlines()
        assert printed[0] == printed[1]


def test_modules_to_save_are_counted(opt_case, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = opt_case.ours(modules_to_save=["lm_head"])
        model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / WEIGHTS)
    assert model.stored_bytes() == sum(tensor.nbytes for tensor in stored.values())


TWO_ADAPTERS = {
    "bank and logits": ({}, {}),
    "formats": ({"save_only_topk_weights": True}, {}),
    "own biases": ({"bias": "vblora_only"}, {}),
    "all biases": ({"bias": "all"}, {"modules_to_save": ["decoder.final_layer_norm"]}),
    "one head each": ({"modules_to_save": ["lm_head"]}, {"modules_to_save": ["lm_head"]}),
    "biases and head": ({"bias": "all", "modules_to_save": ["lm_head", "final_layer_norm"]}, {}),
}


def two_adapters(case, make, kind, variant):
    """A model with two adapters that differ in every size, made by either package."""
    first, second = TWO_ADAPTERS[variant]
    fields = {**case.config, "target_modules": ["q_proj"], "r": 3, "num_vectors": 300, "topk": 2}
    model = make(**first)
    model.add_adapter("other", kind(**{**fields, **second}))
    return model


@pytest.mark.parametrize("variant", TWO_ADAPTERS)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings", "ignore:Could not find a conf")
def test_each_of_two_adapters_is_counted_by_itself(opt_case, variant, tmp_path, capsys):
    model = two_adapters(opt_case, opt_case.ours, VBLoRAConfig, variant)
    model.save_pretrained(tmp_path)
    for adapter, folder in (("default", tmp_path), ("other", tmp_path / "other")):
        tensors = load_file(folder / WEIGHTS)
        ours = {key: tensor for key, tensor in tensors.items() if "vblora_" in key}
        vblora, others = model.get_nb_savable_parameters(adapter)
        assert vblora == sum(tensor.nbytes for tensor in ours.values()) // 4
        assert others == sum(t.numel() for key, t in tensors.items() if key not in ours)
        assert model.stored_bytes(adapter) == sum(tensor.nbytes for tensor in tensors.values())
        model.print_savable_parameters(adapter)
        assert f"{vblora:,d} || total params to-be-saved: {vblora + others:,d}" in (
            capsys.readouterr().out
        )

        # Trained are the parameters of the active adapter: as many as in a model with it alone.
        model.set_adapter(adapter)
        config = model.peft_config[adapter]
        alone = lab.get_peft_model(opt_case.base(), config)
        assert model.get_nb_trainable_parameters()[0] == alone.get_nb_trainable_parameters()[0]
        model.print_trainable_parameters()
        alone.print_trainable_parameters()
        both, one = capsys.readouterr().out.splitlines()
        assert both.split(" || ")[0] == one.split(" || ")[0]


@pytest.mark.parametrize("mode", ["vblora_only", "all"])
def test_peft_still_trains_the_biases_of_an_adapter_that_is_not_active(opt_case, mode):
    """They would change with the other adapter's training, which doesn't store them."""

    def trained_biases(model):
        return {n for n, p in model.named_parameters() if p.requires_grad and n.endswith(".bias")}

    at_first = trained_biases(opt_case.ours(bias=mode))
    for make, kind in ((opt_case.ours, VBLoRAConfig), (opt_case.stock, peft.VBLoRAConfig)):
        model = make(bias=mode)
        model.add_adapter("other", kind(**opt_case.config))
        assert trained_biases(model) == at_first
        model.set_adapter("other")
        assert trained_biases(model) == (set() if kind is VBLoRAConfig else at_first)
        model.set_adapter("default")
        assert trained_biases(model) == at_first
    model = opt_case.ours(bias=mode)
    model.set_adapter("default", inference_mode=True)
    assert trained_biases(model) == set()


@pytest.mark.filterwarnings("ignore:Adapter .* was active")
def test_biases_are_trained_by_the_adapter_that_is_left(opt_case):
    """PEFT trains on those of an adapter that is deleted; nobody would store them."""

    def trained(model):
        return {n for n, p in model.named_parameters() if p.requires_grad and n.endswith(".bias")}

    for make, kind in ((opt_case.ours, VBLoRAConfig), (opt_case.stock, peft.VBLoRAConfig)):
        model = make(bias="all")
        model.add_adapter("other", kind(**opt_case.config))
        model.delete_adapter("default")
        assert model.active_adapters == ["other"]
        assert bool(trained(model)) == (kind is peft.VBLoRAConfig)
    model = opt_case.ours()
    model.add_adapter("other", VBLoRAConfig(**opt_case.config, bias="all"))
    model.delete_adapter("default")
    assert model.active_adapters == ["other"]
    assert trained(model) == trained(opt_case.ours(bias="all"))


def test_peft_still_counts_the_adapters_of_a_model_together(opt_case):
    model = two_adapters(opt_case, opt_case.stock, peft.VBLoRAConfig, "bank and logits")
    one, other = opt_case.ours(), two_adapters(opt_case, opt_case.ours, VBLoRAConfig, "formats")
    counted = model.base_model.get_nb_savable_parameters("default")[0]
    first = one.get_nb_savable_parameters("default")[0]
    assert counted == first + other.get_nb_savable_parameters("other")[0]
    with pytest.raises(TypeError):
        model.base_model.print_savable_parameters("other")


def test_lora_bytes_are_those_of_a_lora_file(case, tmp_path):
    model = case.ours()
    config = peft.LoraConfig(
        r=2,
        target_modules=case.config["target_modules"],
        fan_in_fan_out=model.peft_config["default"].fan_in_fan_out,
    )
    peft.get_peft_model(case.base(), config).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    assert model.lora_stored_bytes() == sum(tensor.nbytes for tensor in tensors.values())


# --- what isn't an adapter


@pytest.fixture
def adapter(opt_case, tmp_path):
    model = opt_case.ours()
    scramble(model)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def refused(call, base, error=CheckpointError):
    before = state_of(base)
    with pytest.raises(error) as caught:
        call()
    assert_unchanged(base, before)
    assert not hasattr(base, "peft_config")
    return str(caught.value)


def edit(path, **changes):
    fields = json.loads(path.read_text())
    fields.update(changes)
    path.write_text(json.dumps(fields))


def retensor(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


BANK = "base_model.vblora_vector_bank"
LOGITS = "base_model.model.model.decoder.layers.0.fc1.vblora_logits_A"


def break_nothing_there(folder):
    for file in folder.iterdir():
        file.unlink()
    return "no adapter_config.json"


def break_only_inner_folders(folder):
    (folder / "other").mkdir()
    (folder / "adapter_config.json").rename(folder / "other" / "adapter_config.json")
    return "folders other"


def break_config(folder):
    (folder / "adapter_config.json").write_text("{")
    return "not JSON"


def break_config_type(folder):
    (folder / "adapter_config.json").write_text("[1]")
    return "no peft_type"


def break_config_value(folder):
    edit(folder / "adapter_config.json", topk=99)
    return "topk=99"


def break_method(folder):
    edit(folder / "adapter_config.json", peft_type="LORA")
    return "'LORA'.*peft.PeftModel.from_pretrained"


def break_weights_missing(folder):
    (folder / WEIGHTS).unlink()
    return "adapter_model.safetensors is missing"


def break_truncated(folder):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])
    return "damaged"


def break_garbage(folder):
    (folder / WEIGHTS).write_bytes(b"\xff" * 100)
    return "damaged"


def break_pickle(folder):
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(b"no pickle")
    return "adapter_model.bin is a pickle"


def break_bank_shape(folder):
    retensor(folder, lambda tensors: tensors.update({BANK: torch.zeros(9, 4)}))
    return r"vector_bank has shape \(9, 4\), this model needs \(10, 4\)"


def break_key_missing(folder):
    retensor(folder, lambda tensors: tensors.pop(LOGITS))
    return "fc1.vblora_logits_A is missing"


def break_key_too_many(folder):
    extra = {LOGITS.replace("layers.0", "layers.5"): torch.zeros(2, 4, 10)}
    retensor(folder, lambda tensors: tensors.update(extra))
    return r"layers\.5\.fc1.vblora_logits_A is not what its config stores"


def break_bits_and_pieces(folder):
    indices = {LOGITS + "_topk_indices": torch.zeros(2, 4, 3, dtype=torch.uint8)}
    retensor(folder, lambda tensors: (tensors.pop(LOGITS), tensors.update(indices)))
    return "holds only the top-k weights, but its config says save_only_topk_weights=False"


def break_format_in_config(folder):
    edit(folder / "adapter_config.json", save_only_topk_weights=True)
    return "holds all logits, but its config says save_only_topk_weights=True"


def break_bank_missing(folder):
    retensor(folder, lambda tensors: tensors.pop(BANK))
    return "vector_bank is missing"


def break_bank_nan(folder):
    retensor(folder, lambda tensors: tensors[BANK][0].fill_(torch.nan))
    return "vector_bank is NaN or infinite"


def break_logits_nan(folder):
    retensor(folder, lambda tensors: tensors[LOGITS][0].fill_(torch.nan))
    return "vblora_logits_A is NaN or infinite"


def break_logits_infinite(folder):
    retensor(folder, lambda tensors: tensors[LOGITS][0].fill_(torch.inf))
    return "vblora_logits_A is NaN or infinite"


def break_logits_all_minus_infinite(folder):
    retensor(folder, lambda tensors: tensors[LOGITS][0, 0].fill_(-torch.inf))
    return "all logits of a sub-vector are -inf"


def break_logits_integers(folder):
    retensor(folder, lambda tensors: tensors.update({LOGITS: tensors[LOGITS].to(torch.int8)}))
    return "is torch.int8; must be floats"


def break_foreign_key(folder):
    extra = {"base_model.model.model.decoder.layers.0.fc9.weight": torch.zeros(2)}
    retensor(folder, lambda tensors: tensors.update(extra))
    return "fc9.weight is not what its config stores"


def break_foreign_shape(folder):
    edit(folder / "adapter_config.json", bias="vblora_only")
    extra = {"base_model.model.model.decoder.layers.0.fc1.base_layer.bias": torch.zeros(2)}
    retensor(folder, lambda tensors: tensors.update(extra))
    return r"fc1.base_layer.bias has shape \(2,\), this model needs \(32,\)"


BREAKS = [value for name, value in list(globals().items()) if name.startswith("break_")]


@pytest.mark.parametrize("break_it", BREAKS, ids=lambda b: b.__name__.removeprefix("break_"))
def test_what_is_no_adapter_is_told_and_nothing_changes(opt_case, adapter, break_it):
    expected = break_it(adapter)
    base = opt_case.base()
    message = refused(lambda: lab.from_pretrained(base, adapter), base)
    assert re.search(expected, message), message
    # The same on a model that has an adapter already, which keeps working.
    model = opt_case.ours()
    before = state_of(model)
    with pytest.raises(CheckpointError):
        lab.from_pretrained(model, adapter, "other")
    assert_unchanged(model, before)
    assert list(model.peft_config) == ["default"]
    opt_case.output(model)


# --- a choice that can't be one, by either way in

INDICES_KEY, WEIGHTS_KEY = LOGITS + "_topk_indices", LOGITS + "_topk_weights"


@pytest.fixture
def compact(opt_case, tmp_path):
    model = opt_case.ours(save_only_topk_weights=True)
    scramble(model)
    model.save_pretrained(tmp_path / "compact")
    return tmp_path / "compact"


def first(key, values, dtype=None):
    """Put these numbers into the first sub-vector."""

    def change(tensors):
        tensor = tensors[key].to(dtype or tensors[key].dtype)
        tensor[0, 0] = torch.tensor(values).to(tensor.dtype)
        tensors[key] = tensor

    return change


WRONG_CHOICES = {
    "weight_nan": (first(WEIGHTS_KEY, [torch.nan, 0.5]), "weights are NaN or infinite"),
    "weight_infinite": (first(WEIGHTS_KEY, [torch.inf, 0.5]), "weights are NaN or infinite"),
    "weight_negative": (first(WEIGHTS_KEY, [0.5, -0.1]), "the smallest is -0.1"),
    "weights_too_large": (first(WEIGHTS_KEY, [0.7, 0.4]), "the largest sum 1.1"),
    "weights_integers": (
        lambda tensors: tensors.update({WEIGHTS_KEY: tensors[WEIGHTS_KEY].int()}),
        "is torch.int32; must be floats",
    ),
    "index_too_large": (first(INDICES_KEY, [0, 10, 1]), "run from 0 to 10, .* num_vectors=10"),
    "index_negative": (first(INDICES_KEY, [0, -1, 1], torch.int16), "run from -1 to 9"),
    "index_twice": (first(INDICES_KEY, [4, 1, 4]), "the same index twice"),
    "indices_floats": (
        lambda tensors: tensors.update({INDICES_KEY: tensors[INDICES_KEY].float()}),
        "must be integers and floats",
    ),
    "weights_missing": (lambda tensors: tensors.pop(WEIGHTS_KEY), "topk_weights is missing"),
    "indices_missing": (lambda tensors: tensors.pop(INDICES_KEY), "topk_indices is missing"),
    "bank_missing": (lambda tensors: tensors.pop(BANK), "vector_bank is missing"),
    "shape": (
        lambda tensors: tensors.update({INDICES_KEY: tensors[INDICES_KEY][..., :2].contiguous()}),
        r"has shape \(2, 4, 2\), this model needs \(2, 4, 3\)",
    ),
}


@pytest.mark.parametrize("name", WRONG_CHOICES)
def test_a_choice_that_can_t_be_one_is_told_by_either_way_in(opt_case, compact, name):
    change, expected = WRONG_CHOICES[name]
    retensor(compact, change)
    base = opt_case.base()
    message = refused(lambda: lab.from_pretrained(base, compact), base)
    assert re.search(expected, message), message
    with lab.using():
        with pytest.raises(CheckpointError, match=expected):
            PeftModel.from_pretrained(opt_case.base(), compact)
        # Into an adapter that is there: not one number of it is changed.
        model = opt_case.ours(save_only_topk_weights=True)
        before = state_of(model)
        with pytest.raises(CheckpointError, match=expected):
            model.load_adapter(compact, "default")
        assert_unchanged(model, before)


def test_the_top_k_where_all_logits_are_expected(opt_case, compact):
    """And the other way round, which is how a checkpoint is resumed."""
    with lab.using():
        model = opt_case.ours()
        before = state_of(model)
        with pytest.raises(CheckpointError, match="holds only the top-k weights"):
            model.load_adapter(compact, "default")
        assert_unchanged(model, before)
        edit(compact / "adapter_config.json", save_only_topk_weights=False)
        with pytest.raises(CheckpointError, match="holds only the top-k weights"):
            PeftModel.from_pretrained(opt_case.base(), compact)
        scramble(model)
        model.save_pretrained(compact)
        other = opt_case.ours(save_only_topk_weights=True)
        other.load_adapter(compact, "default")
    assert torch.equal(opt_case.output(other), opt_case.output(model))


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_peft_still_takes_such_files_in_silence(opt_case, compact):
    """NaN, indices twice and a missing bank give a model that is NaN or random."""
    whole = opt_case.output(PeftModel.from_pretrained(opt_case.base(), compact))
    for name in ("index_twice", "bank_missing", "weights_too_large"):
        good = load_file(compact / WEIGHTS)
        retensor(compact, WRONG_CHOICES[name][0])
        broken = opt_case.output(PeftModel.from_pretrained(opt_case.base(), compact))
        assert not torch.allclose(broken, whole, equal_nan=False), name
        save_file(good, compact / WEIGHTS)
    edit(compact / "adapter_config.json", save_only_topk_weights=False)
    random = opt_case.output(PeftModel.from_pretrained(opt_case.base(), compact))
    assert not torch.allclose(random, whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_adapter_reloads_from_its_top_k(opt_case, dtype, tmp_path):
    """Stored weights are float32, which is what PEFT needs too, as the last lines show."""
    base = opt_case.base().to(dtype)
    config = VBLoRAConfig(**opt_case.config, save_only_topk_weights=True)
    model = lab.get_peft_model(base, config, autocast_adapter_dtype=False)
    scramble(model)
    assert model.vblora_vector_bank["default"].dtype == dtype
    expected = opt_case.output(model)
    tensors = saved(model, tmp_path / "ours", with_ours=True)
    assert tensors[WEIGHTS_KEY].dtype == torch.float32
    assert tensors[BANK].dtype == dtype
    assert model.stored_bytes() == sum(tensor.nbytes for tensor in tensors.values())
    same = {"autocast_adapter_dtype": False}
    ours = lab.from_pretrained(opt_case.base().to(dtype), tmp_path / "ours", **same)
    wide = lab.from_pretrained(opt_case.base().to(dtype), tmp_path / "ours")
    stock = PeftModel.from_pretrained(opt_case.base().to(dtype), tmp_path / "ours", **same)
    assert ours.vblora_vector_bank["default"].dtype == dtype
    assert wide.vblora_vector_bank["default"].dtype == torch.float32
    for loaded in (ours, wide, stock):
        assert_close(opt_case.output(loaded).float(), expected.float(), relative=0.05)

    # PEFT's own file can't be read by PEFT, but it can here.
    own = saved(model, tmp_path / "stock", with_ours=False)
    assert own[WEIGHTS_KEY].dtype == dtype
    ours = lab.from_pretrained(opt_case.base().to(dtype), tmp_path / "stock", **same)
    assert_close(opt_case.output(ours).float(), expected.float(), relative=0.05)


def test_peft_still_can_t_reload_its_own_half_precision_file(opt_case, tmp_path):
    base = opt_case.base().bfloat16()
    config = peft.VBLoRAConfig(**opt_case.config, save_only_topk_weights=True)
    peft.get_peft_model(base, config, autocast_adapter_dtype=False).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"scatter\(\)"):
        PeftModel.from_pretrained(opt_case.base().bfloat16(), tmp_path)


def test_peft_still_makes_nan_of_peaked_logits(opt_case, tmp_path):
    """The same logits stored by PEFT and here: its own file breaks it, this one doesn't."""
    changes = {"save_only_topk_weights": True, "r": 8, "vector_length": 2}
    ours, stock = opt_case.ours(**changes), opt_case.stock(**changes)
    for name, parameter in stock.named_parameters():
        if "vblora_logits" in name:
            rows = parameter.data.view(-1, 10)
            rows.copy_(peaked_logits(3)[: len(rows)])
    ours.load_state_dict(stock.state_dict())
    expected = opt_case.output(stock)
    saved(stock, tmp_path / "stock", with_ours=False)
    saved(ours, tmp_path / "ours", with_ours=True)
    broken = PeftModel.from_pretrained(opt_case.base(), tmp_path / "stock")
    assert opt_case.output(broken).isnan().any()
    for load in (PeftModel.from_pretrained, lab.from_pretrained):
        assert_close(
            opt_case.output(load(opt_case.base(), tmp_path / "ours")), expected, relative=1e-3
        )
    repaired = lab.from_pretrained(opt_case.base(), tmp_path / "stock")
    assert_close(opt_case.output(repaired), expected, relative=1e-3)


def test_a_lora_adapter_is_told(opt_case, tmp_path):
    peft.get_peft_model(opt_case.base(), peft.LoraConfig()).save_pretrained(tmp_path)
    base = opt_case.base()
    assert "'LORA'" in refused(lambda: lab.from_pretrained(base, tmp_path), base)


def test_paths_that_lead_nowhere(opt_case, adapter, monkeypatch):
    base = opt_case.base()
    assert "no folder" in refused(lambda: lab.from_pretrained(base, adapter / "x"), base)
    file = adapter / WEIGHTS
    assert "is a file" in refused(lambda: lab.from_pretrained(base, file), base)

    def unreachable(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("vblora_lab.tuner.loading.snapshot_download", unreachable)
    message = refused(lambda: lab.from_pretrained(base, "someone/adapter"), base)
    assert "no folder someone/adapter" in message
    assert "Hub" in message


def test_a_hub_id_is_downloaded(opt_case, adapter, monkeypatch):
    asked = {}

    def downloaded(repository, **kwargs):
        asked.update(kwargs, repository=repository)
        return str(adapter.parent)

    monkeypatch.setattr("vblora_lab.tuner.loading.snapshot_download", downloaded)
    loaded = lab.from_pretrained(
        opt_case.base(), "someone/adapter", subfolder="adapter", revision="v1"
    )
    assert asked["repository"] == "someone/adapter"
    assert asked["revision"] == "v1"
    assert "adapter/adapter_config.json" in asked["allow_patterns"]
    expected = lab.from_pretrained(opt_case.base(), adapter)
    assert torch.equal(opt_case.output(loaded), opt_case.output(expected))


@pytest.mark.filterwarnings("ignore:target_modules")
def test_an_adapter_for_another_base_is_told(opt_case, adapter):
    base = CASES["llama"].base()
    message = refused(lambda: lab.from_pretrained(base, adapter), base, CheckpointError)
    assert "doesn't fit this model" in message
    base = CASES["linear"].base()
    assert "q_proj" in refused(lambda: lab.from_pretrained(base, adapter), base, TargetError)


PEFT_S_WORDS = (
    "Found infinity values in VB-LoRA logits. Ensure training was not resumed from a "
    "`save_only_topk_weights` model."
)


def test_training_from_the_top_k_is_refused_before_loading(opt_case, tmp_path):
    opt_case.ours(save_only_topk_weights=True).save_pretrained(tmp_path)
    base = opt_case.base()
    message = refused(lambda: lab.from_pretrained(base, tmp_path, is_trainable=True), base)
    assert "top 3" in message


def test_what_was_loaded_from_the_top_k_can_do_all_but_train(opt_case, compact):
    full = opt_case.ours()
    scramble(full)
    expected = opt_case.output(full)
    with lab.using():
        model = PeftModel.from_pretrained(opt_case.base(), compact, is_trainable=True)
    with pytest.raises(RuntimeError, match=re.escape(PEFT_S_WORDS)) as caught:
        opt_case.output(model.train())
    assert isinstance(caught.value, InferenceOnlyError)
    assert "'default'" in str(caught.value)
    for each in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(InferenceOnlyError):
            opt_case.output(each.train())
        assert_close(opt_case.output(each.eval()), expected, relative=1e-4)
    # In training mode too, as soon as nothing is trained; dropout of the base is off.
    for module in model.train().modules():
        if isinstance(module, torch.nn.Dropout) or type(module).__name__.startswith("OPT"):
            module.eval()
    assert model.training
    with torch.no_grad():
        assert_close(opt_case.output(model), expected, relative=1e-4)
    model.requires_grad_(False)
    assert_close(opt_case.output(model), expected, relative=1e-4)
    model.set_adapter("default")
    merged = model.train().merge_and_unload(safe_merge=True).eval()
    assert_close(opt_case.output(merged), expected, relative=1e-4)


def test_peft_still_refuses_even_evaluation_in_training_mode(opt_case, compact):
    stock = PeftModel.from_pretrained(opt_case.base(), compact).train()
    assert not any(parameter.requires_grad for parameter in stock.parameters())
    with torch.no_grad(), pytest.raises(RuntimeError, match=re.escape(PEFT_S_WORDS)):
        opt_case.output(stock)


def test_all_logits_loaded_over_the_top_k_can_be_trained(opt_case, compact, adapter):
    with lab.using():
        model = PeftModel.from_pretrained(opt_case.base(), compact, is_trainable=True)
        model.load_adapter(adapter, "default", is_trainable=True)
    opt_case.output(model.train()).sum().backward()


def test_a_failure_while_loading_is_taken_back(opt_case, adapter, monkeypatch):
    """Should the file change between the check and the load, say."""

    def fails(*args, **kwargs):
        raise OSError("disk gone")

    monkeypatch.setattr("peft.peft_model.load_peft_weights", fails)
    base = opt_case.base()
    assert "disk gone" in refused(lambda: lab.from_pretrained(base, adapter), base, OSError)
    assert not base._forward_pre_hooks
    assert not base._forward_hooks
    model = opt_case.ours(target_modules=["k_proj", "fc1"])
    before = state_of(model)
    with pytest.raises(OSError, match="disk gone"):
        lab.from_pretrained(model, adapter, "other")
    assert_unchanged(model, before)
    assert list(model.peft_config) == list(model.vblora_vector_bank) == ["default"]
    assert list(model.base_model.pool.layers) == ["default"]
    assert len(model.get_base_model()._forward_hooks) == 1


def test_a_name_that_is_taken(opt_case, adapter):
    model = opt_case.ours()
    with pytest.raises(ConfigError, match="'default': is taken"):
        lab.from_pretrained(model, adapter)
    with pytest.raises(TargetError, match="made by vblora_lab"):
        lab.from_pretrained(opt_case.stock(), adapter, "other")


def test_weights_that_peft_reads_are_checked_too(opt_case, adapter):
    """Through PEFT's own load path, with this package's classes registered."""
    retensor(adapter, lambda tensors: tensors.pop(LOGITS))
    with lab.using(), pytest.raises(CheckpointError, match="is missing"):
        PeftModel.from_pretrained(opt_case.base(), adapter)
    weights = load_peft_weights(adapter, device="cpu")
    model = opt_case.ours()
    before = read_selection(model).indices.tolist()
    with lab.using(), pytest.raises(CheckpointError, match="'default'"):
        peft.set_peft_model_state_dict(model, weights)
    assert read_selection(model).indices.tolist() == before


def test_of_many_faults_four_are_told_and_the_rest_is_counted(opt_case, adapter):
    logits_A = r".*\.vblora_logits_A"
    retensor(adapter, lambda t: [t.pop(key) for key in sorted(t) if re.match(logits_A, key)])
    missing = 8  # logits of A: four modules in two layers
    with pytest.raises(CheckpointError, match=rf"; and {missing - 4} more\. Was it made"):
        lab.from_pretrained(opt_case.base(), adapter)


def test_a_sum_of_weights_may_be_1_and_a_rounding_above():
    indices = torch.tensor([[0, 1, 2]])
    rounding = 3 * torch.finfo(torch.float32).eps
    formats.check_choice(indices, torch.tensor([[0.5, 0.5 + rounding / 2]]), 4, "it")
    with pytest.raises(CheckpointError, match="sum to 1 at most"):
        formats.check_choice(indices, torch.tensor([[0.5, 0.5 + 4 * rounding]]), 4, "it")
