"""The measures of E2E: what their libraries say, or why there is nothing to say."""

import importlib.util
import math
import shutil

import pytest

from vblora_lab.data.e2e_scores import COLUMNS, e2e_scores

SAID = ["The Eagle is a cheap pub near Aromi.", "Aromi is a pub in the city centre."]


def has(*libraries):
    return all(importlib.util.find_spec(name) for name in libraries)


def test_every_column_is_a_number_or_a_reason():
    scores = e2e_scores(SAID, [[text] for text in SAID])
    assert tuple(scores) == COLUMNS
    assert scores["BLEU"] == pytest.approx(100)
    for score in scores.values():
        assert isinstance(score, float) or "not installed" in score or "Java" in score


def test_what_is_not_installed_is_named(monkeypatch):
    find = importlib.util.find_spec
    absent = ("nltk", "pycocoevalcap")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in absent else find(name)
    )
    scores = e2e_scores(SAID, [[text] for text in SAID])
    assert scores["NIST"] == "nltk is not installed (pip install 'vblora-lab[e2e]')"
    assert scores["CIDEr"] == scores["METEOR"] == scores["ROUGE-L"]
    assert "pycocoevalcap" in scores["CIDEr"]


def test_without_java_the_caption_measures_say_so(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name != "nltk" or None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "Java" in e2e_scores(SAID, [[text] for text in SAID])["METEOR"]


@pytest.mark.skipif(not has("nltk"), reason="nltk is not installed")
def test_nist_of_a_perfect_text_is_its_own_information():
    # n-grams that occur once among N words carry log2 of their history's count; with all matched,
    # the sum over 1-grams alone is the mean of log2(N / count) over the words
    text = "one two three four five six seven"
    score = e2e_scores([text], [[text]])["NIST"]
    assert score == pytest.approx(math.log2(7), rel=1e-6)


@pytest.mark.skipif(not has("nltk"), reason="nltk is not installed")
def test_nist_of_texts_too_short_for_it_is_absent():
    assert isinstance(e2e_scores(["a", ""], [["b"], ["c"]])["NIST"], str)


@pytest.mark.skipif(
    not has("pycocoevalcap") or not shutil.which("java"), reason="no pycocoevalcap, or no Java"
)
def test_caption_measures_are_highest_for_the_reference_itself():
    others = [["A pub, The Eagle, is cheap."], ["Aromi is a pub by the river."]]
    perfect, worse = e2e_scores(SAID, [[text] for text in SAID]), e2e_scores(SAID, others)
    assert (perfect["METEOR"], perfect["ROUGE-L"], perfect["CIDEr"]) == (100, 100, 10)
    for name in ("METEOR", "ROUGE-L", "CIDEr"):
        assert 0 < worse[name] < perfect[name]


def test_texts_and_references_must_pair_up():
    for texts, references in ((["a"], []), ([], [])):
        with pytest.raises(ValueError, match="groups of references"):
            e2e_scores(texts, references)
