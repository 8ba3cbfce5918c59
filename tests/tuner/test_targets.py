"""Which modules a config adapts: as in PEFT where it fits, explained where it doesn't."""

import copy
import warnings

import peft
import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForTokenClassification,
    OPTConfig,
    OPTForSequenceClassification,
)

import vblora_lab.tuner.peft as lab
from tests.cases import CASES, SMALL, assert_unchanged, state_of
from vblora_lab.errors import ConfigError, TargetError
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.modules import linear_modules
from vblora_lab.tuner.problems import vector_lengths
from vblora_lab.tuner.targets import match_targets, resolve


@pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:Model has `tie_word_embeddings")
@pytest.mark.parametrize("kind", ["opt", "llama", "gpt2"])
@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": None},
        {"target_modules": "all-linear"},
        {"target_modules": "ALL-linear", "exclude_modules": r".*\.1\..*"},
        {"target_modules": r".*\.0\..*(q_proj|fc2|c_attn|up_proj)"},
        {"target_modules": ["__LINEAR__"]},
        {"target_modules": ["__LINEAR__"], "layers_to_transform": 1},
        {"target_modules": ["__LINEAR__"], "layers_to_transform": [0], "layers_pattern": "layers"},
        {"target_modules": ["__LINEAR__"], "exclude_modules": ["__LINEAR_OF_LAYER_1__"]},
        {"target_modules": "all-linear", "modules_to_save": ["lm_head"]},
    ],
    ids=str,
)
def test_the_same_modules_as_peft_chooses(kind, fields):
    case = CASES[kind]
    linear = [name for name in linear_modules(case.base()) if name != "lm_head"]
    endings = sorted({name.rpartition(".")[2] for name in linear})[:2]
    layer_1 = [name for name in linear if ".1." in name and name.endswith(endings[0])]
    words = {"__LINEAR__": endings, "__LINEAR_OF_LAYER_1__": layer_1}
    fields = {
        name: [w for v in value for w in words.get(v, [v])]
        if isinstance(value, list) and name != "layers_to_transform"
        else value
        for name, value in fields.items()
    }
    if fields.get("layers_pattern") and kind == "gpt2":
        fields["layers_pattern"] = "h"
    ours = lab.get_peft_model(case.base(), VBLoRAConfig(**{**SMALL, **fields}))
    stock = peft.get_peft_model(case.base(), peft.VBLoRAConfig(**{**SMALL, **fields}))
    assert ours.base_model.targeted_module_names == stock.base_model.targeted_module_names
    assert list(ours.state_dict()) == list(stock.state_dict())
    assert ours.peft_config["default"].to_dict() == {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in stock.peft_config["default"].to_dict().items()
    }


LAYERS = {"target_modules": ["q_proj"]}
FULL = "model.decoder.layers.0.self_attn.q_proj"


def misfits():
    yield {"target_modules": ["q_porj"]}, ["'q_porj'", "'q_proj'"]
    yield {"target_modules": ["q_proj", "value"]}, ["'value'", "fc1, fc2"]
    yield {"target_modules": "q_proj"}, ["'q_proj'", "list"]
    yield {"target_modules": ["self_attn"]}, ["OPTAttention", "k_proj, v_proj, q_proj"]
    yield {"target_modules": ["embed_tokens"]}, ["Embedding"]
    yield {"target_modules": ["q_proj"], "exclude_modules": ["q_prj"]}, ["exclude", "'q_proj'"]
    yield {"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]}, ["exclude_modules"]
    yield {"target_modules": ["q_proj"], "layers_to_transform": [7]}, ["layers_to_transform=[7]"]
    yield {"target_modules": ["o_proj"]}, ["'o_proj'", "OPTForCausalLM", "mean 'out_proj'"]
    yield {"target_modules": "fc1"}, ["whole name", "list. Did you mean ['fc1']"]
    yield LAYERS | {"layers_to_transform": [0, 99]}, ["no layer 99; it has 2 layers, 0 to 1"]
    yield LAYERS | {"layers_to_transform": 2}, ["layers_to_transform=2", "no layer 2;"]
    yield (
        LAYERS | {"layers_to_transform": [1, 2, 3], "layers_pattern": "layers"},
        ["no layer 2, 3; it has 2 layers, 0 to 1"],
    )
    yield (
        LAYERS | {"layers_to_transform": [1], "layers_pattern": "layer"},
        ["layers_pattern: 'layer' names no list of layers", "mean 'layers'"],
    )
    yield (
        LAYERS | {"layers_to_transform": [1], "layers_pattern": ["layers", "blocks"]},
        ["layers_pattern: 'blocks'", "mean 'layers'"],
    )
    yield (
        {"target_modules": [FULL, "fc1"], "layers_to_transform": [1]},
        ["layers_to_transform=[1]", "no effect", FULL],
    )
    yield {"modules_to_save": ["proj"]}, ["'proj'", "q_proj", "target_modules adapts"]
    yield {"vector_length": 6}, ["vector_length=6", "fc1 (16 -> 32)", "1, 2, 4, 8, 16", "is 4"]
    yield {"vector_length": 32}, ["the nearest is 16"]
    yield {"modules_to_save": ["lm_haed"]}, ["'lm_haed'", "'lm_head'"]
    yield {"modules_to_save": ["layers"]}, ["ModuleList"]


@pytest.mark.parametrize(("fields", "parts"), list(misfits()), ids=str)
@pytest.mark.parametrize("adapted", [False, True], ids=["base", "adapted"])
def test_a_misfit_is_explained_and_nothing_changes(opt_case, fields, parts, adapted):
    base = opt_case.base()
    model = lab.get_peft_model(base, VBLoRAConfig(**opt_case.config)) if adapted else base
    config = VBLoRAConfig(**{**opt_case.config, **fields})
    told, before = copy.deepcopy(config), state_of(model)
    with pytest.raises(TargetError) as error:
        if adapted:
            model.add_adapter("other", config)
        else:
            lab.get_peft_model(model, config)
    for part in parts:
        assert part in str(error.value)
    assert_unchanged(model, before)
    assert config == told
    if adapted:  # the same model takes a right config afterwards
        assert list(model.peft_config) == ["default"]
        model.add_adapter("other", VBLoRAConfig(**opt_case.config))
        assert list(model.peft_config) == ["default", "other"]
    else:
        assert not hasattr(model, "peft_config")
        again = lab.get_peft_model(model, VBLoRAConfig(**opt_case.config))
        torch.testing.assert_close(
            opt_case.output(again), opt_case.output(opt_case.ours()), rtol=1, atol=1
        )


def test_layers_are_counted_where_the_pattern_says():
    """Two lists of layers of different length: without a pattern, PEFT takes the first number."""
    base = nn.ModuleDict(
        {
            side: nn.ModuleDict({name: nn.ModuleList([nn.ModuleDict({"fc": nn.Linear(8, 8)})] * 1)})
            for side, name in (("encoder", "blocks"), ("decoder", "layers"))
        }
    )
    base["decoder"]["layers"].append(nn.ModuleDict({"fc": nn.Linear(8, 8)}))
    fields = {**SMALL, "target_modules": ["fc"], "layers_to_transform": [1]}
    for pattern, expected in ((None, 2), ("layers", 2), ("blocks", 1), (["blocks", "layers"], 2)):
        config = VBLoRAConfig(**fields, layers_pattern=pattern)
        if expected == 1:
            with pytest.raises(TargetError, match="no layer 1; it has one, layer 0"):
                resolve(base, config)
        else:
            assert list(resolve(base, config)[1]) == ["decoder.layers.1.fc"]


def test_a_list_of_layers_at_the_root_is_only_found_by_its_pattern():
    """PEFT's expression wants a name before the list's: 'h.0' counts, given layers_pattern='h'."""
    base = CASES["gpt2"].base().transformer
    fields = {**SMALL, "target_modules": ["c_attn"], "layers_to_transform": [1]}
    with pytest.raises(TargetError, match="give layers_pattern, such as 'h'"):
        lab.get_peft_model(base, VBLoRAConfig(**fields))
    assert list(resolve(base, VBLoRAConfig(**fields, layers_pattern="h"))[1]) == ["h.1.attn.c_attn"]


@pytest.mark.parametrize(
    ("fields", "adapted"),
    [
        ({"layers_to_transform": [0, 99]}, [0]),
        ({"layers_to_transform": []}, [0, 1]),
        ({"target_modules": r".*q_proj", "layers_to_transform": [1]}, [0, 1]),
        ({"target_modules": [FULL], "layers_to_transform": [1]}, [0]),
        ({"layers_to_transform": [1], "layers_pattern": ["blocks", "layers"]}, [1]),
    ],
    ids=str,
)
def test_peft_still_adapts_other_layers_than_asked_and_says_nothing(opt_case, fields, adapted):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        config = peft.VBLoRAConfig(**{**SMALL, "target_modules": ["q_proj"], **fields})
        model = peft.get_peft_model(opt_case.base(), config)
    names = model.base_model.targeted_module_names
    assert names == [f"model.decoder.layers.{n}.self_attn.q_proj" for n in adapted]
    with pytest.raises((ConfigError, TargetError)):
        lab.get_peft_model(opt_case.base(), config)


@pytest.mark.parametrize(
    ("fields", "warning"),
    [
        ({"target_modules": ["q_proj"], "layers_to_transform": [0, 99]}, "no layer 99"),
        ({"target_modules": [FULL], "layers_to_transform": [1]}, "no effect"),
        ({"target_modules": "all-linear", "layers_to_transform": [1]}, "no effect"),
        ({"target_modules": ".*q_proj", "layers_to_transform": [1]}, "no effect"),
        ({"target_modules": ["q_proj"], "layers_to_transform": []}, None),
    ],
    ids=str,
)
def test_what_peft_stored_with_layers_in_vain_loads_as_peft_meant_it(
    opt_case, fields, warning, tmp_path
):
    config = peft.VBLoRAConfig(**{**SMALL, **fields})
    stock = peft.get_peft_model(opt_case.base(), config).eval()
    stock.save_pretrained(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        ours = lab.from_pretrained(opt_case.base(), tmp_path)
    assert warning is None or any(warning in str(w.message) for w in caught)
    torch.testing.assert_close(opt_case.output(ours), opt_case.output(stock))


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_the_inside_of_a_module_to_save_is_not_adapted(opt_case):
    """A second adapter sees the first one's wrapper around the head, not two more linear layers."""
    fields = {**SMALL, "target_modules": "all-linear"}
    model = opt_case.ours(**fields, modules_to_save=["lm_head"])
    model.add_adapter("other", VBLoRAConfig(**fields))
    assert len(model.peft_config["other"].target_modules) == 2 * 6
    with pytest.raises(TargetError, match="ModulesToSaveWrapper"):
        model.add_adapter("third", VBLoRAConfig(**{**fields, "target_modules": ["lm_head"]}))


@pytest.mark.parametrize("task", ["TOKEN_CLS", "QUESTION_ANS"])
def test_heads_of_other_tasks_are_trained_whole(task):
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    kind = {"TOKEN_CLS": BertForTokenClassification, "QUESTION_ANS": BertForQuestionAnswering}[task]
    base = kind(BertConfig(**sizes, num_attention_heads=2, max_position_embeddings=32))
    config = VBLoRAConfig(**SMALL, task_type=task)
    model = lab.get_peft_model(base, config)
    assert config.modules_to_save is None
    heads = [n for n, p in model.named_parameters() if p.requires_grad and "vblora_" not in n]
    assert heads and all("modules_to_save.default" in name for name in heads)


def test_a_field_set_wrongly_after_construction_is_found(opt_case):
    config = VBLoRAConfig(**opt_case.config)
    config.topk = 11
    base = opt_case.base()
    before = state_of(base)
    with pytest.raises(ConfigError, match="topk=11"):
        lab.get_peft_model(base, config)
    assert_unchanged(base, before)


@pytest.mark.parametrize("name", ["", "a.b", "keys", "training", 3, "__base__"])
def test_an_adapter_name_that_cannot_be_a_key(opt_case, name):
    base = opt_case.base()
    before = state_of(base)
    with pytest.raises(ConfigError, match="adapter_name"):
        lab.get_peft_model(base, VBLoRAConfig(**opt_case.config), adapter_name=name)
    assert_unchanged(base, before)


def test_an_adapter_named_like_a_module_would_lose_that_module_on_saving():
    """PEFT takes keys with another adapter's name in them for that adapter's."""
    case = CASES["linear"]
    model = case.ours()
    before = state_of(model)
    with pytest.raises(ConfigError, match=r"'second'.*module"):
        model.add_adapter("second", VBLoRAConfig(**case.config))
    assert_unchanged(model, before)


def test_an_unknown_architecture_needs_target_modules():
    base = CASES["linear"].base()
    with pytest.raises(TargetError, match=r"first, second.*'all-linear'"):
        lab.get_peft_model(base, VBLoRAConfig(**SMALL))


def test_a_failure_half_way_is_taken_back(opt_case, monkeypatch):
    """Whatever breaks in the middle of an injection, such as memory, leaves the model as it was."""
    from vblora_lab.tuner.layer import VBLoRALayer

    update_layer, calls = VBLoRALayer.update_layer, []

    def breaks_at_the_third(self, *args, **kwargs):
        calls.append(self)
        if len(calls) == 3:
            raise MemoryError
        return update_layer(self, *args, **kwargs)

    monkeypatch.setattr(VBLoRALayer, "update_layer", breaks_at_the_third)
    base = opt_case.base()
    before = state_of(base)
    with pytest.raises(MemoryError):
        lab.get_peft_model(base, VBLoRAConfig(**opt_case.config))
    assert_unchanged(base, before)

    calls[:] = [None] * 3
    model = lab.get_peft_model(base, VBLoRAConfig(**opt_case.config))
    before = state_of(model)
    calls.clear()
    with pytest.raises(MemoryError):
        model.add_adapter("other", VBLoRAConfig(**opt_case.config))
    assert_unchanged(model, before)
    assert list(model.peft_config) == ["default"]


def test_a_task_that_the_base_cannot_do_is_taken_back():
    base = CASES["linear"].base()
    before = state_of(base)
    config = VBLoRAConfig(**CASES["linear"].config, task_type="CAUSAL_LM")
    with pytest.raises(AttributeError):  # PEFT's own: this module can't generate
        lab.get_peft_model(base, config)
    assert_unchanged(base, before)


@pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT")
def test_adapting_twice_is_refused(opt_case):
    model = opt_case.ours()
    before = state_of(model)
    for given in (model, model.get_base_model()):
        with pytest.raises(TargetError, match="add_adapter"):
            lab.get_peft_model(given, VBLoRAConfig(**opt_case.config))
    assert_unchanged(model, before)


@pytest.mark.filterwarnings(
    "ignore:You are trying to modify", "ignore:Already found a `peft_config"
)
def test_a_layer_with_another_method_is_refused(opt_case):
    base = opt_case.base()
    lora = peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj"]))
    before = state_of(lora)
    with pytest.raises(TargetError, match="another PEFT adapter"):
        lab.get_peft_model(lora.get_base_model(), VBLoRAConfig(**opt_case.config))
    assert_unchanged(lora, before)


