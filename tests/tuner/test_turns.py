"""Threads that call one model with different adapters each get their own answers."""

import threading

import pytest
import torch

import vblora_lab as lab
from tests.cases import CASES, scramble, state_of
from vblora_lab.errors import ConfigError, TargetError

CASE = CASES["opt"]
NAMES = ["default", "b", "c", "d"]


def many():
    model = CASE.ours()
    for name in NAMES[1:]:
        model.add_adapter(name, lab.VBLoRAConfig(**CASE.config))
    scramble(model)
    return model.eval()


def answers(model, turn):
    """What sixteen threads get, each with an adapter of its own, ten times."""
    wrong, start = [], threading.Barrier(16)

    def work(name):
        start.wait()
        for _ in range(10):
            with torch.no_grad():
                output = turn(model, name)
            if not torch.equal(output, expected[name]):
                wrong.append(name)

    expected = {}
    for name in NAMES:
        model.set_adapter(name)
        with torch.no_grad():
            expected[name] = CASE.output(model)
    model.set_adapter("default")
    threads = [threading.Thread(target=work, args=(NAMES[i % 4],)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


def test_in_turns_each_thread_gets_its_own_answer():
    model = many()
    before = state_of(model)

    def turn(model, name):
        with lab.using_adapter(model, name) as turned:
            return CASE.output(turned)

    assert answers(model, turn) == []
    assert model.active_adapter == "default" and model.base_model.active_adapters == ["default"]
    flags = [(name, grad) for name, _, grad, _ in state_of(model)["parameters"]]
    assert flags == [(name, grad) for name, _, grad, _ in before["parameters"]]


def test_a_turn_that_fails_is_over():
    model = many()
    with pytest.raises(KeyboardInterrupt), lab.using_adapter(model, "c"):
        assert model.active_adapter == "c"
        raise KeyboardInterrupt
    assert model.active_adapter == "default"
    done = []

    def other():
        with lab.using_adapter(model, "b"):
            done.append(model.active_adapter)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert done == ["b"]


def test_turns_may_nest():
    model = many()
    with lab.using_adapter(model, "b"), lab.using_adapter(model, "c"):
        assert model.active_adapter == "c"
    assert model.active_adapter == "default"


def test_what_has_no_turns_is_refused():
    with (
        pytest.raises(ConfigError, match="no adapter is called 'e'"),
        lab.using_adapter(many(), "e"),
    ):
        pass
    with pytest.raises(TargetError, match="not one made by"), lab.using_adapter(CASE.base(), "b"):
        pass
