"""The life of an adapter: injected whole, one bank, active with others or alone, and gone for good.

What PEFT's own tuner does on the same input stands beside each point where it differs.
"""

import gc
import threading
import warnings
import weakref

import peft
import pytest
import torch
from peft.tuners.vblora import VBLoRAModel as StockModel

import vblora_lab.tuner.peft as lab
from tests.cases import CASES, assert_unchanged, scramble, state_of
from vblora_lab.errors import ConfigError, UnsupportedError, VBLoRAError
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.model import VBLoRAModel

HALVES = [torch.bfloat16, torch.float16]


def with_other(case, model=None, **changes):
    """A model with adapters "default" and "other", of other sizes and other targets."""
    model = case.ours() if model is None else model
    fields = {**case.config, "num_vectors": 6, "vector_length": 2, "topk": 2, **changes}
    config = VBLoRAConfig if isinstance(model.base_model, VBLoRAModel) else peft.VBLoRAConfig
    model.add_adapter("other", config(**fields))
    return model


def flags(model):
    return {name: p.requires_grad for name, p in model.named_parameters()}


# --- injected whole or not at all


def bookkeeping(model):
    """What PEFT remembers beside the modules, which `state_of` compares."""
    tuner = model.base_model
    return (
        {name: config.to_dict() for name, config in model.peft_config.items()},
        tuner.peft_config is model.peft_config,
        list(tuner.vblora_vector_bank),
        list(tuner.targeted_module_names),
        list(tuner.targeted_parameter_names),
        (model.active_adapter, tuner.active_adapter, model.active_adapters),
        model.modules_to_save,
        {name: p.requires_grad for name, p in model.named_parameters()},
        {name: tensor.shape for name, tensor in model.state_dict().items()},
    )


WRONG = {
    "a size that doesn't fit": {"vector_length": 6},
    "a target that isn't there": {"target_modules": ["q_proj", "nope"]},
    "an embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "a head that isn't there": {"modules_to_save": ["nope"]},
    "a second set of biases": {"bias": "all"},
}


@pytest.mark.parametrize("what", WRONG)
def test_an_adapter_that_cannot_be_added_leaves_nothing(opt_case, what):
    model = opt_case.ours(bias="all", target_modules=["q_proj"])
    before, books = state_of(model), bookkeeping(model)
    with pytest.raises(VBLoRAError):
        model.add_adapter("other", VBLoRAConfig(**{**opt_case.config, **WRONG[what]}))
    assert_unchanged(model, before)
    assert bookkeeping(model) == books


