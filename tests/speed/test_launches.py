"""How many operators a training pass runs: on a GPU each is a launch, and launches are its time.

Counted and not timed, so that it is the same on any machine. A number here may only fall.
"""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

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


@pytest.mark.parametrize("adapted", [False, True])
def test_checkpointing_multiplies_again_what_the_frozen_base_does(adapted):
    """Not with the weight of a part's last layer, behind which nothing is kept."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 3, "vocab_size": 20}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1))
    model.requires_grad_(False)
    if adapted:
        config = VBLoRAConfig(r=2, num_vectors=6, vector_length=4, target_modules="all-linear")
        model = get_peft_model(model, config)
    model.enable_input_require_grads()
    ids, counts = torch.arange(2, 8).view(2, 3), []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with Launches() as seen:
            model.train()(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        # An update is added to by the product with W; the base has that product alone.
        counts.append(seen.count["addmm_" if adapted else "mm"])
    assert counts[1] - counts[0] == 3 * 6  # of q, k, v, o, gate, up and down in each layer


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
