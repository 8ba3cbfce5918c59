"""Live adapters: right in every batch, within their capacity, at one price however many."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import pytest
import torch

import vblora_lab.tuner.peft as lab
from tests.cases import CASES, assert_unchanged, calls_of, scramble, state_of
from vblora_lab.errors import CheckpointError, ConfigError, TargetError
from vblora_lab.serving import live_choices
from vblora_lab.serving.live import LiveAdapters
from vblora_lab.tuner import formats
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.saving import full_state_dict

OPT = CASES["opt"]
# Two ranks, several banks, both formats, and layers that some leave out.
KINDS = {
    "user-0": {},
    "user-1": {"save_only_topk_weights": True},
    "user-2": {"r": 4, "topk": 2, "save_only_topk_weights": True},
    "user-3": {"target_modules": ["q_proj", "fc2"]},
    "user-4": {"num_vectors": 20},
    "user-5": {},
}
USERS = list(KINDS)
ROOM = 2**20


def stored(model, name: str, config: VBLoRAConfig):
    """What a file of this adapter would hold."""
    tensors = {k: t.detach().clone() for k, t in full_state_dict(model, name).items()}
    if config.save_only_topk_weights:
        tensors = formats.packed(tensors, config.topk)
    return tensors, config


@pytest.fixture(scope="module")
def users():
    """A model in which PEFT holds each user's adapter, and what a store would have of them."""
    torch.manual_seed(0)
    model = OPT.ours()
    configs = {name: VBLoRAConfig(**{**OPT.config, **kind}) for name, kind in KINDS.items()}
    for name, config in configs.items():
        model.add_adapter(name, config)
    scramble(model)
    banks = model.vblora_vector_bank
    banks["user-5"].data.copy_(banks["user-0"])  # these two share a bank
    return model.eval(), {name: stored(model, name, c) for name, c in configs.items()}


@pytest.fixture
def served():
    """The same base with an adapter of its own."""
    model = OPT.ours().eval()
    scramble(model)
    return model


def alone(users, name: str, call: Callable):
    """What a call of the model gives with this adapter, as PEFT holds it, or with none."""
    model, _ = users
    if name == "__base__":
        with torch.no_grad(), model.disable_adapter():
            return call(model)
    model.set_adapter(name)
    with torch.no_grad():
        return call(model)


# --- right in every batch


@pytest.mark.parametrize(
    "names",
    [
        ["user-3", "__base__", "user-0", "user-2", "user-5", "user-4", "user-1"],
        ["user-5", "user-0"],  # one bank, in the order of the rows
        ["user-2"] * 2 + ["user-1"] * 4 + ["user-2"] * 2,  # in blocks of two
        ["user-0", "user-0", "__base__"],
    ],
)
def test_every_row_is_what_its_user_alone_gets(users, served, names):
    LiveAdapters(served, users[1], capacity=ROOM)
    tokens = OPT.inputs(len(names))
    with torch.no_grad():
        mixed = served(tokens, adapter_names=names).logits
    for row, name in enumerate(names):
        expected = alone(users, name, lambda model: model(tokens).logits)[row]
        torch.testing.assert_close(mixed[row], expected, rtol=1e-4, atol=1e-4)


def test_beside_adapters_that_peft_holds(users, served):
    LiveAdapters(served, users[1], capacity=ROOM)
    tokens = OPT.inputs(3)
    with torch.no_grad():
        mixed = served(tokens, adapter_names=["default", "user-2", "default"]).logits
        own = served(tokens).logits
    expected = alone(users, "user-2", lambda model: model(tokens).logits)
    torch.testing.assert_close(mixed[[0, 2]], own[[0, 2]], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mixed[1], expected[1], rtol=1e-4, atol=1e-4)


