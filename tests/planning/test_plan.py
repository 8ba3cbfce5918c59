"""A plan says beforehand what the injected model, its files and its training turn out to be."""

import copy
import dataclasses
import gc
import html.parser
import json
import pickle
import time
import warnings

import peft
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from safetensors.torch import load_file
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForSequenceClassification,
    ViTConfig,
    ViTModel,
)

import vblora_lab
import vblora_lab.tuner.peft as lab
from tests.cases import CASES, SMALL, assert_unchanged, state_of
from tests.tuner.test_families import FAMILIES
from tests.tuner.test_targets import misfits
from vblora_lab.errors import ConfigError, TargetError
from vblora_lab.planning.plan import plan
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.targets import resolve

pytestmark = pytest.mark.filterwarnings(
    "ignore:Model has `tie_word_embeddings",
    "ignore:Could not find a config file",
    "ignore:Setting `save_embedding_layers`",
)
WEIGHTS = "adapter_model.safetensors"
FILE_BYTES = {
    "plain": {},
    "half bank": {"num_vectors": 300, "topk": 2},
    "own biases": {"bias": "vblora_only"},
    "all biases": {"bias": "all"},
    "head": {"modules_to_save": ["lm_head"]},
    "both": {"bias": "all", "modules_to_save": ["lm_head", "__NORM__"]},
    "some layers": {"layers_to_transform": [1]},
    "adapted head": {"target_modules": ["lm_head"]},
    "adapted head by an expression": {"target_modules": r".*lm_head", "bias": "all"},
}
NORMS = {"opt": "decoder.final_layer_norm", "llama": "model.norm", "gpt2": "ln_f"}
NAMES = {
    "opt": ["q_proj", "v_proj", "fc1"],
    "llama": ["q_proj", "v_proj", "up_proj"],
    "gpt2": ["c_attn", "c_fc"],
}


def fields_for(kind, variant):
    fields = {**SMALL, "target_modules": NAMES[kind], **copy.deepcopy(FILE_BYTES[variant])}
    saved = fields.get("modules_to_save")
    if saved:
        fields["modules_to_save"] = [NORMS[kind] if m == "__NORM__" else m for m in saved]
    return fields


def trainable(model, part=""):
    named = model.named_parameters()
    return sum(p.numel() for name, p in named if p.requires_grad and part in name)


def tensor_bytes(model, folder):
    model.save_pretrained(folder)
    return sum(tensor.nbytes for tensor in load_file(folder / WEIGHTS).values())


@pytest.mark.parametrize("variant", FILE_BYTES)
@pytest.mark.parametrize("kind", NAMES)
def test_every_number_is_the_injected_model_s(kind, variant, tmp_path):
    case, fields = CASES[kind], fields_for(kind, variant)
    base, config = case.base(), VBLoRAConfig(**fields)
    before, given = state_of(base), copy.deepcopy(config)
    planned = plan(base, config)
    assert_unchanged(base, before)
    assert config == given
    assert planned.fits and planned.problems == ()

    model = lab.get_peft_model(base, config)
    assert [t.name for t in planned.targets] == model.base_model.targeted_module_names
    for target in planned.targets:
        layer = model.base_model.model.get_submodule(target.name)
        logits = layer.vblora_logits_A["default"], layer.vblora_logits_B["default"]
        assert (target.tiles_A, target.tiles_B) == tuple(tuple(x.shape[:2]) for x in logits)
        assert target.logits == sum(x.numel() for x in logits)
        assert (target.in_features, target.out_features) == (layer.in_features, layer.out_features)
        assert target.kind == type(layer.base_layer).__name__
    assert planned.sub_vectors * config.num_vectors == planned.logits_parameters

    assert planned.trained_parameters == trainable(model)
    assert planned.bank_parameters == trainable(model, "vector_bank")
    assert planned.logits_parameters == trainable(model, "logits")
    assert planned.base_parameters == sum(p.numel() for p in case.base().parameters())

    assert planned.full_bytes == planned.stored_bytes == model.stored_bytes()
    for only_topk, expected in ((False, planned.full_bytes), (True, planned.topk_bytes)):
        fields["save_only_topk_weights"] = only_topk
        ours = lab.get_peft_model(case.base(), VBLoRAConfig(**fields))
        assert expected == tensor_bytes(ours, tmp_path / f"ours {only_topk}")
        assert expected == plan(case.base(), ours.peft_config["default"]).stored_bytes
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fan_in_fan_out
            stock = peft.get_peft_model(case.base(), peft.VBLoRAConfig(**fields))
        assert expected == tensor_bytes(stock, tmp_path / f"stock {only_topk}")


