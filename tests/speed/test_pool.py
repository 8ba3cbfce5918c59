"""The pool: matrices that are older than their parameters are a wrong answer that nobody sees."""

import sys
import threading

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from tests.cases import CASES, SMALL, assert_close, scramble
from tests.tuner.test_families import FAMILIES, IDS
from vblora_lab.admixture import low_rank_matrices
from vblora_lab.speed import blocks, mixing
from vblora_lab.speed.mixing import Matrices, mix_all
from vblora_lab.speed.pool import MatrixPool
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.layer import Linear
from vblora_lab.tuner.peft import get_peft_model


@pytest.fixture
def model(opt_case):
    model = opt_case.ours()
    model.add_adapter("other", VBLoRAConfig(**{**opt_case.config, "topk": 2}))
    scramble(model)
    return model.eval()


def by_hand(case, model):
    """The output of the base model with W + B A in place of each adapted weight."""
    plain = case.base()
    for name, layer in model.base_model.model.named_modules():
        if not isinstance(layer, Linear):
            continue
        weight = layer.base_weight().detach().clone()
        for adapter in layer.active_adapters:
            A, B = low_rank_matrices(
                *layer.logits(adapter), layer.vblora_vector_bank[adapter], layer.topk[adapter]
            )
            weight += (B @ A).detach()
        plain.get_submodule(name).weight.data = weight
    return plain


def some_parameters(model):
    return [
        parameter
        for name, parameter in model.named_parameters()
        if "vblora_" in name and ".default" in name
    ]


def in_place(model):
    with torch.no_grad():
        for parameter in some_parameters(model):
            parameter.mul_(-1.5)


def through_data(model):
    for parameter in some_parameters(model):
        parameter.data = parameter.data.flip(0).contiguous()


def load_state_dict(model):
    state = {name: -tensor for name, tensor in model.state_dict().items() if "vblora_" in name}
    model.load_state_dict(state, strict=False)


def optimizer_step(model):
    parameters = some_parameters(model)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    torch.optim.Adam(parameters, lr=0.5).step()
    model.zero_grad()


def base_weight(model):
    with torch.no_grad():
        model.get_submodule("base_model.model.model.decoder.layers.0.fc1.base_layer").weight.mul_(2)


def switch(model):
    model.base_model.set_adapter("other")


def both(model):
    model.base_model.set_adapter(["default", "other"])


CHANGES = [in_place, through_data, load_state_dict, optimizer_step, switch, both]


def through_data_in_place(model):
    """Leaves no version behind, and the parameter where it was."""
    for parameter in some_parameters(model):
        parameter.data.mul_(-1.5)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("change", [*CHANGES, through_data_in_place])
def test_a_pass_sees_every_change_before_it(model, opt_case, change, grad):
    with torch.set_grad_enabled(grad):
        before = opt_case.output(model)
        change(model)
        after = opt_case.output(model)
    assert (after - before).norm() > 1e-2 * before.norm()
    assert_close(after, opt_case.output(by_hand(opt_case, model)), 1e-5)


@pytest.mark.parametrize("change", [*CHANGES, through_data_in_place])
def test_generation_sees_every_change_before_it(model, opt_case, change):
    tokens, options = opt_case.inputs(2), {"max_new_tokens": 8, "do_sample": False}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    model.generate(tokens, **options)
    change(model)
    got = model.generate(tokens, **options)
    expected = by_hand(opt_case, model).generate(tokens, **options)
    assert torch.equal(got.sequences, expected.sequences)
    assert_close(torch.stack(got.logits), torch.stack(expected.logits), 1e-5)


class AtToken(LogitsProcessor):
    """Calls something while the model is generating, and keeps the logits of each token."""

    def __init__(self, number, call):
        self.number, self.call, self.logits = number, call, []

    def __call__(self, input_ids, scores):
        self.logits.append(scores.clone())
        if len(self.logits) == self.number:
            self.call()
        return scores


@pytest.mark.parametrize("number", [1, 2, 3, 5])
@pytest.mark.parametrize("change", [*CHANGES, base_weight])
def test_generation_sees_a_change_in_its_midst(model, opt_case, change, number):
    """Without a cache of keys and values each token is a pass over all: its logits tell."""
    tokens = opt_case.inputs(2)
    seen = AtToken(number, lambda: change(model))
    options = {"max_new_tokens": 7, "do_sample": False, "use_cache": False}
    with torch.no_grad():
        before = by_hand(opt_case, model)
        sequences = model.generate(tokens, logits_processor=LogitsProcessorList([seen]), **options)
        after = by_hand(opt_case, model)
        for i, logits in enumerate(seen.logits):
            reference = before if i < number else after
            expected = reference(sequences[:, : tokens.shape[1] + i]).logits[:, -1]
            assert_close(logits, expected, 1e-5)


