"""Models spread over two GPUs by device_map, put aside on the CPU, or in 4 bits in two processes.

The reference is the same model on one GPU, with all of the batch.
"""

import importlib.util
import warnings

import accelerate
import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

import vblora_lab.tuner.peft as lab
from tests.alike import assert_alike
from tests.cases import CASES, scramble
from vblora_lab.errors import MergeError
from vblora_lab.tuner.config import VBLoRAConfig

pytestmark = [
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
    pytest.mark.filterwarnings("ignore"),
]
in_bits = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes isn't installed"
)
CASE = CASES["llama"]
ENDS = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.norm": 1, "lm_head": 1}
MAPS = {
    "two GPUs": {**ENDS, "model.layers.0": 0, "model.layers.1": 1},
    "a layer on the CPU": {**ENDS, "model.layers.0": "cpu", "model.layers.1": 1},
}


def adapted(base):
    model = lab.get_peft_model(base, VBLoRAConfig(**CASE.config))
    scramble(model)
    return model.train()


def steps(model, tokens, parameters=None):
    """What is trained, whole, after three steps of SGD, and the losses."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    losses = []
    for step in range(3):
        optimizer.zero_grad()
        part = (tokens + step) % 40
        loss = model(input_ids=part, labels=part).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    found = {
        name.removeprefix("module."): (p.full_tensor() if hasattr(p, "full_tensor") else p)
        for name, p in model.named_parameters()
        if "vblora_" in name
    }
    return {name: p.detach().cpu().clone() for name, p in found.items()}, losses


@pytest.mark.parametrize("where", MAPS)
def test_device_map_trains_stores_and_merges(where, tmp_path):
    tokens = CASE.inputs().to("cuda:0")
    expected, losses = steps(adapted(CASE.base().to("cuda:0")), tokens)
    base = accelerate.dispatch_model(CASE.base(), MAPS[where], main_device=0)
    model = adapted(base)
    found, ours = steps(model, tokens)
    assert ours == pytest.approx(losses, rel=1e-4)
    assert_alike(found, expected)
    model.save_pretrained(tmp_path)
    loaded = lab.from_pretrained(CASE.base(), tmp_path)
    output = CASE.output(model.eval()).detach().cpu()
    torch.testing.assert_close(CASE.output(loaded.eval()), output, rtol=1e-3, atol=1e-4)
    model.merge_adapter()
    torch.testing.assert_close(CASE.output(model).detach().cpu(), output, rtol=1e-3, atol=1e-4)


# --- 4 bits, in two processes

FIELDS = {"r": 2, "num_vectors": 10, "vector_length": 16, "topk": 3, "init_vector_bank_bound": 0.1}


def small(folder):
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=40, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
        initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def in_4_bits(folder, gpu):
    """QLoRA's base: NF4, kept as bfloat16 numbers so that FSDP can cut them."""
    bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_quant_storage=torch.bfloat16,
    )
    base = LlamaForCausalLM.from_pretrained(
        folder, quantization_config=bits, device_map={"": gpu}, dtype=torch.bfloat16
    )
    base.requires_grad_(False)
    model = lab.get_peft_model(base, VBLoRAConfig(**FIELDS, target_modules="all-linear"))
    scramble(model)
    return model.train()


def one_process(rank, folder):
    warnings.simplefilter("ignore")
    torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2,
        device_id=torch.device("cuda", rank),
    )  # fmt: skip
    mine = CASE.inputs(4).chunk(2)[rank].to(rank)
    found = {}
    for name in ("DDP", "FSDP2"):
        try:
            model = in_4_bits(f"{folder}/base", rank)
            if name == "DDP":
                spread = DistributedDataParallel(model, device_ids=[rank])
            else:
                for layer in model.base_model.model.model.layers:
                    fully_shard(layer)
                spread = fully_shard(model)
            found[name] = steps(spread, mine)
            with lab.using():
                model.save_pretrained(f"{folder}/{name}", is_main_process=rank == 0)
            try:
                model.merge_adapter()
                found[f"{name} merge"] = "done"
            except MergeError as error:
                found[f"{name} merge"] = str(error)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bits")
    small(folder / "base")
    torch.multiprocessing.spawn(one_process, (str(folder),), nprocs=2)
    return folder, [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@in_bits
@pytest.mark.parametrize("engine", ["DDP", "FSDP2"])
def test_a_base_in_4_bits_trains_in_two_processes_as_in_one(of_two, engine):
    folder, results = of_two
    expected, losses = steps(in_4_bits(folder / "base", 0), CASE.inputs(4).to("cuda:0"))
    for found in results:
        assert not isinstance(found[engine], str), found[engine]
        assert_alike(found[engine][0], expected, 0.02)  # of bfloat16
    both = torch.tensor([found[engine][1] for found in results]).mean(0)
    torch.testing.assert_close(both, torch.tensor(losses), rtol=0.02, atol=0)
    loaded = lab.from_pretrained(LlamaForCausalLM.from_pretrained(folder / "base"), folder / engine)
    stored = dict(loaded.named_parameters())
    for name, tensor in results[0][engine][0].items():
        torch.testing.assert_close(stored[name].detach(), tensor)


@in_bits
def test_it_is_merged_where_it_is_whole_and_refused_where_it_is_cut(of_two):
    for found in of_two[1]:
        assert found["DDP merge"] == "done"
        assert "cut over processes" in found["FSDP2 merge"]
