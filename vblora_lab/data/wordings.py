"""How people word the values of places, as data: what says a value, and what may mean it.

Gathered from the human texts of cleaned E2E (arXiv 1911.03905), value by value. The wordings are
regular expressions, matched without case; a space in one stands for spaces or hyphens.
"""

from __future__ import annotations

from typing import NamedTuple

Wordings = tuple[str, ...]


class Words(NamedTuple):
    """The wordings of a value: ``mentions`` say it, ``hints`` may mean it; see `grammar.Value`."""

    mentions: Wordings
    hints: Wordings = ()


def any_of(*groups: Wordings) -> str:
    """One expression that matches what any wording of the groups does."""
    return "|".join(f"(?:{w})" for group in groups for w in group).replace(" ", r"[\s-]+")


def _framed(frames: Wordings, *words: str) -> Wordings:
    """The frames, with any of the words at their ``{}``."""
    return tuple(frame.replace("{}", f"(?:{'|'.join(words)})") for frame in frames)


_NOT = r"(?:not|\w+n['’]t|non|none|no|never)"
# What may stand inside a wording: "the prices (are on the whole quite) high".
_LINK = (
    "(?: (?:is|are|was|were|be|being|been|its?|it's|that|which|of|in|into|at|on|to|as|by|for|from"
    "|the|an?|all|whole|very|quite|rather|fairly|somewhat|slightly|relatively|pretty|bit|also|only"
    "|just|considered|tends?|falls?|has|have|them|this|place|their|experience|customers?|users?"
    "|food|meals?|get|given|usually)){0,5}"
)

# --- prices

_PRICED = (
    "{}(?: (?:end|level|range))?(?: )?price[ds]?(?: (?:range|tag|point|bracket)s?)?",
    f"price[ds]?(?: (?:range|tag|point)s?)?{_LINK} {{}}(?! (?:customer|rat|review))",
)
LOW_PRICE = Words(
    (
        *_framed(_PRICED, "low", "cheap(?:er|est|ly)?"),
        "cheap(?:ly)?",
        "inexpensive(?:ly)?",
        "affordabl[ey]",
        f"{_NOT} cost much",
        f"{_NOT}{_LINK} expensive",
    ),
    (*_framed(_PRICED, "low(?:er|est|ly)", "budget", "bargain"), "low cost"),
)
MIDDLE_PRICE = Words(
    (*_framed(_PRICED, "moderate(?:ly)?", "average(?:ly)?", "middle"), "mid-priced"),
    (
        *_framed(_PRICED, "moderating", "mid", "medium", "(?:higher|above|than) average(?:ly)?"),
        "moderate(?:ly)?(?: pricing)?",
    ),
)
HIGH_PRICE = Words(
    (
        *_framed(_PRICED, "high", "expensive"),
        "expensive(?:ly)?",
        "costs? a lot",
        f"{_NOT}{_LINK} cheap",
    ),
    (
        *_framed(_PRICED, "high(?:er|est|ly)", "premium"),
        "high (?:cost|end)",
        "pricey",
    ),
)
# What is said of prices in the middle, but not of them alone.
FAIR_PRICE: Wordings = (
    *_framed(_PRICED, "fair(?:ly)?", "decent(?:ly)?", "good", "great", "well", "nice"),
    "reasonabl[ey]",
    "affordabl[ey]",
)

_SIGN = r"(?:(?:£|€|\$|l|gbp)\s?)?"
_UNIT = r"(?:\s?(?:£|€|\$|(?:british )?pounds?|euros?|gbp|dollars?))?"
UNDER_20 = Words((f"(?:less than|under|below) {_SIGN}20{_UNIT}",), (f"{_SIGN}20{_UNIT}",))
FROM_20_TO_25 = Words(
    (r"£?20\s?(?:-|–|to)\s?25(?: (?:pounds?|euros?))?",),
    (rf"{_SIGN}20{_UNIT}\s?(?:-|–|to|and)\s?{_SIGN}25{_UNIT}",),
)
OVER_30 = Words((f"(?:more than|over) {_SIGN}30{_UNIT}",), (f"{_SIGN}30{_UNIT}",))

# --- ratings

_WHO = (
    "(?:(?:customers?'?s?|costumers?|consumers?|users?|viewers?|overall|service|satisfaction|star)"
    " ){0,3}"
)
_RATE = "(?:rat(?:e[ds]?|ings?)|review(?:s|ed)?|scor(?:es?|ed|ing)|ranked|rankings?|approval)"
_RATED = (f"{{}} {_WHO}{_RATE}", f"{_RATE}{_LINK} {{}}(?! (?:pric|cost|end))")
_QUALITY = "{} (?:quality|standard)s?"
LOW_RATING = Words(
    (
        *_framed(_RATED, "low(?:er|est|ly)?", "poor(?:ly)?", "bad(?:ly)?"),
        f"{_NOT}{_LINK} (?:highly|well) (?:rated|reviewed)",
    ),
    (
        *_framed(_RATED, "terribl[ey]", "awful"),
        *_framed((_QUALITY,), "low", "poor"),
        rf"{_NOT}(?: \w+){{0,3}} (?:good|great|high|well)(?:ly)?(?: \w+){{0,2}}",
    ),
)
MIDDLE_RATING = Words(
    _framed(_RATED, "average(?:ly)?"),
    (
        *_framed(_RATED, "moderate(?:ly)?", "mediocre", "medium", "fair", "decent", "ok(?:ay)?"),
        *_framed(_RATED, "good", "well", "positive"),
        *_framed((_QUALITY,), "average", "decent", "good"),
    ),
)
HIGH_RATING = Words(
    _framed(_RATED, "high(?:ly)?", "excellent", "great"),
    (
        *_framed(_RATED, "high(?:er|est)", "good", "well", "outstanding", "top"),
        *_framed(_RATED, "perfect", "fantastic", "amazing"),
        *_framed((_QUALITY,), "high(?:est)?", "great", "excellent"),
        "recommend(?:ed)?",
    ),
)


