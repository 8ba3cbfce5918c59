"""Chapter 11: what its hidden tests say of pieces that are nearly right, and training with them."""

import peft
import pytest
import torch
from safetensors.torch import save_file
from transformers import OPTForCausalLM

import vblora_lab as lab
from vblora_lab import course
from vblora_lab.course import building_models, worked
from vblora_lab.course.own import OwnSession, OwnTraining
from vblora_lab.errors import SessionError


def changed(name: str, *changes: str):
    """The worked solution of an exercise with one text in it replaced by another, and so on."""
    code = lab.solution(name).text
    for old, new in zip(changes[::2], changes[1::2], strict=True):
        assert old in code, old
        code = code.replace(old, new)
    namespace: dict = {"__name__": "changed"}
    exec(code, namespace)
    return namespace["answer"]


MIXED = "(weights.unsqueeze(-1) * bank[indices]).sum(dim=-2)"
NEARLY = [
    ("11-admixture", ("chosen.softmax(dim=-1)", "logits.softmax(-1).gather(-1, indices)"),
     "the softmax of the k chosen logits, not of all"),
    ("11-admixture", (MIXED, "logits.softmax(-1) @ bank"), "all bank vectors are mixed"),
    ("11-admixture", ("dim=-1)\n    weights", "dim=-1, largest=False)\n    weights"), "k smallest"),
    ("11-admixture", ("chosen.softmax(dim=-1)", "chosen"), "the logits themselves are the weights"),
    ("11-admixture", (MIXED, "bank[indices].mean(-2)"), "count alike"),
    ("11-admixture", (MIXED, "bank[indices].sum(-2)"), "without weights"),
    ("11-admixture", ("chosen.softmax(dim=-1)", "chosen.softmax(dim=0)"),
     "runs over the sub-vectors"),
    ("11-admixture", ("sum(dim=-2)", "sum(dim=1)"), "for logits of shape (7,) and k = 2"),
    ("11-admixture", ("bank[indices]", "bank.detach()[indices]"), "the bank get another gradient"),
    ("11-admixture", (MIXED, f"{MIXED}.detach()"), "no gradient can flow back"),
    ("11-layer", ("self.base(x) + ", ""), "base(x) is missing"),
    ("11-layer", (" + x @ A.T @ B.T", ""), "B A x is missing"),
    ("11-layer", (".transpose(1, 2).flatten(0, 1)", ".reshape(-1, A.shape[0])"), "torn apart"),
    ("11-layer", ("x @ A.T @ B.T", "x @ A.T @ B.T / A.shape[0]"), "doesn't scale"),
    ("11-layer", ("x @ A.T", "x @ A"), "your code raises RuntimeError"),
    ("11-layer", ("self.base, self.bank, self.k = base, bank, k",
                  "self.base, self.bank, self.k = base, nn.Parameter(bank.detach().clone()), k"),
     "self.bank is a copy"),
    ("11-layer", ("nn.Parameter(0.1 * torch.randn(r", "(0.1 * torch.randn(r"),
     "no optimizer would find"),
    ("11-layer", ("out_features // b, r, h", "out_features // b, h, r"),
     "it is (out / b, r, h) = (3, 3, 6)"),
    ("11-layer", ("0.1 * torch.randn(r", "0 * torch.randn(r"), "all of logits_A are equal"),
    ("11-layer", ("self.logits_B = nn", "self.logits_b = nn"), "the layer has no logits_B"),
    ("11-layer", ("    def forward", "        with torch.no_grad():\n            self.now = "
                  "admixture(self.logits_A, bank, k).flatten(1)\n\n    def forward",
                  "A = admixture(self.logits_A, self.bank, self.k).flatten(1)", "A = self.now"),
     "mix A and B in forward"),
    ("11-layer", ("self.logits_B, self.bank", "self.logits_B.detach(), self.bank"),
     "no gradient reaches logits_B"),
    ("11-bank", ("VBLinear(linear.requires_grad_(False), bank, r, k)",
                 "VBLinear(linear.requires_grad_(False), nn.Parameter(bank.detach() + 0), r, k)"),
     "a bank of its own"),
    ("11-bank", (".requires_grad_(False)", ""), "a base is still trained"),
    ("11-bank", ("(h, b)", "(b, h)"), "shape (4, 6); h vectors of length b are (6, 4)"),
    ("11-bank", (".uniform_(-0.02, 0.02)", ".zero_()"), "all zeros"),
    ("11-bank", (".uniform_(-0.02, 0.02)", ".uniform_(0, 0.02)"), "between -0.02 and 0.02"),
    ("11-bank", (".uniform_(-0.02, 0.02)", ".normal_()"), "between -0.02 and 0.02"),
    ("11-bank", ("for linear in linears]", "for linear in linears[:1]]"), "not 1 of them"),
    ("11-injection", ("    model.requires_grad_(False)\n", ""), "is still trained"),
    ("11-injection", ("setattr(model.get_submodule(parent), last, layer)", "pass"), "setattr("),
    ("11-injection", (" in endings\n", " in ['q_proj']\n"), "2 of the 4 are not replaced"),
    ("11-injection", (' and name.rpartition(".")[2] in endings', " and 'proj' in name"),
     "self_attn.k_proj is replaced too"),
    ("11-injection", ("return layers[0].bank",
                      "model.requires_grad_(False)\n    return layers[0].bank"),
     "freeze the model before"),
    ("11-injection", ("return layers[0].bank", "return nn.Parameter(layers[0].bank.clone())"),
     "another bank than the one that is returned"),
    ("11-file", ("base_model.model.{name}", "{name}"), "is missing (16 of 17 are)"),
    ("11-file", ("indices.to(torch.uint8)", "indices"), "of 8 bytes for each choice"),
    ("11-file", ("[..., :-1]", ""), "so the last one isn't stored"),
    ("11-file", ("layer.bank.detach()", "layer.bank"), "detach() it"),
    ("11-file", ("chosen.softmax(dim=-1)", "chosen"), "the numbers aren't"),
    ("11-file", (".contiguous()", ""), "Does .contiguous() help?"),
    ("11-file", ("chosen, indices =",
                 "tensors[f'base_model.model.{name}.vblora_logits_{matrix}'] = logits\n"
                 "            chosen, indices ="),
     "nobody needs all logits"),
]  # fmt: skip


