"""The size of a weights file, found from a plan, is that of the file that PEFT writes."""

import peft
import pytest
from peft import LoraConfig

from vblora_lab import VBLoRAConfig, get_peft_model, plan
from vblora_lab.bases import share_weights
from vblora_lab.planning.file_size import lora_file_bytes, vblora_file_bytes

WEIGHTS = "adapter_model.safetensors"
FEWER_DIGITS = 16  # bytes of a header's entry, at most


@pytest.mark.parametrize("targets", [["v_proj"], ["q_proj", "k_proj", "v_proj", "fc1", "fc2"]])
@pytest.mark.parametrize("num_vectors", [8, 300])  # whose indices take 1 byte and 2
def test_of_vblora_in_the_top_k_format(base, tmp_path, targets, num_vectors):
    config = VBLoRAConfig(
        r=3, num_vectors=num_vectors, vector_length=32, topk=3, target_modules=targets,
        save_only_topk_weights=True,
    )  # fmt: skip
    planned = plan(base.model, config)
    get_peft_model(share_weights(base.model), config).save_pretrained(str(tmp_path))
    written = (tmp_path / WEIGHTS).stat().st_size
    tensors = 1 + 4 * len(planned.targets)
    assert 0 <= vblora_file_bytes(planned) - written <= FEWER_DIGITS * tensors + 8
    assert written > planned.topk_bytes + 50 * tensors  # the header is worth counting


def test_of_lora(base, tmp_path):
    targets = ["q_proj", "fc2"]
    planned = plan(base.model, VBLoRAConfig(r=5, vector_length=1, target_modules=targets))
    lora = LoraConfig(r=5, target_modules=targets)
    peft.get_peft_model(share_weights(base.model), lora).save_pretrained(str(tmp_path))
    written = (tmp_path / WEIGHTS).stat().st_size
    assert 0 <= lora_file_bytes(planned) - written <= FEWER_DIGITS * 2 * len(planned.targets) + 8
