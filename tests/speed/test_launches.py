"""How many operators a training pass runs: on a GPU each is a launch, and launches are its time.

Counted and not timed, so that it is the same on any machine. A number here may only fall.
"""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.speed.test_compiled import opt, tokens
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.peft import get_peft_model

# Views start no kernel, nor do empty tensors.
NO_LAUNCH = {
    "view", "_unsafe_view", "t", "transpose", "expand", "slice", "select", "unsqueeze", "squeeze",
    "detach", "alias", "split", "split_with_sizes", "as_strided", "permute", "empty", "new_empty",
    "empty_like", "empty_strided", "new_empty_strided", "lift_fresh", "_reshape_alias", "resize_",
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


ALL = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


def made(layers, targets):
    model = opt(layers)
    if targets:
        config = VBLoRAConfig(r=2, num_vectors=10, vector_length=4, target_modules=targets)
        model = get_peft_model(model, config)
    else:
        model.requires_grad_(False)
    model.enable_input_require_grads()
    return model


def launches(layers, targets):
    """Of one training pass, forward and backward."""
    model, ids = made(layers, targets).train(), tokens()
    with Launches() as seen:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return seen.count


def more(layers, targets):
    """Than the frozen base."""
    ours = launches(layers, targets)
    ours.subtract(launches(layers, []))
    return ours


# Above those of the frozen base, for each decoder layer. An adapted layer by itself is three
# products where the base has one, and five where it has one in the backward pass. Those with one
# input, q and v or q, k and v, have one product with A for all of them, and two with its gradient;
# their A's are laid one above the other first, and their gradients needn't be added up.
@pytest.mark.parametrize(("targets", "allowed"), [(["q_proj", "v_proj"], 9), (ALL, 29)])
def test_launches_of_a_training_pass(targets, allowed):
    two, three = more(2, targets), more(3, targets)
    both = two.total()
    three.subtract(two)
    assert three.total() <= allowed, three
    # One admixture for the whole model, forward and backward, in plain PyTorch.
    assert both - 2 * allowed <= 24, two


def test_a_token_launches_no_more_than_the_base_model_does():
    """From the third on, when weights are folded."""
    counts = []
    for targets in ([], ALL):
        model, ids = made(2, targets).eval(), tokens(1, 4)
        counts.append([])
        for length in (4, 5):
            options = {"max_new_tokens": length, "min_new_tokens": length, "do_sample": False}
            with Launches() as seen, torch.no_grad():
                model.generate(input_ids=ids, **options)
            counts[-1].append(seen.count)
    base, ours = (longer - shorter for shorter, longer in counts)
    assert sum(ours.values()) <= sum(base.values()), ours - base
