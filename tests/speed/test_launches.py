"""How many operators a training pass runs: on a GPU each is a launch, and launches are its time.

Counted and not timed, so that it is the same on any machine. A number here may only fall.
"""

from collections import Counter

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from tests.speed.test_compiled import opt, tokens
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.peft import get_peft_model

# Views start no kernel, nor do empty tensors.
NO_LAUNCH = {
    "view", "_unsafe_view", "t", "transpose", "expand", "slice", "select", "unsqueeze", "squeeze",
    "detach", "alias", "split", "split_with_sizes", "as_strided", "permute", "empty", "new_empty",
    "empty_like", "empty_strided", "new_empty_strided", "lift_fresh", "_reshape_alias",
}  # fmt: skip


class Launches(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name not in NO_LAUNCH:
            self.count[name] += 1
        return func(*args, **(kwargs or {}))


def launches(layers, targets):
    """Of one training pass, forward and backward."""
    model = opt(layers).train()
    if targets:
        config = VBLoRAConfig(r=2, num_vectors=10, vector_length=4, target_modules=targets)
        model = get_peft_model(model, config)
    else:
        model.requires_grad_(False)
    model.enable_input_require_grads()
    ids = tokens()
    with Launches() as seen:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return seen.count


# Above those of the frozen base, for each decoder layer. One call of an adapted layer is three
# products where the base has one, and five where it has one in the backward pass; an admixture of
# the whole model is made once.
@pytest.mark.parametrize(
    ("targets", "allowed"),
    [(["q_proj", "v_proj"], 12), (["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"], 36)],
    ids=["qv", "all"],
)
def test_launches_of_a_layer(targets, allowed):
    two, three = (launches(layers, targets) - launches(layers, []) for layers in (2, 3))
    assert sum((three - two).values()) <= allowed, three - two
    assert sum(two.values()) - 2 * allowed <= 30, two
