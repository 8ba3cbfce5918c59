"""VB-LoRA to LoRA and back: exact one way, as good as it says the other."""

import json
import warnings
from pathlib import Path

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

import vblora_lab.tuner.peft as lab
from tests.cases import CASES, assert_close, scramble
from vblora_lab import cli
from vblora_lab.convert import export
from vblora_lab.convert.compress import compress_lora
from vblora_lab.convert.export import export_lora
from vblora_lab.convert.many import export_loras
from vblora_lab.errors import CheckpointError, ConfigError, TargetError
from vblora_lab.tuner import folders, formats
from vblora_lab.tuner.config import VBLoRAConfig

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def trained(case, **changes):
    model = case.ours(**changes)
    scramble(model)
    return model


def as_lora(case, folder, base=None) -> PeftModel:
    """The folder on a fresh base, by PEFT alone."""
    model = PeftModel.from_pretrained(case.base() if base is None else base, folder)
    assert model.peft_config["default"].peft_type == "LORA"
    return model


def adapted(model, layer_class) -> list[str]:
    inner = model.base_model.model
    return [name for name, module in inner.named_modules() if isinstance(module, layer_class)]


# --- export


@pytest.mark.parametrize("source", ["model", "stock", "full", "topk"])
def test_an_export_is_the_same_model_in_stock_peft(case, source, tmp_path):
    model = trained(case, save_only_topk_weights=source == "topk")
    expected = case.output(model)
    given = model
    if source == "stock":
        given = case.stock()
        given.load_state_dict(model.state_dict())
    elif source != "model":
        model.save_pretrained(tmp_path / "adapter")
        given = tmp_path / "adapter"
    export_lora(given, tmp_path / "lora")
    lora = as_lora(case, tmp_path / "lora")
    assert not torch.equal(case.output(case.base()), expected)
    assert_close(case.output(lora), expected, relative=1e-6)
    assert adapted(lora, peft.tuners.lora.LoraLayer) == adapted(
        model, lab.VBLoRAModel.tuner_layer_cls
    )
    # Merging transposes where weights are (in, out).
    assert_close(case.output(lora.merge_and_unload()), expected, relative=1e-5)


@pytest.mark.parametrize(
    "targets",
    [
        {"target_modules": ["q_proj", "fc1"], "exclude_modules": ["model.decoder.layers.0.fc1"]},
        {"target_modules": r".*layers\.1\.(fc1|self_attn\.v_proj)"},
        {"target_modules": "all-linear"},
        {"target_modules": None},
        {"target_modules": ["fc2"], "layers_to_transform": [1], "layers_pattern": "layers"},
    ],
    ids=lambda targets: ",".join(targets) if len(targets) > 1 else str(targets["target_modules"]),
)
def test_lora_hits_exactly_the_same_modules(opt_case, targets, tmp_path):
    model = trained(opt_case, **targets)
    export_lora(model, tmp_path / "lora")
    lora = as_lora(opt_case, tmp_path / "lora")
    ours = adapted(model, lab.VBLoRAModel.tuner_layer_cls)
    assert adapted(lora, peft.tuners.lora.LoraLayer) == ours
    assert_close(opt_case.output(lora), opt_case.output(model))


def test_a_file_that_leaves_the_choice_to_peft_is_spelt_out(opt_case, tmp_path):
    """PEFT's defaults are other modules for LoRA than for VB-LoRA in some architectures."""
    model = trained(opt_case, target_modules=["fc1"])
    model.save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    config["target_modules"] = None
    (tmp_path / "adapter" / CONFIG).write_text(json.dumps(config))
    export_lora(tmp_path / "adapter", tmp_path / "lora")
    assert_close(opt_case.output(as_lora(opt_case, tmp_path / "lora")), opt_case.output(model))


