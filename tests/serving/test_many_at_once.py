"""Threads, processes and kills on one store and one model. The long form is in tests/fuzz."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.serving.crowd import BASE, MEANINGS, Crowd, answers_of, ended, forked
from tests.serving.test_store import assert_nothing_is_left_over
from vblora_lab.serving.store import AdapterStore

pytestmark = pytest.mark.skipif(os.name == "nt", reason="forks, and deletes files that are mapped")


@pytest.fixture(scope="module")
def answers(adapters: Path) -> dict[str, torch.Tensor]:
    return answers_of(adapters)


@pytest.fixture
def crowd(tmp_path: Path, adapters: Path, answers: dict[str, torch.Tensor]) -> Crowd:
    return Crowd(tmp_path / "store", adapters, answers)


def check_at_the_end(crowd: Crowd) -> None:
    """Every adapter is whole, and the next writer leaves nothing over."""
    store = AdapterStore(crowd.path, create=False)
    assert store.check() == []
    store.add(crowd.adapters / "own", "last")
    assert_nothing_is_left_over(store)
    assert (
        {*MEANINGS, "v", "last"} <= set(store) <= {*MEANINGS, "v", "last", "gone", "keeps-the-bank"}
    )


def all_at_once(crowd: Crowd, seed: int, amount: int) -> Counter[str]:
    """Two writers, two readers, two servers of four threads each, and victims that are killed.

    Returns:
        How many requests were served, refused, or found no room, and how many victims were killed.
    """
    reports = [crowd.path.with_name(f"report-{i}.json") for i in range(2)]
    others = [forked(crowd.serve, seed + i, 2 * amount, reports[i]) for i in range(2)]
    others += [forked(crowd.write, seed + i, amount) for i in range(2)]
    others += [forked(crowd.read, seed + i, 5 * amount) for i in range(2)]
    killed = kills(crowd, seed, amount // 2)
    assert [ended(child) for child in others] == [0] * len(others)
    check_at_the_end(crowd)
    ends = Counter({"killed": killed})
    for report in reports:
        ends.update(json.loads(report.read_text(encoding="utf-8")))
    return ends


def kills(crowd: Crowd, seed: int, times: int) -> int:
    """Kill a process that replaces an adapter, at any moment; each time the store is whole."""
    rng, store = random.Random(seed), AdapterStore(crowd.path, create=False)
    digests = digests_of(crowd)
    killed = 0
    for _ in range(times):
        begun, ready = os.pipe()
        victim = forked(crowd.be_killed, ready)
        os.close(ready)  # so that a victim that ends by itself isn't waited for
        assert os.read(begun, 1) == b"!"
        time.sleep(rng.uniform(0, 0.1))  # any moment: that it makes no difference is tested
        os.kill(victim, signal.SIGKILL)
        killed += ended(victim) == signal.SIGKILL
        os.close(begun)
        assert store["v"].digest in digests
        assert crowd.is_meant(store.read("v").tensors, "v")
    return killed


def digests_of(crowd: Crowd) -> set[str]:
    """Those that the victim's name can have."""
    store = AdapterStore(crowd.path.with_name("apart"))
    store.add(crowd.adapters / "first", "first")
    return {store.add(crowd.adapters / s, s).digest for s in crowd.meanings("v")}


def test_wrong_answers_would_be_seen(crowd):
    """No two adapters answer alike, in any row."""
    names = list(crowd.answers)
    for i, one in enumerate(names):
        for other in names[:i]:
            apart = (crowd.answers[one] - crowd.answers[other]).abs().amax(dim=(1, 2))
            assert apart.min() > 0.01, (one, other)
    assert BASE in names


def test_a_mix_up_and_a_torn_read_are_seen(crowd, monkeypatch):
    """The roles themselves can fail."""
    monkeypatch.setattr(crowd, "answers", {**crowd.answers, "user-0": crowd.answers["user-2"]})
    monkeypatch.setattr(crowd, "_disturb", lambda live, rng: None)
    with pytest.raises(AssertionError, match=r"x in .* got what no adapter of that name gives"):
        crowd.serve(0, 20, crowd.path.with_name("report.json"), threads=1)
    key = next(key for key in crowd.tensors["user-0"] if "logits" in key)
    torn = {**crowd.tensors["user-0"], key: torch.zeros_like(crowd.tensors["user-0"][key])}
    monkeypatch.setitem(crowd.tensors, "user-0", torn)
    with pytest.raises(AssertionError, match="x is torn"):
        crowd.read(0, 50)


def test_everybody_at_once(crowd):
    ends = all_at_once(crowd, seed=0, amount=12)
    assert ends["served"] + ends["refused"] + ends["no room"] == 2 * 4 * 24
    assert ends["served"] > 2 * 4 * 24 / 2 and ends["refused"] > 0 and ends["killed"] == 6
