"""Each exercise: its solution passes, an open cell fails kindly, known mistakes are named."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import peft
import pytest
import torch

import vblora_lab as lab
from vblora_lab.course import exercises
from vblora_lab.course.exercise import Exercise, Open, Wrong, called, check_tensor, equals, number
from vblora_lab.errors import ExerciseError

EXERCISES = exercises()


def solved(name: str):
    namespace: dict = {}
    exec(lab.solution(name).text, namespace)
    return namespace["answer"]


@pytest.mark.parametrize("name", EXERCISES)
def test_the_solution_is_right_and_says_why(name):
    verdict = lab.check(name, solved(name))
    assert verdict.right, verdict
    assert verdict.text == EXERCISES[name].because
    assert "✓ right" in repr(verdict)


@pytest.mark.parametrize("name", EXERCISES)
@pytest.mark.parametrize("nothing", [..., None])
def test_an_open_exercise_says_what_to_do(name, nothing):
    verdict = lab.check(name, nothing)
    assert verdict.state == "open"
    assert f"lab.hint('{name}')" in verdict.text
    assert "still open" in repr(verdict)
    assert len(lab.hint(name).text) > 20


@pytest.mark.parametrize("name", [n for n in EXERCISES if callable(solved(n))])
def test_a_function_that_returns_nothing_is_open(name):
    assert lab.check(name, lambda *_: ...).state == "open"
    nothing = lab.check(name, lambda *_: None)
    assert nothing.state == "open" and "`return`" in nothing.text
    raises = lab.check(name, lambda *_: 1 / 0)
    assert raises.state == "wrong"
    assert "ZeroDivisionError: division by zero" in raises.text
    assert "function" in lab.check(name, 3).text


@pytest.mark.parametrize("name", EXERCISES)
@pytest.mark.parametrize("answer", [-12345.0, "", [1], object(), math.nan, torch.zeros(3), True])
def test_no_answer_breaks_the_check(name, answer):
    verdict = lab.check(name, answer)
    assert verdict.state == "wrong"
    assert verdict.text.strip()


RIGHT = [
    ("02-tiles", np.int32(80)),
    ("02-tiles", torch.tensor(80)),
    ("01-surprise", torch.tensor(4.0).log()),
    ("03-entropy", lambda w: -torch.xlogy(w, w).sum(-1)),
    ("03-entropy", lambda w: -(w * w.clamp(min=1e-12).log()).sum(-1)),
    ("05-regex", r"model\.decoder\.layers\.[45]\.fc[12]"),
    ("05-regex", r".*[45]\.fc."),
    ("06-churn", lambda a, b: np.mean([set(x) != set(y) for x, y in zip(a, b, strict=True)])),
    ("06-chance", lambda h, k, n: h * (math.comb(h - 1, k) / math.comb(h, k)) ** n),
    ("08-front", lambda points: (name for name in points if name in "abe")),
    ("10-mr", lambda r: ",".join(f"{key}[{value}]" for key, value in r.items())),
]


@pytest.mark.parametrize("name, answer", RIGHT)
def test_a_right_answer_may_be_written_otherwise(name, answer):
    assert lab.check(name, answer).right


def budget(**changes):
    """The solution of 04-config with some fields changed."""
    return dataclasses.replace(solved("04-config"), **changes)


MISTAKES = [
    ("00-weights", 0.5, "too large"),
    ("00-weights", 0.7, "sum to 1"),
    ("00-rows", 96, "A alone, or B alone, or one module"),
    ("00-rows", 64, "columns of the map"),
    ("00-bank", 49_152, "logits"),
    ("00-bank", 4096, "each takes 4 bytes"),
    ("01-surprise", -math.log(4), "the minus is missing"),
    ("01-surprise", 2, "in bits"),
    ("01-surprise", 1.39, "don't round"),
    ("01-surprise", 1.386, "don't round"),
    ("01-cells", 96 * 64, "all cells"),
    ("01-cells", 192, "weights are stored"),
    ("01-layers", 51_456, "one bank for all"),
    ("01-layers", 2_304, "the bank is stored too"),
    ("02-lora", 256 * 1024, "frozen"),
    ("02-lora", 4 * 256, "A alone"),
    ("02-lora", "5120", "without quotes"),
    ("02-lora", (5120,), "one number"),
    ("02-lora", 10**400, "far too large"),
    ("02-lora", 10_240, "factor of exactly 2"),
    ("02-tiles", 64, "B alone"),
    ("02-tiles", 20, "r = 4 of each"),
    ("02-columns", lambda s: s.reshape(-1, s.shape[1]), "torn apart"),
    ("02-columns", lambda s: s.transpose(1, 2).flatten(0, 1).T, "transposed"),
    ("02-columns", lambda s: s, "the shape is (3, 2, 4); it should be (12, 2)"),
    ("02-columns", lambda s: s.transpose(1, 2).flatten(0, 1) + 1, "should be"),
    ("02-columns", lambda s: s.tolist(), "give a torch.Tensor"),
    ("02-bank", 3 * 4096, "one for all"),
    ("03-reach", 720, "if all were mixed"),
    ("03-balance", 0.3, "constant"),
    ("03-balance", -0.31, "too small. lab.hint('03-balance') helps."),
    ("03-balance", -0.7, "added to both logits"),
    ("03-zero", 1024, "all of them"),
    ("03-entropy", lambda w: torch.special.entr(w).sum(-1) / math.log(2), "bits"),
    ("03-entropy", lambda w: -torch.special.entr(w).sum(-1), "sign"),
    ("03-entropy", lambda w: -(w * w.log()).sum(-1), "exactly 0 gives NaN"),
    ("03-entropy", lambda w: torch.special.entr(w).sum(), "last axis"),
    ("03-entropy", lambda w: torch.special.entr(w).sum(1), "for (1, 3, 4): the shape is (1, 4)"),
    ("04-rank", 131_072, "doesn't know r"),
    ("04-rank", 65_536, "what it was"),
    ("04-length", 81_920, "fewer pieces"),
    ("04-length", 40_960, "hold more"),
    ("04-bound", 3, "their product"),
    ("04-config", {"r": 4}, "this is a dict"),
    ("04-config", peft.VBLoRAConfig(), "this is a peft."),
    ("04-config", budget(save_only_topk_weights=False), "all those logits"),
    ("04-config", budget(num_vectors=128), "The bank alone takes 32,768"),
    ("04-config", budget(vector_length=100), "doesn't fit the model. vector_length=100"),
    ("04-config", budget(target_modules=["q_proj"]), "6 modules (q_proj)"),
    ("04-config", budget(r=2), "at least 4"),
    ("05-count", 12, "leaves two"),
    ("05-regex", r"layers\.4\.fc1", "never a whole name"),
    ("05-regex", r".*layers\.5\.fc\d", "misses 2 of the 4"),
    ("05-regex", r".*fc\d", "also matches"),
    ("05-regex", r".*\.[45]\.f.*", "also matches model.decoder.layers.4.final_layer_norm"),
    ("05-regex", "(", "no regular expression"),
    ("05-length", 256, "doesn't divide 640"),
    ("05-length", 16, "a larger one does too"),
    ("06-churn", lambda a, b: (a != b).any(1).mean(), "another order"),
    ("06-churn", lambda a, b: (a != b).mean(), "single places"),
    ("06-churn", lambda a, b: (np.sort(a) != np.sort(b)).mean(), "single places"),
    ("06-churn", lambda a, b: (np.sort(a) != np.sort(b)).any(1).sum(), "this is how many"),
    ("06-churn", lambda a, b: (np.sort(a) == np.sort(b)).all(1).mean(), "that stayed"),
    ("06-churn", lambda a, b: 0.9, "this gives 0.9"),
    ("06-churn", lambda a, b: (a.sum(1) != b.sum(1)).mean(), "whole sets"),
    ("06-churn", lambda a, b: (a.max(1) != b.max(1)).mean(), "whole sets"),
    ("06-chance", lambda h, k, n: (1 - k / h) ** n, "one vector is unused"),
    ("06-chance", lambda h, k, n: h * (1 - 1 / h) ** n, "chooses k vectors"),
    ("06-chance", lambda h, k, n: h * (1 - 1 / h) ** (k * n), "nearly"),
    ("06-chance", lambda h, k, n: max(0, h - k * n), "deal them out evenly"),
    ("06-chance", lambda h, k, n: h * (1 - 2 / h) ** n, "for 50 vectors"),
    ("06-sharing", 0.375, "the smaller of the two"),
    ("06-sharing", 1 / 3, "shares count"),
    ("06-off", 1, "couldn't be chosen"),
    ("07-index", 1, "index 299"),
    ("07-index", 8, "smallest integer"),
    ("07-topk", 40_600, "last one needn't be stored"),
    ("07-topk", 11_000, "bank is in the file too"),
    ("07-users", 366_000_000, "bank with every user"),
    ("08-rank", 6_912, "not with its square"),
    ("08-rank", 27_648, "bytes already"),
    ("08-vera", 256 * 5120, "they are drawn"),
    ("08-vera", 5120, "out of A"),
    ("08-vera", 1280, "none scales the input"),
    ("08-error", 0.02, "of a single run"),
    ("08-error", 0.02 / 3, "by the root of n"),
    ("08-error", (2 / 3) ** 0.5 * 0.02 / 3**0.5, "n - 1"),
    ("08-front", lambda points: [], "does every method beat itself"),
    ("08-front", lambda points: ["a", "b", "d", "e"], "no worse in one"),
    ("08-front", lambda points: {"c", "d"}, "the ones that are beaten"),
    ("08-front", lambda points: {"a", "e"}, "you left out ['b']"),
    ("08-front", lambda points: list(points.values()), "the names alone"),
    ("08-front", lambda points: "abe", "in a list or a set"),
    ("08-front", lambda points: (1 / 0 for _ in points), "ZeroDivisionError"),
    ("09-gain", 10, "the base model's 40 ms stay"),
    ("09-gain", 2.5, "no adapter at all"),
    ("09-gain", 2.17, "don't round"),
    ("09-calls", 36, "A and B"),
    ("09-launch", 12_000, "as if Python waited"),
    ("09-launch", 10_000, "nearly"),
    ("09-traffic", 819_200_000, "their gradient"),
    ("10-mr", lambda r: ", ".join(f"{k}={v}" for k, v in r.items()), "not a meaning"),
    ("10-mr", lambda r: f"name[{r['name']}]", "but the record is"),
    ("10-mr", lambda r: f"name[{r['name']}], food[Thai], area[{r['area']}]", "KeyError"),
    ("10-mr", lambda r: list(r), "gives a list"),
    ("10-steps", 150, "one pass"),
    ("10-steps", 3_600, "one pair per step"),
    ("10-resume", 137, "of step 100 is whole"),
    ("10-resume", 87, "newer checkpoint"),
    ("10-processes", 64, "share it"),
    ("12-head", 1152, "a bias too"),
    ("12-head", 4620, "that is bytes"),
    ("12-most-frequent", 1 / 3, "guessing"),
    ("12-most-frequent", 260, "between 0 and 1"),
    ("12-roberta", 592_899, "each takes 4 bytes"),
    ("12-roberta", 9_228, "the second layer alone"),
    ("12-roberta", 2_368_512, "both layers have biases"),
    ("13-loss", 71, "needn't learn to ask"),
    ("13-loss", 18, "or it never stops"),
    ("13-passes", 240, "repeated ones"),
    ("13-passes", 30, "one pass takes"),
    ("13-fields", lambda line: line.split(" | "), "gives a list"),
    (
        "13-fields",
        lambda line: dict(p.split(":")[:2] for p in line.split(" | ")[1:]),
        "it should be",
    ),
    (
        "13-fields",
        lambda line: {p.split(": ")[0]: p.split(": ")[-1] for p in line.split(" | ")},
        "is no field",
    ),
]


@pytest.mark.parametrize("name, answer, expected", MISTAKES)
def test_the_check_says_what_is_wrong(name, answer, expected):
    verdict = lab.check(name, answer)
    assert verdict.state == "wrong"
    assert expected in verdict.text


def test_no_message_gives_the_answer_away():
    """What is said about a wrong number doesn't hold the right one."""
    for name, exercise in EXERCISES.items():
        answer = solved(name)
        if isinstance(answer, int | float) and abs(answer) > 100:
            for wrong in (answer * 2, answer / 2, answer + 1, 0):
                text = lab.check(name, wrong).text.replace(",", "")
                assert str(answer) not in text, (name, text)
            assert str(answer) not in exercise.hint.replace(",", "")


