"""Live adapters: right in every batch, within their capacity, at one price however many."""

from __future__ import annotations

import pytest
import torch

import vblora_lab.tuner.peft as lab
from tests.cases import CASES, scramble
from vblora_lab.errors import ConfigError
from vblora_lab.serving.live import LiveAdapters
from vblora_lab.tuner import formats
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.saving import full_state_dict

OPT = CASES["opt"]
USERS = 6
# Two ranks, three banks, both formats, and layers that some leave out.
KINDS = [
    {},
    {"save_only_topk_weights": True},
    {"r": 4, "topk": 2, "save_only_topk_weights": True},
    {"target_modules": ["q_proj", "fc2"]},
    {"num_vectors": 20},
    {},
]


def with_users() -> tuple[lab.PeftModel, dict]:
    """A model that holds each user's adapter as PEFT does, and what a store would have of them."""
    model = OPT.ours()
    configs = {f"user-{i}": VBLoRAConfig(**{**OPT.config, **kind}) for i, kind in enumerate(KINDS)}
    for name, config in configs.items():
        model.add_adapter(name, config)
    scramble(model)
    first, last = (model.vblora_vector_bank[f"user-{i}"] for i in (0, USERS - 1))
    last.data.copy_(first)  # these two share a bank
    stored = {}
    for name, config in configs.items():
        tensors = {k: t.detach().clone() for k, t in full_state_dict(model, name).items()}
        if config.save_only_topk_weights:
            tensors = formats.packed(tensors, config.topk)
        stored[name] = (tensors, config)
    return model.eval(), stored


@pytest.fixture(scope="module")
def users():
    torch.manual_seed(0)
    return with_users()


@pytest.fixture
def served(users):
    """The same base with one adapter, and a bank of live ones whose source has all users."""
    model = OPT.ours().eval()
    scramble(model)
    return model, LiveAdapters(model, users[1], capacity=2**20)


def alone(users, tokens, name):
    model, _ = users
    with torch.no_grad():
        if name == "__base__":
            with model.disable_adapter():
                return model(tokens).logits
        model.set_adapter(name)
        return model(tokens).logits


def test_every_row_is_what_its_user_alone_gets(users, served):
    model, _ = served
    names = ["user-3", "__base__", "user-0", "user-2", "user-5", "default", "user-4", "user-1"]
    tokens = OPT.inputs(len(names))
    with torch.no_grad():
        mixed = model(tokens, adapter_names=names).logits
        for row, name in enumerate(names):
            if name == "default":
                expected = model(tokens).logits[row]
            else:
                expected = alone(users, tokens, name)[row]
            torch.testing.assert_close(mixed[row], expected, rtol=1e-4, atol=1e-4)


def test_beams_padding_and_base(users, served):
    model, _ = served
    names = ["user-2", "__base__", "user-3"]
    tokens = OPT.inputs(3)
    mask = torch.ones_like(tokens)
    mask[0, :3] = mask[2, :1] = 0
    options = {"num_beams": 3, "max_new_tokens": 5, "do_sample": False, "pad_token_id": 1}
    mixed = model.generate(input_ids=tokens, attention_mask=mask, adapter_names=names, **options)
    theirs, _ = users
    for row, name in enumerate(names):
        prompt = {"input_ids": tokens[row : row + 1], "attention_mask": mask[row : row + 1]}
        if name == "__base__":
            with theirs.disable_adapter():
                expected = theirs.generate(**prompt, **options)
        else:
            theirs.set_adapter(name)
            expected = theirs.generate(**prompt, **options)
        assert torch.equal(mixed[row, : expected.shape[1]], expected[0])


def test_one_admixture_for_each_kind(served, monkeypatch):
    from vblora_lab.serving import live_choices

    model, _ = served
    calls = []
    mix = live_choices.mix
    monkeypatch.setattr(live_choices, "mix", lambda *a: calls.append(len(a[0])) or mix(*a))
    names = [f"user-{i}" for i in range(USERS)]
    with torch.no_grad():
        model(OPT.inputs(USERS), adapter_names=names)
    # user-0, -1 and -5 differ in bank or format alone; -0 and -5 have one bank
    assert sorted(calls) == [1, 1, 1, 1, 2]


def test_the_least_recently_used_go_and_the_pinned_stay(users, served):
    model, live = served
    live.add("a", *users[1]["user-0"])
    each = live.nbytes - users[1]["user-0"][0][formats.BANK_KEY].nbytes
    live.close()
    live = LiveAdapters(model, users[1], capacity=live.nbytes + 0 or 2**20)
    live.close()
    room = users[1]["user-0"][0][formats.BANK_KEY].nbytes + 3 * each
    live = LiveAdapters(model, capacity=room)
    for name in "abc":
        live.add(name, *users[1]["user-0"])
    assert live.nbytes == room and len(live) == 3
    live.pin("a")
    with torch.no_grad():
        model(OPT.inputs(1), adapter_names=["b"])
    live.add("d", *users[1]["user-5"])  # the same bank
    assert set(live) == {"a", "b", "d"} and live.evicted == 1
    live.add("e", *users[1]["user-0"])
    assert set(live) == {"a", "d", "e"}
    live.unpin("a")
    live.add("f", *users[1]["user-0"])
    assert "a" in live and set(live) == {"a", "e", "f"}
    live.drop("e")
    assert live.nbytes == room - each
    with pytest.raises(ConfigError, match="capacity"):
        live.add("g", *users[1]["user-4"])  # a bank that there is no room for beside pinned ones
