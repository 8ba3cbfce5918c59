"""The classifier: its data, the bytes of its file, and the whole road with a small random BERT."""

import argparse
import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import vblora_lab as lab
from vblora_lab.course import measured

ROOT = Path(__file__).parents[2]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "good", "bad", "food", "very"]


def script(folder, name):
    spec = importlib.util.spec_from_file_location(f"{folder}_{name}", ROOT / folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for it there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def example():
    return script("examples", "classifier")


@pytest.fixture(scope="module")
def bench():
    return script("benchmarks", "classifier")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """The folder of a random BERT of one layer, as an encoder without a head."""
    folder = tmp_path_factory.mktemp("encoder")
    words = Tokenizer(WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(WORDS), intermediate_size=64, **sizes)
    BertModel(config).save_pretrained(folder)
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    return folder


def test_the_sentences_about_families_have_three_labels_and_no_text_twice(example):
    rows = example.about_families(seed=0)
    assert {label for _, label in rows} == {"yes", "no", "not said"}
    data = example.split(rows, seed=0)
    assert len(data.train) == 4 * len(data.test) == 1600
    assert not {text for text, _ in data.train} & {text for text, _ in data.test}
    assert data.most_frequent < 0.5


def test_a_file_without_its_columns_is_refused(example, tmp_path):
    (tmp_path / "own.csv").write_text("\ufefflabel,text\ngood,very good food\n", encoding="utf-8")
    assert example.read_rows(tmp_path / "own.csv") == [("very good food", "good")]
    (tmp_path / "bad.csv").write_text("sentence,class\na,b\n")
    with pytest.raises(SystemExit, match="no column label and no column text"):
        example.read_rows(tmp_path / "bad.csv")


def test_the_bytes_of_a_file_are_those_of_the_formula(example, encoder, tmp_path):
    base = lab.load_classifier(encoder, ["bad", "good", "so-so"], device="cpu")
    config = lab.VBLoRAConfig(
        r=2, num_vectors=8, vector_length=32, topk=3, task_type="SEQ_CLS",
        save_only_topk_weights=True,
    )  # fmt: skip
    lab.get_peft_model(base.model, config).save_pretrained(tmp_path)
    sizes = example.itemised(tmp_path)
    sub_vectors = 2 * (2 * 2 + 2 * 2)  # query and value; r x (64 / 32) in A, and as many in B
    assert sizes["bank"] == 8 * 32 * 4
    assert sizes["indices"] == sub_vectors * 3 and sizes["weights"] == sub_vectors * 2 * 4
    assert sizes["head"] == (64 * 3 + 3) * 4
    whole = sizes.pop("all of the file")
    assert sum(sizes.values()) == whole == (tmp_path / "adapter_model.safetensors").stat().st_size


@pytest.mark.slow
def test_from_a_csv_file_to_a_process_that_has_peft_alone(example, encoder, tmp_path, capsys):
    rows = [f"{'very ' * (i % 3)}{word} food,{word}" for i in range(20) for word in ("good", "bad")]
    (tmp_path / "own.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    settings = ["--steps", "12", "--batch-size", "8", "--vector-length", "32", "--num-vectors", "8"]
    places = ["--model", str(encoder), "--data", str(tmp_path / "own.csv")]
    assert example.main([*places, *settings, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"the classifier: (100|[5-9]\d)\.\d% are right", printed), printed
    assert "with PEFT alone, finds the same logits" in printed


# --- the benchmark


def test_a_head_alone_is_set_to_the_optimum(bench, encoder, monkeypatch):
    """Where it is, no small step in any direction lowers the loss."""
    torch.manual_seed(0)
    x, y = torch.randn(60, 16), torch.arange(60) % 3
    monkeypatch.setattr(bench, "features_of", lambda *_: [(x, y), (x, y), (x, y)])
    asked = argparse.Namespace(train=None, test=None, texts=0, held_out=0)
    found = bench.head_alone(asked, "", 0.01, 0)
    weight = torch.zeros(3, 16, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    for _ in range(3000):  # another way to the same place
        logits = x.double() @ weight.T + bias
        loss = torch.nn.functional.cross_entropy(logits, y) + 0.01 * weight.square().sum()
        down = torch.autograd.grad(loss, (weight, bias))
        weight.data -= 0.5 * down[0]
        bias.data -= 0.5 * down[1]
    assert found["last loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert found["bytes"]["head"] == 4 * (16 * 3 + 3)


def test_each_part_of_a_method_has_its_rate_and_each_file_its_parts(bench, encoder, tmp_path):
    for method, what in (("VB-LoRA r=4, q and v, 64x64", "bank"), ("LoRA r=1, v", "matrices")):
        base = lab.load_classifier(encoder, bench.LABELS, device="cpu")
        model = bench.adapted(base, method)
        rates = {id(p): g["lr"] for g in bench.groups(model, 0.5) for p in g["params"]}
        for name, parameter in model.named_parameters():
            expected = 0.5 if ".lora_" in name or "bank" in name else 5.0
            if "classifier" in name:
                expected = bench.HEAD_RATE
            assert rates.get(id(parameter)) == (expected if parameter.requires_grad else None), name
        model.save_pretrained(tmp_path / what)
        sizes = bench.parts(tmp_path / what)
        assert sizes["head"] == 4 * (64 * 3 + 3) and sizes[what] > 0
        assert sum(sizes.values()) == 2 * sizes["all of the file"]


def test_the_course_shows_what_the_benchmark_found(bench):
    lines = bench.table(bench.read(bench.FOUND))
    shown = [{name: str(value) for name, value in line.items()} for line in lines]
    assert measured.classifier() == shown
    assert [line["method"] for line in lines] == [
        method for method in bench.METHODS if any(line["method"] == method for line in lines)
    ]