@pytest.mark.parametrize("variant", FILE_BYTES)
@pytest.mark.parametrize("kind", NAMES)
def test_lora_s_numbers_are_those_of_peft_s_lora(kind, variant, tmp_path):
    fields = fields_for(kind, variant)
    planned = plan(CASES[kind].base(), VBLoRAConfig(**fields))
    for own in ("num_vectors", "vector_length", "topk", "init_vector_bank_bound"):
        del fields[own]
    fields["bias"] = {"vblora_only": "lora_only"}.get(
        fields.get("bias"), fields.get("bias", "none")
    )
    fields["fan_in_fan_out"] = kind == "gpt2"
    lora = peft.get_peft_model(CASES[kind].base(), peft.LoraConfig(**fields))
    assert planned.lora_parameters == trainable(lora)
    assert planned.lora_bytes == tensor_bytes(lora, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("variant", ["plain", "both"])
def test_memory_is_what_training_comes_to_hold(variant, dtype):
    case, config = CASES["llama"], VBLoRAConfig(**fields_for("llama", variant))
    base = case.base().to(dtype)
    planned = plan(base, config)
    held = {id(t): t.nbytes for t in (*base.parameters(), *base.buffers())}
    assert planned.memory.weights == sum(held.values())
    model = lab.get_peft_model(base, config)
    now = {id(t): t.nbytes for t in (*model.parameters(), *model.buffers())}
    assert planned.memory.weights + planned.memory.adapter == sum(now.values())

    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    case.output(model).float().square().mean().backward()
    optimizer.step()
    assert planned.memory.gradients == sum(p.grad.nbytes for p in trained)
    states = [optimizer.state[p][name] for p in trained for name in ("exp_avg", "exp_avg_sq")]
    assert planned.memory.optimizer == sum(state.nbytes for state in states)
    parts = dataclasses.astuple(planned.memory)
    assert parts[4:] == (None, None)  # activations, which nobody asked for
    assert planned.memory.total == sum(parts[:4])


def bert(kind):
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    return kind(BertConfig(**sizes, num_attention_heads=2, max_position_embeddings=32))


def opt_classifier():
    sizes = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32, "vocab_size": 40}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32}
    return OPTForSequenceClassification(OPTConfig(**sizes, num_labels=3, pad_token_id=1))


@pytest.mark.parametrize(
    ("make", "task"),
    [
        (lambda: bert(BertForSequenceClassification), "SEQ_CLS"),
        (lambda: bert(BertForTokenClassification), "TOKEN_CLS"),
        (lambda: bert(BertForQuestionAnswering), "QUESTION_ANS"),
        (opt_classifier, "SEQ_CLS"),
    ],
)
@pytest.mark.parametrize("targets", [None, "all-linear"])
@pytest.mark.parametrize("bias", ["none", "all"])
def test_the_head_that_a_task_trains_is_counted(make, task, targets, bias, tmp_path):
    config = VBLoRAConfig(**SMALL, task_type=task, target_modules=targets, bias=bias)
    planned = plan(make(), config)
    model = lab.get_peft_model(make(), config)
    assert planned.other_parameters > 0
    assert planned.trained_parameters == trainable(model)
    assert planned.full_bytes == tensor_bytes(model, tmp_path)
    assert "trained whole (modules_to_save)" in {s.reason for s in planned.skipped}


# --- activations


def allocated(model, tokens, **labels):
    """Bytes on the CPU that a pass takes and doesn't give back, as PyTorch's profiler sees it."""
    gc.collect()
    gc.disable()  # or it may give back what an earlier model took
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            loss = model(input_ids=tokens, **labels)[0]
    finally:
        gc.enable()
    assert loss.requires_grad
    return sum(event.self_cpu_memory_usage for event in seen.key_averages())


