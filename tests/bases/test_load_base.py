"""Base models: the shipped one, a local cache laid out as the hub's, and what can't be had."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from transformers import OPTConfig, OPTForCausalLM

import vblora_lab.bases as bases
from vblora_lab.bases import load_base, share_weights
from vblora_lab.errors import BaseModelError

ASSETS = Path(bases.__file__).parents[1] / "assets" / "mini-opt"


@pytest.fixture(scope="module")
def mini():
    return load_base("mini-opt", device="cpu")


def test_mini_opt_is_a_real_opt_within_its_budget(mini):
    model, tokenizer = mini
    assert type(model) is OPTForCausalLM and model.dtype == torch.float32
    assert model.config.hidden_size == 256 and len(tokenizer) == model.config.vocab_size == 2048
    assert not model.training
    assert sum(file.stat().st_size for file in ASSETS.iterdir()) <= 12e6
    assert (ASSETS / "pretraining.csv").read_text().startswith("step,loss,held_out_loss,seconds\n")


def test_mini_opt_writes_prose_of_its_domains(mini):
    start = mini.tokenizer("The Golden Anchor is", return_tensors="pt")
    with torch.no_grad():
        output = mini.model.generate(**start, max_new_tokens=40, do_sample=False)
    text = mini.tokenizer.decode(output[0], skip_special_tokens=True)
    assert text.startswith("The Golden Anchor is a") and ". " in text and "[" not in text


def test_any_text_survives_the_tokenizer(mini):
    text = "name[Café £20-25 東京] -> “x”"
    ids = mini.tokenizer(text)["input_ids"]
    assert ids[0] == mini.tokenizer.bos_token_id
    assert mini.tokenizer.decode(ids, skip_special_tokens=True) == text


def test_sharing_keeps_the_tie_and_the_memory_but_not_the_parameters(mini):
    twin = share_weights(mini.model)
    assert twin.lm_head.weight is twin.model.decoder.embed_tokens.weight
    for (name, mine), theirs in zip(mini.model.named_parameters(), twin.parameters(), strict=True):
        assert mine is not theirs
        assert (mine.data_ptr() == theirs.data_ptr()) != name.endswith("bias")
    twin.requires_grad_(False)
    assert all(parameter.requires_grad for parameter in mini.model.parameters())


def test_a_folder_is_a_base_too(tmp_path, mini):
    shutil.copytree(ASSETS, tmp_path / "mine")
    other = load_base(tmp_path / "mine", device="cpu")
    assert torch.equal(other.model.lm_head.weight, mini.model.lm_head.weight)


def write_older_tokenizer(folder):
    """mini-OPT's tokenizer in the files that OPT has on the hub: a vocabulary and its merges."""
    stored = json.loads((ASSETS / "tokenizer.json").read_text())
    special = {token["content"]: token["id"] for token in stored["added_tokens"]}
    (folder / "vocab.json").write_text(json.dumps(stored["model"]["vocab"] | special))
    merges = [
        pair if isinstance(pair, str) else " ".join(pair) for pair in stored["model"]["merges"]
    ]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    settings = {
        "tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "bos_token": "</s>",
        "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture
def hub_cache(tmp_path):
    """A cache as the hub client lays it out, with one model in each of the two weight formats."""
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=2048, hidden_size=32, word_embed_proj_dim=32, ffn_dim=64,
        num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=64,
        pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    model = OPTForCausalLM(config)
    for name in ("opt-125m", "opt-older"):
        repository = tmp_path / "hub" / f"models--facebook--{name}"
        snapshot = repository / "snapshots" / "0123456789abcdef"
        snapshot.mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(snapshot.name)
        if name == "opt-125m":
            model.save_pretrained(snapshot)
            for file in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(ASSETS / file, snapshot / file)
        else:
            config.save_pretrained(snapshot)
            torch.save(model.state_dict(), snapshot / "pytorch_model.bin")
            write_older_tokenizer(snapshot)
    return tmp_path, float(model.lm_head.weight.detach().double().sum())


@pytest.mark.slow
def test_hub_names_load_from_the_local_cache_offline_in_both_weight_formats(hub_cache):
    home, expected = hub_cache
    script = """
import json, sys
from vblora_lab import load_base
sums, ids = [], []
for name in ("facebook/opt-125m", "facebook/opt-older"):
    model, tokenizer = load_base(name, device="cpu")
    sums.append(model.lm_head.weight.detach().double().sum().item())
    assert tokenizer.padding_side == "left" and model.name_or_path == name
    ids.append(tokenizer("name[Café], area[riverside] ->").input_ids)
assert ids[0] == ids[1] and ids[0][0] == tokenizer.bos_token_id
print(json.dumps(sums))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == pytest.approx([expected, expected])


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("facebook/opt-125m", r"go online once.*load_base\('mini-opt'\)"),
        ("facebook/opt-125m", r"random weights.*load_base\('opt-125m-random'\)"),
        ("opt_125m", "did you mean 'facebook/opt-125m'"),
        ("opt-125-random", "did you mean 'opt-125m-random'"),
        ("mini_opt", "did you mean 'mini-opt'"),
        ("Mini-OPT", "did you mean 'mini-opt'"),
    ],
)
def test_what_is_not_there_offline_says_what_to_do(offline, name, advice):
    with pytest.raises(BaseModelError, match=advice):
        load_base(name)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(BaseModelError, match=r"config\.json"):
        load_base(tmp_path)


def test_older_weights_that_would_run_code_are_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return Path.touch, (tmp_path / "it ran",)

    folder = tmp_path / "model"
    folder.mkdir()
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ASSETS / file, folder)
    torch.save({"lm_head.weight": Payload()}, folder / "pytorch_model.bin")
    with pytest.raises(BaseModelError, match="does not hold a causal language model"):
        load_base(folder)
    assert not (tmp_path / "it ran").exists()


def test_weights_are_converted_from_the_type_they_are_stored_in(tmp_path):
    shutil.copytree(ASSETS, tmp_path / "mine")
    stored = transformers.AutoModelForCausalLM.from_pretrained(ASSETS, dtype="auto")
    assert stored.dtype == torch.float16
    for dtype in (torch.float32, torch.bfloat16):
        model = load_base(tmp_path / "mine", device="cpu", dtype=dtype).model
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert model.lm_head.weight is model.model.decoder.embed_tokens.weight
        for name, weight in model.named_parameters():
            assert torch.equal(weight, stored.get_parameter(name).to(dtype))


# --- OPT-125m's architecture with random weights


def test_the_random_opt_125m_says_so_and_has_its_shape(offline):
    base = load_base(bases.OPT_125M_RANDOM, device="cpu")
    assert base.is_random and base.label == "opt-125m-random (random weights)"
    assert sum(p.numel() for p in base.model.parameters()) == 125_239_296  # as the hub's
    assert type(base.model) is OPTForCausalLM
    assert base.model.config.eos_token_id == base.tokenizer.eos_token_id
    skeleton = bases.load_skeleton(bases.OPT_125M_RANDOM)
    assert {n: p.shape for n, p in skeleton.named_parameters()} == {
        n: p.shape for n, p in base.model.named_parameters()
    }


@pytest.mark.slow
def test_its_weights_are_the_same_every_time_and_leave_the_caller_s_chance_alone(offline):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    one = load_base(bases.OPT_125M_RANDOM, device="cpu").model
    assert torch.equal(torch.rand(3), expected)
    other = load_base(bases.OPT_125M_RANDOM, device="cpu").model
    assert torch.equal(one.lm_head.weight, other.lm_head.weight)
    assert one.lm_head.weight.std() > 0.01


def test_pretrained_bases_are_not_called_random(mini, hub_cache, monkeypatch):
    assert not mini.is_random and mini.label == "mini-opt"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub_cache[0] / "hub"))
    assert load_base("facebook/opt-125m", device="cpu").label == "facebook/opt-125m"