@pytest.mark.parametrize("where", ["_create_and_replace", "set_adapter", "_cast_adapter_dtype"])
def test_a_failure_anywhere_in_an_injection_leaves_nothing(opt_case, monkeypatch, where):
    model = opt_case.ours(target_modules=["q_proj"])
    before, books = state_of(model), bookkeeping(model)

    def breaks(self, *args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(VBLoRAModel, where, breaks)
    with pytest.raises(MemoryError):
        model.add_adapter("other", VBLoRAConfig(**opt_case.config))
    monkeypatch.undo()
    assert_unchanged(model, before)
    assert bookkeeping(model) == books
    with_other(opt_case, model)  # and the name is free again
    assert model.peft_config.keys() == {"default", "other"}


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_peft_still_leaves_a_half_injected_adapter(opt_case):
    base = opt_case.base()
    config = peft.VBLoRAConfig(**{**opt_case.config, "target_modules": ["q_proj", "embed_tokens"]})
    model = peft.get_peft_model(base, peft.VBLoRAConfig(**opt_case.config))
    with pytest.raises(TypeError, match="not supported"):
        model.add_adapter("other", config)
    assert "other" not in model.peft_config
    assert any(".other" in name for name in model.state_dict()) or any(
        "other" in module.topk for module in model.modules() if hasattr(module, "topk")
    )


# --- one bank


def calls_of_bank(monkeypatch, tuner_class):
    calls = []
    build = tuner_class._init_vblora_vector_bank
    monkeypatch.setattr(
        tuner_class,
        "_init_vblora_vector_bank",
        lambda self, config, name: (calls.append(name), build(self, config, name))[1],
    )
    return calls


TARGETS = [["q_proj"], ["q_proj", "v_proj"], ["fc1"], "all-linear", r".*layers\.1.*_proj"]


def banks_under_one_seed(make, config_class, case):
    banks = []
    for targets in TARGETS:
        base = case.base()
        torch.manual_seed(11)
        model = make(base, config_class(**{**case.config, "target_modules": targets}))
        banks.append(model.vblora_vector_bank["default"].detach().clone())
    return banks


def test_the_bank_is_built_once_and_one_seed_gives_one_bank(opt_case, monkeypatch):
    calls = calls_of_bank(monkeypatch, VBLoRAModel)
    first, *others = banks_under_one_seed(lab.get_peft_model, VBLoRAConfig, opt_case)
    assert len(calls) == len(TARGETS)
    assert all(torch.equal(bank, first) for bank in others)
    model = opt_case.ours()
    calls.clear()
    with_other(opt_case, model, target_modules=["fc1", "fc2"])
    assert calls == ["other"]


def test_one_seed_gives_one_bank_when_it_is_added_later(opt_case):
    banks = []
    for targets in TARGETS:
        model = opt_case.ours()
        torch.manual_seed(11)
        with_other(opt_case, model, target_modules=targets)
        banks.append(model.vblora_vector_bank["other"].detach().clone())
    assert all(torch.equal(bank, banks[0]) for bank in banks)


def test_peft_still_builds_the_bank_for_every_target(opt_case, monkeypatch):
    calls = calls_of_bank(monkeypatch, StockModel)
    model = opt_case.stock()
    assert len(calls) == len(model.base_model.targeted_module_names) == 8


def test_peft_still_gives_another_bank_for_other_targets(opt_case):
    first, *others = banks_under_one_seed(peft.get_peft_model, peft.VBLoRAConfig, opt_case)
    assert not any(torch.equal(bank, first) for bank in others)


# --- requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("inference_mode", [False, True], ids=["trained", "frozen"])
def test_flags_survive_casts_and_other_adapters(opt_case, dtype, inference_mode):
    config = VBLoRAConfig(**opt_case.config, inference_mode=inference_mode)
    model = lab.get_peft_model(opt_case.base().to(dtype), config)
    expected = {n: ".default" in n and not inference_mode for n in flags(model)}
    assert flags(model) == expected

    identities = {name: id(p) for name, p in model.named_parameters()}
    for cast in (
        lambda: model.base_model._cast_adapter_dtype("default", True),
        lambda: model.base_model._cast_adapter_dtype("default", False),
        model.half,
        lambda: model.base_model._cast_adapter_dtype("default"),
        model.bfloat16,
        lambda: model.to(torch.float32),
    ):
        cast()
        assert flags(model) == expected
        assert {name: id(p) for name, p in model.named_parameters()} == identities

    model.to(dtype)
    for name, parameter in model.named_parameters():  # a choice that no rule would make again
        if "vblora_logits_A" in name:
            parameter.requires_grad_(inference_mode)
    chosen = flags(model)
    with_other(opt_case, model)
    after = flags(model)
    assert {name: after[name] for name in chosen} == chosen
    assert not any(flag for name, flag in after.items() if ".other" in name)
    assert model.vblora_vector_bank["other"].dtype == torch.float32


@pytest.mark.parametrize("is_trainable", [False, True], ids=["for use", "for training"])
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True], ids=["", "low_cpu_mem_usage"])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_flags_after_loading(opt_case, dtype, low_cpu_mem_usage, is_trainable, tmp_path):
    opt_case.ours().save_pretrained(tmp_path)
    model = lab.from_pretrained(
        opt_case.base().to(dtype),
        tmp_path,
        is_trainable=is_trainable,
        low_cpu_mem_usage=low_cpu_mem_usage,
    )
    assert flags(model) == {n: ".default" in n and is_trainable for n in flags(model)}
    before = flags(model)
    for name, trained in (("second", False), ("third", True)):
        with lab.using():
            model.load_adapter(
                tmp_path, name, is_trainable=trained, low_cpu_mem_usage=low_cpu_mem_usage
            )
        after = flags(model)
        assert {key: after[key] for key in before} == before
        model.set_adapter(name, inference_mode=not trained)
        assert flags(model) == {key: f".{name}" in key and trained for key in after}
        model.set_adapter("default", inference_mode=not is_trainable)
        before = flags(model)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_peft_still_trains_what_should_be_frozen_in_half_precision(opt_case, dtype):
    config = peft.VBLoRAConfig(**opt_case.config, inference_mode=True)
    model = peft.get_peft_model(opt_case.base().to(dtype), config)
    assert any(flags(model).values())
    single = peft.get_peft_model(opt_case.base(), config)
    assert not any(flags(single).values())
    model = peft.get_peft_model(opt_case.base().to(dtype), peft.VBLoRAConfig(**opt_case.config))
    with_other(opt_case, model)
    assert any(flag for name, flag in flags(model).items() if ".other" in name)


