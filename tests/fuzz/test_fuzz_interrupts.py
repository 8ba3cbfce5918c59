"""Interrupts at every line of this package: the model is as it was, or as it should be.

A trace function raises `KeyboardInterrupt` at the n-th line that the package runs in a call. Ctrl-C
comes between any two lines too, but for one place: Python looks for signals after a call, so the
first one of a `finally` clause is always made.
"""

import ast
import functools
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.vblora import VBLoRAModel as StockModel

import vblora_lab
import vblora_lab.tuner.peft as lab
from tests.cases import CASES, assert_close, scramble
from tests.fuzz.amount import cases
from vblora_lab.admixture import low_rank_matrices
from vblora_lab.tuner.adapted import adapted_layers
from vblora_lab.tuner.config import VBLoRAConfig

CASE = CASES["opt"]
PACKAGE = str(Path(vblora_lab.__file__).parent)


@functools.cache
def spared(path):
    """The lines of a file on which the first statement of a `finally` clause begins."""
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    clauses = [node.finalbody for node in ast.walk(tree) if isinstance(node, ast.Try)]
    return {clause[0].lineno for clause in clauses if clause}


class Stop:
    """Counts the lines that the package runs, and interrupts at one of them."""

    def __init__(self, at=None):
        self.at, self.lines = at, 0

    def __call__(self, frame, event, _):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line" and frame.f_lineno not in spared(frame.f_code.co_filename):
            self.lines += 1
            if self.lines == self.at:
                raise KeyboardInterrupt
        return self


def run(call, at=None):
    """Call, interrupted at a line if given; returns how many lines it took."""
    stop, before = Stop(at), sys.gettrace()
    sys.settrace(stop)
    try:
        call()
    except KeyboardInterrupt:
        assert at is not None
    finally:
        sys.settrace(before)
    return stop.lines


def new_model():
    model = CASE.ours(vblora_dropout=0.0)
    scramble(model)
    return model


def expected_output(model):
    """By the paper's equations: what the base model gives with each weight changed."""
    base = CASE.base()
    for name, layer in adapted_layers(model).items():
        bank, topk = layer.bank("default"), layer.topk["default"]
        A, B = low_rank_matrices(*layer.logits("default"), bank, topk)
        base.get_submodule(name).weight.data += (B @ A).detach()
    return CASE.output(base).detach()


def tokens():
    return CASE.inputs()


CALLS = {
    "forward": lambda model: model(tokens()),
    "forward without gradients": torch.no_grad()(lambda model: model(tokens())),
    "inference mode": torch.inference_mode()(lambda model: model(tokens())),
    "generate": lambda model: model.generate(tokens()[:, :3], max_new_tokens=3, do_sample=False),
    "backward": lambda model: model(tokens(), labels=tokens()).loss.backward(),
    "merge and unmerge": lambda model: (model.merge_adapter(), model.unmerge_adapter()),
    "disabled": lambda model: _disabled(model),
    "saved": lambda model: _saved(model),
}


def _saved(model):
    with tempfile.TemporaryDirectory() as folder, lab.using():
        model.save_pretrained(folder)


def _disabled(model):
    with model.disable_adapter():
        model(tokens())


@functools.cache
def lines_of(call):
    """How many lines of the package a call on a new model runs."""
    model = new_model()
    return run(lambda: call(model))


@pytest.mark.parametrize("name", CALLS)
@cases(12, share=0.02)
@given(st.integers(0, 10**6))
def test_a_call_cut_short_leaves_the_model_right(name, place):
    model = new_model()
    run(lambda: CALLS[name](model), at=1 + place % lines_of(CALLS[name]))
    if name == "disabled":
        model.base_model.enable_adapter_layers()
    with torch.no_grad():
        if any(layer.merged for layer in adapted_layers(model).values()):
            assert all(layer.merged for layer in adapted_layers(model).values())
            model.base_model.unmerge_adapter()
        for other_numbers in (1, 3):
            model.base_model.vblora_vector_bank["default"].data.mul_(other_numbers)
            assert_close(CASE.output(model), expected_output(model), 1e-4)
    assert not model.peft_config["default"].inference_mode
    model.zero_grad()
    model(tokens(), labels=tokens()).loss.backward()
    fresh = new_model()
    fresh.base_model.vblora_vector_bank["default"].data.mul_(3)
    fresh(tokens(), labels=tokens()).loss.backward()
    for ours, theirs in zip(model.parameters(), fresh.parameters(), strict=True):
        assert ours.requires_grad == theirs.requires_grad
        if theirs.grad is not None:
            assert_close(ours.grad, theirs.grad, 5e-3)  # differences of numbers that are close


@functools.cache
def stored():
    folder = tempfile.mkdtemp(prefix="vblora-lab-fuzz-")
    new_model().save_pretrained(folder)
    return folder


def _add(model):
    model.add_adapter("second", VBLoRAConfig(**CASE.config))


CHANGES = {
    "add_adapter": _add,
    "load another": lambda model: lab.from_pretrained(model, stored(), "second"),
    "load into it": lambda model: _load(model),
}


def _load(model):
    with lab.using():
        model.load_adapter(stored(), "default")


@pytest.mark.parametrize("name", CHANGES)
@cases(12, share=0.02)
@given(st.integers(0, 10**6))
def test_a_change_cut_short_is_whole_or_was_none(name, place):
    model = new_model()
    output = CASE.output(model)
    run(lambda: CHANGES[name](model), at=1 + place % lines_of(CHANGES[name]))
    with lab.using():  # leaves PEFT as it was, even if the one before was kept from it
        pass
    assert PEFT_TYPE_TO_TUNER_MAPPING["VBLORA"] is StockModel
    assert_close(CASE.output(model.eval()), output, 1e-5)
    if "second" not in model.peft_config:
        assert not adapted_layers(model, "second")
        assert not any("second" in key for key, _ in model.named_parameters())
        CHANGES["add_adapter"](model)
    assert len(adapted_layers(model, "second")) == len(adapted_layers(model))


@cases(12, share=0.03)
@given(st.integers(0, 10**6))
def test_loading_onto_a_base_is_whole_or_was_none(place):
    lines = lines_of_base()
    base = CASE.base()
    names = [name for name, _ in base.named_modules()]
    run(lambda: lab.from_pretrained(base, stored()), at=1 + place % lines)
    if [name for name, _ in base.named_modules()] != names:
        assert len([n for n, _ in base.named_modules() if n.endswith("base_layer")]) == 8
        return
    assert torch.equal(CASE.output(base), CASE.output(CASE.base()))
    assert all(p.requires_grad for p in base.parameters())
    lab.from_pretrained(base, stored())


@functools.cache
def lines_of_base():
    return run(lambda: lab.from_pretrained(CASE.base(), stored()))
