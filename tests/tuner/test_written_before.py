"""Adapters that an earlier layout of the package wrote compute what they did then.

``data/written_before`` holds one adapter on mini-opt in both formats, with all logits ("full") and
with the top-k weights alone ("topk"), and every 64th logit that the package of that time gave.
"""

import json
from pathlib import Path

import peft
import pytest
import torch

import vblora_lab as lab
from vblora_lab.bases import share_weights

DATA = Path(__file__).parent / "data" / "written_before"


@pytest.mark.parametrize("load", [lab.from_pretrained, peft.PeftModel.from_pretrained])
@pytest.mark.parametrize("stored", ["full", "topk"])
def test_an_adapter_gives_the_logits_of_then(base, stored, load):
    expected = json.loads((DATA / "expected.json").read_text(encoding="utf-8"))
    model = load(share_weights(base.model), DATA / stored).eval()
    with torch.no_grad():
        logits = model(torch.tensor(expected["tokens"])).logits[:, :, :: expected["every"]]
    # Another PyTorch may round otherwise, up to 1.5e-5 in logits of up to 8.
    torch.testing.assert_close(logits, torch.tensor(expected[stored]), rtol=1e-4, atol=1e-4)


def test_the_adapter_counts(base):
    """Its effect is far above the tolerance."""
    expected = json.loads((DATA / "expected.json").read_text(encoding="utf-8"))
    with torch.no_grad():
        plain = base.model(torch.tensor(expected["tokens"])).logits[:, :, :: expected["every"]]
    assert (plain - torch.tensor(expected["full"])).abs().max() > 0.05
