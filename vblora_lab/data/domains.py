"""The four domains that the lab can write about, as data.

Restaurants use the slots and values of the E2E NLG challenge (arXiv 1706.09254), with more foods
and areas, so that the same rules also score the challenge's own files. How to read a `Value`:
``Value(value, adjective, phrase, predicate, mentions)``.
"""

from __future__ import annotations

from vblora_lab.data.grammar import Domain, Slot, Value, with_article
from vblora_lab.data.names import film_name, place_name
from vblora_lab.errors import DataError


def _kinds(*words: str) -> tuple[Value, ...]:
    return tuple(Value(word, phrase=word, mentions=f"{word}s?") for word in words)


def _food(cuisine: str) -> Value:
    return Value(
        cuisine,
        adjective=cuisine,
        phrase=f"with {cuisine} food|that serves {cuisine} food|with {cuisine} dishes",
        predicate=f"serves {cuisine} food|offers {cuisine} dishes|has {with_article(cuisine)} menu",
        mentions=cuisine,
    )


_FAST_FOOD = Value(
    "Fast food",
    adjective="fast food",
    phrase="with fast food|that serves fast food",
    predicate="serves fast food|offers fast food|has fast food on the menu",
    mentions="fast[- ]food|burgers?",
)
_AREAS = (
    Value(
        "riverside",
        phrase="by the river|in the riverside area|on the riverside",
        predicate="is by the river|lies in the riverside area|stands on the riverside",
        mentions="riverside|by the river|near the river|along the river|on the river",
    ),
    Value(
        "city centre",
        phrase="in the city centre|in the centre of the city",
        predicate="is in the city centre|lies in the centre of the city",
        mentions="city cent(?:re|er)|cent(?:re|er) of (?:the )?(?:city|town)|town cent(?:re|er)",
    ),
    Value(
        "old town",
        phrase="in the old town|in the old part of town",
        predicate="is in the old town|lies in the old part of town",
        mentions="old town|old part of (?:the )?town",
    ),
    Value(
        "harbour",
        phrase="at the harbour|in the harbour district",
        predicate="is at the harbour|lies in the harbour district",
        mentions="harbou?r",
    ),
    Value(
        "market square",
        phrase="on the market square|in the market square",
        predicate="is on the market square|faces the market square",
        mentions="market square",
    ),
    Value(
        "station quarter",
        phrase="in the station quarter|beside the railway station",
        predicate="is in the station quarter|lies beside the railway station",
        mentions="station quarter|railway station",
    ),
)
_NEAR = (
    Value(
        "{}",
        phrase="near {}|close to {}|not far from {}",
        predicate="is near {}|lies close to {}|can be found near {}",
        mentions=r"(?:near|close to|far from|next to|by|beside|around) {}|{}",
    ),
)
_FAMILY = (
    Value(
        "yes",
        adjective="family-friendly|child-friendly",
        phrase="for the whole family|where children are welcome",
        predicate="welcomes families|is family-friendly|is a good place for children",
        mentions="family[- ]friendly|child(?:ren)?[- ]friendly|kid[- ]friendly|whole family"
        "|children are welcome|welcomes? (?:families|children|kids)|good (?:place )?for "
        "(?:families|children)|families are welcome",
    ),
    Value(
        "no",
        adjective="adults-only",
        phrase="for adults only|where children are not welcome",
        predicate="does not welcome children|is not family-friendly|is no place for children",
        mentions="adults?[- ]only|adults only|(?:not|n't|non|isn't)[- ](?:a |very |really )?"
        "(?:family|child|kid|children)[- ]friendly|children are not welcome|not welcome "
        "(?:families|children)|no place for children|not (?:good )?for (?:families|children)",
    ),
)
_PRICES = (
    Value(
        "cheap",
        adjective="cheap|low-priced|inexpensive",
        phrase="with low prices|in the low price range",
        predicate="is cheap|has low prices|does not cost much",
        mentions="cheap(?:ly)?|low[- ]pric(?:ed|es|e)|low[- ]cost|inexpensive|not cost much"
        "|low price range",
    ),
    Value(
        "moderate",
        adjective="moderately priced|mid-priced",
        phrase="with moderate prices|in the middle price range",
        predicate="has moderate prices|is moderately priced|charges average prices",
        mentions="moderate(?:ly)?[- ]pric(?:ed|es|e)(?: range)?|mid-priced|average prices"
        "|middle price range|moderate(?:ly)?",
    ),
    Value(
        "high",
        adjective="expensive|high-priced",
        phrase="with high prices|in the high price range",
        predicate="is expensive|has high prices|costs a lot",
        mentions="expensive|high(?:er)?[- ]pric(?:ed|es|e)|high price range|costs? a lot|pricey",
    ),
    Value(
        "less than £20",
        phrase="where a meal costs less than £20|with prices under £20",
        predicate="costs less than £20|charges less than £20|has prices under £20",
        mentions="(?:less than|under|below) £ ?20",
    ),
    Value(
        "£20-25",
        phrase="in the £20-25 price range|with prices of £20-25",
        predicate="costs £20-25|charges £20-25|has prices of £20-25",
        mentions="£ ?20(?: ?- ?| to )£? ?25",
    ),
    Value(
        "more than £30",
        phrase="where a meal costs more than £30|with prices over £30",
        predicate="costs more than £30|charges more than £30|has prices over £30",
        mentions="(?:more than|over|above) £ ?30",
    ),
)


