"""Fixtures for every room; the models they give are in `cases`."""

from __future__ import annotations

import dataclasses
import gc
import os

import pytest
import torch

from tests.cases import CASES, Case
from vblora_lab.bases import load_base
from vblora_lab.data import load_task
from vblora_lab.tuner.config import VBLoRAConfig


def pytest_collection_modifyitems(items):
    if not os.environ.get("VBLORA_LAB_LONG"):
        skip = pytest.mark.skip(reason="long: run by `make test-long`")
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(skip)


def pytest_collection_finish():
    """Spare the garbage collector what stays to the end: modules, and thousands of tests.

    It is called again and again by what is tested (each run of a Trainer does).
    """
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    gc.unfreeze()  # libraries look for what is left over when Python ends


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(params=CASES)
def case(request) -> Case:
    """Each kind of base model in turn."""
    return CASES[request.param]


@pytest.fixture
def opt_case() -> Case:
    return CASES["opt"]


# --- one small base, task and config for all tests of training


@pytest.fixture(scope="session")
def base():
    return load_base("mini-opt", device="cpu")


@pytest.fixture(scope="session")
def task():
    whole = load_task("restaurants")
    return dataclasses.replace(whole, train=whole.train[:64], validation=whole.validation[:8])


@pytest.fixture
def config():
    return VBLoRAConfig(r=2, num_vectors=16, vector_length=128, target_modules=["q_proj", "v_proj"])