@pytest.mark.parametrize("name", FAMILIES)
def test_activations_are_what_a_pass_comes_to_hold(name):
    family = FAMILIES[name]
    config = VBLoRAConfig(**SMALL, task_type=family.task, vblora_dropout=0.1)
    base = family.make()
    before = state_of(base)
    planned = {length: plan(base, config, batch_size=3, length=length) for length in (9, 24)}
    assert_unchanged(base, before)
    without = plan(base, config).memory.total
    predicts_tokens = base.get_output_embeddings() is not None
    for length, result in planned.items():
        model = lab.get_peft_model(family.make(), config).train()
        tokens = torch.randint(2, 40, (3, length))
        held = allocated(model, tokens, **({"labels": tokens} if predicts_tokens else {}))
        assert result.memory.activations == pytest.approx(held, rel=0.02)
        assert result.memory.total == without + result.memory.activations
        assert f"activations of 3 x {length} tokens" in str(result)
        assert "without activations" not in result._repr_html_()


def test_activations_of_a_large_model_without_its_memory():
    """Two of the 80 layers: their weights alone would be 15 GiB."""
    model = llama_70b(num_hidden_layers=2)
    config = VBLoRAConfig(target_modules="all-linear")
    one, two = (plan(model, config, batch_size=n, length=512).memory for n in (1, 2))
    # The adapter's own matrices are kept once, whatever the batch.
    assert one.activations < two.activations < 2 * one.activations
    assert one.activations > 2 * 512 * 8192 * 4 * 2  # more than the input of each block alone
    assert all(parameter.is_meta for parameter in model.parameters())


def test_activations_that_cannot_be_counted(opt_case):
    base, config = opt_case.base(), VBLoRAConfig(**opt_case.config)
    for given, message in (
        ({"batch_size": 2}, "length isn't"),
        ({"length": 2}, "batch_size isn't"),
    ):
        with pytest.raises(ConfigError, match=message):
            plan(base, config, **given)
    with pytest.raises(ConfigError, match="batch_size=0"):
        plan(base, config, batch_size=0, length=4)
    with pytest.raises(TargetError, match="no model of transformers"):
        plan(CASES["linear"].base(), VBLoRAConfig(**CASES["linear"].config), batch_size=2, length=4)
    images = ViTModel(ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(TargetError, match=r"2 x 4 tokens can't be counted: \w+Error"):
        plan(images, VBLoRAConfig(**SMALL, target_modules="all-linear"), batch_size=2, length=4)
    wrong = VBLoRAConfig(**{**opt_case.config, "vector_length": 5})
    planned = plan(base, wrong, batch_size=2, length=4)
    assert planned.memory.activations is None and not planned.fits


# --- models that have no memory


def llama_70b(**changes):
    sizes = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80}
    sizes |= {"num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256}
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**{**sizes, **changes}))