def test_multihead_attention_would_never_call_the_adapter():
    base = nn.TransformerEncoderLayer(8, 2, 16)
    with pytest.raises(TargetError, match=r"out_proj \(nn.MultiheadAttention"):
        lab.get_peft_model(base, VBLoRAConfig(**SMALL, target_modules=["out_proj"]))


def test_a_classifier_head_is_trained_whole():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32, "vocab_size": 40}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32}
    base = OPTForSequenceClassification(OPTConfig(**sizes, num_labels=3, pad_token_id=1))
    model = lab.get_peft_model(base, VBLoRAConfig(**SMALL, task_type="SEQ_CLS"))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert any(name.endswith("score.modules_to_save.default.weight") for name in trained)
    assert all("vblora_" in name or "modules_to_save" in name for name in trained)


def test_resolve_touches_nothing_and_reads_the_layer_kind():
    case = CASES["gpt2"]
    base, config = case.base(), VBLoRAConfig(**case.config)
    before = state_of(base)
    resolved, targets = resolve(base, config)
    assert_unchanged(base, before)
    assert config.fan_in_fan_out is False
    assert resolved.fan_in_fan_out is True
    assert len(targets) == 2 * 3
    assert vector_lengths(targets.values()) == [1, 2, 4, 8, 16]