def test_on_a_model_that_holds_none_itself(users, served):
    LiveAdapters(served, users[1], capacity=ROOM)
    served.delete_adapter("default")
    tokens = OPT.inputs(2)
    with torch.no_grad():
        mixed = served(tokens, adapter_names=["user-3", "user-2"]).logits
    for row, name in enumerate(["user-3", "user-2"]):
        expected = alone(users, name, lambda model: model(tokens).logits)[row]
        torch.testing.assert_close(mixed[row], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_beams_and_padding(users, served, beams):
    LiveAdapters(served, users[1], capacity=ROOM)
    names = ["user-2", "__base__", "user-3", "user-2"]
    tokens = OPT.inputs(4)
    mask = torch.ones_like(tokens)
    mask[0, :3] = mask[2, :1] = 0
    options = {"num_beams": beams, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 1}
    mixed = served.generate(input_ids=tokens, attention_mask=mask, adapter_names=names, **options)
    for row, name in enumerate(names):
        prompt = {"input_ids": tokens[row : row + 1], "attention_mask": mask[row : row + 1]}
        expected = alone(users, name, lambda model: model.generate(**prompt, **options))  # noqa: B023
        assert torch.equal(mixed[row, : expected.shape[1]], expected[0])


def test_one_admixture_mixes_all_adapters_of_a_kind(users, served, monkeypatch):
    LiveAdapters(served, users[1], capacity=ROOM)
    counts: list[int] = []
    mix = live_choices.mix
    monkeypatch.setattr(live_choices, "mix", lambda *a: counts.append(len(a[0])) or mix(*a))
    with torch.no_grad():
        served.generate(
            OPT.inputs(6), adapter_names=USERS, max_new_tokens=4, do_sample=False, pad_token_id=1
        )
    # Once for all layers and tokens. Only user-0 and user-5 have one bank, rank and layers.
    assert sorted(counts) == [1, 1, 1, 1, 2]


def test_in_half_precision_as_near_as_the_weights_are(users):
    model = lab.get_peft_model(OPT.base().bfloat16(), VBLoRAConfig(**OPT.config)).eval()
    LiveAdapters(model, users[1], capacity=ROOM)
    names, tokens = ["user-1", "user-3", "__base__"], OPT.inputs(3)
    with torch.no_grad():
        mixed = model(tokens, adapter_names=names).logits.float()
    for row, name in enumerate(names):
        expected = alone(users, name, lambda model: model(tokens).logits)[row]
        assert (mixed[row] - expected).norm() < 0.05 * expected.norm()


def test_batches_swaps_and_drops_in_many_threads(users, served):
    """Every answer is of one adapter or the other, whatever happens meanwhile."""
    live = LiveAdapters(served, users[1], capacity=ROOM)
    tokens = OPT.inputs(2)
    right = [alone(users, name, lambda model: model(tokens).logits) for name in USERS]
    wrong: list[str] = []

    def ask(seed: int) -> None:
        for turn in range(6):
            first, second = (seed + turn) % 6, (seed + 3 * turn + 1) % 6
            with torch.no_grad():
                found = served(tokens, adapter_names=[USERS[first], USERS[second]]).logits
            expected = torch.stack([right[first][0], right[second][1]])
            if not torch.allclose(found, expected, rtol=1e-4, atol=1e-4):
                wrong.append(f"{first} {second}")
            if live.loaded % 2:
                live.add(USERS[first], *users[1][USERS[first]], replace=True)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert live.loaded <= len(USERS)  # each was loaded once, whoever asked first


def test_a_batch_that_runs_keeps_what_it_began_with(users, served):
    live = LiveAdapters(served, capacity=ROOM)
    live.add("me", *users[1]["user-0"])
    tokens = OPT.inputs(2)
    before = alone(users, "user-0", lambda model: model(tokens).logits)
    tuner = served.base_model
    with tuner._enable_peft_forward_hooks(adapter_names=["me"] * 2), torch.no_grad():
        live.add("me", *users[1]["user-4"], replace=True)
        torch.testing.assert_close(tuner(tokens).logits, before, rtol=1e-4, atol=1e-4)
        live.drop("me")
        torch.testing.assert_close(tuner(tokens).logits, before, rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="'me'"):
        served(tokens, adapter_names=["me"] * 2)


# --- loaded on demand, within a capacity


class Source(dict):
    """Counts how often each adapter is read; one named "broken" can't be."""

    def __init__(self, stored):
        super().__init__(stored)
        self.read: list[str] = []

    def __getitem__(self, name):
        self.read.append(name)
        return super().__getitem__(name)


def test_each_is_loaded_once_while_there_is_room(users, served):
    source = Source(users[1])
    live = LiveAdapters(served, source, capacity=ROOM)
    assert len(live) == 0 and "user-3" in live and "nobody" not in live
    for _ in range(2):
        served(OPT.inputs(2), adapter_names=["user-3", "user-1"])
    assert source.read == ["user-3", "user-1"] == list(live)
    with pytest.raises(ConfigError, match=r"'nobody'.*live or in their source"):
        served(OPT.inputs(2), adapter_names=["user-3", "nobody"])


def test_the_least_recently_used_go_and_the_pinned_stay(users, served):
    one = users[1]["user-0"]
    live = LiveAdapters(served, capacity=ROOM)
    live.add("a", *one)
    bank = one[0][formats.BANK_KEY].nbytes
    each = live.nbytes - bank
    live.close()
    live = LiveAdapters(served, capacity=bank + 3 * each)
    for name in "abc":
        live.add(name, *one)
    assert live.nbytes == live.capacity
    live.pin("a")
    served(OPT.inputs(1), adapter_names=["b"])
    live.add("d", *users[1]["user-5"])  # whose bank is the same
    assert set(live) == {"a", "b", "d"} and live.evicted == 1 and live.pinned == {"a"}
    live.unpin("a")
    live.drop("d")
    assert live.nbytes == live.capacity - each
    live.add("e", *one)
    live.add("f", *one)
    assert set(live) == {"a", "e", "f"} and live.nbytes == live.capacity
    live.add("e", *one, replace=True)
    assert set(live) == {"a", "e", "f"} and live.nbytes == live.capacity and live.evicted == 2


def test_without_room_nothing_goes(users, served):
    live = LiveAdapters(served, capacity=ROOM)
    live.add("a", *users[1]["user-0"], pin=True)
    live.add("b", *users[1]["user-5"])
    size = live.nbytes
    live.close()
    live = LiveAdapters(served, users[1], capacity=size)
    live.add("a", *users[1]["user-0"], pin=True)
    live.add("b", *users[1]["user-5"])
    with pytest.raises(ConfigError, match=f"capacity={size}: 'user-4' needs"):
        served(OPT.inputs(1), adapter_names=["user-4"])  # another bank
    assert list(live) == ["a", "b"] and live.nbytes == size and live.evicted == 0
    with pytest.raises(ConfigError, match="smaller batch"):
        served(OPT.inputs(3), adapter_names=["a", "b", "user-0"])  # b is in use
    served(OPT.inputs(2), adapter_names=["a", "user-0"])
    assert set(live) == {"a", "user-0"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_load_that_breaks_off_leaves_things_as_they_were(users, served, error, monkeypatch):
    live = LiveAdapters(served, users[1], capacity=ROOM)
    live.add("here", *users[1]["user-1"])
    size, made = live.nbytes, live_choices.Choices

    def break_off(*args):
        raise error

    monkeypatch.setattr(live_choices, "Choices", break_off)
    with pytest.raises(error):
        served(OPT.inputs(1), adapter_names=["user-0"])
    monkeypatch.setattr(live_choices, "Choices", made)
    assert list(live) == ["here"] and live.nbytes == size
    served(OPT.inputs(1), adapter_names=["user-0"])
    assert live.loaded == 1


# --- the price of one more


def test_adding_swapping_and_dropping_cost_the_same_with_1000_there(users, served):
    live = LiveAdapters(served, capacity=2**30)
    one, other = users[1]["user-1"], users[1]["user-2"]

    def prices() -> list[int]:
        return [
            calls_of(lambda: live.add("new", *one)),
            calls_of(lambda: live.add("new", *other, replace=True)),
            calls_of(lambda: live.drop("new")),
        ]

    live.add("first", *one)
    prices()  # the model is searched once for each kind of config
    few = prices()
    for i in range(1000):
        live.add(f"user-{i}", *one)
    assert len(live) == 1001
    assert all(many <= price + 5 for many, price in zip(prices(), few, strict=True))


def test_no_module_is_touched(users, served):
    before = state_of(served)
    live = LiveAdapters(served, users[1], capacity=ROOM)
    served(OPT.inputs(2), adapter_names=["user-0", "user-3"])
    live.drop("user-0")
    assert_unchanged(served, before)
    assert copy.deepcopy(served).base_model.pool.live is None
    live.close()
    with pytest.raises(ConfigError, match="'user-3'"):
        served(OPT.inputs(1), adapter_names=["user-3"])


# --- what can't be live


def test_what_does_not_fit_is_refused_by_name(users, served):
    live = LiveAdapters(served, capacity=ROOM)
    tensors, config = users[1]["user-0"]

    def refused(error, match, name="new", tensors=tensors, config=config, **options):
        with pytest.raises(error, match=match):
            live.add(name, tensors, config, **options)
        assert len(live) == 0 and live.nbytes == 0

    key = next(k for k in tensors if "logits_A" in k)
    without_bank = {k: t for k, t in tensors.items() if k != formats.BANK_KEY}
    refused(CheckpointError, "'new': its bank", tensors=without_bank)
    refused(
        CheckpointError,
        "logits_A is missing",
        tensors={formats.BANK_KEY: tensors[formats.BANK_KEY]},
    )
    refused(CheckpointError, "NaN", tensors={**tensors, key: tensors[key] * torch.nan})
    refused(CheckpointError, "has shape", tensors={**tensors, key: tensors[key][:1]})
    bank = tensors[formats.BANK_KEY] * torch.inf
    refused(CheckpointError, "NaN", tensors={**tensors, formats.BANK_KEY: bank})
    packed, of_packed = users[1]["user-1"]
    index = next(k for k in packed if k.endswith(formats.INDICES))
    bad = {**packed, index: packed[index] + 250}
    refused(CheckpointError, "stored indices", tensors=bad, config=of_packed)
    trains = VBLoRAConfig(**OPT.config, bias="all")
    refused(ConfigError, "load_adapter", config=trains)
    elsewhere = VBLoRAConfig(**{**OPT.config, "target_modules": ["k_proj", "q_proj"]})
    refused(TargetError, "leave out .*k_proj", config=elsewhere)
    refused(ConfigError, "PEFT holds", name="default")
    for call in (live.drop, live.unpin):
        with pytest.raises(ConfigError, match="'nobody': is not in memory"):
            call("nobody")
    with pytest.raises(ConfigError, match="no live adapter is called 'nobody'"):
        live.pin("nobody")


def test_a_taken_name_and_a_second_bank_of_live_adapters(users, served):
    live = LiveAdapters(served, capacity=ROOM)
    live.add("user-0", *users[1]["user-0"])
    with pytest.raises(ConfigError, match="replace=True"):
        live.add("user-0", *users[1]["user-1"])
    with pytest.raises(ConfigError, match="close"):
        LiveAdapters(served, capacity=ROOM)
    for capacity in (0, -1, 2.5, "1 GiB"):
        with pytest.raises(ConfigError, match="capacity="):
            LiveAdapters(OPT.ours(), capacity=capacity)
    with pytest.raises(TargetError, match="not one made by vblora_lab"):
        LiveAdapters(OPT.base(), capacity=ROOM)
