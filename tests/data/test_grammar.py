"""The grammar says every fact once, in many wordings, and the same for the same seed."""

import random

import pytest

from vblora_lab.data import DOMAINS, get_domain, slot_errors
from vblora_lab.data.grammar import describe, draw_facts, with_article
from vblora_lab.errors import DataError


@pytest.mark.parametrize("domain", DOMAINS.values(), ids=DOMAINS)
def test_every_text_says_all_of_its_facts_and_nothing_else(domain):
    rng = random.Random(0)
    for _ in range(500):
        facts = draw_facts(domain, rng)
        text = describe(domain, facts, rng)
        assert slot_errors(domain, facts, text) == (), (facts, text)


@pytest.mark.parametrize("domain", DOMAINS.values(), ids=DOMAINS)
def test_every_way_to_say_a_value_is_found_by_its_own_expression(domain):
    for slot in domain.slots:
        for value in slot.values:
            said = "Zorbino" if slot.is_open else value.value
            for position in ("adjective", "phrase", "predicate"):
                for way in slot.find(said).ways(position):
                    assert slot.pattern(said).search(way), (slot.key, said, way)


def test_texts_are_sentences_without_leftovers_of_the_format():
    rng = random.Random(1)
    for domain in DOMAINS.values():
        for _ in range(200):
            text = describe(domain, draw_facts(domain, rng), rng)
            assert text[0].isupper() and text.endswith(".")
            assert not set("[]|{}") & set(text) and "  " not in text


def test_one_set_of_facts_has_many_wordings():
    domain = get_domain("restaurants")
    rng = random.Random(2)
    facts = {"name": "Blue Spice", "eatType": "pub", "food": "Thai", "area": "riverside"}
    facts |= {"familyFriendly": "yes", "priceRange": "cheap"}
    assert len({describe(domain, facts, rng) for _ in range(300)}) > 250


def test_the_same_seed_writes_the_same_text():
    domain = get_domain("films")
    texts = [
        describe(domain, draw_facts(domain, rng), rng)
        for rng in (random.Random(3), random.Random(3))
    ]
    assert texts[0] == texts[1]


def test_a_fact_without_words_is_refused():
    with pytest.raises(DataError, match=r"no words for parking\[yes\]"):
        describe(get_domain("restaurants"), {"name": "X", "parking": "yes"}, random.Random(0))


@pytest.mark.parametrize(
    ("group", "expected"),
    [("pub", "a pub"), ("Italian pub", "an Italian pub"), ("one-star inn", "a one-star inn")],
)
def test_articles_follow_the_sound(group, expected):
    assert with_article(group) == expected


def test_an_unknown_domain_is_refused_with_the_known_ones():
    with pytest.raises(DataError, match=r"films.*hotels.*museums.*restaurants"):
        get_domain("restaurant")
