"""What the controls offer fits the model: PEFT's own tuner accepts every vector length offered."""

import html

import pytest
from peft import VBLoRAConfig as PeftVBLoRAConfig
from peft import get_peft_model as peft_get_peft_model
from scripted import small_opt
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from vblora_lab.bases import load_base
from vblora_lab.errors import ConfigError
from vblora_lab.planning.plan import plan
from vblora_lab.planning.presets import PRESETS
from vblora_lab.train import LearningRates
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.targets import resolve
from vblora_lab.widgets.controls import WITH_CONTROL, Controls


def controls_for(model, **config):
    return Controls(
        model, VBLoRAConfig(**config), steps=45, batch_size=6, learning_rates=LearningRates(),
        seed=0,
    )  # fmt: skip


def test_modules_and_presets_of_opt(opt):
    controls = controls_for(opt)
    names = ("fc1", "fc2", "k_proj", "out_proj", "q_proj", "v_proj")
    assert sorted(controls.targets.options) == sorted(names)
    assert controls.preset.options == ("query and value", "attention", "all linear", "own choice")
    chosen = {}
    for preset in controls.preset.options[:3]:
        controls.preset.value = preset
        chosen[preset] = sorted(controls.targets.value)
    assert chosen == {
        "query and value": ["q_proj", "v_proj"],
        "attention": ["k_proj", "out_proj", "q_proj", "v_proj"],
        "all linear": sorted(names),
    }


def test_a_model_with_conv1d_and_no_output_layer_among_the_modules():
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=16, n_layer=1, n_head=2, n_positions=8))
    controls = controls_for(gpt2)
    assert controls.targets.options == ("c_attn", "c_proj", "c_fc")
    assert controls.vector_length.options == (4, 8, 16)


@pytest.mark.parametrize("targets", [["q_proj"], ["fc1"], ["q_proj", "fc2"]])
def test_every_length_offered_is_one_that_peft_accepts_and_no_other_is(opt, targets):
    offered = controls_for(opt, target_modules=targets).vector_length.options
    assert offered
    for length in range(4, 65):
        config = PeftVBLoRAConfig(r=1, num_vectors=4, vector_length=length, target_modules=targets)
        if length in offered:
            peft_get_peft_model(small_opt(), config)
        else:
            with pytest.raises(ValueError, match="divisible"):
                peft_get_peft_model(small_opt(), config)


@pytest.fixture(scope="module")
def mini():
    return load_base("mini-opt", device="cpu").model


def test_every_preset_that_fits_can_be_started_from(mini):
    controls = controls_for(mini, r=5, num_vectors=90, target_modules=["fc1"], vblora_dropout=0.5)
    given = controls.config()
    assert controls.start.options == ("as given", *(p.title for p in PRESETS.values()))
    for preset in PRESETS.values():
        controls.start.value = preset.title
        config, expected = controls.config(), preset.config()
        assert resolve(mini, config)[1].keys() == resolve(mini, expected)[1].keys()
        for name in set(VBLoRAConfig.__annotations__) - {"target_modules"}:
            assert getattr(config, name) == getattr(expected, name)
            if name in preset.fields and name not in WITH_CONTROL:
                told = f"{name}={getattr(expected, name)!r}"
                assert html.escape(told) in controls.also.value
        assert plan(mini, config).stored_bytes == plan(mini, expected).stored_bytes
    controls.r.value = 3  # a knob changes that field alone
    assert controls.config().r == 3
    assert controls.config().vblora_dropout == PRESETS["trainer"].config().vblora_dropout
    controls.start.value = "as given"
    assert controls.config() == given
    assert "vblora_dropout=0.5" in controls.also.value


def test_presets_that_do_not_fit_are_not_offered(opt, mini):
    assert controls_for(opt).start.options == ("as given",)  # 256 and 128 don't divide 32
    mini_of_four = OPTForCausalLM(OPTConfig(**{**mini.config.to_dict(), "num_hidden_layers": 4}))
    offered = controls_for(mini_of_four).start.options
    left_out = {p.title for p in PRESETS.values()} - set(offered)
    assert left_out == {PRESETS["first-layers"].title}


def test_without_modules_the_lengths_stay_and_the_config_is_refused(opt):
    controls = controls_for(opt, target_modules=["q_proj"])
    offered = controls.vector_length.options
    controls.targets.value = ()
    assert controls.vector_length.options == offered
    with pytest.raises(ConfigError, match="target_modules"):
        controls.config()


def test_a_learning_rate_off_the_slider_is_refused(opt):
    with pytest.raises(ConfigError, match="bank=0"):
        Controls(opt, VBLoRAConfig(), steps=1, batch_size=1, seed=0,
                 learning_rates=LearningRates(bank=0))  # fmt: skip


def test_values_between_the_usual_ones_are_kept(opt):
    controls = controls_for(opt, num_vectors=90, topk=9, r=20, target_modules="all-linear")
    config = controls.config()
    assert (config.num_vectors, config.topk, config.r) == (90, 9, 20)
    assert len(config.target_modules) == 6
    assert (controls.steps.value, controls.batch_size.value) == (45, 6)


def test_every_control_of_a_field_explains_itself(opt):
    controls = controls_for(opt)
    for name in ("r", "num_vectors", "vector_length", "topk"):
        control = getattr(controls, name)
        told = getattr(control, "tooltip", None) or getattr(control, "description_tooltip", None)
        assert told == VBLoRAConfig.__dataclass_fields__[name].metadata["help"]