# --- several at once


@pytest.fixture
def three(opt_case):
    """Three adapters on different layers, in eval mode."""
    model = with_other(opt_case, target_modules=["k_proj", "fc1"])
    model.add_adapter("third", VBLoRAConfig(**{**opt_case.config, "target_modules": ["fc2"]}))
    scramble(model)
    return model.eval()


def hooks_of(model):
    """None that a mixed batch sets may stay behind."""
    return [len(module._forward_pre_hooks) for module in model.modules()]


def alone(model, name, tokens):
    if name == "__base__":
        with model.disable_adapter():
            return model(tokens).logits
    model.set_adapter(name)
    return model(tokens).logits


@pytest.mark.parametrize("names", [["other", "__base__", "third", "default"], ["__base__"] * 4])
def test_each_sample_gets_what_its_adapter_alone_gives(three, opt_case, names):
    tokens, hooks = opt_case.inputs(4), hooks_of(three)
    with torch.no_grad():
        expected = [alone(three, n, tokens[i : i + 1])[0] for i, n in enumerate(names)]
        for active in ("default", ["other", "third"]):  # whatever is active meanwhile
            three.base_model.set_adapter(active)
            mixed = three(tokens, adapter_names=names).logits
            for row, logits in enumerate(expected):
                torch.testing.assert_close(mixed[row], logits, rtol=1e-4, atol=1e-4)
            assert three.base_model.active_adapter == active
        assert hooks_of(three) == hooks


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_an_adapter_per_prompt(three, opt_case, beams):
    tokens = opt_case.inputs(4)
    options = {"max_new_tokens": 5, "do_sample": False, "num_beams": beams, "pad_token_id": 1}
    names = ["third", "__base__", "default", "other"]
    mixed = three.generate(tokens, adapter_names=names, **options)
    for row, name in enumerate(names):
        prompt = tokens[row : row + 1]
        if name == "__base__":
            with three.disable_adapter():
                expected = three.generate(prompt, **options)
        else:
            three.set_adapter(name)
            expected = three.generate(prompt, **options)
        length = expected.shape[1]
        assert torch.equal(mixed[row, :length], expected[0])


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_a_batch_mixes_adapters_with_and_without_a_head_of_their_own(opt_case):
    model = with_other(opt_case, opt_case.ours(modules_to_save=["lm_head"]))
    scramble(model.eval())
    tokens, names = opt_case.inputs(3), ["default", "other", "__base__"]
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["default"].weight.add_(1)
        expected = [alone(model, n, tokens[i : i + 1])[0] for i, n in enumerate(names)]
        for active in ("default", "other"):
            model.set_adapter(active)
            mixed = model(tokens, adapter_names=names).logits
            for row, logits in enumerate(expected):
                torch.testing.assert_close(mixed[row], logits, rtol=1e-4, atol=1e-4)


@pytest.mark.slow  # imports the compiler
def test_compiled_layers_know_the_rows_of_their_own_thread():
    case = CASES["linear"]
    model = with_other(case).eval()
    scramble(model)
    x, names = case.inputs(2), [["default", "other"], ["other", "__base__"], ["other"] * 2]
    with torch.no_grad():
        expected = [model(x, adapter_names=each) for each in names]
        plain = model(x)
        for layer in (model.base_model.model.first, model.base_model.model.second):
            layer.compile(backend="eager")
        for each, output in zip(names, expected, strict=True):
            torch.testing.assert_close(model(x, adapter_names=each), output)
            answers: list = []
            hooks = model.base_model._enable_peft_forward_hooks
            with hooks(adapter_names=each):  # meanwhile another thread has no such batch
                thread = threading.Thread(target=lambda: answers.append(no_grad_call(model, x)))  # noqa: B023
                thread.start()
                thread.join()
            torch.testing.assert_close(answers[0], plain)  # summed in another order


def no_grad_call(model, x):
    with torch.no_grad():
        return model(x)


def test_an_unknown_name_in_a_mixed_batch(three, opt_case):
    tokens, hooks = opt_case.inputs(2), hooks_of(three)
    for call in (three, three.generate):
        with pytest.raises(ConfigError, match=r"'nope'.*'default', 'other', 'third'.*'__base__'"):
            call(tokens, adapter_names=["default", "nope"])
    assert hooks_of(three) == hooks


