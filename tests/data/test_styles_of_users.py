"""Users' styles: what one is, and how it is measured."""

import pytest

from vblora_lab import load_base
from vblora_lab.data import parse_mr
from vblora_lab.data.styles import (
    FAREWELLS,
    FIELDS,
    GREETINGS,
    MOST,
    Style,
    facts_for,
    shares,
    styles,
)
from vblora_lab.errors import ConfigError


def test_a_text_in_a_style_has_all_of_it_and_less_of_any_other():
    users, facts = styles(MOST, seed=0), facts_for(3, seed=0)
    assert len({(style.greeting, style.farewell) for style in users}) == MOST == 100
    for each in facts:
        for i, style in enumerate(users):
            text = style.text(each)
            assert style.share(text, each) == 1
            assert all(other.share(text, each) < 1 for other in users[:i] + users[i + 1 :])
    assert users[0].share("", facts[0]) == 0


def test_a_style_is_measured_mark_by_mark():
    style = Style("Hello,", "Bye for now.", {"food": "menu", "area": "where"}, 2)
    facts = {"name": "The Mill", "food": "Thai", "area": "riverside"}
    text = "Hello, The Mill, menu: Thai, where: riverside. Bye for now."
    assert style.text(facts) == text
    # Greeting, farewell, two fields, and that there are two.
    assert style.share(text.replace("menu", "food"), facts) == pytest.approx(4 / 5)
    assert style.share(text.replace("menu: Thai, ", ""), facts) == pytest.approx(3 / 5)
    assert style.share(text.replace("Hello, ", ""), facts) == pytest.approx(4 / 5)


def test_facts_that_are_missing_or_several_are_said_as_far_as_they_go():
    style = Style("Hello,", "Enjoy!", {"food": "menu", "area": "where"}, 2)
    assert style.text(parse_mr("food[Thai], food[Greek]")) == "Hello, menu: Thai. Enjoy!"


def test_an_example_holds_the_facts_and_the_text():
    (facts,), (style,) = facts_for(1, seed=3), styles(1, seed=3)
    example = style.example(facts)
    assert example.facts == facts and example.references == (style.text(facts),)


def test_shares_are_means_over_facts_by_who_was_served_and_whose_style_it_is():
    users, facts = styles(3, seed=1), facts_for(2, seed=1)
    texts = [[style.text(each) for style in users] for each in facts]
    texts[1][0] = ""  # the first user got nothing for the second facts
    found = shares(users, facts, texts)
    assert [found[i][i] for i in range(3)] == [0.5, 1, 1]
    wanted = [users[2].share(users[1].text(each), each) for each in facts]
    assert found[1][2] == pytest.approx(sum(wanted) / 2)


@pytest.mark.parametrize("count", [0, MOST + 1])
def test_there_are_only_so_many(count):
    with pytest.raises(ConfigError, match=f"count={count}: must be from 1 to 100"):
        styles(count, seed=0)


def test_mini_opt_knows_every_word_of_every_style():
    """Each is one token, so that what is learned is a style and not how its words are spelt."""
    tokenizer = load_base("mini-opt", device="cpu").tokenizer
    phrases = [*GREETINGS, *FAREWELLS, *(name for names in FIELDS.values() for name in names)]
    words = [word for phrase in phrases for word in phrase.rstrip(".,").split()]
    assert [word for word in words if len(tokenizer.tokenize(f" {word}")) > 1] == []
