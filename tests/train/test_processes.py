"""What a run says of the processes that train together, and what it refuses before they begin."""

import importlib.util
import json

import pytest
import torch

from vblora_lab.errors import ConfigError
from vblora_lab.train.processes import how_processes_train

ZERO = {"ACCELERATE_USE_DEEPSPEED": "true"}
FSDP = {"ACCELERATE_USE_FSDP": "true"}


def test_one_process_says_where_it_is():
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    assert how_processes_train({}) == f"1 process ({kind})"


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({**FSDP, "FSDP_VERSION": "1"}, "fsdp_version: 1 .* use fsdp_version: 2"),
        (FSDP, "fsdp_version: 1"),  # which is accelerate's default
        (
            {**FSDP, "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"},
            "use fsdp_cpu_ram_efficient_loading: false",
        ),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "parallelism_config"),
    ],
)
def test_what_does_not_work_is_refused_by_name(environment, words):
    with pytest.raises(ConfigError, match=words):
        how_processes_train(environment)


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is not None, reason="DeepSpeed is here")
def test_deepspeed_that_is_not_installed_is_named():
    with pytest.raises(ConfigError, match="pip install deepspeed"):
        how_processes_train(ZERO)


@pytest.mark.parametrize("stage", [2, 3])
def test_the_stage_is_that_of_deepspeed_s_own_file_if_there_is_one(stage, tmp_path, monkeypatch):
    file = tmp_path / "deepspeed.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    seen = _several_processes(monkeypatch)
    in_file = {**ZERO, "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)}
    assert how_processes_train(in_file) == f"2 processes ({seen}), DeepSpeed ZeRO-{stage}"
    given = {**ZERO, "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)}
    assert how_processes_train(given) == f"2 processes ({seen}), DeepSpeed ZeRO-{stage}"


def test_an_engine_that_accelerate_would_leave_out_is_refused(monkeypatch):
    """It trains on CPUs with DDP then, and doesn't say so."""
    from accelerate.utils import DistributedType

    _several_processes(monkeypatch, DistributedType.MULTI_CPU)
    assert how_processes_train({}).endswith("DDP")
    with pytest.raises(ConfigError, match=r"FSDP2 needs GPUs.*MULTI_CPU"):
        how_processes_train({**FSDP, "FSDP_VERSION": "2"})


def _several_processes(monkeypatch, kind=None):
    class State:
        num_processes, backend, distributed_type = 2, "gloo", kind
        device = torch.device("cpu")

        def __init__(self, **_):
            pass

    monkeypatch.setattr("vblora_lab.train.processes.PartialState", State)
    return "cpu, gloo"