@pytest.mark.parametrize("five", [5, 5.0, np.int64(5), np.float32(5), torch.tensor(5)])
def test_a_number_may_be_of_any_kind(five):
    equals(5)(five)


def test_parts_of_checks_can_fail():
    with pytest.raises(Wrong, match="wrong sign"):
        equals(5)(-5)
    with pytest.raises(Wrong, match="without quotes"):
        number("5")
    with pytest.raises(Open):
        called(lambda: None)
    with pytest.raises(Wrong, match="NaN"):
        check_tensor(torch.tensor([math.nan]), torch.ones(1))
    check_tensor(torch.ones(2), torch.ones(2))


def test_an_error_of_the_check_itself_is_not_taken_for_a_wrong_answer():
    def broken(answer):
        raise LookupError("a bug")

    with pytest.raises(LookupError):
        Exercise("99-x", "hint", broken, "because", "answer = 1").verdict(1)


def test_an_unknown_exercise_names_the_nearest():
    for function in (lab.hint, lab.solution, lambda name: lab.check(name, 1)):
        with pytest.raises(ExerciseError, match="Did you mean '02-tiles'"):
            function("02-tile")
    with pytest.raises(ExerciseError, match="There are 05-count, 05-regex"):
        lab.hint("05-zzzzzzzz")


def test_names_begin_with_the_number_of_their_chapter():
    folder = Path(lab.__file__).parent / "course"
    for module in folder.glob("chapter_*.py"):
        number_of = module.stem.removeprefix("chapter_")
        assert any(name.startswith(f"{number_of}-") for name in EXERCISES), module.name
        assert f'"{number_of}-' in module.read_text()
    assert all(len(name.partition("-")[0]) == 2 for name in EXERCISES)


def test_verdicts_are_shown_as_text_and_escaped_html():
    verdict = lab.check("05-regex", "<b>(")
    assert "<b>(" in repr(verdict)
    assert "&lt;b&gt;(" in verdict._repr_html_()
    nothing = lab.check("03-entropy", lambda weights: None)._repr_html_()
    assert "with <code>return</code>" in nothing
    assert ">lab.hint(&#x27;03-entropy&#x27;)</code> helps" in nothing
    assert max(map(len, repr(lab.check("07-topk", 40_600)).splitlines())) <= 88
