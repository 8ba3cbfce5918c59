"""FSDP2: `fully_shard` on each layer and on the model, and nothing else to know."""

import gc
import warnings
from collections import Counter
from functools import partial

import peft
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils._python_dispatch import TorchDispatchMode

import vblora_lab.tuner.peft as lab
from tests.alike import assert_alike
from tests.cases import CASES, scramble
from vblora_lab.errors import MergeError, TargetError
from vblora_lab.inspection.reading import read_selection
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.sharded import is_cut, whole

WORLD = 2
CASE = CASES["opt"]
CHECKPOINTING = {"none": None, "not reentrant": False, "reentrant": True}
OPTIMIZERS = {"sgd": (torch.optim.SGD, 0.1), "adamw": (torch.optim.AdamW, 0.01)}


def model_of(checkpointing="none", **changes):
    model = CASE.ours(**changes)
    scramble(model)
    for name, module in model.named_modules():
        if name.endswith("decoder") or hasattr(module, "fc1"):
            module.dropout = 0.0
    reentrant = CHECKPOINTING[checkpointing]
    if reentrant is not None:
        arguments = {"use_reentrant": reentrant}
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=arguments)
        model.enable_input_require_grads()
    return model.train()


def sharded(model, **how):
    for layer in (m for m in model.modules() if hasattr(m, "self_attn")):
        fully_shard(layer, **how)
    return fully_shard(model, **how)


def trained(model, tokens, optimizer="sgd", accumulate=1, stays_whole=False, share=1.0):
    """What the adapters are after three steps, whole.

    Args:
        share: what the loss is multiplied by.
        stays_whole: look at the model before each step, and let FSDP send gradients off, and cut
            parameters again, after the last part alone.
    """
    kind, rate = OPTIMIZERS[optimizer]
    steps = kind([p for p in model.parameters() if p.requires_grad], lr=rate)
    for step in range(3):
        steps.zero_grad()
        if stays_whole:
            with torch.no_grad():
                model(tokens)
        for i, part in enumerate(((tokens + step) % 40).chunk(accumulate), 1):
            if stays_whole:
                model.set_requires_gradient_sync(i == accumulate)
                model.set_reshard_after_backward(i == accumulate)
            # A layer that PyTorch's own wrapper runs again would put its keys into a cache twice.
            loss = model(part, labels=part, use_cache=False).loss
            (loss * share / accumulate).backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        steps.step()
    return {
        name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()
        for name, p in model.named_parameters()
        if "vblora_" in name
    }


RUNS = [
    *((kind, optimizer, 1) for kind in CHECKPOINTING for optimizer in OPTIMIZERS),
    ("none", "sgd", 2),
    ("reentrant", "sgd", 2),
]

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
OURS = VBLoRAConfig(r=2, num_vectors=10, vector_length=4, target_modules=ALL)
METHODS = {
    "frozen": lambda base: base,
    "LoRA": lambda base: peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=ALL)),
    "ours": lambda base: lab.get_peft_model(base, OURS),
}
LAYERS = 2