def test_peft_still_ignores_the_adapter_of_a_sample(opt_case):
    """It takes the argument, unknown names too, and answers with the active adapter."""
    model = opt_case.stock().eval()
    scramble(model)
    with torch.no_grad():
        expected = opt_case.output(model)
        for names in (["__base__"] * 3, ["nope"] * 3):
            assert torch.equal(opt_case.output(model, adapter_names=names), expected)


def test_active_adapters_sum_on_every_layer():
    case = CASES["linear"]
    model = with_other(case, target_modules=["first"])
    scramble(model)
    x = case.inputs(5)
    first, second = model.base_model.model.first, model.base_model.model.second
    model.base_model.set_adapter(["default", "other"])
    assert model.base_model.active_adapters == ["default", "other"]
    weight = first.base_layer.weight
    for name in ("default", "other"):
        weight = weight + first.get_delta_weight(name)
    hidden = torch.tanh(torch.nn.functional.linear(x, weight, first.base_layer.bias))
    weight = second.base_layer.weight + second.get_delta_weight("default")
    expected = torch.nn.functional.linear(hidden, weight, second.base_layer.bias)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    trained = {name for name, flag in flags(model).items() if flag}
    assert trained == {name for name in flags(model) if "vblora_" in name}


def test_an_unknown_adapter_is_not_made_active(three):
    before = flags(three)
    for name in ("nope", ["default", "nope"]):
        with pytest.raises(ConfigError, match=r"'nope'.*'default', 'other', 'third'"):
            three.base_model.set_adapter(name)
    assert three.base_model.active_adapters == ["default"]
    assert flags(three) == before


def test_peft_still_makes_an_unknown_adapter_active(opt_case):
    model = opt_case.stock()
    model.base_model.set_adapter(["nope"])
    assert model.base_model.active_adapters == ["nope"]
    assert not any(flags(model).values())


def test_a_weighted_sum_says_what_to_do_instead(three):
    for model in (three, three.base_model):
        with pytest.raises(UnsupportedError, match=r"(?s)set_adapter\(\[.*export_lora.*LoraModel"):
            model.add_weighted_adapter(["default", "other"], [0.5, 0.5], "both")
    assert list(three.peft_config) == ["default", "other", "third"]


def test_peft_still_has_no_word_on_weighted_sums(opt_case):
    with pytest.raises(AttributeError):
        opt_case.stock().add_weighted_adapter(["default"], [1.0], "both")


# --- deleted


def parts_of(model, name):
    """Every object that belongs to one adapter alone."""
    parts = [model.vblora_vector_bank[name]]
    for module in model.modules():
        if name in getattr(module, "topk", ()):
            parts += [module.vblora_logits_A[name], module.vblora_logits_B[name]]
            parts.append(module.vblora_dropout[name])
    return [weakref.ref(part) for part in parts]


def traces_of(model, name):
    """Where a name is still to be found."""
    found = [key for key in model.state_dict() if name in key.split(".")]
    for path, module in model.named_modules():
        for attribute in ("r", "topk", "logits_are_complete", "merged_adapters"):
            if name in getattr(module, attribute, ()):
                found.append(f"{path}.{attribute}")
        for attribute, value in vars(module).items():
            if isinstance(value, (dict, list, set)) and name in value:
                found.append(f"{path}.{attribute}")
    return found


@pytest.mark.filterwarnings("ignore:Adapter default was active")
@pytest.mark.parametrize("order", [["other", "default"], ["default", "other"]], ids=str)
def test_a_deleted_adapter_is_gone(opt_case, order):
    model = with_other(opt_case, opt_case.ours(vblora_dropout=0.1), vblora_dropout=0.2)
    scramble(model)
    opt_case.output(model.train()).sum().backward()
    model.zero_grad()
    for name in order:
        parts = parts_of(model, name)
        assert len(parts) == 1 + 3 * 8
        model.delete_adapter(name)
        gc.collect()
        assert [part() for part in parts if part() is not None] == []
        assert traces_of(model, name) == []
    tokens = opt_case.inputs()
    with torch.no_grad():
        expected = opt_case.base()(tokens).logits
        for base in (model, model.base_model, model.get_base_model(), model.unload()):
            assert torch.equal(base.eval()(tokens).logits, expected)