@pytest.mark.parametrize("name, changes, expected", NEARLY)
def test_what_is_nearly_right_is_named(name, changes, expected):
    verdict = lab.check(name, changed(name, *changes))
    assert verdict.state == "wrong", verdict
    assert expected in verdict.text, verdict


def test_an_empty_layer_is_open():
    class Empty(torch.nn.Module):
        def __init__(self, base, bank, r, k):
            super().__init__()
            ...

    assert lab.check("11-layer", Empty).state == "open"


def test_checks_leave_the_notebook_s_random_numbers_alone():
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    lab.check("11-layer", worked.VBLinear)
    assert torch.equal(torch.randn(2), expected)


def test_yours_is_the_answer_as_soon_as_it_is_right(capsys, monkeypatch):
    monkeypatch.setattr(course, "_checked", {})

    def own(logits, bank, k):
        values, where = torch.topk(logits, k)
        return torch.einsum("...k,...kb->...b", torch.softmax(values, -1), bank[where])

    assert course.yours("11-admixture", own) is own
    stand_in = course.yours("11-admixture", lambda logits, bank, k: bank[0])
    logits, bank = torch.randn(3, 5), torch.randn(5, 4)
    assert torch.equal(stand_in(logits, bank, 2), worked.admixture(logits, bank, 2))
    assert capsys.readouterr().out.splitlines() == [
        "11-admixture: yours", "11-admixture: the worked solution, until yours is right"
    ]  # fmt: skip


