"""What programs do with a whole model: save, checkpoint, distribute, compile and export it.

Each result is compared with the plain model in the plain loop; nothing here knows how a forward
pass is made up.
"""

import copy
import gc
import io
import pickle

import accelerate
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import OPTForCausalLM

import vblora_lab.tuner.peft as lab
from tests.cases import CASES, Case, assert_close, scramble
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.layer import VBLoRALayer


def without_dropout() -> OPTForCausalLM:
    """The OPT of the other tests, which in training computes the same every time."""
    model = CASES["opt"].make()
    for module in model.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.0
    return model


STEADY_OPT = Case(without_dropout, CASES["opt"].config, CASES["opt"].inputs)


def scrambled(which="ours", case=STEADY_OPT, **changes):
    model = getattr(case, which)(**changes)
    scramble(model)
    return model


def loss_of(model, tokens):
    return model(tokens).logits.pow(2).mean()


def gradients_of(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def assert_same_gradients(found, expected, relative=1e-5):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.norm() > 0, name
        assert_close(found[name], gradient, relative)


def plain_gradients(model, tokens):
    model.zero_grad()
    loss_of(model, tokens).backward()
    return gradients_of(model)


# --- copies


def through_torch_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": through_torch_save,
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("merged", [False, True], ids=["unmerged", "merged"])
def test_a_copy_has_one_shared_bank_of_its_own(how, merged):
    model = scrambled()
    model.add_adapter("other", VBLoRAConfig(**{**STEADY_OPT.config, "num_vectors": 6}))
    tokens = STEADY_OPT.inputs()
    before = plain_gradients(model, tokens)
    if merged:
        model.merge_adapter()
    twin = COPIES[how](model)
    with torch.no_grad():
        assert torch.equal(twin(tokens).logits, model(tokens).logits)
    if merged:
        twin.unmerge_adapter()
    for name in ("default", "other"):
        banks = {id(m.vblora_vector_bank[name]) for m in twin.modules() if hasattr(m, "topk")}
        assert banks == {id(twin.vblora_vector_bank[name])}
        assert id(model.vblora_vector_bank[name]) not in banks
    assert len([n for n, _ in twin.named_parameters() if "vector_bank" in n]) == 2
    assert_same_gradients(plain_gradients(twin, tokens), before)
    with torch.no_grad():  # the copy's bank is what its layers read, and its alone
        output = model(tokens).logits
        twin.vblora_vector_bank["default"].mul_(2.0)
        assert not torch.allclose(twin(tokens).logits, output, rtol=1e-2)
        assert torch.equal(model(tokens).logits, output)


@pytest.mark.parametrize("only_topk", [False, True], ids=["full", "topk"])
def test_low_cpu_mem_usage_shares_one_bank(only_topk, tmp_path):
    model = scrambled(save_only_topk_weights=only_topk)
    model.save_pretrained(tmp_path)
    loaded = lab.from_pretrained(STEADY_OPT.base(), tmp_path, low_cpu_mem_usage=True)
    assert not any(tensor.is_meta for tensor in loaded.state_dict().values())
    layers = [module for module in loaded.modules() if isinstance(module, VBLoRALayer)]
    bank = loaded.vblora_vector_bank["default"]
    assert all(layer.vblora_vector_bank["default"] is bank for layer in layers)
    assert_close(STEADY_OPT.output(loaded), STEADY_OPT.output(model), relative=1e-4)


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_a_base_that_is_put_aside(where, tmp_path):
    """accelerate keeps its weights elsewhere, and brings each back while its layer computes."""
    model = scrambled()
    model.save_pretrained(tmp_path / "adapter")
    tokens, base = STEADY_OPT.inputs(), STEADY_OPT.base()
    expected = model(tokens).logits
    if where == "cpu":
        accelerate.cpu_offload(base, torch.device("cpu"))
    else:
        accelerate.disk_offload(base, str(tmp_path / "weights"), torch.device("cpu"))
    loaded = lab.from_pretrained(base, tmp_path / "adapter", is_trainable=True)
    assert loaded.get_base_model().model.decoder.layers[0].fc1.base_layer.weight.is_meta
    assert_close(loaded(tokens).logits, expected, relative=1e-6)
    # Its layers have hooks, and so are computed by other operations than those of the model.
    both = (plain_gradients(each, tokens) for each in (loaded, model))
    assert_same_gradients(*both, relative=1e-4)
    for safe_merge in (False, True):
        loaded.merge_adapter(safe_merge=safe_merge)
        assert_close(loaded(tokens).logits, expected, relative=1e-5)
        loaded.unmerge_adapter()
        assert_close(loaded(tokens).logits, expected, relative=1e-6)


def test_a_base_without_memory_gets_an_adapter_without_memory():
    with torch.device("meta"):
        base = without_dropout()
    model = lab.get_peft_model(base, VBLoRAConfig(**STEADY_OPT.config))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model(STEADY_OPT.inputs().to("meta")).logits.is_meta


# --- gradient checkpointing


def checkpointed(model, use_reentrant):
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    return model


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_over_several_steps(use_reentrant):
    """Accumulated over two batches, and again after a step: what is recomputed is never stale."""
    tokens = STEADY_OPT.inputs(4)
    gradients = []
    for checkpointing in (False, True):
        model = scrambled().train()
        if checkpointing:
            checkpointed(model, use_reentrant)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            for half in tokens.chunk(2):
                loss_of(model, half).backward()
            gradients.append(gradients_of(model))
            optimizer.step()
    assert_same_gradients(gradients[2], gradients[0])
    assert_same_gradients(gradients[3], gradients[1])


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_each_parameter_gets_its_gradient_at_once(use_reentrant):
    """What DistributedDataParallel and fused optimizers count on, a failed pass before or not."""
    model = checkpointed(scrambled().train(), use_reentrant)
    tokens = STEADY_OPT.inputs()
    expected = plain_gradients(scrambled().train(), tokens)
    first_logits = next(p for n, p in model.named_parameters() if "vblora_logits_A" in n)

    def breaks(gradient):
        raise MemoryError

    hook = first_logits.register_hook(breaks)  # when the other blocks have had their turn
    with pytest.raises(MemoryError):
        loss_of(model, tokens).backward()
    hook.remove()
    counts = dict.fromkeys(expected, 0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:

            def count(_, name=name):
                counts[name] += 1

            parameter.register_post_accumulate_grad_hook(count)
    assert_same_gradients(plain_gradients(model, tokens), expected)
    assert set(counts.values()) == {1}


def reference(model, tokens):
    """As DPO asks the base model for its opinion, after the pass that is to be learned from."""
    with torch.no_grad(), model.disable_adapter():
        model(tokens)


def look(model, tokens):
    with torch.no_grad():
        model(tokens)


def text(model, tokens):
    model.generate(tokens, max_new_tokens=2)


@pytest.mark.filterwarnings(
    "ignore:`gradient_checkpointing_enable` is deprecated",
    "ignore:None of the inputs have requires",
)
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("between", [reference, look, text])
def test_passes_without_gradients_between_a_checkpointed_pass_and_its_backward(
    between, use_reentrant
):
    tokens = STEADY_OPT.inputs()
    expected = plain_gradients(scrambled().train(), tokens)
    model = checkpointed(scrambled().train(), use_reentrant)
    loss = loss_of(model, tokens)
    between(model, tokens.flip(0))
    loss.backward()
    assert_same_gradients(gradients_of(model), expected)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_two_checkpointed_passes_with_a_backward_pass_each(use_reentrant):
    first, second = STEADY_OPT.inputs(4).chunk(2)
    plain = scrambled().train()
    (loss_of(plain, first) + loss_of(plain, second)).backward()
    model = checkpointed(scrambled().train(), use_reentrant)
    losses = loss_of(model, first), loss_of(model, second)
    for loss in losses:
        loss.backward()
    assert_same_gradients(gradients_of(model), gradients_of(plain))


WORLD = 2


KINDS = ("none", "not reentrant", "reentrant", "static, not reentrant", "static, reentrant")


def _gradients_or_error(which: str, kind: str, tokens):
    """Gradients by name after the second of two passes, or what went wrong in one."""
    model = scrambled(which).train()
    if kind != "none":
        checkpointed(model, kind.removeprefix("static, ") == "reentrant")
    try:
        parallel = DistributedDataParallel(model, static_graph=kind.startswith("static"))
        for _ in range(2):  # the second pass finds what the first one left undone
            model.zero_grad()
            loss_of(parallel, tokens).backward()
        return gradients_of(model)
    except RuntimeError as error:
        return str(error)


def _one_process(rank: int, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD
    )
    tokens = STEADY_OPT.inputs(2 * WORLD).chunk(WORLD)[rank]
    results = {
        which: {kind: _gradients_or_error(which, kind, tokens) for kind in KINDS}
        for which in ("ours", "stock")
    }
    torch.save(results, f"{folder}/rank{rank}.pt")
    gc.collect()  # a DistributedDataParallel that outlives its process group hangs
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def distributed(tmp_path_factory):
    """What each of two processes found, which had half of the batch each."""
    folder = tmp_path_factory.mktemp("distributed")
    torch.multiprocessing.spawn(_one_process, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(WORLD)]


@pytest.mark.slow
def test_distributed_training_with_checkpointing(distributed):
    """On both processes, the gradients of one with all of the batch."""
    expected = plain_gradients(scrambled().train(), STEADY_OPT.inputs(2 * WORLD))
    for results in distributed:
        for kind, found in results["ours"].items():
            assert isinstance(found, dict), (kind, found)
            assert_same_gradients(found, expected)


@pytest.mark.slow
def test_peft_still_cannot_checkpoint_the_reentrant_kind_when_distributed(distributed):
    for results in distributed:
        assert isinstance(results["stock"]["not reentrant"], dict)
        assert "mark a variable ready only once" in results["stock"]["reentrant"]


# --- compiled and exported


@pytest.fixture
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def one_graph(model):
    return torch.compile(model, fullgraph=True, backend="aot_eager")


@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("kind, training", [("linear", False), ("linear", True), ("opt", True)])
def test_one_graph_with_the_same_outputs_and_gradients(kind, training):
    case = STEADY_OPT if kind == "opt" else CASES[kind]
    model = scrambled(case=case).train(training)
    compiled = one_graph(model)
    for batch in (3, 3, 5):
        outputs, gradients = [], []
        for run in (model, compiled):
            model.zero_grad()
            output = case.output(run, batch)
            output.pow(2).mean().backward()
            outputs.append(output.detach())
            gradients.append(gradients_of(model))
        assert_close(outputs[1], outputs[0], relative=1e-5)
        # Other operations than those of the eager model: rounded otherwise.
        assert_same_gradients(gradients[1], gradients[0], relative=1e-4)
        with torch.no_grad():  # a compiled pass reads the parameters of now
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.mul_(0.9)


@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_compiler")
def test_one_graph_for_several_adapters_dropout_and_autocast():
    case = CASES["linear"]
    model = scrambled(case=case, vblora_dropout=0.1)
    model.add_adapter("other", VBLoRAConfig(**{**case.config, "topk": 2}))
    scramble(model)
    model.base_model.set_adapter(["default", "other"])
    compiled = one_graph(model)
    assert_close(case.output(compiled), case.output(model), relative=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(case.output(compiled).float(), case.output(model).float(), relative=1e-2)
    case.output(compiled.train()).sum().backward()
    assert all(gradient.norm() > 0 for gradient in gradients_of(model).values())


@pytest.mark.usefixtures("_fresh_compiler")
def test_peft_still_breaks_the_graph_in_training():
    model = scrambled("stock").train()
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"[Dd]ata-dependent"):
        one_graph(model)(STEADY_OPT.inputs())


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::torch.jit.TracerWarning")
def test_a_traced_model_can_be_stored(tmp_path):
    case = CASES["linear"]
    model = scrambled(case=case).eval()
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(model, case.inputs()), tmp_path / "model.pt")
        other = case.inputs().neg()
        assert_close(torch.jit.load(tmp_path / "model.pt")(other), model(other), relative=1e-5)


class Logits(nn.Module):
    """Only the logits, which is what most exports keep."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model(tokens, use_cache=False).logits


@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("merged", [False, True], ids=["unmerged", "merged"])
def test_an_exported_model_gives_the_same_output(merged, tmp_path):
    model = scrambled().eval()
    if merged:
        model.merge_adapter()
    tokens = STEADY_OPT.inputs()
    exported = torch.export.export(Logits(model), (tokens,))
    torch.export.save(exported, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    with torch.no_grad():
        assert_close(loaded(tokens), model(tokens).logits, relative=1e-5)
        other = STEADY_OPT.inputs(3).flip(0)
        assert_close(loaded(other), model(other).logits, relative=1e-5)
