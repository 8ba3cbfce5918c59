"""Two functions of PyTorch without documentation do what `speed.backward` builds on."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.tuner.test_whole_model import (
    STEADY_OPT,
    assert_same_gradients,
    checkpointed,
    gradients_of,
    loss_of,
    plain_gradients,
    scrambled,
)
from vblora_lab.speed.autograd import in_backward
from vblora_lab.speed.backward import BackwardPass, KeptMatrices
from vblora_lab.speed.mixing import Matrices

queue_callback = torch.autograd.Variable._execution_engine.queue_callback


class Asks(nn.Module):
    """A layer that notes, at each call, whether autograd is at work."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.answers = []

    def forward(self, x):
        self.answers.append(in_backward())
        return x * self.weight


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_in_backward_tells_a_call_from_a_recomputation(use_reentrant):
    layer = Asks()
    x = torch.ones(3, requires_grad=True)
    checkpoint(layer, x, use_reentrant=use_reentrant).sum().backward()
    assert layer.answers == [False, True]
    assert not in_backward()


class Called:
    """Counts its calls; a weak reference tells when autograd lets go of it."""

    count = 0

    def __call__(self):
        Called.count += 1


@pytest.mark.parametrize("fails", [False, True])
def test_a_callback_is_called_once_and_let_go_of_well_or_not(fails):
    Called.count, queued = 0, []

    def queue(gradient):
        called = Called()
        queued.append(weakref.ref(called))
        queue_callback(called)
        if fails:
            raise MemoryError

    x = torch.ones(3, requires_grad=True)
    y = x * 2
    y.register_hook(queue)
    if fails:
        with pytest.raises(MemoryError):
            y.sum().backward()
    else:
        y.sum().backward()
    gc.collect()
    assert Called.count == (0 if fails else 1)
    assert queued[0]() is None


def kept(a, without_grad=True):
    key = ("default", "layer")
    matrices = {key: Matrices(a * 2, a * 3)}
    return KeptMatrices(matrices, None, {key} if without_grad else set()), key


def test_nobody_else_gets_what_is_kept():
    a = torch.ones(2, 2, requires_grad=True)
    keeper, key = kept(a)
    assert keeper.get(key, None) is None  # not in a backward pass


def test_leaves_gather_gradients_and_pass_them_on_once():
    a = torch.ones(2, 2, requires_grad=True)
    backward = BackwardPass({("d", "l"): Matrices(a * 2, a * 3)})
    for _ in range(2):
        A, B_T = backward.leaf(("d", "l"))
        (A.sum() + B_T.sum()).backward()
    assert a.grad is None
    backward()
    assert torch.equal(a.grad, torch.full((2, 2), 2 * (2.0 + 3.0)))
    backward()  # nothing is left
    assert torch.equal(a.grad, torch.full((2, 2), 10.0))


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_backward_pass_that_failed_leaves_nothing_to_the_next(use_reentrant, error):
    """Both of the same loss: half of the gradients had gathered when the first one failed."""
    tokens = STEADY_OPT.inputs()
    expected = plain_gradients(scrambled().train(), tokens)
    model = checkpointed(scrambled().train(), use_reentrant)
    first, second = (loss_of(model, tokens) for _ in range(2))

    def breaks(*_):
        raise error

    # Called again in the backward pass, when those of the layer above it have had their turn.
    adapted = model.get_submodule("base_model.model.model.decoder.layers.0.self_attn.q_proj")
    handle = adapted.register_forward_hook(breaks)
    with pytest.raises(error):
        first.backward()
    handle.remove()
    model.zero_grad()
    second.backward()
    assert_same_gradients(gradients_of(model), expected)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_the_base_model_called_by_itself_takes_nothing_from_an_earlier_pass(use_reentrant):
    tokens = STEADY_OPT.inputs()
    model = checkpointed(scrambled().train(), use_reentrant)
    loss_of(model, tokens).backward()  # leaves matrices
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "vblora_" in name:
                parameter.mul_(-1.5)
    model.zero_grad()
    loss_of(model.get_base_model(), tokens).backward()
    got = gradients_of(model)
    expected = plain_gradients(model, tokens)
    assert_same_gradients(got, expected)


def test_matrices_of_another_dtype_are_not_taken():
    """Autocast differs between the pass and the part that is called again: mixed anew."""
    a = torch.ones(2, 2, requires_grad=True)
    key, answers = ("default", "layer"), {}
    keeper = KeptMatrices({key: Matrices(a * 2, a * 3)}, torch.bfloat16, set())

    def ask(gradient):
        answers.update({dtype: keeper.get(key, dtype) for dtype in (None, torch.bfloat16)})

    y = a * 2
    y.register_hook(ask)
    y.sum().backward()
    assert answers[None] is None and answers[torch.bfloat16] is not None


def test_what_is_kept_of_a_deleted_adapter_is_dropped_and_of_others_not():
    a = torch.ones(2, 2, requires_grad=True)
    keys = [(adapter, layer) for adapter in ("a", "b", "c") for layer in ("first", "second")]
    keeper = KeptMatrices({key: Matrices(a * 2, a * 3) for key in keys}, None, set())
    keeper.drop("b")
    answers = {}
    y = a * 2
    y.register_hook(lambda _: answers.update({key: keeper.get(key, None) for key in keys}))
    y.sum().backward()
    assert {adapter for (adapter, _), kept in answers.items() if kept is not None} == {"a", "c"}
