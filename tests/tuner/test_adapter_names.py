"""An adapter's name is that of the folder that it is saved in: it must stay within."""

from __future__ import annotations

import pytest
import torch

import vblora_lab.tuner.peft as lab
from vblora_lab.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "would_do"),
    [
        ("a/b", "a_b"), ("a\\b", "a_b"), ("/tmp", "_tmp"), ("C:x", "C_x"), ("a\nb", "a_b"),
        ("a\x00b", "a_b"), ("ä" * 150, "ä" * 100),
    ],
)  # fmt: skip
def test_names_that_no_folder_can_have_are_refused(case, name, would_do):
    model = case.ours()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    adapters = set(model.peft_config)
    with pytest.raises(ConfigError, match="would do") as refused:
        model.add_adapter(name, lab.VBLoRAConfig(**case.config))
    assert repr(would_do) in str(refused.value)
    assert set(model.peft_config) == adapters
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_what_is_suggested_can_be_added_and_saved(case, tmp_path):
    model = case.ours()
    model.add_adapter("a_b", lab.VBLoRAConfig(**case.config))
    model.save_pretrained(tmp_path, selected_adapters=["a_b"])
    assert (tmp_path / "a_b" / "adapter_config.json").is_file()


@pytest.mark.parametrize("name", ["..", ".", "a.b", ""])
def test_dots_lead_nowhere(case, name):
    model = case.ours()
    with pytest.raises(ConfigError, match="without dots"):
        model.add_adapter(name, lab.VBLoRAConfig(**case.config))
