"""Files of adapters, changed at random: exactly what the file says, or nothing."""

import json
import tempfile
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import vblora_lab.tuner.peft as lab
from tests.cases import CASES, assert_unchanged, scramble, state_of
from tests.fuzz.amount import cases
from vblora_lab.errors import VBLoRAError
from vblora_lab.tuner.config import VBLoRAConfig

CASE = CASES["linear"]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
FOREIGN = [
    "base_model.model.first.weight",
    "base_model.model.first.base_layer.weight",
    "base_model.model.second.base_layer.bias",
    "base_model.model.second.bias",
    "base_model.model.first.vblora_logits_C",
    "base_model.model.first.vblora_logits_A.default",
    "first.weight",
    "",
]
DTYPES = [
    torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int64, torch.bool,
    torch.float8_e4m3fn, torch.complex64,
]  # fmt: skip


@st.composite
def changes(draw):
    """What is done to one tensor of a file, or beside it."""
    kind = draw(st.sampled_from("drop rename dtype shape number foreign double".split()))
    return kind, draw(st.integers(0, 10)), draw(st.integers(0, 1000)), draw(st.floats(width=16))


def changed(tensors, change):
    kind, which, where, number = change
    key = sorted(tensors)[which % len(tensors)]
    tensor = tensors[key]
    if kind == "drop":
        del tensors[key]
    elif kind == "rename":
        tensors[FOREIGN[where % len(FOREIGN)]] = tensors.pop(key)
    elif kind == "foreign":
        tensors[FOREIGN[where % len(FOREIGN)]] = torch.full((12, 8), number)
    elif kind == "double":
        tensors[key + ".default"] = tensor.clone()
    elif kind == "dtype":
        tensors[key] = tensor.to(DTYPES[where % len(DTYPES)])
    elif kind == "shape":
        shapes = [tensor[:-1], tensor[None], tensor.flatten(), tensor.T]
        tensors[key] = shapes[where % 4].contiguous().clone()
    elif tensor.numel() and tensor.is_floating_point() and tensor.itemsize > 1:
        tensor.view(-1)[where % tensor.numel()] = number
    elif tensor.numel() and tensor.dtype != torch.bool and tensor.itemsize > 1:
        tensor.view(-1)[where % tensor.numel()] = int(where) - 500
    return tensors or {"empty": torch.zeros(1)}


def formula(config, tensors):
    """The model's weights by the paper's equations, in float64, from the numbers of a file."""
    base = CASE.base().double()
    bank = tensors["base_model.vblora_vector_bank"].double()
    for name in ("first", "second"):
        layer, A_and_B = getattr(base, name), []
        for matrix in "AB":
            stem = f"base_model.model.{name}.vblora_logits_{matrix}"
            if config["save_only_topk_weights"]:
                indices = tensors[stem + "_topk_indices"].long()
                weights = tensors[stem + "_topk_weights"].double()
                weights = torch.cat([weights, 1 - weights.sum(-1, keepdim=True)], -1)
            else:
                logits, indices = tensors[stem].double().topk(config["topk"], -1)
                weights = logits.softmax(-1)
            A_and_B.append(torch.einsum("xyk,xykl->xyl", weights, bank[indices]))
        A = A_and_B[0].flatten(1)
        B = A_and_B[1].transpose(1, 2).flatten(0, 1)
        layer.weight.data += B @ A
        bias = tensors.get(f"base_model.model.{name}.base_layer.bias")
        if config["bias"] != "none":
            layer.bias.data = bias.double()
    return base(CASE.inputs().double())


def stored(folder, fields):
    model = CASE.ours(**fields)
    scramble(model)
    model.save_pretrained(folder)
    return load_file(folder / WEIGHTS), json.loads((folder / CONFIG).read_text())


def loads_or_is_refused(folder, formula_of=formula):
    """The invariant of this file."""
    base = CASE.base()
    before = state_of(base)
    try:
        model = lab.from_pretrained(base, folder)
    except VBLoRAError:
        assert_unchanged(base, before)
        return
    config = json.loads((folder / CONFIG).read_text())
    expected = formula_of(config, load_file(folder / WEIGHTS))
    output = CASE.output(model).double()
    if expected.norm() > 1e30:
        return  # the numbers of the file are finite, and what float32 makes of them isn't
    assert (output - expected).norm() <= 1e-3 * expected.norm()
    if config["bias"] == "none":
        assert torch.equal(CASE.output(model.unload()), CASE.output(CASE.base()))


fields = st.fixed_dictionaries(
    {
        "save_only_topk_weights": st.booleans(),
        "bias": st.sampled_from(["none", "all", "vblora_only"]),
        "topk": st.sampled_from([1, 2, 3]),
    }
)


@cases(60, share=0.2)
@given(fields, st.lists(changes(), max_size=3))
def test_tensors(fields, several):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tensors, _ = stored(folder, fields)
        for change in several:
            tensors = changed(tensors, change)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        loads_or_is_refused(folder)


@cases(40, share=0.1)
@given(fields, st.integers(0), st.binary(min_size=0, max_size=8), st.booleans())
def test_bytes(fields, place, new, cut):
    """A file with other bytes somewhere: in its length, its header or its numbers."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stored(folder, fields)
        data = (folder / WEIGHTS).read_bytes()
        place %= len(data)
        end = b"" if cut else data[place + len(new) :]
        (folder / WEIGHTS).write_bytes(data[:place] + new + end)
        loads_or_is_refused(folder)


NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([10**400, -(10**30), 2**31]))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
EXPRESSIONS = st.one_of(
    st.text("()[]{}*+?|.\\^$ab1", max_size=30),
    st.sampled_from([r"(([a-z0-9_]+)\.?)+#", "(" * 2000, "a{99999999999}", "first|second"]),
)


@cases(60, share=0.12)
@given(
    fields,
    st.dictionaries(
        st.sampled_from(sorted(VBLoRAConfig.__dataclass_fields__)),
        st.one_of(VALUES, EXPRESSIONS, st.lists(EXPRESSIONS, max_size=2)),
        max_size=3,
    ),
)
def test_configs(fields, other):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _, config = stored(folder, fields)
        (folder / CONFIG).write_text(json.dumps({**config, **other}))
        loads_or_is_refused(folder)


@cases(20, share=0.03)
@given(st.text(max_size=200))
def test_a_config_that_is_any_text(text):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stored(folder, {})
        (folder / CONFIG).write_text(text, encoding="utf-8", errors="surrogatepass")
        loads_or_is_refused(folder)


def test_deep_json_is_refused(tmp_path):
    stored(tmp_path, {})
    for text in ("[" * 100_000, '{"a":' * 100_000):
        (tmp_path / CONFIG).write_text(text)
        loads_or_is_refused(tmp_path)
