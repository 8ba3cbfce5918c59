"""Each preset works as it is written: on OPT-125m by plan, and in training on a narrower one."""

import dataclasses
import json
import warnings

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import OPTConfig, OPTForCausalLM, Trainer, TrainingArguments

import vblora_lab
import vblora_lab.tuner.peft as lab
from tests.cases import scramble
from vblora_lab.errors import ConfigError
from vblora_lab.planning.plan import plan
from vblora_lab.planning.presets import PRESETS, find_preset, list_presets
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.targets import resolve

pytestmark = pytest.mark.filterwarnings(
    "ignore:Model has `tie_word_embeddings", "ignore:Could not find a config file"
)
VOCABULARY = 40


def opt(**changes):
    """Like OPT-125m with its 12 layers, but a third as wide, with few words and short texts."""
    torch.manual_seed(0)
    small = {"vocab_size": VOCABULARY, "max_position_embeddings": 32, "ffn_dim": 512}
    small |= {"hidden_size": 256, "word_embed_proj_dim": 256, "num_attention_heads": 4}
    return OPTForCausalLM(OPTConfig(**{**small, **changes})).eval()


def tokens(rows=2):
    return torch.randint(VOCABULARY, (rows, 6), generator=torch.Generator().manual_seed(1))


def test_nine_presets_that_nobody_can_change():
    assert len(PRESETS) == 9
    assert PRESETS is vblora_lab.PRESETS
    with pytest.raises(TypeError):
        PRESETS["basic"] = None
    for name, preset in PRESETS.items():
        assert preset.title and preset.description.endswith(".")
        config = preset.config()
        before = config.to_dict()
        assert type(config) is VBLoRAConfig
        assert preset.config() is not config
        with pytest.raises(dataclasses.FrozenInstanceError):
            preset.title = "mine"
        with pytest.raises(TypeError):
            preset.fields["r"] = 1
        for value in vars(config).values():
            for change in ("clear", "pop"):
                if isinstance(value, (list, set)) and value:
                    getattr(value, change)()
        assert preset.config().to_dict() == before
        preset.training_arguments().clear()
        assert find_preset(name) is preset
        assert preset.config(r=3).r == 3
    assert PRESETS["trainer"].training_arguments()
    assert all(name in list_presets() for name in PRESETS)
    with pytest.raises(ConfigError, match="mean 'all-linear'"):
        find_preset("all_linear")


def expected_targets(name):
    """By hand: which of the linear layers of twelve layers are meant."""
    layers = range(5) if name == "first-layers" else range(12)
    attention = ["self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj"]
    modules = attention[1:3]
    if name in ("all-linear", "trainer"):
        modules = [*attention, "fc1", "fc2"]
    return [f"model.decoder.layers.{layer}.{module}" for layer in layers for module in modules]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fits_opt_125m(name):
    with torch.device("meta"):
        model = OPTForCausalLM(OPTConfig())  # the defaults of OPTConfig are OPT-125m's
    planned = plan(model, PRESETS[name].config())
    assert planned.fits
    assert [target.name for target in planned.targets] == expected_targets(name)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_trains_and_its_file_loads_in_peft(name, tmp_path):
    preset = PRESETS[name]
    config = preset.config()
    model = lab.get_peft_model(opt(), config)
    assert config.to_dict() == preset.config().to_dict()
    assert model.base_model.targeted_module_names == expected_targets(name)
    assert isinstance(model, peft.PeftModelForCausalLM)
    planned = plan(opt(), config)

    model.train()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert planned.trained_parameters == sum(p.numel() for p in trained.values())
    scramble(model)
    before = {n: p.detach().clone() for n, p in trained.items()}
    model(tokens(), labels=tokens()).loss.backward()
    torch.optim.AdamW(trained.values(), lr=0.1).step()
    assert not [n for n, p in trained.items() if torch.equal(p, before[n])]

    model.eval().save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert planned.stored_bytes == sum(tensor.nbytes for tensor in stored.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stock = peft.PeftModel.from_pretrained(opt(), tmp_path).eval()
    with torch.no_grad():
        ours, theirs = model(tokens()).logits, stock(tokens()).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)  # summed in another order


def test_fields_of_presets_do_what_their_titles_say():
    """What the targets don't show: sizes, start values, dropout, formats."""
    start = lab.get_peft_model(opt(num_hidden_layers=5), PRESETS["custom-init"].config())
    bank = start.base_model.vblora_vector_bank["default"]
    logits = torch.cat([p.flatten() for n, p in start.named_parameters() if "logits" in n])
    assert 0.049 < bank.abs().max() <= 0.05
    assert abs(logits.std() - 0.5) < 0.01
    larger = PRESETS["larger-bank"].config()
    assert (larger.r, larger.num_vectors, larger.vector_length) == (8, 512, 128)
    small = plan(opt(), PRESETS["topk-file"].config())
    assert small.stored_bytes == small.topk_bytes < plan(opt(), larger).stored_bytes / 4
    assert plan(opt(), PRESETS["bias-and-head"].config()).other_parameters > 0


def test_a_name_that_all_linear_leaves_out_anyway_may_be_excluded():
    base = opt(num_hidden_layers=1)
    with_, without = (
        PRESETS["all-linear"].config(),
        PRESETS["all-linear"].config(exclude_modules=None),
    )
    assert list(resolve(base, with_)[1]) == list(resolve(base, without)[1])


@pytest.mark.filterwarnings("ignore:.*pin_memory.*")
def test_the_trainer_preset_runs_on_the_trainer_and_learns(tmp_path):
    preset = PRESETS["trainer"]
    model = lab.get_peft_model(opt(num_hidden_layers=2, dropout=0.0), preset.config())
    rows = [{"input_ids": row, "labels": row} for row in tokens(1).repeat(64, 1)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, disable_tqdm=True, **preset.training_arguments()
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    assert trainer.state.global_step == 3 * 64 // 8
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[-1] < 0.8 * losses[0]
    checkpoint = tmp_path / f"checkpoint-{trainer.state.global_step}"
    config = json.loads((checkpoint / "adapter_config.json").read_text())
    assert config["peft_type"] == "VBLORA"
    stored = load_file(checkpoint / "adapter_model.safetensors")
    bank = model.base_model.vblora_vector_bank["default"]
    assert torch.equal(stored["base_model.vblora_vector_bank"], bank)
