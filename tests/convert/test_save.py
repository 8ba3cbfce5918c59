"""Adapters in float16 and 8 bits: what the numbers become, who reads the file, and the way back."""

import json
import math
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import vblora_lab as lab
from tests.cases import CASES, assert_unchanged, scramble, state_of
from vblora_lab.cli import main
from vblora_lab.errors import CheckpointError, ConfigError, InferenceOnlyError
from vblora_lab.planning.plan import plan
from vblora_lab.tuner import precision
from vblora_lab.tuner.folders import read_tensors

PEFTS, EIGHT = "adapter_model.safetensors", "vblora_int8.safetensors"
TOPK = {"save_only_topk_weights": True}


def trained(case, **changes):
    model = case.ours(**changes).eval()
    scramble(model)
    return model


def files_of(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def in_blocks(numbers):
    """float64, from the definition: whole numbers with a float16 scale for each 64."""
    flat = numbers.numpy().ravel()
    result = np.empty(flat.shape)
    for start in range(0, len(flat), 64):
        block = flat[start : start + 64]
        scale = float(np.float16(np.abs(block).max() / 127))
        codes = np.clip(np.round(block / scale), -127, 127) if scale else np.zeros_like(block)
        result[start : start + 64] = codes * scale
    return result.reshape(numbers.shape)


# --- the numbers


@pytest.mark.parametrize("shape", [(0,), (5, 0), (1,), (64,), (3, 50), (2, 8, 40)])
def test_eight_bits_are_whole_numbers_with_a_scale_for_each_block(shape):
    numbers = 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    codes, scales = precision.encoded(numbers)
    assert codes.shape == numbers.shape and (codes.dtype, scales.dtype) == (torch.int8, torch.half)
    np.testing.assert_allclose(precision.rounded(numbers, "int8"), in_blocks(numbers), rtol=1e-6)
    assert codes.nbytes + scales.nbytes == precision.bytes_of(numbers.numel(), "int8")
    again, its_scales = precision.encoded(precision.decoded(codes, scales))
    assert torch.equal(codes, again) and torch.equal(scales, its_scales)  # nothing more is lost


def test_numbers_next_to_zero_are_zeros_and_none_is_nan():
    numbers = torch.tensor([0.0, 1e-30, -1e-8])
    assert not precision.rounded(numbers, "int8").any()
    assert torch.equal(precision.rounded(numbers, "float16"), numbers.half().float())


# --- the file


@pytest.mark.parametrize("kind", ["opt", "gpt2", "linear"])
@pytest.mark.parametrize("save_in", precision.PRECISIONS)
def test_what_is_loaded_is_what_was_rounded(kind, save_in, tmp_path):
    case = CASES[kind]
    model = trained(case, **TOPK)
    model.save_pretrained(tmp_path / "plain")
    plain = load_file(tmp_path / "plain" / PEFTS)
    lab.save_adapter(model, tmp_path / "fewer", save_in)
    tensors = read_tensors(tmp_path / "fewer")
    assert tensors.keys() == plain.keys()
    key = "base_model.vblora_vector_bank"
    expected = {"float32": plain[key], "float16": plain[key].half().float()}.get(save_in)
    expected = in_blocks(plain[key]) if expected is None else expected
    np.testing.assert_allclose(tensors[key].float(), expected, rtol=1e-6)
    weights = torch.cat([plain[k].flatten() for k in sorted(plain) if k.endswith("_weights")])
    stored = torch.cat([tensors[k].flatten() for k in sorted(plain) if k.endswith("_weights")])
    if save_in == "int8":
        np.testing.assert_allclose(stored, in_blocks(weights), atol=0.02)  # sums are kept within 1
        assert np.median(np.abs(stored.numpy() - in_blocks(weights))) < 1e-7
    else:
        assert torch.equal(stored, weights)

    loaded = lab.from_pretrained(case.base(), tmp_path / "fewer")
    assert {p.dtype for n, p in loaded.named_parameters() if "vblora" in n} == {torch.float32}
    by_hand = lab.from_pretrained(case.base(), tmp_path / "plain")
    bank = by_hand.base_model.vblora_vector_bank["default"]
    if save_in == "float16":
        bank.data = bank.data.half().float()
        assert torch.equal(case.output(loaded), case.output(by_hand))
    off = {"float32": 1e-5, "float16": 1e-2, "int8": 0.3}[save_in]
    assert (case.output(loaded) - case.output(model)).abs().max() < off


OF_STOCK_PEFT = """
import sys, torch, peft
from tests.cases import CASES
case, found = CASES["opt"], {}
for folder in sys.argv[2:]:
    try:
        model = peft.PeftModel.from_pretrained(case.base(), folder).eval()
    except Exception as error:
        found[folder] = str(error)
        continue
    assert type(model.base_model).__module__.startswith("peft."), type(model.base_model)
    dtypes = {p.dtype for name, p in model.named_parameters() if "vblora" in name}
    assert dtypes == {torch.float32}, dtypes
    found[folder] = case.output(model).detach()
torch.save(found, sys.argv[1])
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Folders, and what stock PEFT predicts with each in another process, or says instead."""
    case, root = CASES["opt"], tmp_path_factory.mktemp("folders")
    lab.save_adapter(trained(case), root / "all logits", "float16")
    lab.save_adapter(trained(case, **TOPK), root / "half", "float16")
    lab.save_adapter(trained(case, **TOPK), root / "eight", "int8")
    lab.save_adapter(root / "eight", root / "back")
    shutil.copytree(root / "half", root / "half weights")
    tensors = load_file(root / "half" / PEFTS)
    halves = {k: t.half() if k.endswith("_topk_weights") else t for k, t in tensors.items()}
    save_file(halves, root / "half weights" / PEFTS)
    folders = sorted(root.iterdir())
    script = [sys.executable, "-c", OF_STOCK_PEFT, str(root / "found"), *map(str, folders)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = torch.load(root / "found")
    return {folder.name: (folder, found[str(folder)]) for folder in folders}


@pytest.mark.parametrize("name", ["half", "all logits"])
def test_peft_loads_float16_in_another_process(opt_case, elsewhere, name):
    folder, found = elsewhere[name]
    stored = {k: t.dtype for k, t in load_file(folder / PEFTS).items() if "indices" not in k}
    wide = {key for key, dtype in stored.items() if dtype == torch.float32}
    assert wide == {key for key in stored if key.endswith("_topk_weights")}
    assert set(stored.values()) - {torch.float32} == {torch.float16}
    ours = opt_case.output(lab.from_pretrained(opt_case.base(), folder))
    torch.testing.assert_close(found, ours, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, opt_case.output(trained(opt_case)), rtol=1e-2, atol=1e-2)


def test_peft_finds_no_weights_in_eight_bits(elsewhere):
    folder, said = elsewhere["eight"]
    assert set(files_of(folder)) == {"adapter_config.json", EIGHT}
    assert isinstance(said, str)  # an error's text
    with safe_open(folder / EIGHT, "pt") as file:
        assert "vblora-lab save-adapter" in file.metadata()["how to read it"]


def test_peft_loads_what_is_made_of_eight_bits(opt_case, elsewhere):
    folder, found = elsewhere["back"]
    ours = opt_case.output(lab.from_pretrained(opt_case.base(), elsewhere["eight"][0]))
    assert torch.equal(opt_case.output(lab.from_pretrained(opt_case.base(), folder)), ours)
    torch.testing.assert_close(found, ours, rtol=1e-5, atol=1e-5)


def test_peft_still_can_t_load_top_k_weights_in_float16(elsewhere):
    """So that these stay in float32."""
    assert "dtype" in elsewhere["half weights"][1]  # scatter(): Expected self.dtype ...


def test_float16_changes_no_choice(opt_case, tmp_path):
    """Not even of logits that are the same once they are rounded."""
    model = trained(opt_case)
    for name, p in model.named_parameters():
        if "logits" in name:
            p.data = 3 + 1e-6 * p.data
    before = lab.read_selection(model).indices
    folder = lab.save_adapter(model, tmp_path / "half", "float16")
    after = lab.read_selection(lab.from_pretrained(opt_case.base(), folder)).indices
    np.testing.assert_array_equal(np.sort(before), np.sort(after))


@pytest.mark.parametrize("kind", ["opt", "llama"])
@pytest.mark.parametrize("vectors", [9, 300])
@pytest.mark.parametrize("save_in", precision.PRECISIONS)
def test_plan_knows_the_bytes(kind, vectors, save_in, tmp_path):
    case = CASES[kind]
    model = trained(case, num_vectors=vectors, **TOPK)
    (path,) = lab.save_adapter(model, tmp_path / "fewer", save_in).glob("*.safetensors")
    planned = plan(case.base(), model.peft_config["default"])
    found = {
        "float32": planned.topk_bytes,
        "float16": planned.float16_bytes,
        "int8": planned.int8_bytes,
    }
    assert found[save_in] == sum(tensor.nbytes for tensor in load_file(path).values())
    assert f"{found[save_in]:,} bytes" in str(planned)
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    assert path.stat().st_size == 8 + length + found[save_in]
    if save_in == "int8":  # one entry for each layer, not four tensors
        assert length < 0.5 * len(json.dumps(dict.fromkeys(read_tensors(path.parent))))


@pytest.mark.parametrize("topk", [1, 2, 5, 9])
def test_every_topk_survives_eight_bits(opt_case, topk, tmp_path):
    model = trained(opt_case, topk=topk, num_vectors=9, **TOPK)
    folder = lab.save_adapter(model, tmp_path / "eight", "int8")
    weights = [t for k, t in read_tensors(folder).items() if k.endswith("_weights")]
    assert max(float(each.sum(-1).max()) for each in weights) <= 1  # or the last were negative
    loaded = lab.from_pretrained(opt_case.base(), folder)
    theirs = peft.PeftModel.from_pretrained(
        opt_case.base(), str(lab.save_adapter(folder, tmp_path / "back"))
    ).eval()
    torch.testing.assert_close(
        opt_case.output(theirs), opt_case.output(loaded), rtol=1e-4, atol=1e-4
    )


def test_peaked_choices_survive_eight_bits(opt_case, tmp_path):
    model = trained(opt_case, topk=2, **TOPK)
    for name, p in model.named_parameters():
        if "logits" in name:
            p.data *= 100
    folder = lab.save_adapter(model, tmp_path / "eight", "int8")
    loaded = lab.from_pretrained(opt_case.base(), folder)
    assert (opt_case.output(loaded) - opt_case.output(model)).abs().max() < 0.2


def test_what_lies_beside_the_bank_is_kept_as_it_is(opt_case, tmp_path):
    model = trained(opt_case, bias="all", modules_to_save=["lm_head"], **TOPK)
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.001
    for save_in in precision.PRECISIONS:
        folder = lab.save_adapter(model, tmp_path / save_in, save_in)
        stored = {k: t for k, t in read_tensors(folder).items() if "vblora" not in k}
        plain = lab.save_adapter(model, tmp_path / "plain")
        expected = {k: t for k, t in load_file(plain / PEFTS).items() if "vblora" not in k}
        assert stored.keys() == expected.keys() and len(stored) > 8
        assert all(torch.equal(stored[key], expected[key]) for key in stored)
        loaded = lab.from_pretrained(opt_case.base(), folder)
        assert (opt_case.output(loaded) - opt_case.output(model)).abs().max() < 0.5


# --- where it goes on to


@pytest.mark.parametrize("save_in", ["float16", "int8"])
def test_registered_programs_and_exports_read_it(opt_case, save_in, tmp_path):
    folder = lab.save_adapter(trained(opt_case, **TOPK), tmp_path / "fewer", save_in)
    expected = opt_case.output(lab.from_pretrained(opt_case.base(), folder))
    with lab.using():
        model = peft.PeftModel.from_pretrained(opt_case.base(), str(folder)).eval()
        assert torch.equal(opt_case.output(model), expected)
        model.load_adapter(tmp_path, "again", subfolder="fewer")
        model.set_adapter("again")
        assert torch.equal(opt_case.output(model), expected)
    lora = lab.export_lora(folder, tmp_path / "lora")
    by_lora = peft.PeftModel.from_pretrained(opt_case.base(), str(lora)).eval()
    torch.testing.assert_close(opt_case.output(by_lora), expected, rtol=1e-5, atol=1e-5)
    second = lab.get_peft_model(opt_case.base(), lab.VBLoRAConfig(**opt_case.config), bank=folder)
    bank = second.base_model.vblora_vector_bank["default"]
    assert torch.equal(bank, read_tensors(folder)["base_model.vblora_vector_bank"].float())


@pytest.mark.parametrize("save_in", ["float16", "int8"])
def test_a_store_keeps_the_precision(opt_case, save_in, tmp_path):
    first = trained(opt_case, **TOPK)
    lab.add_adapter(first, "user", lab.VBLoRAConfig(**{**opt_case.config, **TOPK}))
    scramble(first)
    lab.save_adapter(first, tmp_path / "first", save_in)
    rounded = lab.from_pretrained(opt_case.base(), tmp_path / "first")  # shared as it is stored
    lab.add_adapter(rounded, "user", lab.VBLoRAConfig(**{**opt_case.config, **TOPK}))
    user = lab.save_adapter(rounded, tmp_path / "user", save_in, "user")
    assert (user / "vblora_bank.json").is_file()
    store = lab.AdapterStore(tmp_path / "store")
    for name in ("first", "user"):
        added = store.add(tmp_path / name, name)
        files = files_of(added.folder)
        assert (EIGHT in files) == (save_in == "int8") and (PEFTS in files) != (EIGHT in files)
        with safe_open(added.folder / (EIGHT if EIGHT in files else PEFTS), "pt") as file:
            assert not any("bank" in key for key in file.keys())  # noqa: SIM118
        expected = opt_case.output(
            lab.from_pretrained(opt_case.base(), tmp_path / name, bank=None)
            if name == "first"
            else lab.from_pretrained(opt_case.base(), user, bank=tmp_path / "first")
        )
        loaded = lab.from_pretrained(opt_case.base(), added.folder, bank=added.bank_folder)
        assert torch.equal(opt_case.output(loaded), expected)
    assert store["first"].bank == store["user"].bank and store.check() == []
    assert not store.export(tmp_path / "lora").failed


def test_float16_with_all_logits_can_be_trained_on(opt_case, tmp_path):
    model = trained(opt_case)
    folder = lab.save_adapter(model, tmp_path / "half", "float16")
    going_on = lab.from_pretrained(opt_case.base(), folder, is_trainable=True)
    own = [p for name, p in going_on.named_parameters() if "vblora" in name]
    assert {p.dtype for p in own} == {torch.float32} and all(p.requires_grad for p in own)
    with pytest.raises(InferenceOnlyError, match="can't be trained"):
        eight = lab.save_adapter(model, tmp_path / "eight", "int8", only_topk=True)
        lab.from_pretrained(opt_case.base(), eight, is_trainable=True)
    assert json.loads((eight / "adapter_config.json").read_text())["save_only_topk_weights"]
    assert model.peft_config["default"].save_only_topk_weights is False  # the model's own


def test_peft_s_own_adapter_is_stored_too(opt_case, tmp_path):
    stock = opt_case.stock(**TOPK).eval()
    scramble(stock)
    folder = lab.save_adapter(stock, tmp_path / "half", "float16")
    loaded = lab.from_pretrained(opt_case.base(), folder)
    assert (opt_case.output(loaded) - opt_case.output(stock)).abs().max() < 1e-2


def test_save_pretrained_over_eight_bits_leaves_none_behind(opt_case, tmp_path):
    model = trained(opt_case, **TOPK)
    folder = lab.save_adapter(model, tmp_path / "adapter", "int8")
    model.save_pretrained(folder)
    assert not (folder / EIGHT).exists()
    assert torch.equal(
        opt_case.output(lab.from_pretrained(opt_case.base(), folder)),
        opt_case.output(
            lab.from_pretrained(opt_case.base(), lab.save_adapter(model, tmp_path / "a"))
        ),
    )


def test_the_command_goes_there_and_back(opt_case, capsys, tmp_path):
    trained(opt_case).save_pretrained(tmp_path / "full")
    full, eight, back = (str(tmp_path / name) for name in ("full", "eight", "back"))
    assert main(["save-adapter", full, eight, "--save-in", "int8"]) == 2
    assert "Give only_topk=True" in capsys.readouterr().err and not Path(eight).exists()
    assert main(["save-adapter", full, eight, "--save-in", "int8", "--only-topk"]) == 0
    assert f"({(Path(eight) / EIGHT).stat().st_size:,} bytes)" in capsys.readouterr().out
    assert main(["save-adapter", eight, back]) == 0
    ours = [opt_case.output(lab.from_pretrained(opt_case.base(), f)) for f in (eight, back)]
    assert torch.equal(*ours)


# --- what is refused, and what is left when it fails


def test_mistakes_are_named_before_anything_is_written(opt_case, tmp_path):
    model = trained(opt_case)
    out = tmp_path / "out"
    with pytest.raises(
        ConfigError, match=r"save_in='int16'.*'float32', 'float16', 'int8'.*'int8'\?"
    ):
        lab.save_adapter(model, out, "int16")
    with pytest.raises(ConfigError, match=r"all logits.*only_topk=True.*save_in='float16'"):
        lab.save_adapter(model, out, "int8")
    with pytest.raises(ConfigError, match="the model has 'default'"):
        lab.save_adapter(model, out, "float16", "other")
    with pytest.raises(CheckpointError, match="no PeftModel"):
        lab.save_adapter(opt_case.base(), out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    with pytest.raises(CheckpointError, match=r"other files \(notes.txt\)"):
        lab.save_adapter(model, tmp_path / "full")
    model.base_model.vblora_vector_bank["default"].data[0, 0] = 1e6
    with pytest.raises(
        CheckpointError, match=r"bank has numbers up to 1e\+06.*float16 holds 65504"
    ):
        lab.save_adapter(model, out, "float16")
    assert not out.exists()
    lab.save_adapter(model, out)


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("save_in", ["float16", "int8"])
def test_an_interrupted_write_leaves_what_was_there(opt_case, save_in, tmp_path, monkeypatch):
    model = trained(opt_case, **TOPK)
    before = state_of(model)
    folder = lab.save_adapter(model, tmp_path / "adapter", "float32")
    old = files_of(folder)

    def half_written(config, place):
        Path(place, "adapter_config.json").write_text("{")
        raise Interrupted

    monkeypatch.setattr(lab.VBLoRAConfig, "save_pretrained", half_written)
    with pytest.raises(Interrupted):
        lab.save_adapter(folder, folder, save_in)
    with pytest.raises(Interrupted):
        lab.save_adapter(folder, tmp_path / "new", save_in)
    assert files_of(folder) == old
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert_unchanged(model, before)


def damaged(folder, change):
    with safe_open(folder / EIGHT, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        header = file.metadata()
    change(tensors, header)
    save_file(tensors, folder / EIGHT, metadata=header)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t, h: t.pop("bank_scales"), "bank_scales is missing"),
        (lambda t, h: t.pop("weights"), "weights or weights_scales is missing"),
        (lambda t, h: t.pop("indices"), "no matrix"),
        (lambda t, h: [t.pop(name) for name in ("bank", "bank_scales")], "bank is missing"),
        (lambda t, h: t.update(bank=t["bank"].float()), "bank must be int8"),
        (lambda t, h: t.update(bank_scales=t["bank_scales"].repeat(2)), "bank must be int8"),
        (lambda t, h: t["bank_scales"].fill_(math.nan), "NaN"),
        (lambda t, h: t["weights"].fill_(-1), "0 or more"),
        (lambda t, h: t["indices"].fill_(200), "run from 200"),
        (lambda t, h: t.update(indices=t["indices"][:-1].clone()), "its header names 160"),
        (lambda t, h: h.clear(), "doesn't say which layers"),
        (lambda t, h: h.update(tiles="["), "doesn't say which layers"),
        (lambda t, h: h.update(tiles='{"a": [1, 2]}'), "doesn't say which layers"),
        (lambda t, h: h.update(tiles='{"a": [1, 2, true]}'), "doesn't say which layers"),
        (lambda t, h: h.update(tiles='{"a": [1, 80, 80]}'), "doesn't fit this model"),
        (lambda t, h: t.update(extra=torch.zeros(2)), "extra is not what its config stores"),
    ],
)
def test_a_damaged_file_is_refused_and_the_model_is_as_it_was(opt_case, change, said, tmp_path):
    folder = lab.save_adapter(trained(opt_case, **TOPK), tmp_path / "eight", "int8")
    damaged(folder, change)
    base = opt_case.base()
    before = state_of(base)
    with pytest.raises(CheckpointError, match=said):
        lab.from_pretrained(base, folder)
    assert_unchanged(base, before)
    (folder / EIGHT).write_bytes(b"\0" * 20)
    with pytest.raises(CheckpointError, match="is damaged"):
        lab.from_pretrained(base, folder)
