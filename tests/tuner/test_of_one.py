"""Adding an adapter costs the same however many there are, and changes no other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

import pytest
import torch

import vblora_lab.tuner.peft as lab
from tests.cases import CASES, calls_of, scramble
from vblora_lab.tuner import injection, model, of_one
from vblora_lab.tuner.config import VBLoRAConfig

OPT = CASES["opt"]


def config(**changes) -> VBLoRAConfig:
    return VBLoRAConfig(**{**OPT.config, **changes})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An adapter with its bank, and one that needs the bank of the first."""
    folder = tmp_path_factory.mktemp("adapters")
    source = OPT.ours()
    lab.add_adapter(source, "task", config(), bank_of="default")
    scramble(source)
    with lab.using():
        source.save_pretrained(folder)
    return folder, folder / "task"


def ways(adapted, folders) -> dict[str, Callable[[str], object]]:
    """Each way to add an adapter of this name."""

    def load(name: str) -> None:
        with lab.using():
            adapted.load_adapter(folders[0], name)

    return {
        "PeftModel.add_adapter": lambda name: adapted.add_adapter(name, config()),
        "PeftModel.load_adapter": load,
        "add_adapter": lambda name: lab.add_adapter(adapted, name, config(), bank_of="default"),
        "from_pretrained": lambda name: lab.from_pretrained(adapted, folders[1], name),
    }


def prices(adapted, folders) -> dict[str, int]:
    """Calls that each way takes, and deleting what it added."""
    counts = {}
    for name, way in ways(adapted, folders).items():
        way("warm-up")  # what is imported once is imported
        adapted.delete_adapter("warm-up")
        counts[name] = calls_of(lambda: way("new"))  # noqa: B023
        counts[f"delete after {name}"] = calls_of(lambda: adapted.delete_adapter("new"))
    return counts


def test_the_40th_costs_what_the_first_did(folders):
    adapted = lab.from_pretrained(OPT.base(), folders[0])
    first = prices(adapted, folders)
    for i in range(20):
        adapted.add_adapter(f"own-{i}", config())
        lab.add_adapter(adapted, f"shared-{i}", config(), bank_of="default")
    last = prices(adapted, folders)
    # An adapter's calls for every layer would make it twenty times as many.
    assert {name: last[name] < 1.2 * first[name] for name in first} == dict.fromkeys(first, True)


@contextmanager
def seeing_all(_name):
    yield


@pytest.mark.parametrize("is_trainable", [False, True])
def test_nothing_is_other_than_with_walks_over_all(folders, is_trainable, monkeypatch):
    """What is trained, every number, and every key: as where walks see all parameters."""

    def history():
        torch.manual_seed(0)
        adapted = OPT.ours(bias="all")
        adapted.add_adapter("plain", config(target_modules=["k_proj", "fc1"]))
        adapted.set_adapter("plain")
        with lab.using():
            adapted.load_adapter(folders[0], "loaded", is_trainable=is_trainable)
        lab.add_adapter(adapted, "shared", config(), bank_of="default")
        lab.from_pretrained(adapted, folders[1], "from", is_trainable=is_trainable, bank=folders[0])
        adapted.add_adapter("dropped", config(vblora_dropout=0.1))
        adapted.delete_adapter("dropped")
        with pytest.raises(ValueError, match="vector_length"):
            adapted.add_adapter("unfit", config(vector_length=5))
        flags = {name: p.requires_grad for name, p in adapted.named_parameters()}
        return flags, adapted.state_dict(), adapted.base_model.active_adapters

    flags, tensors, active = history()
    for module in (injection, model):
        monkeypatch.setattr(module, "of_one", seeing_all)
    expected_flags, expected_tensors, expected_active = history()
    assert flags == expected_flags and active == expected_active
    assert tensors.keys() == expected_tensors.keys()
    assert all(torch.equal(tensors[key], expected_tensors[key]) for key in tensors)


def test_within_it_layers_still_find_every_adapter(folders):
    adapted = lab.from_pretrained(OPT.base(), folders[0])
    adapted.add_adapter("other", config())
    output = OPT.output(adapted)
    all_of_it = len(adapted.state_dict())
    with of_one.of_one("other"):
        assert torch.equal(OPT.output(adapted), output)
        assert not any("vblora" in name for name, _ in adapted.named_parameters())
        seen = [key for key in adapted.state_dict() if "vblora" in key]
        assert seen and all(key.endswith(".other") for key in seen)
    assert len(adapted.state_dict()) == all_of_it