@pytest.mark.parametrize("model", ["facebook/opt-125m", None])
def test_only_a_module_can_be_adapted(model):
    with pytest.raises(TargetError, match=r"must be a torch\.nn\.Module"):
        lab.get_peft_model(model, VBLoRAConfig())
    with pytest.raises(TargetError, match=r"must be a torch\.nn\.Module"):
        lab.from_pretrained(model, "folder")


def test_a_problem_brings_a_value_that_settles_it():
    base = CASES["opt"].base()

    def settled(**fields):
        config = VBLoRAConfig(**{**SMALL, **fields})
        (problem,) = match_targets(base, config).problems
        assert problem.suggestion is not None
        setattr(config, problem.field, problem.suggestion)
        return problem, match_targets(base, config).problems

    assert settled(target_modules=["q_prj", "v_proj"])[1] == ()
    assert settled(target_modules="q_proj")[1] == ()
    assert settled(target_modules=["q_proj"], exclude_modules=["v_prj"])[1] == ()
    elsewhere = ["fc1", "model.decoder.layers.1.fc2"]
    problem, left = settled(target_modules=elsewhere, layers_to_transform=[0])
    assert problem.suggestion == ["fc1"] and left == ()


@pytest.mark.parametrize(
    ("wanted", "suggestion"), [(["lm_head", "layers"], ["lm_head"]), (["layers"], None)]
)
def test_what_is_left_of_modules_to_save_without_a_container(wanted, suggestion):
    config = VBLoRAConfig(**SMALL, modules_to_save=wanted)
    problems = match_targets(CASES["opt"].base(), config).problems
    (container,) = (problem for problem in problems if "ModuleList" in problem.message)
    assert container.suggestion == suggestion
    left = match_targets(CASES["opt"].base(), VBLoRAConfig(**SMALL, modules_to_save=suggestion))
    assert left.problems == ()