def all_layers_off(model):
    model.base_model.disable_adapter_layers()


def last_layer(model):
    return [module for module in model.modules() if isinstance(module, Linear)][-1]


def one_layer_off(model):
    last_layer(model).enable_adapters(False)


def one_layer_switched(model):
    last_layer(model).set_adapter("other")


def one_layer_merged(model):
    last_layer(model).merge()


LAYER_CHANGES = [all_layers_off, one_layer_off, one_layer_switched, one_layer_merged]


@pytest.mark.parametrize("also", [None, in_place])
@pytest.mark.parametrize("change", LAYER_CHANGES)
def test_generation_sees_a_layer_change_in_its_midst(model, opt_case, change, also):
    """Also where weights are folded already, which don't ask what became of a layer."""
    tokens = opt_case.inputs(2)
    seen = AtToken(3, lambda: [call(model) for call in (change, also) if call])
    options = {"max_new_tokens": 6, "do_sample": False, "use_cache": False}
    sequences = model.generate(tokens, logits_processor=LogitsProcessorList([seen]), **options)
    with torch.enable_grad():  # so that nothing is folded
        after = model(sequences).logits.detach()
    for i in range(3, 6):
        assert_close(seen.logits[i], after[:, tokens.shape[1] + i - 1], 1e-5)
    if (
        change is not one_layer_merged
    ):  # which changes where a layer's output comes from, and not what it is
        assert not torch.allclose(seen.logits[2], after[:, tokens.shape[1] + 1], atol=1e-3)


def test_weights_are_folded_from_the_second_token_on(model, opt_case, monkeypatch):
    """A later token costs no more calls than the base model's; the first pays."""
    calls = []
    folded = MatrixPool.folded

    def spy(pool, name):
        result = folded(pool, name)
        calls.append(result is not None)
        return result

    monkeypatch.setattr(MatrixPool, "folded", spy)
    model.generate(opt_case.inputs(2), max_new_tokens=5, min_new_tokens=5, do_sample=False)
    layers = len(model.base_model.pool.layers["default"])
    assert calls == [True] * 4 * layers  # the first token mixes, and asks nobody
    pool = model.base_model.pool
    assert not pool.has_folds
    assert not pool.blocks


def test_dropout_is_not_folded_away(opt_case, monkeypatch):
    """In training mode the adapter's input is dropped at every token, as at the first."""
    model = opt_case.ours(vblora_dropout=0.5).train()
    monkeypatch.setattr(torch.nn.functional, "linear", None)  # what a folded layer would call
    layer = model.get_submodule("base_model.model.model.decoder.layers.0.fc1")
    matrices = {"default": Matrices(torch.zeros(2, 16), torch.zeros(2, 32))}
    assert layer.fold(matrices) is None
    assert layer.eval().fold(matrices) is not None


def test_dropout_alone_in_training_mode_drops_as_in_peft(opt_case):
    """Monte Carlo dropout: the model is in eval mode, and passes differ all the same."""
    ours, stock = opt_case.ours(vblora_dropout=0.5), opt_case.stock(vblora_dropout=0.5)
    outputs = []
    for model in (ours, stock):
        scramble(model)
        for module in model.eval().modules():
            if isinstance(module, torch.nn.Dropout):
                module.train()
        torch.manual_seed(5)
        with torch.no_grad():
            outputs.append([opt_case.output(model) for _ in range(2)])
    for one, other in zip(*outputs, strict=True):
        assert_close(one, other, 1e-5)
    assert not torch.allclose(*outputs[0])
    layer = ours.get_submodule("base_model.model.model.decoder.layers.0.fc1")
    matrices = {"default": Matrices(torch.zeros(2, 16), torch.zeros(2, 32))}
    assert layer.fold(matrices) is None


def test_folding_is_left_where_memory_is_short(model, opt_case, monkeypatch):
    tokens, options = opt_case.inputs(2), {"max_new_tokens": 5, "do_sample": False}
    expected = model.generate(tokens, **options)
    monkeypatch.setattr(blocks, "spare_bytes", lambda device: 0)
    monkeypatch.setattr(Linear, "fold", None)  # calling it would fail
    assert torch.equal(model.generate(tokens, **options), expected)


