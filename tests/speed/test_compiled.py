"""Compiled models: as few graphs as with PEFT's LoRA, and the numbers of eager ones."""

import threading

import peft
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from transformers import OPTConfig, OPTForCausalLM, Trainer, TrainingArguments

from tests.cases import CASES, TwoLinear, assert_close, scramble
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.layer import Linear
from vblora_lab.tuner.model import VBLoRAModel
from vblora_lab.tuner.peft import get_peft_model, using

DEEP = 9  # layers: one more than a piece of code is compiled anew for, by PyTorch's default
TARGETS = ["q_proj", "fc1"]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def opt(layers):
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=40,
        hidden_size=16,
        ffn_dim=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=32,
        word_embed_proj_dim=16,
        dropout=0.0,
    )
    return OPTForCausalLM(config)


def adapted(layers=2, kind="ours"):
    if kind == "lora":
        return peft.get_peft_model(opt(layers), peft.LoraConfig(r=2, target_modules=TARGETS))
    config = VBLoRAConfig(r=2, num_vectors=10, vector_length=4, topk=3, target_modules=TARGETS)
    model = get_peft_model(opt(layers), config)
    scramble(model)
    return model


def compile_layers(model, backend, **options):
    for layer in model.get_base_model().model.decoder.layers:
        layer.compile(backend=backend, **options)
    return model


def tokens(batch=3, length=7):
    return torch.randint(2, 40, (batch, length), generator=torch.Generator().manual_seed(1))


def gradients(model, ids):
    model.zero_grad()
    out = model(input_ids=ids, labels=ids, use_cache=False)
    out.loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None], out.logits.detach()


def counted(compiled_with, kind, layers, train=True):
    """Graphs, breaks, and frames that were given up, over two batches of two sizes."""
    torch._dynamo.reset()
    counters.clear()
    counter = CompileCounterWithBackend("eager")
    model = compiled_with(adapted(layers, kind).train(), counter)
    for size in ((3, 7), (2, 9)):
        gradients(model, tokens(*size))
    return counter.frame_count, sum(counters["graph_break"].values()), counters["recompile_limit"]


def test_layers_that_are_compiled_each_by_itself_share_their_graphs_as_with_lora():
    assert counted(compile_layers, "ours", DEEP) == counted(compile_layers, "lora", 2)


class Broken(TwoLinear):
    def forward(self, x):
        torch._dynamo.graph_break()
        return super().forward(x)


def test_a_model_that_breaks_its_graph_makes_no_graph_of_the_admixture():
    found = {}
    for kind in ("lora", "ours"):
        torch._dynamo.reset()
        if kind == "lora":
            config = peft.LoraConfig(r=2, target_modules=["first", "second"])
            model = peft.get_peft_model(Broken(), config)
        else:
            model = get_peft_model(Broken(), VBLoRAConfig(**CASES["linear"].config))
        counter = CompileCounterWithBackend("eager")
        whole(model, counter)(torch.ones(3, 8)).sum().backward()
        found[kind] = counter.frame_count
    assert found["ours"] == found["lora"] > 0


def whole(model, backend, **options):
    return torch.compile(model, backend=backend, **options)


def test_gradients_of_compiled_layers_are_those_of_eager_ones():
    expected, logits = gradients(adapted(), tokens())
    model = compile_layers(adapted(), "aot_eager")
    with torch.no_grad():
        for parameter in model.parameters():  # a compiled pass reads the parameters of now
            parameter.add_(1.0)
    gradients(model, tokens())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(1.0)
    for _ in range(2):
        found, output = gradients(model, tokens())
        assert_close(output, logits, 1e-4)
        for got, wanted in zip(found, expected, strict=True):
            assert_close(got, wanted, 1e-3)


