"""Wordings of people: what says a value, what may mean it, and what does neither."""

import random

import pytest

from vblora_lab.data import get_domain, slot_errors
from vblora_lab.data.wordings import any_of

RESTAURANTS = get_domain("restaurants")


def errors(text, **facts):
    """Of a text about Otto; rating stands for "customer rating"."""
    if "rating" in facts:
        facts["customer rating"] = facts.pop("rating")
    return slot_errors(RESTAURANTS, {"name": "Otto"} | facts, f"Otto {text}")


SAID = {
    "familyFriendly": {
        "yes": (
            "is kids friendly",
            "is kids-friendly",
            "is child and family friendly",
            "is suitable for children",
            "allows children",
            "is a great place for families",
            "is for the whole family",
            "is family oriented",
        ),
        "no": (
            "is no kids friendly place",
            "is a non kids-friendly place",
            "isn't kid friendly",
            "is not considered child friendly",
            "has no kids allowed",
            "does not allow children",
            "has a no children policy",
            "says that children are not allowed",
            "is not suitable for families with children",
            "is not good for families",
            "is family-unfriendly",
            "is adult only",
        ),
    },
    "priceRange": {
        "cheap": ("is cheap", "has a cheap price range", "has low prices", "is priced cheaply"),
        "moderate": ("is moderately priced", "has prices that are moderate", "is average priced"),
        "high": ("is high-priced", "has a price range that is quite high", "has high prices"),
        "less than £20": ("has meals for less than 20 pounds", "costs less than  £20"),
        "£20-25": ("costs £20-25", "costs 20 to 25 pounds", "has a 20-25 price range"),
        "more than £30": ("costs over 30 euros", "costs more than £30"),
    },
    "rating": {
        "low": ("is low-rated", "has ratings that are low", "is poorly rated by customers"),
        "average": (
            "is average rated",
            "is rated average",
            "has a customer rating that is average",
            "has average reviews",
        ),
        "high": ("is high-rated", "is rated high", "has a customer rating of high", "rates highly"),
        "1 out of 5": ("is rated one out of five", "has 1 star"),
        "3 out of 5": ("has a 3 out of 5 rating", "is a three-star place", "has 3 of 5 stars"),
        "5 out of 5": ("is rated 5 stars", "gets five out of five"),
    },
    "food": {
        "English": ("serves British food",),
        "Fast food": ("is a fast-food place",),
    },
    "area": {
        "city centre": ("is in the center of the city", "is in the heart of town"),
        "riverside": ("is along the river",),
    },
}
HINTED = {
    "familyFriendly": {"yes": ("will take your kids",), "no": ("asks you not to bring the kids",)},
    "priceRange": {
        "cheap": ("is a low cost place",),
        "moderate": ("has reasonable prices", "is in the medium price range"),
        "high": ("is pricey", "has higher prices"),
        "less than £20": ("has prices of £20 or less",),
        "£20-25": ("charges £20 - £25", "is reasonably priced"),
        "more than £30": ("has prices of £30 and up",),
    },
    "rating": {
        "low": ("serves poor-quality food", "has not been rated well"),
        "average": ("has decent ratings", "has good reviews"),
        "high": ("is high quality", "is recommended"),
        "3 out of 5": ("has good customer ratings", "is rated 3 out 5"),
    },
    "eatType": {"coffee shop": ("is a café", "has coffee")},
    "area": {"riverside": ("is just off the river",), "city centre": ("is at the centre",)},
}


def cases(table):
    return [(slot, v, text) for slot in table for v in table[slot] for text in table[slot][v]]


@pytest.mark.parametrize(("slot", "value", "text"), cases(SAID))
def test_what_says_a_value_is_found_and_is_an_addition_where_it_is_not_asked_for(slot, value, text):
    assert errors(text, **{slot: value}) == ()
    (added,) = errors(text)
    assert added == f"added {slot.replace('rating', 'customer rating')}[{value}]"


@pytest.mark.parametrize(("slot", "value", "text"), cases(HINTED))
def test_what_may_mean_a_value_counts_where_it_is_expected_and_is_ignored_elsewhere(
    slot, value, text
):
    assert errors(text, **{slot: value}) == ()
    assert errors(text) == ()


@pytest.mark.parametrize(
    ("text", "slot", "fit"),
    [
        ("is cheap", "priceRange", {"cheap", "less than £20"}),
        ("costs less than £20", "priceRange", {"less than £20"}),
        ("is moderately priced", "priceRange", {"moderate", "£20-25"}),
        ("is reasonably priced", "priceRange", {"moderate", "£20-25"}),
        ("is expensive", "priceRange", {"high", "more than £30"}),
        ("is not cheap", "priceRange", {"high", "more than £30"}),
        ("isn't very expensive", "priceRange", {"cheap", "less than £20"}),
        ("is highly rated", "rating", {"high", "5 out of 5"}),
        ("is not highly rated", "rating", {"low", "1 out of 5"}),
        ("is rated 5 out of 5", "rating", {"high", "5 out of 5"}),
        ("has one star", "rating", {"low", "1 out of 5"}),
        ("has good ratings", "rating", {"average", "3 out of 5", "high", "5 out of 5"}),
    ],
)
def test_words_fit_the_values_that_they_may_mean_and_no_others(text, slot, fit):
    key = slot.replace("rating", "customer rating")
    values = [value.value for value in RESTAURANTS.slot(key).values]
    assert {value for value in values if not errors(text, **{slot: value})} == fit


@pytest.mark.parametrize(
    "text",
    [
        "is not a family-friendly restaurant",
        "is a no family-friendly pub",
        "does not welcome children",
        "is unsuitable for children, and not a place for kids",
    ],
)
def test_a_denial_does_not_say_what_it_denies(text):
    (error,) = (e for e in errors(text, familyFriendly="yes") if "familyFriendly" in e)
    assert error in ("missing familyFriendly[yes]", "wrong familyFriendly[yes]: says no")
    assert not [e for e in errors(text, familyFriendly="no") if "familyFriendly" in e]


def test_prices_and_ratings_are_told_apart():
    text = "has a high price range and an average customer rating"
    assert errors(text, priceRange="high", rating="average") == ()
    assert errors(text, priceRange="moderate", rating="high") == (
        "wrong priceRange[moderate]: says high",
        "wrong customer rating[high]: says average",
    )


@pytest.mark.parametrize(
    "text",
    ["is near Burger King.", "is close to the Burger King in town.", "is just by Burger King"],
)
def test_a_neighbour_that_is_not_asked_for_is_an_addition(text):
    assert errors(text) == ("added near[Burger King]",)
    assert errors(text, near="Burger King") == ()


@pytest.mark.parametrize(
    "text",
    [
        "is near the River.",
        "is NEAR THE RIVER.",
        "is by The City Centre",
        "is near. The end.",
        "is near Otto.",
    ],
)
def test_a_river_a_centre_and_the_place_itself_are_no_neighbours(text):
    assert not [e for e in errors(text) if "near" in e]


def test_a_space_in_a_wording_stands_for_spaces_and_hyphens():
    assert any_of(("a b",), ("c",)) == r"(?:a[\s-]+b)|(?:c)"


def test_texts_of_any_words_are_scored_in_a_moment():
    rng = random.Random(0)
    words = "no not family kids friendly for the price rating is of high £20 near King".split()
    for _ in range(20):
        errors(" ".join(rng.choices(words, k=400)), familyFriendly="no", priceRange="high")
