"""Values that several domains share: foods, areas, prices, ratings.

How to read one: ``Value(value, adjective, phrase, predicate, mentions, hints)``. What people call
them, beside what is generated here, is in `wordings`.
"""

from __future__ import annotations

from vblora_lab.data import wordings as say
from vblora_lab.data.grammar import Slot, Value, with_article
from vblora_lab.data.wordings import Words, any_of


def kinds(*words: str) -> tuple[Value, ...]:
    return tuple(Value(word, phrase=word, mentions=f"{word}s?") for word in words)


COFFEE_SHOP = Value(
    "coffee shop",
    phrase="coffee shop",
    mentions=any_of(say.COFFEE_SHOP.mentions),
    hints=any_of(say.COFFEE_SHOP.hints),
)


def food(cuisine: str) -> Value:
    return Value(
        cuisine,
        adjective=cuisine,
        phrase=f"with {cuisine} food|that serves {cuisine} food|with {cuisine} dishes",
        predicate=f"serves {cuisine} food|offers {cuisine} dishes|has {with_article(cuisine)} menu",
        mentions=any_of((cuisine,), say.CUISINES.get(cuisine, ())),
    )


FAST_FOOD = Value(
    "Fast food",
    adjective="fast food",
    phrase="with fast food|that serves fast food",
    predicate="serves fast food|offers fast food|has fast food on the menu",
    mentions=any_of(say.FAST_FOOD.mentions),
    hints=any_of(say.FAST_FOOD.hints),
)
AREAS = (
    Value(
        "riverside",
        phrase="by the river|in the riverside area|on the riverside",
        predicate="is by the river|lies in the riverside area|stands on the riverside",
        mentions=any_of(say.RIVERSIDE.mentions),
        hints=any_of(say.RIVERSIDE.hints),
    ),
    Value(
        "city centre",
        phrase="in the city centre|in the centre of the city",
        predicate="is in the city centre|lies in the centre of the city",
        mentions=any_of(say.CITY_CENTRE.mentions),
        hints=any_of(say.CITY_CENTRE.hints),
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
NEAR = Slot(
    "near",
    (
        Value(
            "{}",
            phrase="near {}|close to {}|not far from {}",
            predicate="is near {}|lies close to {}|can be found near {}",
            mentions=r"(?:near|close to|far from|next to|by|beside|around) {}|{}",
        ),
    ),
    place=True,
    any_name=say.SOME_NEIGHBOUR,
)
FAMILY = (
    Value(
        "yes",
        adjective="family-friendly|child-friendly",
        phrase="for the whole family|where children are welcome",
        predicate="welcomes families|is family-friendly|is a good place for children",
        mentions=any_of(say.FOR_FAMILIES.mentions),
        hints=any_of(say.FOR_FAMILIES.hints),
    ),
    Value(
        "no",
        adjective="adults-only",
        phrase="for adults only|where children are not welcome",
        predicate="does not welcome children|is not family-friendly|is no place for children",
        mentions=any_of(say.FOR_ADULTS.mentions),
        hints=any_of(say.FOR_ADULTS.hints),
    ),
)
PRICES = (
    Value(
        "cheap",
        adjective="cheap|low-priced|inexpensive",
        phrase="with low prices|in the low price range",
        predicate="is cheap|has low prices|does not cost much",
        mentions=any_of(say.LOW_PRICE.mentions),
        hints=any_of(say.LOW_PRICE.hints),
    ),
    Value(
        "moderate",
        adjective="moderately priced|mid-priced",
        phrase="with moderate prices|in the middle price range",
        predicate="has moderate prices|is moderately priced|charges average prices",
        mentions=any_of(say.MIDDLE_PRICE.mentions),
        hints=any_of(say.MIDDLE_PRICE.hints, say.FAIR_PRICE),
    ),
    Value(
        "high",
        adjective="expensive|high-priced",
        phrase="with high prices|in the high price range",
        predicate="is expensive|has high prices|costs a lot",
        mentions=any_of(say.HIGH_PRICE.mentions),
        hints=any_of(say.HIGH_PRICE.hints),
    ),
    Value(
        "less than £20",
        phrase="where a meal costs less than £20|with prices under £20",
        predicate="costs less than £20|charges less than £20|has prices under £20",
        mentions=any_of(say.UNDER_20.mentions),
        hints=any_of(say.UNDER_20.hints, *say.LOW_PRICE),
    ),
    Value(
        "£20-25",
        phrase="in the £20-25 price range|with prices of £20-25",
        predicate="costs £20-25|charges £20-25|has prices of £20-25",
        mentions=any_of(say.FROM_20_TO_25.mentions),
        hints=any_of(say.FROM_20_TO_25.hints, *say.MIDDLE_PRICE, say.FAIR_PRICE),
    ),
    Value(
        "more than £30",
        phrase="where a meal costs more than £30|with prices over £30",
        predicate="costs more than £30|charges more than £30|has prices over £30",
        mentions=any_of(say.OVER_30.mentions),
        hints=any_of(say.OVER_30.hints, *say.HIGH_PRICE),
    ),
)


def score(number: str, word: str, who: str = "customer", like: Words | None = None) -> Value:
    """So many points of 5. like: the words of a level that may mean the same."""
    words = say.points(number, word)
    return Value(
        f"{number} out of 5",
        adjective=f"{word}-star",
        phrase=f"with a {who} rating of {number} out of 5|rated {number} out of 5",
        predicate=f"has a {who} rating of {number} out of 5|is rated {number} out of 5"
        f"|gets {number} out of 5 from its {who}s",
        mentions=any_of(words.mentions),
        hints=any_of(words.hints, *(like or ())),
    )


def level(level: str, words: Words, like: Words) -> Value:
    """A level of ratings. like: the words of a score that may mean the same."""
    rated = with_article(f"{level} customer rating")
    return Value(
        level,
        phrase=f"with {rated}",
        predicate=f"has {rated}|is given {rated}",
        mentions=any_of(words.mentions),
        hints=any_of(words.hints, *like),
    )


_LEVELS = {
    "low": (say.LOW_RATING, "1", "one"),
    "average": (say.MIDDLE_RATING, "3", "three"),
    "high": (say.HIGH_RATING, "5", "five"),
}
RATINGS = (
    *(level(name, words, say.points(n, word)) for name, (words, n, word) in _LEVELS.items()),
    *(score(n, word, like=words) for words, n, word in _LEVELS.values()),
)
