"""Fixtures for every room; the models they give are in `cases`."""

from __future__ import annotations

import pytest
import torch

from tests.cases import CASES, Case


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
