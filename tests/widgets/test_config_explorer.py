"""What ConfigExplorer makes of a form: config, plan, code, and what goes to the page."""

import base64
import copy
import dataclasses
import json
import warnings

import ipywidgets
import peft
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from scripted import small_opt
from torch import nn
from transformers import GPT2Config, LlamaConfig, OPTConfig

from vblora_lab import PRESETS, VBLoRAConfig, get_peft_model, plan
from vblora_lab.bases import Base
from vblora_lab.errors import BaseModelError, ConfigError
from vblora_lab.widgets import ConfigExplorer
from vblora_lab.widgets.config_explorer.view import FIELDS

OPT_125M = OPTConfig()
LLAMA_70B = LlamaConfig(
    hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
    num_key_value_heads=8,
)  # fmt: skip


@pytest.fixture
def explorer():
    return ConfigExplorer(OPT_125M, PRESETS["basic"].config())


def fill(explorer, **fields):
    """What the browser does when a person changes the form."""
    explorer.fields = {**explorer.fields, **fields}


def run(code):
    namespace = {}
    exec(code, namespace)
    return namespace["config"]


def test_there_is_a_control_for_every_field_of_the_config():
    assert len(FIELDS) == 16  # the method's 15, and PEFT's task_type
    assert set(FIELDS) - {"task_type"} == set(VBLoRAConfig.__annotations__)


def test_config_plan_and_code_start_as_given():
    config = VBLoRAConfig(r=2, vector_length=128, target_modules=["fc1"], bias="all")
    explorer = ConfigExplorer(OPT_125M, config)
    assert explorer.config == config
    assert explorer.plan == plan(ConfigExplorer(OPT_125M)._model, config)
    assert run(explorer.code) == config


def test_a_form_becomes_config_plan_and_view(explorer):
    seen = []
    explorer.observe(lambda change: seen.append(change["name"]), ["config", "plan"])
    fill(explorer, r=8, num_vectors=512, vector_length=128, topk=4, vblora_dropout=0.1)
    config = explorer.config
    assert (config.r, config.num_vectors, config.vector_length, config.topk) == (8, 512, 128, 4)
    assert config.target_modules == {"q_proj", "v_proj"}
    assert explorer.plan == plan(explorer._model, config)
    assert set(seen) == {"config", "plan"}
    numbers = {name: number for name, number, _ in explorer.view["facts"]}
    assert numbers["trained parameters"] == f"{explorer.plan.trained_parameters:,}"
    assert numbers["sub-vectors"] == f"{explorer.plan.sub_vectors:,}"
    values = [bar["value"] for bar in explorer.view["stored"]]
    assert values == [
        explorer.plan.full_bytes,
        explorer.plan.topk_bytes,
        explorer.plan.float16_bytes,
        explorer.plan.int8_bytes,
        explorer.plan.lora_bytes,
        explorer.plan.memory.weights,
    ]
    assert explorer.view["cuts"][0]["tiles_A"] == (8, 6)


def test_a_config_set_in_python_fills_the_form(explorer):
    explorer.config = PRESETS["regex"].config(r=3)
    assert explorer.fields["r"] == 3
    assert explorer.fields["target_modules"] == PRESETS["regex"].fields["target_modules"]
    assert explorer.plan.r == 3
    explorer.config = peft.VBLoRAConfig(r=5, target_modules=["fc2"])
    assert isinstance(explorer.config, VBLoRAConfig)
    assert (explorer.fields["r"], explorer.fields["target_modules"]) == (5, ["fc2"])


@pytest.mark.parametrize("name", PRESETS)
def test_the_code_makes_the_same_state(explorer, name):
    explorer.config = PRESETS[name].config()
    again = run(explorer.code)
    assert again == explorer.config
    assert ConfigExplorer(OPT_125M, again).fields == explorer.fields


def test_the_code_holds_for_names_and_expressions_that_need_quoting(explorer):
    for wanted in (
        ["a\"b'c\\", "ü\n"],
        r"(.*\"q'\")|.*q_proj",
        ".*q_proj\\\\",
        ["n" * 70, "q_proj"],
    ):
        config = VBLoRAConfig(target_modules=wanted, init_logits_std=0.30000000000000004)
        explorer.config = config
        assert run(explorer.code) == config


def test_the_form_as_it_is_goes_through_json(explorer):
    for preset in PRESETS.values():
        explorer.config = preset.config()
        config = explorer.config
        fill(explorer, r=7)
        explorer.fields = json.loads(json.dumps({**explorer.fields, "r": config.r}))
        assert explorer.config == config