def test_the_weights_stay_as_they_are_while_generating(model, opt_case):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.generate(opt_case.inputs(2), max_new_tokens=5)
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())


def test_a_layer_called_on_its_own_mixes_anew(model):
    layer = model.get_submodule("base_model.model.model.decoder.layers.0.fc1")
    x = torch.randn(3, 16)
    model(torch.ones(1, 4, dtype=torch.long))  # with gradients: matrices stay for the backward
    with torch.no_grad():
        layer.vblora_logits_A["default"].neg_()
        A, B = low_rank_matrices(
            *layer.logits("default"), layer.vblora_vector_bank["default"], layer.topk["default"]
        )
        assert_close(layer(x), layer.base_layer(x) + x @ A.T @ B.T, 1e-5)


def test_an_encoder_that_generate_calls_on_its_own_mixes_anew():
    """T5 encodes before the first pass of the whole model, right after a step of training."""
    family = FAMILIES["t5"]
    config = VBLoRAConfig(**SMALL, task_type=family.task)
    model = get_peft_model(family.make().eval(), config)
    scramble(model)
    model(input_ids=IDS, labels=IDS).loss.backward()
    in_place(model)
    seen = []
    encoder = model.get_encoder()
    handle = encoder.register_forward_hook(lambda *call: seen.append(call[-1].last_hidden_state))
    model.generate(input_ids=IDS, max_new_tokens=2)
    handle.remove()
    with torch.no_grad():
        expected = encoder(input_ids=IDS, attention_mask=torch.ones_like(IDS)).last_hidden_state
    assert_close(seen[0], expected, 1e-6)


def test_two_threads_at_once(model, opt_case):
    """One trains while another asks the same model; neither gets the other's matrices."""
    with torch.no_grad():
        expected = opt_case.output(model)
    failures, stop = [], threading.Event()

    def ask():
        with torch.no_grad():
            while not stop.is_set():
                if not torch.allclose(opt_case.output(model), expected, rtol=1e-4, atol=1e-4):
                    failures.append("another answer")

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        gradients = []
        for _ in range(20):
            opt_case.output(model).square().mean().backward()
            gradients.append([p.grad.clone() for p in some_parameters(model)])
            model.zero_grad()
    finally:
        stop.set()
        thread.join()
    assert not failures
    for again in gradients[1:]:
        for one, first in zip(again, gradients[0], strict=True):
            torch.testing.assert_close(one, first)


def test_threads_that_come_at_the_same_moment_leave_the_pool_in_order(model, opt_case, monkeypatch):
    pool = model.base_model.pool

    def come_and_go():
        for _ in range(5000):
            with pool.held():
                pass

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    mixed = []
    monkeypatch.setattr(blocks, "mix_all", lambda *a: mixed.append(len(a[0])) or mix_all(*a))
    with torch.no_grad():
        opt_case.output(model)
    assert mixed == [len(pool.layers["default"])]  # all layers in one call


@pytest.mark.parametrize("small", [0, 2**23])
def test_many_logits_and_few_give_the_same(monkeypatch, small):
    """Above SMALL, logits aren't laid side by side: chosen layer by layer, and mixed at once."""
    monkeypatch.setattr(mixing, "SMALL", small)
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)

    bank = draw(9, 4)
    logits = [(draw(2, 3, 9), draw(5, 2, 9)), (draw(2, 1, 9), draw(2, 2, 9))]
    for (A, B), (logits_A, logits_B) in zip(
        mix_all(logits, bank, 3, torch.float64), logits, strict=True
    ):
        expected_A, expected_B = low_rank_matrices(logits_A, logits_B, bank, 3)
        torch.testing.assert_close(A, expected_A)
        torch.testing.assert_close(B, expected_B.T)
        slope = torch.randn(2, 1, generator=generator, dtype=torch.float64)
        got = torch.autograd.grad(
            (A * slope).sum() + (B * slope).sum(), [logits_A, logits_B, bank], retain_graph=True
        )
        wanted = torch.autograd.grad(
            (expected_A * slope).sum() + (expected_B.T * slope).sum(), [logits_A, logits_B, bank]
        )
        for one, other in zip(got, wanted, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a CUDA GPU is waited for")
@pytest.mark.parametrize("name", ["linear", "conv1d"])
def test_no_wait_for_the_device_in_a_training_step(name):
    case = CASES[name]
    model = case.ours(topk=2).cuda().train()
    inputs = case.inputs().cuda()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)

    def step():
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(inputs).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(2):  # kernels are compiled, and tables of addresses made
        step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
