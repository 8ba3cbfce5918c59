"""Proper names for places and films, drawn at random.

Two thirds are built of words ("The Golden Anchor"), one third of syllables ("Zorbino"): a model can
only get the second kind right by copying it.
"""

from __future__ import annotations

import random

_FIRST = (
    "Amber Ancient Autumn Blue Bright Broken Bronze Copper Coral Crimson Crooked Crystal Dancing "
    "Early Eastern Emerald Flying Forgotten Frosty Gentle Golden Grand Green Grey Happy Hidden "
    "Humble Iron Ivory Jolly Lazy Little Lonely Lucky Marble Merry Midnight Morning Mossy Noble "
    "Northern Old Orange Painted Pale Proud Purple Quiet Red Roaming Royal Rusty Salty Scarlet "
    "Secret Shining Silent Silver Singing Sleepy Smiling Snowy Southern Spotted Sunny Swift Tall "
    "Tender Twisted Velvet Violet Wandering Western White Wild Winter Wooden Yellow Young"
).split()
_SECOND = (
    "Anchor Apple Badger Barrel Bear Bell Boat Bridge Candle Castle Cherry Clock Cloud Compass "
    "Corner Cottage Crane Crown Deer Dolphin Dragon Drum Eagle Falcon Feather Fern Fiddle Finch "
    "Forest Fountain Fox Gate Goose Hare Harp Hedge Heron Hill Horse Island Ivy Kettle Key Kite "
    "Lamp Lantern Lark Lemon Lily Lion Maple Meadow Mill Mirror Moon Oak Olive Orchard Otter Owl "
    "Pear Pearl Pine Plum Poppy Rabbit Raven River Robin Rose Sail Salmon Sparrow Spice Spoon Star "
    "Stone Stork Swan Table Thistle Tiger Tower Tree Trout Tulip Turtle Valley Wagon Walnut Wave "
    "Whale Wheel Willow Window Wolf Wren"
).split()
_SYLLABLES = (
    "ba be bo bri ca ce co cra da de di dor dra fa fe fi flo ga gla go gri ha he hol ja jo ka ke "
    "ki kor la le li lo lu ma me mi mo mur na ne ni no nu pa pe pi po ra re ri ro ru sa se si so "
    "sta ta te ti to tri tu va ve vi vo wa we wi xa ya yo za ze zi zo"
).split()
_ENDINGS = (
    "bel bury by dale den do field ford gate ham ino lan lar len lis mar mere mont na nia nor ra "
    "ren ria ris ro sa san ska ston ta ton va vel vin wick wood"
).split()


def place_name(rng: random.Random) -> str:
    """A name for somewhere to go: "The Golden Anchor", "Blue Spice", "Café Zorbino"."""
    style = rng.random()
    if style < 0.35:
        return f"The {rng.choice(_FIRST)} {rng.choice(_SECOND)}"
    if style < 0.6:
        return f"{rng.choice(_FIRST)} {rng.choice(_SECOND)}"
    if style < 0.7:
        return f"The {rng.choice(_SECOND)} and {rng.choice(_SECOND)}"
    word = _invented(rng)
    if style < 0.8:
        return f"{rng.choice(('Café', 'Chez', 'Villa', 'Casa'))} {word}"
    return word if style < 0.95 else f"{word} {rng.choice(_SECOND)}"


def film_name(rng: random.Random) -> str:
    """A title: "The Silent Harp of Keldale", "Midnight Train", "Lotimar"."""
    style = rng.random()
    if style < 0.35:
        return f"The {rng.choice(_FIRST)} {rng.choice(_SECOND)}"
    if style < 0.6:
        return f"The {rng.choice(_SECOND)} of {_invented(rng)}"
    if style < 0.8:
        return f"{rng.choice(_FIRST)} {rng.choice(_SECOND)}"
    return _invented(rng)


def person_name(rng: random.Random) -> str:
    """A given name, for the people who talk about places in the pretraining prose."""
    return rng.choice(
        "Ada Ahmed Alice Amina Anna Ben Carla Chen Clara Daniel Dora Elena Emil Farid Grace Hana "
        "Hugo Ines Ivan Jack Julia Karim Lena Leo Lucia Maria Marta Mei Milan Nadia Nina Noah Olga "
        "Omar Paul Petra Rosa Ruth Sam Sara Sofia Tara Tom Vera Victor Yuki Zoe".split()
    )


def _invented(rng: random.Random) -> str:
    syllables = [rng.choice(_SYLLABLES) for _ in range(rng.choice((1, 1, 2)))]
    return "".join([*syllables, rng.choice(_ENDINGS)]).capitalize()