def trained(kind, folder, backend=None):
    """Losses and graphs of `Trainer(torch_compile=True)` on batches of 3, 3, 3 and 2 examples."""
    torch._dynamo.reset()
    counters.clear()
    lora = peft.LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False)
    vblora = peft.VBLoRAConfig(
        r=2, num_vectors=10, vector_length=4, topk=3, target_modules=TARGETS,
        init_vector_bank_bound=0.5,
    )  # fmt: skip
    torch.manual_seed(1)
    model = peft.get_peft_model(opt(2), lora if kind == "lora" else vblora)
    arguments = TrainingArguments(
        folder, torch_compile=backend is not None, torch_compile_backend=backend, use_cpu=True,
        per_device_train_batch_size=3, num_train_epochs=1, learning_rate=1e-2, seed=0,
        logging_steps=1, report_to=[], save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    rows = [{"input_ids": row, "labels": row} for row in tokens(11)]
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    stopped = sum(counters["graph_break"].values()), sum(counters["recompile_limit"].values())
    return torch.tensor(losses), (counters["stats"]["unique_graphs"], *stopped), model


@pytest.mark.long
def test_a_registered_trainer_compiles_as_lora_s_does_and_trains_as_eagerly(tmp_path):
    _, graphs, _ = trained("lora", tmp_path, "aot_eager")
    with using():
        eager, none, plain = trained("ours", tmp_path)
        losses, ours, compiled = trained("ours", tmp_path, "aot_eager")
    assert isinstance(plain.base_model, VBLoRAModel) and none == (0, 0, 0)
    assert ours == graphs and graphs[0] > 0
    assert len(losses) == 4
    torch.testing.assert_close(losses, eager, rtol=1e-5, atol=1e-5)
    for one, other in zip(compiled.parameters(), plain.parameters(), strict=True):
        assert_close(one.detach(), other.detach(), 1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("how", [compile_layers, whole])
def test_compiled_gradients_on_a_gpu(how, mode):
    """There the kernels are in the graph."""
    ids = tokens().cuda()
    expected, logits = gradients(adapted().cuda(), ids)
    model = how(adapted().cuda(), "inductor", mode=mode)
    for _ in range(4):  # the first two warm up, the third is recorded, the last replayed
        found, output = gradients(model, ids)
        assert_close(output, logits, 1e-3)
        for got, wanted in zip(found, expected, strict=True):
            assert_close(got, wanted, 1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("reentrant", [True, False])
def test_compiled_layers_under_checkpointing(reentrant):
    expected, _ = gradients(adapted(), tokens())
    model = adapted().train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    found, _ = gradients(compile_layers(model, "aot_eager"), tokens())
    for got, wanted in zip(found, expected, strict=True):
        assert_close(got, wanted, 1e-5)


@pytest.mark.slow
def test_threads_that_run_one_compiled_model_do_not_see_each_others_matrices():
    """While a second call is on its way, compiled layers of both mix for themselves."""
    model = adapted()
    expected, _ = gradients(model, tokens())
    compile_layers(model, "aot_eager")
    inside, go_on = threading.Event(), threading.Event()
    layers = [m for m in model.modules() if isinstance(m, Linear)]
    asked = []

    def wait(*_):
        if threading.current_thread() is other:
            inside.set()
            assert go_on.wait(60)

    def call():
        with torch.no_grad():
            asked.append(model(input_ids=tokens()).logits)

    hook = model.get_base_model().model.decoder.layers[0].register_forward_pre_hook(wait)
    other = threading.Thread(target=call)
    other.start()
    assert inside.wait(60)
    assert any(layer.mixed for layer in layers)
    try:
        found, logits = gradients(model, tokens())
    finally:
        go_on.set()
        other.join()
        hook.remove()
    for got, wanted in zip(found, expected, strict=True):
        assert_close(got, wanted, 1e-5)
    assert_close(asked[0], logits, 1e-5)
    assert not any(layer.mixed for layer in layers)


class Interrupt(BaseException):
    pass


def test_layers_hold_no_matrices_after_a_call_however_it_ends():
    case = CASES["linear"]
    model = case.ours()
    layers = [m for m in model.modules() if isinstance(m, Linear)]

    class Stops(nn.Module):
        def forward(self, x):
            assert all(layer.mixed for layer in layers)
            raise Interrupt

    model.base_model.model.second.base_layer, kept = (
        Stops(),
        model.base_model.model.second.base_layer,
    )
    with pytest.raises(Interrupt):
        case.output(model)
    assert not any(layer.mixed for layer in layers)
    model.base_model.model.second.base_layer = kept
    case.output(model)
    assert not any(layer.mixed for layer in layers)
