"""How PEFT is told: visibly, reversibly, and not at all by importing."""

import subprocess
import sys
import threading

import peft
import pytest
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.vblora import VBLoRAModel as StockModel

import vblora_lab.tuner.peft as lab
from vblora_lab.errors import ConfigError, TargetError
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.model import VBLoRAModel

STOCK = (peft.VBLoRAConfig, StockModel)
OURS = (VBLoRAConfig, VBLoRAModel)


def entries():
    kind = peft.PeftType.VBLORA
    return PEFT_TYPE_TO_CONFIG_MAPPING[kind], PEFT_TYPE_TO_TUNER_MAPPING[kind]


@pytest.fixture(autouse=True)
def _left_as_found():
    assert entries() == STOCK
    yield
    lab.unregister()
    assert entries() == STOCK


def test_calls_leave_peft_alone(opt_case, tmp_path):
    model = opt_case.ours()
    assert entries() == STOCK
    assert isinstance(model.base_model, VBLoRAModel)
    assert isinstance(opt_case.stock().base_model, StockModel)
    model.save_pretrained(tmp_path)
    lab.from_pretrained(opt_case.base(), tmp_path)
    assert entries() == STOCK
    with pytest.raises(TargetError):
        opt_case.ours(vector_length=5)
    assert entries() == STOCK


def test_registered_peft_uses_these_classes_everywhere(opt_case, tmp_path):
    lab.register()
    lab.register()  # twice is once
    assert entries() == OURS
    model = opt_case.stock()  # peft.get_peft_model with peft.VBLoRAConfig
    assert isinstance(model.base_model, VBLoRAModel)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(opt_case.base(), tmp_path)
    assert isinstance(loaded.base_model, VBLoRAModel)
    assert isinstance(peft.PeftConfig.from_pretrained(tmp_path), VBLoRAConfig)
    lab.unregister()
    lab.unregister()
    assert entries() == STOCK


def test_blocks_nest_and_survive_errors():
    with lab.using():
        with lab.using():
            assert entries() == OURS
        assert entries() == OURS
        with pytest.raises(KeyError), lab.using():
            raise KeyError
        assert entries() == OURS
    assert entries() == STOCK
    lab.register()
    with lab.using():
        pass
    assert entries() == OURS
    with lab.using():
        lab.unregister()
        assert entries() == OURS
    assert entries() == STOCK


def test_blocks_of_several_threads_may_overlap():
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with lab.using():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    with lab.using():
        thread.start()
        assert inside.wait(10)
    assert entries() == OURS  # the thread is still in its block
    leave.set()
    thread.join()
    assert entries() == STOCK


def test_the_caller_s_config_is_never_changed(opt_case):
    for config_class in (VBLoRAConfig, peft.VBLoRAConfig):
        config = config_class(**{**opt_case.config, "target_modules": "all-linear"})
        before = config.to_dict()
        base = opt_case.base()
        base.name_or_path = "some/base"
        model = lab.get_peft_model(base, config)
        model.add_adapter("other", config)
        assert config.to_dict() == before
        assert model.peft_config["default"].base_model_name_or_path == "some/base"
        assert isinstance(model.peft_config["default"].target_modules, set)


def test_only_vblora_configs(opt_case):
    with pytest.raises(ConfigError, match="LoraConfig"):
        lab.get_peft_model(opt_case.base(), peft.LoraConfig())


def test_the_class_for_the_task(opt_case):
    assert isinstance(opt_case.ours(task_type="CAUSAL_LM"), peft.PeftModelForCausalLM)


@pytest.mark.slow
def test_importing_leaves_peft_alone():
    """Seen from a fresh process, since this one has imported everything."""
    script = """
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
before = dict(PEFT_TYPE_TO_CONFIG_MAPPING), dict(PEFT_TYPE_TO_TUNER_MAPPING)
import vblora_lab.tuner.peft, vblora_lab.planning.presets, vblora_lab.planning.plan
assert (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING) == before, "PEFT is changed"
print("checked")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "checked", done.stderr