@pytest.mark.filterwarnings("ignore:Adapter default was active")
def test_an_adapter_can_follow_the_last_one(opt_case, tmp_path):
    model = opt_case.ours(task_type="CAUSAL_LM")
    scramble(model)
    expected = opt_case.output(model)
    model.save_pretrained(tmp_path)
    model.delete_adapter("default")
    assert torch.equal(opt_case.output(model), opt_case.output(opt_case.base()))
    with lab.using():
        model.load_adapter(tmp_path, "next")
    model.set_adapter("next")
    assert torch.equal(opt_case.output(model.eval()), expected)
    with pytest.raises(KeyError):
        model.peft_config["default"]


def test_peft_still_fails_once_the_last_adapter_is_deleted(opt_case):
    model = opt_case.stock()
    model.delete_adapter("default")
    with pytest.raises(KeyError):
        opt_case.output(model)


def test_a_bank_that_is_deleted_with_its_last_layer_only(opt_case):
    """Adapters on different layers: deleting one leaves the other's bank and output."""
    model = with_other(opt_case, target_modules=["k_proj"])
    scramble(model)
    expected = opt_case.output(model)
    model.delete_adapter("other")
    assert list(model.vblora_vector_bank) == ["default"]
    assert torch.equal(opt_case.output(model), expected)


def test_a_merged_adapter_is_unmerged_before_it_can_be_deleted(opt_case):
    """PEFT's rule, and ours: deleting it would leave its update in the weights for good."""
    model = with_other(opt_case)
    scramble(model)
    model.merge_adapter()
    before, books = state_of(model), bookkeeping(model)
    with pytest.raises(ValueError, match=r"(?s)default.*merged.*unmerge"):
        model.delete_adapter("default")
    assert_unchanged(model, before)
    assert bookkeeping(model) == books
    model.delete_adapter("other")  # one that isn't merged
    model.unmerge_adapter()
    model.delete_adapter("default")
    tokens = opt_case.inputs()
    assert torch.equal(model.get_base_model()(tokens).logits, opt_case.base()(tokens).logits)


# --- what adapters do to each other


def test_a_head_comes_back_when_the_adapter_without_one_is_deleted():
    llama_case = CASES["llama"]
    model = llama_case.ours(modules_to_save=["lm_head"])
    scramble(model)
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["default"].weight.add_(1)
    expected, trained = llama_case.output(model), flags(model)
    head = model.base_model.model.lm_head.modules_to_save["default"].weight.clone()
    model.add_adapter("other", VBLoRAConfig(**llama_case.config))
    model.set_adapter("other")
    model.delete_adapter("other")
    assert torch.equal(llama_case.output(model), expected)
    assert flags(model) == trained
    assert torch.equal(model.merge_and_unload().lm_head.weight, head)


def test_peft_loses_that_head():
    llama_case = CASES["llama"]
    model = llama_case.stock(modules_to_save=["lm_head"])
    model.add_adapter("other", peft.VBLoRAConfig(**llama_case.config))
    model.set_adapter("other")
    model.delete_adapter("other")
    assert not model.base_model.model.lm_head.modules_to_save["default"].weight.requires_grad


def test_deleting_an_adapter_trains_none_that_was_loaded_for_inference(opt_case, tmp_path):
    model = opt_case.ours(save_only_topk_weights=True)
    model.save_pretrained(tmp_path)
    model = lab.from_pretrained(opt_case.base(), tmp_path)
    model.add_adapter("new", VBLoRAConfig(**opt_case.config))
    model.set_adapter("new")
    model.delete_adapter("new")
    assert not any(flags(model).values())
    opt_case.output(model.train())  # would raise, were its top-k logits trained


@pytest.mark.parametrize("fields", [{}, {"modules_to_save": ["lm_head"]}, {"bias": "all"}], ids=str)
@pytest.mark.parametrize("is_trainable", [True, False])
def test_disabling_for_a_while_changes_nothing_of_what_is_trained(
    opt_case, tmp_path, fields, is_trainable
):
    opt_case.ours(**fields).save_pretrained(tmp_path)
    model = lab.from_pretrained(opt_case.base(), tmp_path, is_trainable=is_trainable)
    before = flags(model)
    assert any(before.values()) == is_trainable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, of biases that stay
        with model.disable_adapter():
            assert torch.equal(opt_case.output(model), opt_case.output(opt_case.base()))
    assert flags(model) == before


def test_peft_trains_it_then(opt_case, tmp_path):
    opt_case.stock().save_pretrained(tmp_path)
    model = peft.PeftModel.from_pretrained(opt_case.base(), tmp_path)
    with model.disable_adapter():
        pass
    assert any(flags(model).values())