def points(number: str, word: str) -> Words:
    """So many of five points or stars: "3 out of 5", "three-star"."""
    either = f"(?:{number}|{word})"
    return Words(
        (f"{either}(?: stars?)? (?:out )?of (?:5|five)(?: stars?)?", f"{either}(?: )?stars?"),
        (f"{number} out 5", rf"{number}\s?/\s?5"),
    )


# --- families

_CHILD = "(?:famil(?:y|ies)|child(?:ren)?(?:'s)?|kids?)"
_CHILDREN = f"(?:(?:the|a|your|whole|entire|all|small|young|with|and|or|{_CHILD}) ){{0,4}}{_CHILD}"
_NOT_LINK = (
    "(?: (?:a|an|the|very|so|too|really|particularly|considered|deemed|being|be|most|all|that|to"
    "|quite|exactly|recommended|for|place|known|as|good|suitable|it|is)){0,4}"
)
_FRIENDLY: Wordings = (
    f"{_CHILD}(?: (?:and|or) {_CHILD})?(?: )?(?:friendly|orient(?:at)?ed)",
    f"(?:suitable|(?:good|great|perfect|ideal)(?: place)?) for {_CHILDREN}",
    f"(?:welcomes?|allows?) {_CHILDREN}",
    f"{_CHILD} (?:is|are) (?:welcome|allowed)",
    "whole family",
)
_FOR_THEM: Wordings = (
    rf"(?:for|to|with|bring(?:ing)?|take|welcoming|accepts?)(?: \w+)? {_CHILDREN}",
    rf"{_CHILD} (?:welcom\w+|allowed|accepted|friend|atmosphere|place)",
    r"(?:family|kids?)(?: \w+)? (?:restaurant|pub|coffee|establishment|venue|eatery|style)",
    "all (?:ages|families)",
)
FOR_FAMILIES = Words(_FRIENDLY, _FOR_THEM)
FOR_ADULTS = Words(
    (
        *(f"{_NOT}{_NOT_LINK}(?: )?(?:{wording})" for wording in _FRIENDLY),
        f"(?:no|not for|no place for) {_CHILDREN}",
        f"{_CHILD} (?:is|are)(?:n['’]t| not) (?:welcome|allowed)",
        f"{_CHILD}(?: )?unfriendly",
        "adults? only",
    ),
    (
        *(rf"{_NOT}(?: \w+){{0,4}} (?:{wording})" for wording in (*_FOR_THEM, _CHILDREN)),
        rf"{_CHILD}(?: \w+)?(?:n['’]t| not)(?: \w+){{0,2}} (?:welcomed?|allowed|accepted)",
        rf"un\w+ for {_CHILDREN}",
        "adults?",
    ),
)

# --- areas and neighbours

RIVERSIDE = Words(("riverside", "(?:by|near|along|on) the river"), ("river(?: )?(?:side|front)?",))
CITY_CENTRE = Words(
    (
        "(?:city|town) cent(?:re|er)",
        r"cent(?:re|er)\.? of (?:the )?(?:city|town)",
        "heart of (?:the )?(?:city|town)",
    ),
    ("cent(?:re|er)",),
)
# A neighbour of whatever name: unlike the river, it has a capital letter. Matched with case.
SOME_NEIGHBOUR = (
    r"(?i:\b(?:near(?:by)?(?: to| of)?|(?:close|adjacent|next(?: door)?) to|by|besides?|around"
    r"|alongside|opposite|behind|(?:across|far|away|road|street|minutes|outside) (?:from|of)"
    r"|proximity (?:to|of)|vicinity of|(?:north|south|east|west) of) (?:an? |the )?+)"
    r"(?!(?i:river|city|town|cent(?:re|er)))"
    r"(?P<name>[A-Z][\w'’]*(?: (?:(?:by|of|and|the) )*[A-Z][\w'’]*)*)"
)

# --- sorts of places, and foods

COFFEE_SHOP = Words(("coffee(?: )?(?:shop|house|place)s?",), ("coffee", "caf[eé]"))
FAST_FOOD = Words(("fast food",), ("burgers?",))
CUISINES: dict[str, Wordings] = {"English": ("British(?! pounds)",), "Chinese": ("Chines",)}