class Operators(TorchDispatchMode):
    """How often each is called within."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, operator, _, args=(), kwargs=None):
        self.found[str(operator)] += 1
        return operator(*args, **(kwargs or {}))


def operators_of_a_step(method, reentrant):
    """Forward and backward of a Llama in half precision, in all of whose layers a method trains."""
    base = CASES["llama"].base().bfloat16()
    how = {"use_reentrant": reentrant}
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)
    base.enable_input_require_grads()
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    model = sharded(METHODS[method](base.requires_grad_(False)).train(), mp_policy=half)
    tokens = CASES["llama"].inputs()
    for _ in range(2):
        with Operators() as operators:
            model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    return operators.found


def _join(rank, folder, world):
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world
    )


def _share():
    """What a process's loss counts for, of all processes': all of it, where FSDP takes their mean.

    PyTorch 2.8 adds gradients up over gloo, whatever the model.
    """
    linear = fully_shard(torch.nn.Linear(1, 1, bias=False))
    linear(torch.ones(1, 1)).sum().backward()
    return 1 / linear.weight.grad.full_tensor().item()


def _leave(found, rank, folder):
    torch.save(found, f"{folder}/rank{rank}.pt")
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


def _one_process(rank, folder):
    _join(rank, folder, WORLD)
    train_here = partial(trained, share=_share())
    warnings.simplefilter("ignore")
    mine = CASE.inputs(4).chunk(WORLD)[rank]
    found = {}
    for run in RUNS:
        kind, *how = run
        found[run] = train_here(sharded(model_of(kind)), mine, *how)

    for kind in CHECKPOINTING:
        model = sharded(model_of(kind), reshard_after_forward=False)
        found["stays whole", kind] = train_here(model, mine, accumulate=2, stays_whole=True)
    # PyTorch's own wrapper for checkpointing, around what FSDP cut: layers have other names now.
    model = model_of()
    layers = model.base_model.model.model.decoder.layers
    for i, layer in enumerate(layers):
        layers[i] = checkpoint_wrapper(fully_shard(layer))
    found["wrapped"] = {
        name.replace("_checkpoint_wrapped_module.", ""): tensor
        for name, tensor in train_here(fully_shard(model), mine).items()
    }
    found["operators"] = {
        (method, again): operators_of_a_step(method, again)
        for method in METHODS
        for again in (False, True)
    }

    model = sharded(model_of())
    train_here(model, mine)
    with lab.using():
        model.save_pretrained(f"{folder}/adapter", is_main_process=rank == 0)
    # As PyTorch's manual gathers it, with PEFT's own classes in place.
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    gathered = get_model_state_dict(model, options=options)
    if rank == 0:
        model.save_pretrained(f"{folder}/again", state_dict=gathered)
    found["output"] = CASE.output(model.eval()).detach()
    found["text"] = model.generate(CASE.inputs()[:, :3], max_new_tokens=4, do_sample=False)
    everything = get_model_state_dict(model)
    found["bank"] = everything["base_model.vblora_vector_bank.default"].full_tensor()
    try:
        model.merge_adapter()
    except MergeError as error:
        found["merge"] = str(error)

    with whole(model):  # to be read by anything that knows nothing of FSDP
        found["read"] = read_selection(model).indices
    found["cut again"] = any(map(is_cut, model.parameters()))

    another = sharded(model_of())
    stored = load_file(f"{folder}/adapter/adapter_model.safetensors")
    with lab.using():
        peft.set_peft_model_state_dict(another, stored)
    found["loaded"] = CASE.output(another.eval()).detach()

    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    found["half"] = train_here(sharded(model_of(), mp_policy=half), mine)

    root_alone = fully_shard(model_of())
    try:
        root_alone(mine)
    except TargetError as error:
        found["root alone"] = str(error)
    _leave(found, rank, folder)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    torch.multiprocessing.spawn(_one_process, (str(folder),), nprocs=WORLD)
    return folder, [
        torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(WORLD)
    ]


pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_two_processes_train_as_one_with_all_of_the_batch(found, run):
    kind, optimizer, accumulate = run
    tokens = CASE.inputs(4)
    if accumulate == 2:  # each process cuts its own half
        tokens = tokens[[0, 2, 1, 3]]
    alone = trained(model_of(kind), tokens, optimizer, accumulate)
    for results in found[1]:
        assert_alike(results[run], alone, 1e-6 if optimizer == "sgd" else 1e-4)


def _one_of_four(rank, folder):
    _join(rank, folder, 4)
    train_here = partial(trained, share=_share())
    tokens = CASE.inputs(4)[rank : rank + 1]
    found = {kind: train_here(sharded(model_of(kind)), tokens) for kind in CHECKPOINTING}
    _leave(found, rank, folder)


@pytest.mark.long
def test_four_processes_train_as_one(tmp_path):
    torch.multiprocessing.spawn(_one_of_four, (str(tmp_path),), nprocs=4)
    for kind in CHECKPOINTING:
        alone = trained(model_of(kind), CASE.inputs(4))
        for rank in range(4):
            assert_alike(torch.load(tmp_path / f"rank{rank}.pt")[kind], alone, 1e-6)


@pytest.mark.parametrize("kind", CHECKPOINTING)
def test_a_model_that_stays_whole_from_pass_to_pass_trains_likewise(found, kind):
    alone = trained(model_of(kind), CASE.inputs(4)[[0, 2, 1, 3]], accumulate=2)
    for results in found[1]:
        assert_alike(results["stays whole", kind], alone, 1e-6)


def test_layers_that_were_wrapped_since_they_were_adapted_train_likewise(found):
    alone = trained(model_of(), CASE.inputs(4))
    for results in found[1]:
        assert_alike(results["wrapped"], alone, 1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_step_takes_no_more_operators_than_lora_s(found, reentrant):
    for results in found[1]:
        lora, ours = (
            results["operators"][method, reentrant] - results["operators"]["frozen", reentrant]
            for method in ("LoRA", "ours")
        )
        assert ours.total() <= lora.total()
        # One admixture for all layers that are whole together, and one more where PyTorch has a
        # backward pass of its own for each of them.
        assert ours["aten.topk.default"] == LAYERS * (1 + reentrant)


def test_what_is_saved_is_peft_s_file_and_loads_in_one_process(found):
    folder, results = found
    stored = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert set(stored) == set(peft.get_peft_model_state_dict(CASE.stock()))
    again = load_file(folder / "again" / "adapter_model.safetensors")
    assert all(torch.equal(again[key], tensor) for key, tensor in stored.items())
    loaded = lab.from_pretrained(CASE.base(), folder / "adapter").eval()
    torch.testing.assert_close(CASE.output(loaded), results[0]["output"])
    text = loaded.generate(CASE.inputs()[:, :3], max_new_tokens=4, do_sample=False)
    for rank in results:
        assert torch.equal(rank["text"], text)
        assert torch.equal(rank["bank"], stored["base_model.vblora_vector_bank"])


def test_it_is_read_whole_and_loads_into_a_model_that_is_cut(found):
    folder, results = found
    loaded = lab.from_pretrained(CASE.base(), folder / "adapter").eval()
    for rank in results:
        assert (rank["read"] == read_selection(loaded).indices).all()
        assert rank["cut again"]
        torch.testing.assert_close(rank["loaded"], rank["output"])


def test_half_precision_trains_near_it(found):
    alone = trained(model_of(), CASE.inputs(4))
    for results in found[1]:
        assert_alike(results["half"], alone, 0.05)


def test_what_can_t_be_is_refused_by_name(found):
    for results in found[1]:
        assert "Call fully_shard on every module that holds adapted layers" in results["root alone"]
        assert "cut over processes (FSDP)" in results["merge"]


def test_one_process_sees_the_bank_as_ever():
    model = CASE.ours()
    banks = model.base_model.vblora_vector_bank
    assert [name for name, _ in banks.named_parameters(recurse=False)] == ["default"]
    model.add_adapter("other", VBLoRAConfig(**CASE.config))
    assert len(list(banks.parameters())) == 2
