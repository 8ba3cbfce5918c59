"""Values that several domains share: foods, areas, prices, ratings.

How to read one: ``Value(value, adjective, phrase, predicate, mentions)``.
"""

from __future__ import annotations

from vblora_lab.data.grammar import Value, with_article


def kinds(*words: str) -> tuple[Value, ...]:
    return tuple(Value(word, phrase=word, mentions=f"{word}s?") for word in words)


def food(cuisine: str) -> Value:
    return Value(
        cuisine,
        adjective=cuisine,
        phrase=f"with {cuisine} food|that serves {cuisine} food|with {cuisine} dishes",
        predicate=f"serves {cuisine} food|offers {cuisine} dishes|has {with_article(cuisine)} menu",
        mentions=cuisine,
    )


FAST_FOOD = Value(
    "Fast food",
    adjective="fast food",
    phrase="with fast food|that serves fast food",
    predicate="serves fast food|offers fast food|has fast food on the menu",
    mentions="fast[- ]food|burgers?",
)
AREAS = (
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
NEAR = (
    Value(
        "{}",
        phrase="near {}|close to {}|not far from {}",
        predicate="is near {}|lies close to {}|can be found near {}",
        mentions=r"(?:near|close to|far from|next to|by|beside|around) {}|{}",
    ),
)
FAMILY = (
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
PRICES = (
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


def score(points: str, word: str, who: str = "customer") -> Value:
    return Value(
        f"{points} out of 5",
        adjective=f"{word}-star",
        phrase=f"with a {who} rating of {points} out of 5|rated {points} out of 5",
        predicate=f"has a {who} rating of {points} out of 5|is rated {points} out of 5"
        f"|gets {points} out of 5 from its {who}s",
        mentions=f"(?:{points}|{word}) (?:out )?of (?:5|five)|(?:{points}|{word})[- ]stars?",
    )


def level(level: str, mentions: str) -> Value:
    rated = with_article(f"{level} customer rating")
    return Value(
        level,
        phrase=f"with {rated}",
        predicate=f"has {rated}|is given {rated}",
        mentions=mentions,
    )


RATINGS = (
    level("low", "low (?:customer )?ratings?|poor(?:ly)? (?:customer )?rat(?:ed|ings?)|low-rated"),
    level("average", "average (?:customer )?ratings?|averagely rated"),
    level(
        "high", "high(?:ly)? (?:customer )?rat(?:ed|ings?)|highly-rated|excellent customer ratings?"
    ),
    score("1", "one"),
    score("3", "three"),
    score("5", "five"),
)
