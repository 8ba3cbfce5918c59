"""Slot errors on texts counted by hand; BLEU against its definition."""

import math

import pytest

from vblora_lab.data import bleu, get_domain, slot_error_rate, slot_errors

RESTAURANTS = get_domain("restaurants")
FACTS = {"name": "The Eagle", "eatType": "pub", "food": "Thai", "familyFriendly": "no"}


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        ("The Eagle is a Thai pub for adults only.", ()),
        ("THE EAGLE: a thai pub that is not family-friendly.", ()),
        ("The Eagle is a Thai pub.", ("missing familyFriendly[no]",)),
        ("Eagle is a Thai pub for adults only.", ("missing name[The Eagle]",)),
        (
            "The Eagle is a family-friendly Greek pub.",
            ("wrong food[Thai]: says Greek", "wrong familyFriendly[no]: says yes"),
        ),
        (
            "The Eagle is a cheap Thai pub by the river for adults only.",
            ("added priceRange[cheap]", "added area[riverside]"),
        ),
        ("The Eagle is a Thai and Greek pub, adults only.", ("added food[Greek]",)),
    ],
)
def test_slot_errors_of_a_text(text, errors):
    assert slot_errors(RESTAURANTS, FACTS, text) == errors


def test_words_inside_names_are_not_slots():
    facts = {"name": "The Cheap Thai Pub", "near": "Harbour View"}
    assert slot_errors(RESTAURANTS, facts, "The Cheap Thai Pub is near Harbour View.") == ()


def test_texts_of_the_e2e_challenge_are_understood():
    facts = {
        "name": "Blue Spice",
        "eatType": "coffee shop",
        "priceRange": "£20-25",
        "customer rating": "3 out of 5",
        "area": "city centre",
        "familyFriendly": "yes",
    }
    text = (
        "Blue Spice is a kid friendly coffee shop in the center of the city rated three stars, "
        "with prices of £20 to £25."
    )
    assert slot_errors(RESTAURANTS, facts, text.replace("center of the", "centre of the")) == ()


def test_the_rate_is_errors_per_slot_over_the_whole_set():
    two = {"name": "Otto", "food": "Thai"}
    texts = ["The Eagle is a Thai pub.", "Otto serves Thai food in a cheap bistro."]
    # one missing of 4 slots, and two added to 2
    assert slot_error_rate(RESTAURANTS, [FACTS, two], texts) == pytest.approx(3 / 6)


def test_bleu_agrees_with_its_formula():
    text, reference = "the cat sat on the mat today", "the cat sat on the mat"
    # 6 of 7 words, 5 of 6 pairs, 4 of 5 triples and 3 of 4 quadruples match; no brevity penalty
    expected = 100 * math.prod([6 / 7, 5 / 6, 4 / 5, 3 / 4]) ** 0.25
    assert bleu([text], [[reference]]) == pytest.approx(expected)


def test_bleu_takes_the_best_of_unequally_many_references():
    texts = ["a b c d e", "f g h i j"]
    assert bleu(texts, [["x y z", "a b c d e"], ["f g h i j"]]) == pytest.approx(100)
