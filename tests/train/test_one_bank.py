"""Users on one bank: what is trained, what stays, and that a mixed batch is each one's own text."""

import pytest
import torch

import vblora_lab as lab
from vblora_lab.data import format_mr
from vblora_lab.data.styles import facts_for, styles
from vblora_lab.errors import ConfigError
from vblora_lab.train import write_texts
from vblora_lab.train.one_bank import add_user, train_adapter
from vblora_lab.tuner.adapted import adapted_layers

CONFIG = {"r": 2, "num_vectors": 16, "vector_length": 64, "target_modules": ["q_proj", "v_proj"]}


@pytest.fixture
def model():
    torch.manual_seed(0)
    base = lab.load_base("mini-opt", device="cpu")
    made = lab.get_peft_model(base.model, lab.VBLoRAConfig(**CONFIG, task_type="CAUSAL_LM"))
    made.tokenizer = base.tokenizer
    return made


@pytest.fixture(scope="module")
def examples():
    (style,) = styles(1, seed=0)
    return [style.example(facts) for facts in facts_for(4, seed=0)]


def numbers(model, name):
    """The bank and all logits of an adapter, as copies."""
    layers = adapted_layers(model, name).values()
    logits = [each.detach().clone() for layer in layers for each in layer.logits(name)]
    return model.base_model.vblora_vector_bank[name].detach().clone(), logits


def train(model, examples, **options):
    return train_adapter(model, model.tokenizer, examples, 2, batch_size=2, **options)


def same(ours, theirs):
    return torch.equal(ours[0], theirs[0]) and all(map(torch.equal, ours[1], theirs[1]))


def test_a_user_begins_as_the_other_and_trains_logits_alone(model, examples):
    losses = train(model, examples)
    assert len(losses) == 2 and not model.training
    founders = numbers(model, "default")
    add_user(model, "ada")
    assert model.active_adapter == "ada" and same(numbers(model, "ada"), founders)
    kinds = {n.rpartition("vblora_")[2] for n, p in model.named_parameters() if p.requires_grad}
    assert kinds == {"logits_A.ada", "logits_B.ada"}
    train(model, examples)
    bank, logits = numbers(model, "ada")
    assert torch.equal(bank, founders[0])
    assert not any(map(torch.equal, logits, founders[1]))
    assert same(numbers(model, "default"), founders)


def test_one_with_a_bank_of_its_own_trains_that_too(model, examples):
    founders = numbers(model, "default")
    add_user(model, "own", own_bank=True)
    assert same(numbers(model, "own"), founders)
    train(model, examples)
    assert not torch.equal(numbers(model, "own")[0], founders[0])
    assert same(numbers(model, "default"), founders)


def test_the_same_seed_trains_the_same(model, examples):
    for name, seed in (("ada", 0), ("grace", 0), ("mary", 1)):
        add_user(model, name)
        train(model, examples, seed=seed)
    ada, grace, mary = (numbers(model, name) for name in ("ada", "grace", "mary"))
    assert same(ada, grace) and not same(ada, mary)


def test_a_mixed_batch_is_what_each_writes_alone(model):
    """MRs of several lengths, so that the order of names must follow that of the texts."""
    for name in ("ada", "grace"):
        add_user(model, name)
        for layer in adapted_layers(model, name).values():
            for logits in layer.logits(name):
                logits.data = 3 * torch.randn_like(logits)
    model.base_model.vblora_vector_bank["default"].data.normal_(std=0.2)
    facts = facts_for(2, seed=0)
    mrs = [format_mr(facts[0]), "name[X]", format_mr(facts[1]), "name[X]", "name[X], food[Thai]"]
    names = ["ada", "grace", "__base__", "ada", "grace"]
    mixed = write_texts(model, model.tokenizer, mrs, adapter_names=names, max_new_tokens=8)
    assert mixed[1] != mixed[3]
    for mr, name, text in zip(mrs, names, mixed, strict=True):
        if name == "__base__":
            with model.disable_adapter():
                alone = write_texts(model, model.tokenizer, [mr], max_new_tokens=8)
        else:
            model.set_adapter(name)
            alone = write_texts(model, model.tokenizer, [mr], max_new_tokens=8)
        assert [text] == alone


def test_what_is_refused_leaves_the_model_as_it_was(model, examples):
    before = numbers(model, "default")
    with pytest.raises(ConfigError, match=r"of='defualt': .*Did you mean 'default'"):
        add_user(model, "ada", of="defualt")
    for options in ({"steps": 0}, {"batch_size": 0}, {"examples": []}):
        given = {"examples": examples, "steps": 1} | options
        with pytest.raises(ConfigError, match=f"^{next(iter(options))}: 0 is too few"):
            train_adapter(model, model.tokenizer, **given)
    assert list(model.peft_config) == ["default"] and same(numbers(model, "default"), before)