def _score(points: str, word: str, who: str = "customer") -> Value:
    return Value(
        f"{points} out of 5",
        adjective=f"{word}-star",
        phrase=f"with a {who} rating of {points} out of 5|rated {points} out of 5",
        predicate=f"has a {who} rating of {points} out of 5|is rated {points} out of 5"
        f"|gets {points} out of 5 from its {who}s",
        mentions=f"(?:{points}|{word}) (?:out )?of (?:5|five)|(?:{points}|{word})[- ]stars?",
    )


def _level(level: str, mentions: str) -> Value:
    rated = with_article(f"{level} customer rating")
    return Value(
        level,
        phrase=f"with {rated}",
        predicate=f"has {rated}|is given {rated}",
        mentions=mentions,
    )


_RATINGS = (
    _level("low", "low (?:customer )?ratings?|poor(?:ly)? (?:customer )?rat(?:ed|ings?)|low-rated"),
    _level("average", "average (?:customer )?ratings?|averagely rated"),
    _level(
        "high", "high(?:ly)? (?:customer )?rat(?:ed|ings?)|highly-rated|excellent customer ratings?"
    ),
    _score("1", "one"),
    _score("3", "three"),
    _score("5", "five"),
)

RESTAURANTS = Domain(
    name="restaurants",
    kind="eatType",
    nouns=("place", "place to eat"),
    slots=(
        Slot("eatType", _kinds("pub", "coffee shop", "restaurant", "bistro", "tavern")),
        Slot(
            "food",
            (
                *(_food(c) for c in ("Chinese", "English", "French", "Indian", "Italian")),
                *(_food(c) for c in ("Japanese", "Thai", "Greek", "Mexican", "Spanish")),
                _FAST_FOOD,
            ),
        ),
        Slot("priceRange", _PRICES),
        Slot("customer rating", _RATINGS),
        Slot("area", _AREAS, place=True),
        Slot("familyFriendly", _FAMILY),
        Slot("near", _NEAR, place=True),
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
        Slot("type", _kinds("hotel", "guest house", "hostel", "inn", "lodge")),
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
        Slot("priceRange", _PRICES[:3]),
        Slot("customer rating", _RATINGS),
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
        Slot("area", _AREAS, place=True),
        Slot("near", _NEAR, place=True),
    ),
    make_name=place_name,
)

MUSEUMS = Domain(
    name="museums",
    kind="type",
    nouns=("place to visit", "sight"),
    slots=(
        Slot("type", _kinds("museum", "gallery", "exhibition", "collection")),
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
        Slot("customer rating", _RATINGS),
        Slot("familyFriendly", _FAMILY),
        Slot("area", _AREAS, place=True),
        Slot("near", _NEAR, place=True),
    ),
    make_name=place_name,
)

FILMS = Domain(
    name="films",
    kind="type",
    nouns=("film", "picture"),
    slots=(
        Slot("type", _kinds("comedy", "thriller", "drama", "western", "documentary", "musical")),
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
            tuple(_score(p, w, "viewer") for p, w in (("1", "one"), ("3", "three"), ("5", "five"))),
        ),
        Slot("familyFriendly", _FAMILY),
    ),
    make_name=film_name,
)

DOMAINS: dict[str, Domain] = {d.name: d for d in (RESTAURANTS, HOTELS, MUSEUMS, FILMS)}


def get_domain(name: str) -> Domain:
    """The domain of this name; raises `DataError` listing the names there are."""
    if name not in DOMAINS:
        raise DataError(f"no domain is called {name!r}; choose one of {sorted(DOMAINS)}")
    return DOMAINS[name]