class NoNewTensors(TorchDispatchMode):
    """Fails at the first tensor that is made, copied or computed, on any device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        assert not isinstance(result, torch.Tensor), f"{function} was called"
        return result


@pytest.mark.parametrize(
    "targets", [None, "all-linear", ["q_proj", "down_proj"], r".*\.mlp\..*_proj"]
)
def test_70_billion_parameters_take_no_memory_and_little_time(targets):
    model = llama_70b()
    config = VBLoRAConfig(target_modules=targets, bias="all", modules_to_save=["lm_head"])
    with NoNewTensors():
        start = time.perf_counter()
        planned = plan(model, config)
        text = str(planned) + planned._repr_html_()
        assert time.perf_counter() - start < 2  # 0.1 s where nothing else runs
    assert all(p.is_meta for p in model.parameters())
    assert planned.fits
    assert planned.base_parameters == 70_553_706_496
    assert planned.memory.weights > 70_553_706_496 * 4
    assert "70,553,706,496" in text
    if targets == "all-linear":
        # By hand: q and o 8192 to 8192, k and v to 1024, gate, up and down 8192 to 28672, r = 4.
        per_layer = 2 * (8192 + 8192) + 2 * (8192 + 1024) + 3 * (8192 + 28672)
        assert planned.logits_parameters == 80 * 4 * per_layer // 256 * 256
        assert planned.lora_parameters == 80 * 4 * per_layer + 8192 * 128256
        assert len(planned.targets) == 80 * 7


def test_the_meta_device_gives_the_same_plan(case):
    config = VBLoRAConfig(**case.config, bias="all")
    with torch.device("meta"):
        meta = case.make()
    assert plan(meta, config) == plan(case.base(), config)


def test_a_model_with_an_adapter_is_planned_as_its_base(opt_case):
    config = VBLoRAConfig(
        **{**SMALL, "target_modules": "all-linear", "modules_to_save": ["lm_head"]}
    )
    other = VBLoRAConfig(**{**SMALL, "target_modules": "all-linear", "r": 3, "bias": "vblora_only"})
    model = lab.get_peft_model(opt_case.base(), config)
    for given in (model, model.base_model, model.get_base_model()):
        planned = plan(given, other)
        alone = plan(opt_case.base(), other)
        for name in ("targets", "other_parameters", "full_bytes", "topk_bytes", "lora_bytes"):
            assert getattr(planned, name) == getattr(alone, name)
    model.add_adapter("other", other)
    assert model.stored_bytes("other") == planned.full_bytes


# --- what is left alone, and what doesn't fit


class WithOtherKinds(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(8, 8), "down": nn.Linear(8, 8), "norm": nn.LayerNorm(8)})
            for _ in range(2)
        )
        self.embed = nn.Embedding(4, 8)
        self.conv = nn.Conv1d(8, 8, 1)
        self.attention = nn.MultiheadAttention(8, 2)
        self.head = nn.Linear(8, 4)


def test_each_module_left_alone_is_listed_with_the_reason():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = WithOtherKinds()

    config = VBLoRAConfig(
        **SMALL,
        target_modules=["up", "down"],
        exclude_modules=["down"],
        layers_to_transform=[1],
        modules_to_save=["head"],
    )
    planned = plan(Outer(), config)
    assert [t.name for t in planned.targets] == ["model.layers.1.up"]
    assert {s.name: (s.kind, s.reason) for s in planned.skipped} == {
        "model.layers.0.up": ("Linear", "other layer (layers_to_transform)"),
        "model.layers.0.down": ("Linear", "excluded (exclude_modules)"),
        "model.layers.1.down": ("Linear", "excluded (exclude_modules)"),
        "model.embed": ("Embedding", "kind can't be adapted"),
        "model.conv": ("Conv1d", "kind can't be adapted"),
        "model.attention": ("MultiheadAttention", "kind can't be adapted"),
        "model.attention.out_proj": (
            "NonDynamicallyQuantizableLinear",
            "can't be adapted: nn.MultiheadAttention reads its weight and never calls it",
        ),
        "model.head": ("Linear", "trained whole (modules_to_save)"),
    }


def test_targets_and_what_is_left_alone_are_the_model_s_matrices(case):
    base = case.base()
    planned = plan(base, VBLoRAConfig(**{**case.config, "target_modules": "all-linear"}))
    owners = {name.rpartition(".")[0] for name, p in base.named_parameters() if p.dim() > 1}
    owners |= {"lm_head"} & {name for name, _ in base.named_modules()}  # its weight may be tied
    listed = [row.name for row in (*planned.targets, *planned.skipped)]
    assert sorted(listed) == sorted(owners)
    reasons = {s.name: s.reason for s in planned.skipped}
    assert reasons.get("lm_head", "output head") == "output head"


@pytest.mark.parametrize(("fields", "parts"), list(misfits()), ids=str)
def test_a_plan_holds_what_injection_would_raise_and_its_suggestions_settle_it(
    opt_case, fields, parts
):
    base, fields = opt_case.base(), {**opt_case.config, **fields}
    planned = plan(base, VBLoRAConfig(**fields))
    assert not planned.fits
    with pytest.raises(TargetError) as error:
        resolve(base, VBLoRAConfig(**fields))
    assert str(error.value) == " ".join(problem.message for problem in planned.problems)
    for text in (str(planned), json.dumps(json.loads(planned.to_json())["problems"])):
        assert all(problem.field in text for problem in planned.problems)

    for _ in range(3):  # one suggestion may uncover the next problem
        for problem in planned.problems:
            fields[problem.field] = problem.suggestion
        if planned.fits:
            break
        planned = plan(base, VBLoRAConfig(**fields))
    assert planned.fits, planned.problems
    lab.get_peft_model(base, VBLoRAConfig(**fields))


def test_several_problems_are_told_at_once(opt_case):
    config = VBLoRAConfig(
        **{**SMALL, "vector_length": 6},
        target_modules=["q_proj", "o_proj"],
        layers_to_transform=[0, 9],
        modules_to_save=["lm_haed"],
    )
    planned = plan(opt_case.base(), config)
    assert {p.field: p.suggestion for p in planned.problems} == {
        "target_modules": ["out_proj", "q_proj"],
        "layers_to_transform": [0],
        "modules_to_save": ["lm_head"],
        "vector_length": 4,
    }
    assert planned.vector_lengths == (1, 2, 4, 8, 16)
    assert "Did you mean 'out_proj'?" in planned.problems[0].message
    assert "OPTForCausalLM" in planned.problems[0].message
    # One target is named rightly, and can't be cut: it is listed, and counts nothing.
    assert [(t.name.rpartition(".")[2], t.tiles_A) for t in planned.targets] == [("q_proj", None)]
    assert planned.logits_parameters == 0


def test_what_cannot_be_planned_at_all(opt_case):
    with pytest.raises(TargetError, match=r"torch\.nn\.Module"):
        plan("facebook/opt-125m", VBLoRAConfig())
    with pytest.raises(ConfigError, match="LoraConfig"):
        plan(opt_case.base(), peft.LoraConfig())
    config = VBLoRAConfig(**opt_case.config)
    config.topk = 99
    with pytest.raises(ConfigError, match="topk=99"):
        plan(opt_case.base(), config)


# --- how it looks


def test_the_text_fits_a_terminal_and_groups_equal_layers(opt_case):
    config = VBLoRAConfig(**{**opt_case.config, "layers_to_transform": [1], "vector_length": 6})
    for changes in ({}, {"layers_to_transform": None}, {"vector_length": 4}):
        text = str(plan(opt_case.base(), dataclasses.replace(config, **changes)))
        assert max(map(len, text.splitlines())) <= 100
        name = "model.decoder.layers.0-1.fc1" if None in changes.values() else "layers.1.fc1"
        assert name in text
    planned = plan(opt_case.base(), VBLoRAConfig(**opt_case.config))
    assert f"{planned.full_bytes:,} bytes" in str(planned)
    assert f"{planned.lora_bytes:,} bytes" in str(planned)


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.all, self.cells = [], [], []

    def handle_starttag(self, tag, attributes):
        self.all.append(tag)
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.cells.append(data)


def test_html_is_whole_escaped_and_has_no_script():
    evil = "<script>alert(1)</script>"
    base = nn.ModuleDict({evil: nn.Linear(8, 8), "two": nn.Linear(8, 8)})
    for length in (4, 5):
        fields = {**SMALL, "vector_length": length, "target_modules": [evil]}
        planned = plan(base, VBLoRAConfig(**fields))
        tags = Tags()
        tags.feed(planned._repr_html_())
        assert not tags.open
        assert set(tags.all) <= {"div", "b", "br", "code", "table", "caption", "tr", "th", "td"}
        assert evil in tags.cells
        assert any("not named" in cell for cell in tags.cells)


def test_a_plan_is_plain_data(opt_case):
    planned = plan(opt_case.base(), VBLoRAConfig(**opt_case.config))
    with pytest.raises(dataclasses.FrozenInstanceError):
        planned.r = 3
    assert pickle.loads(pickle.dumps(planned)) == planned == copy.deepcopy(planned)
    values = json.loads(planned.to_json())
    assert values["trained_parameters"] == planned.trained_parameters
    assert values["targets"][0]["name"] == planned.targets[0].name
    assert vblora_lab.plan is plan


@pytest.mark.parametrize("exclude", [None, ["lm_head"]])
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_an_output_head_counts_where_it_is_stored(tmp_path, exclude):
    """PEFT stores the base weight of a head that is adapted by name, unless it is excluded."""
    config = VBLoRAConfig(
        **{**CASES["llama"].config, "target_modules": ["q_proj", "lm_head"]},
        exclude_modules=exclude,
    )
    planned = plan(CASES["llama"].base(), config)
    lab.get_peft_model(CASES["llama"].base(), config).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert planned.full_bytes == sum(tensor.nbytes for tensor in stored.values())
    assert any("lm_head.base_layer" in key for key in stored) == (exclude is None)


def test_a_notebook_gets_a_table_and_a_terminal_the_text():
    planned = plan(
        nn.ModuleDict({"q": nn.Linear(8, 8)}), VBLoRAConfig(**SMALL, target_modules=["q"])
    )
    shown, _ = DisplayFormatter().format(planned)
    assert shown["text/plain"] == str(planned) and "\n" in shown["text/plain"]
    assert shown["text/html"] == planned._repr_html_()
