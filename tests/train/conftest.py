"""One small base, task and config for all tests of training."""

import dataclasses

import pytest

from vblora_lab.bases import load_base
from vblora_lab.data import load_task
from vblora_lab.tuner.config import VBLoRAConfig


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