def test_yours_is_the_answer_that_was_checked_when_another_exercise_has_taken_its_name(
    capsys, monkeypatch
):
    monkeypatch.setattr(course, "_checked", {})
    mine = worked.admixture
    assert lab.check("11-admixture", mine).right
    assert course.yours("11-admixture", worked.VBLinear) is mine
    lab.check("11-admixture", lambda logits, bank, k: bank[0])  # no longer right: it isn't kept
    assert course.yours("11-admixture", worked.VBLinear) is not mine
    assert capsys.readouterr().out.count("the worked solution") == 1


def test_the_tensors_are_a_file_that_peft_loads(tmp_path):
    """Saved under PEFT's names beside a config of PEFT's, they give the same model there."""
    torch.manual_seed(0)
    model = building_models.small_opt()
    plain = OPTForCausalLM(model.config).eval()
    plain.load_state_dict(model.state_dict())
    worked.inject(model, ("q_proj", "v_proj"), 16, 8, 3, 3)
    save_file(worked.topk_tensors(model), tmp_path / "adapter_model.safetensors")
    peft.VBLoRAConfig(
        r=3, num_vectors=16, vector_length=8, topk=3, target_modules=["q_proj", "v_proj"],
        save_only_topk_weights=True, task_type="CAUSAL_LM", inference_mode=True,
    ).save_pretrained(tmp_path)  # fmt: skip
    loaded = peft.PeftModel.from_pretrained(plain, tmp_path)
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-4
        )


CONFIG = lab.VBLoRAConfig(
    r=2,
    num_vectors=16,
    vector_length=16,
    target_modules=["q_proj", "v_proj"],
    task_type="CAUSAL_LM",
)


@pytest.fixture(scope="module")
def base():
    return lab.load_base("mini-opt", device="cpu")


def test_a_session_trains_what_the_reader_s_code_computes(base):
    calls = []

    class Counted(worked.VBLinear):
        def forward(self, x):
            calls.append(self)
            return super().forward(x)

    def inject(model, endings, h, b, r, k):
        bank = worked.inject(model, endings, h, b, r, k)
        for layer in model.modules():
            if isinstance(layer, worked.VBLinear):
                layer.__class__ = Counted
        return bank

    rates = lab.LearningRates(bank=1e-2, logits=1e-1)
    session = OwnSession(
        inject, base, CONFIG, steps=2, batch_size=2, learning_rates=rates, eval_examples=0,
        sample_count=0,
    )  # fmt: skip
    tokens = torch.arange(9)[None]
    before = worked.topk_tensors(session.own)[BANK].clone()
    trace = session.run()
    assert len({id(layer) for layer in calls}) == 12 and len(calls) >= 2 * 12
    after = worked.topk_tensors(session.own)
    assert not torch.equal(before, after[BANK]) and len(after) == 1 + 4 * 12
    with torch.no_grad():
        own = session.own(tokens).logits
        assert torch.equal(session.model(tokens).logits, own)
        assert not torch.allclose(base.model(tokens).logits, own)
    last = trace.selections[-1][1]  # the map's choices are those in the reader's file
    first = after[
        "base_model.model.model.decoder.layers.0.self_attn.v_proj.vblora_logits_A_topk_indices"
    ]
    chosen = last.indices[last.sub_vectors.module == 0][: first.shape[0] * first.shape[1]]
    assert last.sub_vectors.modules[0].endswith("0.self_attn.v_proj")
    assert torch.equal(first.flatten(0, 1).int(), torch.from_numpy(chosen))
    library = lab.read_selection(session.model)
    assert torch.equal(torch.from_numpy(library.indices), torch.from_numpy(last.indices))


BANK = "base_model.vblora_vector_bank"


def test_an_injection_that_leaves_a_layer_out_is_refused(base):
    def inject(model, endings, h, b, r, k):
        return worked.inject(model, ["q_proj"], h, b, r, k)

    with pytest.raises(SessionError, match=r"inject left .*v_proj as it was"):
        OwnSession(inject, base, CONFIG, steps=1)
    panel = OwnTraining(inject, base, config=CONFIG, steps=1, driver="foreground")
    with pytest.raises(SessionError):
        panel.train()
    assert panel.status == "ready" and "inject left" in panel._message.value