@pytest.mark.filterwarnings("ignore:Unable to fetch remote file", "ignore:Could not find a config")
def test_the_config_is_the_one_that_peft_writes(opt_case, tmp_path):
    """Field by field that of a LoRA adapter which PEFT itself makes and saves."""
    shared = {
        "target_modules": ["q_proj", "v_proj"],
        "r": 2,
        "task_type": "CAUSAL_LM",
        "layers_to_transform": [0],
        "layers_pattern": "layers",
    }
    base = opt_case.base()
    base.name_or_path = "some/base"
    model = lab.get_peft_model(
        base, VBLoRAConfig(**{**opt_case.config, **shared, "vblora_dropout": 0.1})
    )
    export_lora(model, tmp_path / "lora")
    base = opt_case.base()
    base.name_or_path = "some/base"
    config = LoraConfig(**shared, lora_alpha=2, lora_dropout=0.1)
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "by_peft")
    found, expected = (
        json.loads((tmp_path / name / CONFIG).read_text()) for name in ("lora", "by_peft")
    )
    for fields in (found, expected):
        fields["target_modules"].sort()
        assert not fields.pop("exclude_modules")  # None or an empty list
    assert found == expected
    shapes = [
        {key: tensor.shape for key, tensor in folders.read_tensors(tmp_path / name).items()}
        for name in ("lora", "by_peft")
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("bias", ["all", "vblora_only"])
def test_biases_and_modules_to_save_come_along(opt_case, bias, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this base ties lm_head to the embedding
        model = opt_case.ours(bias=bias, modules_to_save=["lm_head"])
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = torch.randn_like(parameter)
        model.save_pretrained(tmp_path / "adapter")
        for source in (model, tmp_path / "adapter"):
            export_lora(source, tmp_path / "lora")
            lora = as_lora(opt_case, tmp_path / "lora")
            assert_close(opt_case.output(lora), opt_case.output(model))
        # The very keys that PEFT stores for such a LoRA.
        lora.save_pretrained(tmp_path / "again")
    assert lora.peft_config["default"].bias == bias.replace("vblora", "lora")
    found, expected = (load_file(tmp_path / name / WEIGHTS) for name in ("lora", "again"))
    assert found.keys() == expected.keys()
    assert any(key.endswith(".base_layer.bias") for key in found)
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


def test_each_adapter_has_its_own_rank_and_merging_changes_nothing(case, tmp_path):
    model = trained(case)
    model.add_adapter("other", VBLoRAConfig(**{**case.config, "r": 3, "topk": 2}))
    scramble(model)
    outputs = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        outputs[name] = case.output(model)
    model.merge_adapter(["default", "other"])
    model.save_pretrained(tmp_path / "adapters")
    for name, expected in outputs.items():
        for source in (model, tmp_path / "adapters"):
            export_lora(source, tmp_path / name, name)
            lora = as_lora(case, tmp_path / name)
            assert lora.peft_config["default"].r == {"default": 2, "other": 3}[name]
            assert_close(case.output(lora), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loses_nothing_on_the_way(opt_case, dtype, tmp_path):
    """A and B are those that the half-precision bank and logits make in float32."""
    base = opt_case.base().to(dtype)
    config = VBLoRAConfig(**opt_case.config)
    model = lab.get_peft_model(base, config, autocast_adapter_dtype=False)
    scramble(model)
    assert model.vblora_vector_bank["default"].dtype == dtype
    export_lora(model, tmp_path / "lora")
    tensors = load_file(tmp_path / "lora" / WEIGHTS)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    lora = as_lora(opt_case, tmp_path / "lora")
    name = "model.decoder.layers.1.fc1"
    expected = model.base_model.model.get_submodule(name).get_delta_weight("default")
    found = lora.base_model.model.get_submodule(name).get_delta_weight("default")
    assert_close(found, expected)


def test_an_adapter_loaded_from_the_top_k_exports(opt_case, tmp_path):
    trained(opt_case, save_only_topk_weights=True).save_pretrained(tmp_path / "adapter")
    model = lab.from_pretrained(opt_case.base(), tmp_path / "adapter")
    export_lora(model, tmp_path / "lora")
    assert_close(opt_case.output(as_lora(opt_case, tmp_path / "lora")), opt_case.output(model))


def test_peft_still_refuses_to_convert_what_has_biases(opt_case, tmp_path):
    model = trained(opt_case, bias="vblora_only")
    with pytest.raises(ValueError, match="not supported right now"):
        peft.convert_to_lora(model, rank=2)
    export_lora(model, tmp_path / "lora")


def test_peft_s_own_conversion_decomposes_and_agrees(opt_case):
    """peft.convert_to_lora reaches the same update at the same rank, by another way."""
    model = trained(opt_case)
    _, tensors = peft.convert_to_lora(model, rank=2)
    full = peft.get_peft_model_state_dict(model)
    expected = export.vblora_factors(full, model.peft_config["default"])
    for name, (A, B) in expected.items():
        stem = f"base_model.model.{name}"
        found = tensors[f"{stem}.lora_B.weight"] @ tensors[f"{stem}.lora_A.weight"]
        assert_close(found, B @ A, relative=1e-5)
        assert not torch.allclose(tensors[f"{stem}.lora_A.weight"], A)


# --- folders


def test_a_folder_is_replaced_whole_or_not_at_all(opt_case, tmp_path, monkeypatch):
    model = trained(opt_case)
    lora = tmp_path / "deep" / "lora"
    assert export_lora(model, lora) == lora
    before = {file.name: file.read_bytes() for file in lora.iterdir()}
    assert set(before) == {WEIGHTS, CONFIG}
    with torch.no_grad():
        model.vblora_vector_bank["default"].mul_(2)

    def fails(*args, **kwargs):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(LoraConfig, "save_pretrained", fails)  # after the weights are written
        for path in (lora, tmp_path / "deep" / "new"):
            with pytest.raises(OSError, match="disk full"):
                export_lora(model, path)
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["lora"]
    assert {file.name: file.read_bytes() for file in lora.iterdir()} == before
    export_lora(model, lora)
    assert (lora / WEIGHTS).read_bytes() != before[WEIGHTS]
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["lora"]


def test_nothing_is_overwritten_but_an_earlier_export(opt_case, tmp_path):
    model = trained(opt_case)
    model.save_pretrained(tmp_path / "adapter")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="is a file"):
        export_lora(model, tmp_path / "file")
    with pytest.raises(CheckpointError, match=r"can't be made, since .*file is a file"):
        export_lora(model, tmp_path / "file" / "new" / "lora")
    with pytest.raises(CheckpointError, match=r"README\.md"):
        export_lora(model, tmp_path / "adapter")
    (tmp_path / "adapter" / "README.md").unlink()
    with pytest.raises(CheckpointError, match="VBLORA adapter"):
        export_lora(tmp_path / "adapter", tmp_path / "adapter")
    assert (tmp_path / "file").read_text() == "mine"
    lab.from_pretrained(opt_case.base(), tmp_path / "adapter")


def test_what_can_t_be_exported_is_told(opt_case, tmp_path):
    model = trained(opt_case)
    with pytest.raises(ConfigError, match=r"'other'.*'default'"):
        export_lora(model, tmp_path / "lora", "other")
    with pytest.raises(CheckpointError, match="OPTForCausalLM is no PeftModel"):
        export_lora(opt_case.base(), tmp_path / "lora")
    lora = peft.get_peft_model(opt_case.base(), LoraConfig(target_modules=["fc1"]))
    with pytest.raises(ConfigError, match="LoraConfig"):
        export_lora(lora, tmp_path / "lora")
    with pytest.raises(CheckpointError, match="no folder"):
        export_lora(tmp_path / "nowhere", tmp_path / "lora")
    model.save_pretrained(tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter" / WEIGHTS)
    key = "base_model.model.model.decoder.layers.0.fc1.vblora_logits_B"
    for change, expected in (
        (tensors[key][..., :-1], "has shape"),
        (None, "fc1.vblora_logits_B is missing"),
    ):
        changed = {**tensors, key: change}
        save_file(
            {k: t.contiguous() for k, t in changed.items() if t is not None},
            tmp_path / "adapter" / WEIGHTS,
        )
        with pytest.raises(CheckpointError, match=expected):
            export_lora(tmp_path / "adapter", tmp_path / "lora")
    (tmp_path / "adapter" / WEIGHTS).unlink()
    model.save_pretrained(tmp_path / "adapter", safe_serialization=False)
    with pytest.raises(CheckpointError, match="pickle"):
        export_lora(tmp_path / "adapter", tmp_path / "lora")
    meta = lab.get_peft_model(
        opt_case.base(), VBLoRAConfig(**opt_case.config), low_cpu_mem_usage=True
    )
    with pytest.raises(CheckpointError, match="only shapes"):
        export_lora(meta, tmp_path / "lora")
    assert not (tmp_path / "lora").exists()


def test_the_command_line_needs_no_base_model(opt_case, tmp_path, capsys):
    model = trained(opt_case, save_only_topk_weights=True)
    model.save_pretrained(tmp_path / "adapter")
    assert cli.main(["export-lora", str(tmp_path / "adapter"), str(tmp_path / "lora")]) == 0
    assert str(tmp_path / "lora") in capsys.readouterr().out
    assert_close(opt_case.output(as_lora(opt_case, tmp_path / "lora")), opt_case.output(model))


# --- compress


class Wide(nn.Module):
    """Three linear layers whose LoRA has 128 sub-vectors of length 16 per unit of rank."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(128, 512)
        self.across = nn.Linear(512, 512)
        self.down = nn.Linear(512, 128)

    def forward(self, x):
        return self.down(torch.tanh(self.across(torch.tanh(self.up(x)))))


NAMES = ["up", "across", "down"]


def random_lora(folder: Path, **changes) -> PeftModel:
    """A LoRA adapter of random numbers, stored; B smaller than A, as training leaves it."""
    torch.manual_seed(5)
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": NAMES, **changes})
    model = peft.get_peft_model(Wide(), config)
    generator = torch.Generator().manual_seed(6)
    for name, parameter in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
            parameter.data *= 0.3 if "lora_A" in name else 0.05
    model.save_pretrained(folder)
    return model


def updates(model, names=NAMES):
    inner = model.base_model.model
    modules = {name: inner.get_submodule(name) for name in names}
    return {name: m.get_delta_weight("default").detach().double() for name, m in modules.items()}


def relative_error(found, wanted) -> float:
    squares = [((found[n] - wanted[n]).square().sum(), wanted[n].square().sum()) for n in wanted]
    return float((sum(s[0] for s in squares) / sum(s[1] for s in squares)).sqrt())


def test_the_error_is_the_one_that_stock_peft_sees(tmp_path):
    """Load both adapters with PEFT and compare whole updates; the report says the same."""
    wanted = updates(random_lora(tmp_path / "lora"))
    result = compress_lora(tmp_path / "lora", 24, 16, 2, tmp_path / "vblora", rounds=8, steps=20)
    stock = PeftModel.from_pretrained(Wide(), tmp_path / "vblora")
    found = updates(stock)
    assert 0.1 < result.overall.update < 1
    assert result.overall.update == pytest.approx(relative_error(found, wanted), rel=1e-4)
    for name in NAMES:
        one = relative_error({name: found[name]}, {name: wanted[name]})
        assert result.errors[name].update == pytest.approx(one, rel=1e-4)
    # The top-k format holds the same choices.
    only_topk = compress_lora(
        tmp_path / "lora", 24, 16, 2, save_only_topk_weights=True, rounds=8, steps=20
    )
    only_topk.save(tmp_path / "topk")
    found = updates(PeftModel.from_pretrained(Wide(), tmp_path / "topk"))
    assert result.overall.update == pytest.approx(relative_error(found, wanted), rel=1e-4)
    for folder, expected in (("vblora", result.full_bytes), ("topk", result.topk_bytes)):
        stored = load_file(tmp_path / folder / WEIGHTS)
        assert sum(tensor.nbytes for tensor in stored.values()) == expected
    stored = load_file(tmp_path / "lora" / WEIGHTS)
    assert result.lora_bytes == sum(tensor.nbytes for tensor in stored.values())
    text = str(result)
    for part in (f"{result.overall.update:.2%}", f"{result.topk_bytes:,}", "num_vectors=24"):
        assert part in text


def test_errors_of_the_factors_are_those_of_the_stored_matrices(tmp_path):
    model = random_lora(tmp_path / "lora", lora_alpha=4)  # scaling 1, so B is B
    result = compress_lora(
        tmp_path / "lora", 24, 16, 2, tmp_path / "vblora", balance="none", rounds=3, steps=5
    )
    export_lora(tmp_path / "vblora", tmp_path / "again")
    found = load_file(tmp_path / "again" / WEIGHTS)
    wanted = load_file(tmp_path / "lora" / WEIGHTS)
    for letter in "AB":
        keys = [key for key in wanted if f"lora_{letter}" in key]
        expected = relative_error({k: found[k] for k in keys}, {k: wanted[k] for k in keys})
        assert getattr(result.overall, letter) == pytest.approx(expected, rel=1e-4)
    assert model.peft_config["default"].r == 4


def test_an_exported_adapter_is_found_again(tmp_path):
    """A LoRA that is made of a bank: fitting at the same sizes finds bank and choices again."""
    config = VBLoRAConfig(
        r=4, num_vectors=24, vector_length=16, topk=2, target_modules=NAMES, init_logits_std=1.0
    )
    model = lab.get_peft_model(Wide(), config)
    export_lora(model, tmp_path / "lora")
    result = compress_lora(tmp_path / "lora", 24, 16, 2)
    assert result.balance == "none"
    assert result.overall.update < 0.01
    # Half the bank can't do that.
    assert compress_lora(tmp_path / "lora", 12, 16, 2).overall.update > 0.2


def test_more_vectors_and_larger_topk_come_closer(tmp_path):
    random_lora(tmp_path / "lora")

    def error(num_vectors, topk):
        return compress_lora(
            tmp_path / "lora", num_vectors, 16, topk, balance="svd", rounds=10, steps=50
        ).overall.update

    by_size = [error(num_vectors, 2) for num_vectors in (8, 32, 128)]
    assert by_size == sorted(by_size, reverse=True)
    by_topk = [error(32, topk) for topk in (1, 2, 4)]
    assert by_topk == sorted(by_topk, reverse=True)
    assert by_size[-1] < 0.9 * by_size[0] and by_topk[-1] < 0.9 * by_topk[0]


def test_adam_descends_the_error_of_the_updates(tmp_path):
    random_lora(tmp_path / "lora")
    errors = [
        compress_lora(tmp_path / "lora", 24, 16, 2, balance="norms", rounds=5, steps=steps)
        for steps in (0, 100)
    ]
    assert errors[1].overall.update < errors[0].overall.update


def test_equal_arguments_give_equal_adapters(tmp_path):
    random_lora(tmp_path / "lora")
    results = [
        compress_lora(tmp_path / "lora", 16, 16, 3, rounds=3, steps=5, seed=seed)
        for seed in (0, 0, 1)
    ]
    key = formats.BANK_KEY
    assert all(torch.equal(results[0].tensors[k], t) for k, t in results[1].tensors.items())
    assert not torch.equal(results[0].tensors[key], results[2].tensors[key])


@pytest.mark.parametrize("balance", ["none", "norms", "svd"])
def test_a_bank_of_all_sub_vectors_is_exact(balance, tmp_path):
    """With as many vectors as sub-vectors nothing is lost: cutting and balancing are exact.

    Unequal ranks, unequal alphas and rank-stabilised scaling among them.
    """
    changes = {"rank_pattern": {"across": 2}, "alpha_pattern": {"up": 3}, "use_rslora": True}
    model = random_lora(tmp_path / "lora", **changes)
    count = 4 * (128 + 512 + 512 + 512 + 512 + 128) // 64
    result = compress_lora(
        tmp_path / "lora", count, 64, 1, tmp_path / "vblora", balance=balance, rounds=1, steps=0
    )
    assert result.overall.update < 1e-5
    stock = PeftModel.from_pretrained(Wide(), tmp_path / "vblora")
    assert relative_error(updates(stock), updates(model)) < 1e-5
    x = torch.randn(3, 128)
    torch.manual_seed(5)
    same_base = lab.from_pretrained(Wide(), tmp_path / "vblora")
    torch.manual_seed(5)
    lora = PeftModel.from_pretrained(Wide(), tmp_path / "lora")
    assert_close(same_base(x), lora(x), relative=1e-4)


@pytest.mark.parametrize("balance", ["none", "norms", "svd"])
def test_a_rank_above_the_size_of_a_layer(balance, tmp_path):
    """Singular vectors are fewer then; the others keep components that add nothing."""
    model = random_lora(tmp_path / "lora", r=150, target_modules=["up"])
    count = 150 * (128 + 512) // 128
    result = compress_lora(
        tmp_path / "lora", count, 128, 1, tmp_path / "out", balance=balance, rounds=1, steps=0
    )
    assert result.config.r == 150
    stock = PeftModel.from_pretrained(Wide(), tmp_path / "out")
    assert relative_error(updates(stock, ["up"]), updates(model, ["up"])) < 1e-5


@pytest.mark.parametrize("kind", ["opt", "gpt2"])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_a_model_s_adapter_with_biases_compresses(kind, tmp_path):
    """From a PeftModel, Conv1D layers too, and what else was trained comes along."""
    case = CASES[kind]
    targets = case.config["target_modules"]
    lora = peft.get_peft_model(
        case.base(), LoraConfig(r=2, target_modules=targets, bias="lora_only")
    )
    generator = torch.Generator().manual_seed(2)
    for parameter in lora.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) / 4
    result = compress_lora(lora, 200, 4, 3, tmp_path, rounds=5, steps=20)
    assert result.config.bias == "vblora_only"
    assert result.config.fan_in_fan_out == (kind == "gpt2")
    assert result.overall.update < 0.1
    loaded = lab.from_pretrained(case.base(), tmp_path, is_trainable=True).eval()
    assert_close(case.output(loaded), case.output(lora), relative=0.1)
    case.output(loaded.train()).mean().backward()  # and training can go on


def test_a_module_that_training_never_reached(tmp_path):
    model = random_lora(tmp_path / "lora")
    with torch.no_grad():
        model.base_model.model.across.lora_B["default"].weight.zero_()
    result = compress_lora(model, 48, 16, 2, rounds=3, steps=10)
    assert result.errors["across"].update == float("inf")
    assert result.overall.update < 1
    assert "inf" in str(result)
    assert all(tensor.isfinite().all() for tensor in result.tensors.values())


def test_what_can_t_be_compressed_is_told(opt_case, tmp_path):
    def refused(error, match, source, *sizes, **options):
        with pytest.raises(error, match=match):
            compress_lora(source, *sizes, path=tmp_path / "out", **options)

    random_lora(tmp_path / "lora")
    refused(TargetError, r"vector_length=24 .*the nearest is 16", tmp_path / "lora", 8, 24, 2)
    refused(ConfigError, "topk=9", tmp_path / "lora", 8, 16, 9)
    refused(ConfigError, "num_vectors=0", tmp_path / "lora", 0, 16, 1)
    refused(ConfigError, "balance='qr'.*'svd'", tmp_path / "lora", 8, 16, 2, balance="qr")
    refused(ConfigError, "rounds=0", tmp_path / "lora", 8, 16, 2, rounds=0)
    refused(ConfigError, "seed=9223372036854775808", tmp_path / "lora", 8, 16, 2, seed=2**63)
    refused(CheckpointError, "no folder", tmp_path / "nowhere", 8, 16, 2)

    def of_peft(**changes):
        config = LoraConfig(**{"target_modules": ["fc1"], "r": 2, **changes})
        return peft.get_peft_model(opt_case.base(), config)

    refused(CheckpointError, "isn't trained", of_peft(), 8, 4, 2)
    refused(CheckpointError, "use_dora=True: DoRA", of_peft(use_dora=True), 8, 4, 2)
    refused(CheckpointError, "lora_bias=True", of_peft(lora_bias=True), 8, 4, 2)
    refused(CheckpointError, "init_lora_weights='pissa'", of_peft(init_lora_weights="pissa"), 8, 4)
    embedding = of_peft(target_modules=["embed_tokens"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT stores the embedding too
        refused(CheckpointError, "lora_embedding_A", embedding, 8, 4, 2)
    convolution = nn.Sequential(nn.Conv2d(4, 4, 3))
    convolution = peft.get_peft_model(convolution, LoraConfig(target_modules=["0"]))
    refused(CheckpointError, "no LoRA of a linear layer", convolution, 8, 4, 2)
    refused(CheckpointError, "no LoRA adapter, but one of .*VBLORA", trained(opt_case), 8, 4, 2)
    assert not (tmp_path / "out").exists()


def test_compressing_on_the_command_line(tmp_path, capsys):
    random_lora(tmp_path / "lora")
    arguments = ["compress-lora", str(tmp_path / "lora"), str(tmp_path / "out")]
    options = ["--num-vectors", "16", "--vector-length", "16", "--topk", "2", "--only-topk"]
    assert cli.main([*arguments, *options]) == 0
    printed = capsys.readouterr().out
    assert "error of the updates" in printed
    PeftModel.from_pretrained(Wide(), tmp_path / "out")
    assert cli.main([*arguments, *options[:3], "24"]) == 2
    assert "vector_length=24" in capsys.readouterr().err


def test_a_full_disk_is_told_in_one_line(tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    random_lora(tmp_path / "lora")
    monkeypatch.setattr("vblora_lab.convert.places.save_file", full)
    options = ["--num-vectors", "4", "--vector-length", "64"]
    assert cli.main(["compress-lora", str(tmp_path / "lora"), str(tmp_path / "out"), *options]) == 2
    assert capsys.readouterr().err == "vblora-lab: [Errno 28] No space left on device\n"
    assert not (tmp_path / "out").exists()


# --- a bank that is stored elsewhere, and many adapters


@pytest.fixture
def shared(opt_case, tmp_path):
    """A folder with an adapter that has the bank, and two that need it."""
    model = trained(opt_case)
    for name in ("one", "two"):
        lab.add_adapter(model, name, VBLoRAConfig(**opt_case.config))
    scramble(model)
    model.save_pretrained(tmp_path / "adapters")
    return model, tmp_path / "adapters"


def test_an_adapter_without_its_bank_is_exported_with_the_one_that_is_given(
    opt_case, shared, tmp_path, capsys
):
    model, folder = shared
    model.set_adapter("one")
    expected = opt_case.output(model)
    bank = load_file(folder / WEIGHTS)[formats.BANK_KEY]
    for given in (folder, bank):
        export_lora(folder / "one", tmp_path / "lora", bank=given)
        assert_close(opt_case.output(as_lora(opt_case, tmp_path / "lora")), expected)
    files = str(folder / "one"), str(tmp_path / "by_command")
    assert cli.main(["export-lora", *files, "--bank", str(folder)]) == 0
    assert_close(opt_case.output(as_lora(opt_case, tmp_path / "by_command")), expected)
    assert cli.main(["export-lora", *files]) == 2
    assert "was stored without its bank" in capsys.readouterr().err
    assert cli.main(["export-lora", *files, "--workers", "2"]) == 2
    assert "--workers: is for many adapters" in capsys.readouterr().err


def test_a_bank_that_cannot_be_meant_is_refused_before_anything_is_written(shared, tmp_path):
    model, folder = shared
    bank = load_file(folder / WEIGHTS)[formats.BANK_KEY]

    def refused(error, message, source, bank):
        with pytest.raises(error, match=message):
            export_lora(source, tmp_path / "lora", bank=bank)
        assert not (tmp_path / "lora").exists()

    refused(CheckpointError, r"bank: is another one than .*needed", folder / "one", bank + 1)
    refused(CheckpointError, r"without its bank .*Give bank=", folder / "one", None)
    refused(CheckpointError, "has no bank", folder / "one", folder / "two")
    refused(ConfigError, "has a bank of its own; leave bank= out", folder, folder)
    refused(ConfigError, "a model has the bank", model, bank)


def test_many_are_exported_and_later_only_those_that_changed(opt_case, shared, tmp_path, capsys):
    model, folder = shared
    out = tmp_path / "lora"
    (folder / "notes").mkdir()
    first = export_loras(folder, out, bank=folder)
    assert first.written == ["one", "two"] and not first.kept and not first.failed
    for name in ("one", "two"):
        model.set_adapter(name)
        assert_close(opt_case.output(as_lora(opt_case, out / name)), opt_case.output(model))
    stamp = (out / "one" / WEIGHTS).stat().st_mtime_ns
    (out / "two" / WEIGHTS).write_bytes((out / "two" / WEIGHTS).read_bytes()[:50])
    arguments = ["export-lora", str(folder), str(out), "--all", "--workers", "1"]
    assert cli.main(arguments) == 1
    said = capsys.readouterr().out
    assert "1 adapter there before" in said and "two: " in said and "Give bank=" in said
    assert cli.main([*arguments, "--bank", str(folder)]) == 0
    assert "1 adapter written as LoRA\n1 adapter there before" in capsys.readouterr().out
    assert (out / "one" / WEIGHTS).stat().st_mtime_ns == stamp
    assert_close(opt_case.output(as_lora(opt_case, out / "two")), opt_case.output(model))
    with pytest.raises(CheckpointError, match=r"no folder in .* is an adapter"):
        export_loras(out / "one", tmp_path / "none")
