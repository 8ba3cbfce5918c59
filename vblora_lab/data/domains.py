"""The four domains that the lab can write about, as data.

Restaurants use the slots and values of the E2E NLG challenge (arXiv 1706.09254), with more foods
and areas, so that the same rules also score the challenge's own files. How to read a `Value`:
``Value(value, adjective, phrase, predicate, mentions)``.
"""

from __future__ import annotations

from vblora_lab.data.grammar import Domain, Slot, Value
from vblora_lab.data.names import film_name, place_name
from vblora_lab.data.values import (
    AREAS,
    COFFEE_SHOP,
    FAMILY,
    FAST_FOOD,
    NEAR,
    PRICES,
    RATINGS,
    food,
    kinds,
    score,
)
from vblora_lab.errors import DataError

RESTAURANTS = Domain(
    name="restaurants",
    kind="eatType",
    nouns=("place", "place to eat"),
    slots=(
        Slot("eatType", (*kinds("pub"), COFFEE_SHOP, *kinds("restaurant", "bistro", "tavern"))),
        Slot(
            "food",
            (
                *(food(c) for c in ("Chinese", "English", "French", "Indian", "Italian")),
                *(food(c) for c in ("Japanese", "Thai", "Greek", "Mexican", "Spanish")),
                FAST_FOOD,
            ),
        ),
        Slot("priceRange", PRICES),
        Slot("customer rating", RATINGS),
        Slot("area", AREAS, place=True),
        Slot("familyFriendly", FAMILY),
        NEAR,
    ),
    make_name=place_name,
)


def _yes_no(yes: tuple[str, str, str], no: tuple[str, str, str]) -> tuple[Value, Value]:
    """Two values that differ in a phrase, a predicate and an expression that finds them."""
    return (
        Value("yes", phrase=yes[0], predicate=yes[1], mentions=yes[2]),
        Value("no", phrase=no[0], predicate=no[1], mentions=no[2]),
    )


HOTELS = Domain(
    name="hotels",
    kind="type",
    nouns=("place to stay", "place to sleep"),
    slots=(
        Slot("type", kinds("hotel", "guest house", "hostel", "inn", "lodge")),
        Slot(
            "rooms",
            tuple(
                Value(
                    size,
                    adjective=size,
                    phrase=f"with {rooms}",
                    predicate=f"has {rooms}|offers {rooms}",
                    mentions=f"{size}|{rooms}",
                )
                for size, rooms in (
                    ("small", "a handful of rooms"),
                    ("mid-sized", "about fifty rooms"),
                    ("large", "hundreds of rooms"),
                )
            ),
        ),
        Slot("priceRange", PRICES[:3]),
        Slot("customer rating", RATINGS),
        Slot(
            "breakfast",
            _yes_no(
                (
                    "with breakfast included|that serves breakfast",
                    "serves breakfast|includes breakfast",
                    "breakfast included|(?:serves|includes) breakfast",
                ),
                (
                    "without breakfast",
                    "does not serve breakfast|offers no breakfast",
                    "without breakfast|not serve breakfast|no breakfast",
                ),
            ),
        ),
        Slot(
            "parking",
            _yes_no(
                (
                    "with a car park|with free parking",
                    "has a car park|offers free parking",
                    "(?:with|has) a car park|free parking",
                ),
                (
                    "without a car park",
                    "has no car park|offers no parking",
                    "without a car park|no (?:car park|parking)",
                ),
            ),
        ),
        Slot("area", AREAS, place=True),
        NEAR,
    ),
    make_name=place_name,
)

MUSEUMS = Domain(
    name="museums",
    kind="type",
    nouns=("place to visit", "sight"),
    slots=(
        Slot("type", kinds("museum", "gallery", "exhibition", "collection")),
        Slot(
            "subject",
            tuple(
                Value(
                    subject,
                    phrase=f"about {subject}|devoted to {subject}",
                    predicate=f"is about {subject}|shows the world of {subject}"
                    f"|tells the story of {subject}",
                    mentions=subject,
                )
                for subject in (
                    "modern art",
                    "natural history",
                    "old ships",
                    "steam engines",
                    "music",
                    "the Roman age",
                    "maps",
                    "photography",
                    "toys",
                    "space travel",
                )
            ),
        ),
        Slot(
            "entry",
            (
                Value(
                    "free",
                    adjective="free",
                    phrase="with free entry",
                    predicate="is free to enter|charges nothing",
                    mentions="free entry|free to enter|charges nothing|free",
                ),
                Value(
                    "paid",
                    phrase="with an entry fee",
                    predicate="charges an entry fee|asks for an entry fee",
                    mentions="entry fee",
                ),
            ),
        ),
        Slot(
            "guidedTours",
            _yes_no(
                (
                    "with guided tours",
                    "offers guided tours|has guided tours every day",
                    "(?:with|offers|has) guided tours",
                ),
                (
                    "without guided tours",
                    "offers no guided tours|has no guided tours",
                    "(?:without|no) guided tours",
                ),
            ),
        ),
        Slot("customer rating", RATINGS),
        Slot("familyFriendly", FAMILY),
        Slot("area", AREAS, place=True),
        NEAR,
    ),
    make_name=place_name,
)

FILMS = Domain(
    name="films",
    kind="type",
    nouns=("film", "picture"),
    slots=(
        Slot("type", kinds("comedy", "thriller", "drama", "western", "documentary", "musical")),
        Slot(
            "country",
            tuple(
                Value(
                    country,
                    adjective=adjective,
                    phrase=f"from {country}|made in {country}",
                    predicate=f"comes from {country}|was made in {country}",
                    mentions=f"{adjective}|{country}",
                )
                for country, adjective in (
                    ("France", "French"),
                    ("Italy", "Italian"),
                    ("India", "Indian"),
                    ("Japan", "Japanese"),
                    ("Spain", "Spanish"),
                    ("Mexico", "Mexican"),
                    ("Sweden", "Swedish"),
                    ("Brazil", "Brazilian"),
                )
            ),
        ),
        Slot(
            "decade",
            tuple(
                Value(
                    decade,
                    phrase=f"from the {decade}",
                    predicate=f"is from the {decade}|was made in the {decade}",
                    mentions=decade,
                )
                for decade in ("1930s", "1950s", "1960s", "1970s", "1980s", "1990s", "2000s")
            ),
        ),
        Slot(
            "length",
            (
                Value("short", "short", "", "is short|does not last long", "short|not last long"),
                Value("long", "long", "", "is long|lasts for hours", "long|lasts for hours"),
            ),
        ),
        Slot(
            "colour",
            _yes_no(
                ("in colour", "was shot in colour|is in colour", "in colou?r"),
                (
                    "in black and white",
                    "was shot in black and white|is in black and white",
                    "black and white",
                ),
            ),
        ),
        Slot(
            "viewer rating",
            tuple(score(p, w, "viewer") for p, w in (("1", "one"), ("3", "three"), ("5", "five"))),
        ),
        Slot("familyFriendly", FAMILY),
    ),
    make_name=film_name,
)

DOMAINS: dict[str, Domain] = {d.name: d for d in (RESTAURANTS, HOTELS, MUSEUMS, FILMS)}


def get_domain(name: str) -> Domain:
    """The domain of this name; raises `DataError` listing the names there are."""
    if name not in DOMAINS:
        raise DataError(f"no domain is called {name!r}; choose one of {sorted(DOMAINS)}")
    return DOMAINS[name]