# ---- what can't be meant, or doesn't fit -----------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "field", "better"),
    [
        ({"topk": 300}, "topk", 256),
        ({"r": 0}, "r", 1),
        ({"r": 2.6}, "r", 3),
        ({"init_logits_std": -0.5}, "init_logits_std", 0.0),
        ({"vblora_dropout": 1.5}, "vblora_dropout", None),
        ({"target_modules": []}, "target_modules", "all-linear"),
        ({"target_modules": "(q_proj"}, "target_modules", None),
        ({"bias": "Nonee"}, "bias", "none"),
    ],
)
def test_what_cannot_be_meant_is_said_and_the_last_config_stays(explorer, fields, field, better):
    before, code, drawn = explorer.config, explorer.code, explorer.view["rows"]
    fill(explorer, **fields)
    error = explorer.view["error"]
    assert (error["field"], error["value"]) == (field, better)
    with pytest.raises(ConfigError) as raised:
        dataclasses.replace(before, **fields)
    assert error["message"] == str(raised.value)
    assert (explorer.config, explorer.code, explorer.view["rows"]) == (before, code, drawn)
    if better is not None:  # the button
        fill(explorer, **{field: better})
        assert getattr(explorer.config, field) == better
        assert explorer.view["error"] is None


def test_going_back_to_the_last_config_takes_the_error_away(explorer):
    before = explorer.config
    fill(explorer, topk=300)
    fill(explorer, topk=before.topk)
    assert explorer.view["error"] is None
    assert explorer.config == before


def test_the_suggestion_for_a_problem_settles_it(explorer):
    fill(explorer, vector_length=250)
    (problem,) = explorer.view["problems"]
    assert not explorer.plan.fits
    assert problem["message"] == explorer.plan.problems[0].message
    assert problem["label"] == "vector_length = 256"
    fill(explorer, **{problem["field"]: problem["value"]})
    assert explorer.plan.fits

    fill(explorer, target_modules=["q_prj"])
    (problem,) = explorer.view["problems"]
    assert problem["label"] == 'target_modules = ["q_proj"]'
    fill(explorer, **{problem["field"]: problem["value"]})
    assert explorer.plan.fits


def test_what_would_not_learn_is_a_caution_and_no_warning(explorer):
    fill(explorer, save_only_topk_weights=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fill(explorer, topk=1, init_vector_bank_bound=0.0)
    assert explorer.config.topk == 1 and explorer.plan.fits
    cautions = {item["field"]: item["value"] for item in explorer.view["cautions"]}
    assert cautions == {"topk": 2, "init_vector_bank_bound": 0.02}


def test_a_config_that_is_refused_changes_nothing(explorer):
    before = (explorer.config, explorer.plan, explorer.code, explorer.fields, explorer.view)
    broken = VBLoRAConfig(target_modules=["fc1"])
    broken.topk = 1000
    for config in (broken, peft.LoraConfig()):
        with pytest.raises(ConfigError):
            explorer.config = config
        now = (explorer.config, explorer.plan, explorer.code, explorer.fields, explorer.view)
        assert now == before


# ---- models ----------------------------------------------------------------------------------


def test_models_of_every_kind():
    model = small_opt()
    config = VBLoRAConfig(vector_length=16, num_vectors=8, target_modules=["fc1"])
    expected = plan(model, config)
    state = copy.deepcopy(model.state_dict())
    for given in (model, Base(model, None), get_peft_model(copy.deepcopy(model), config)):
        explorer = ConfigExplorer(given, config)
        assert explorer.plan.targets == expected.targets and explorer.plan.fits
        assert explorer.catalogue["linear"] == ConfigExplorer(model).catalogue["linear"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])
    assert ConfigExplorer("mini-opt").catalogue["model"] == "OPTForCausalLM"
    assert ConfigExplorer(GPT2Config(n_layer=2)).plan.targets[0].kind == "Conv1D"


def test_a_model_config_is_built_without_weights():
    explorer = ConfigExplorer(LLAMA_70B, PRESETS["all-linear"].config())
    assert {p.device.type for p in explorer._model.parameters()} == {"meta"}
    assert explorer.plan.base_parameters == 68_976_648_192
    assert len(explorer.plan.targets) == 560
    fill(explorer, r=8)
    assert explorer.plan.r == 8
    assert len(json.dumps(explorer.view)) < 10_000  # of rows for all layers together


def test_a_model_that_is_none_is_refused():
    with pytest.raises(TypeError, match="of type int, but a ConfigExplorer takes a torch model"):
        ConfigExplorer(3)
    with pytest.raises(BaseModelError):
        ConfigExplorer("mini-otp")


def test_a_model_without_linear_layers_or_numbers_is_shown():
    explorer = ConfigExplorer(nn.Sequential(nn.Embedding(4, 4)), VBLoRAConfig())
    assert not explorer.plan.fits
    assert explorer.view["problems"][0]["field"] == "target_modules"
    assert explorer.figure().axes


# ---- the module rows -------------------------------------------------------------------------


def marks(explorer):
    return {row["name"]: row["marks"] for row in explorer.view["rows"] if row["name"]}


def test_rows_mark_every_module_of_every_layer_as_the_plan_does(explorer):
    explorer.config = PRESETS["first-layers"].config(modules_to_save=["lm_head"])
    found = marks(explorer)
    for name in (target.name for target in explorer.plan.targets):
        parts = name.split(".")
        number = next(int(part) for part in parts if part.isdigit())
        assert found[name.replace(f".{number}.", ".#.")][number] == "A"
    assert sum(row.count("A") for row in found.values()) == len(explorer.plan.targets)
    assert sum(row.count("-") for row in found.values()) == len(explorer.plan.skipped) - 1
    assert found["lm_head"] == "S"
    assert found["model.decoder.layers.#.self_attn.q_proj"] == "AAAAA" + 7 * "-"
    notes = {row["name"]: row["note"] for row in explorer.view["rows"]}
    assert notes["model.decoder.layers.#.self_attn.q_proj"] == (
        "adapted: 0-4; other layer (layers_to_transform): 5-11"
    )


def test_rows_come_in_the_order_of_the_model_whatever_is_adapted(explorer):
    before = [row["name"] for row in explorer.view["rows"]]
    fill(explorer, target_modules=["fc2", "out_proj"])
    assert [row["name"] for row in explorer.view["rows"]] == before
    order = {name: place for place, (name, _) in enumerate(explorer._model.named_modules())}
    places = [order[name.replace("#", "0")] for name in before if name]
    assert places == sorted(places)


def test_rows_mark_what_does_not_fit_and_what_is_not_there():
    class Block(nn.Module):
        def __init__(self, gated):
            super().__init__()
            self.up = nn.Linear(8, 12)
            if gated:
                self.gate = nn.Linear(8, 16)
            self.experts = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

    model = nn.Module()
    model.layers = nn.ModuleList([Block(True), Block(False)])
    explorer = ConfigExplorer(
        model, VBLoRAConfig(target_modules=["up", "gate", "experts.0"], vector_length=8)
    )
    assert marks(explorer) == {
        "layers.#.up": "XX",
        "layers.#.gate": "A ",
        "layers.#.experts.*": "~~",
    }


def test_the_live_count_is_of_the_expression_alone(explorer):
    fill(explorer, target_modules=r".*\.(q|v)_proj", exclude_modules=r".*\.0\..*")
    assert explorer.view["matches"] == {"target_modules": 24, "exclude_modules": 10}
    assert explorer.view["adapted"] == 22
    fill(explorer, target_modules=["q_proj"], exclude_modules=None)
    assert explorer.view["matches"] == {"target_modules": None, "exclude_modules": None}


# ---- messages and pictures -------------------------------------------------------------------


@pytest.mark.skipif(ipywidgets.__version__ < "8", reason="7 sends nothing without a kernel")
def test_a_change_is_one_message_that_leaves_the_form_alone(explorer, monkeypatch):
    sent = []
    monkeypatch.setattr(
        ConfigExplorer, "_send", lambda _self, message, buffers=None: sent.append(message["state"])
    )
    explorer.set_state({"fields": {**explorer.fields, "r": 16}})  # as the comm does
    states = [state for state in sent if set(state) != {"fields"}]  # the echo of ipywidgets 8
    assert [set(state) - {"fields"} for state in states] == [{"code", "view"}]
    assert "r=16" in states[0]["code"]
    assert explorer.config.r == 16


def test_without_a_kernel_there_is_a_picture(explorer):
    formatter = DisplayFormatter()  # of IPython, for the last line of a cell
    data, metadata = formatter.format(explorer)
    assert "application/vnd.jupyter.widget-view+json" in data
    png = base64.b64decode(data["image/png"])
    assert png.startswith(b"\x89PNG") and len(png) < 400_000
    assert metadata["image/png"]["width"] == 960


def test_the_figure_says_what_the_plan_says(explorer):
    explorer.config = PRESETS["bias-and-head"].config()
    figure = explorer.figure()
    assert isinstance(figure, Figure)
    bars, stored, modules = figure.axes
    assert bars.get_xscale() == stored.get_xscale() == "log"
    (dots,) = (drawn for drawn in bars.collections if isinstance(drawn, PathCollection))
    assert dots.get_offsets()[:, 0].tolist() == [
        explorer.plan.trained_parameters,
        explorer.plan.lora_parameters,
        explorer.plan.base_parameters,
    ]
    assert all(axes.get_xlabel() for axes in figure.axes)
    labels = [label.get_text().strip() for label in modules.get_yticklabels()]
    assert "q_proj (768 → 768)" in labels and "lm_head" in labels


def test_names_of_modules_are_text(explorer):
    model = small_opt()
    hostile = "<img src=x onerror=alert(1)>"
    model.add_module(hostile, nn.Linear(32, 32))
    shown = ConfigExplorer(model, VBLoRAConfig(target_modules=[hostile], vector_length=16))
    assert shown.plan.fits and hostile in shown.catalogue["linear"]
    assert run(shown.code) == shown.config
    assert "<img" not in shown.plan._repr_html_()
