"""Who is in the picture: identities of the rendered world.

    who = people.sample(8, seed=3)          # dict of (8,) float32 tensors, all in [0, 1]
    twin = people.near_twin(who, seed=4)    # the same people with three traits moved
    people.traits(who, 0)                   # {"hair": "long", "hair_colour": "red", ...}: the words captions use

A trait is one number in [0, 1]. Categories (hair style, beard, colours) are numbers too: equal slices of [0, 1].
Draws come from a CPU generator, so that a seed names the same people on every machine.
"""

import torch

# Shape and colour, all read by world.py. 30 numbers make a person; captions name only some of them.
TRAITS = (
    "masculine",
    "skin",
    "undertone",
    "head_width",
    "head_height",
    "jaw",
    "chin",
    "cheek",
    "ear",
    "neck",
    "eye_spacing",
    "eye_size",
    "eye_tilt",
    "eye_colour",
    "brow_thick",
    "brow_height",
    "brow_angle",
    "nose_length",
    "nose_width",
    "nose_bulb",
    "mouth_width",
    "mouth_height",
    "lip",
    "hair_style",
    "hair_colour",
    "hair_volume",
    "beard",
    "freckles",
    "mole",
    "mole_place",
    "age",
)
HAIR_STYLES = ("bald", "buzz cut", "short", "side-parted", "quiff", "curly", "bob", "long", "bun", "afro")
HAIR_COLOURS = ("black", "dark brown", "brown", "red", "blond", "grey", "white")
HAIR_RGB = (
    (0.075, 0.065, 0.065),
    (0.20, 0.125, 0.085),
    (0.42, 0.26, 0.14),
    (0.66, 0.26, 0.10),
    (0.87, 0.69, 0.36),
    (0.55, 0.55, 0.57),
    (0.90, 0.89, 0.86),
)
BEARDS = ("no beard", "no beard", "stubble", "moustache", "goatee", "full beard")
EYE_COLOURS = ("brown", "dark brown", "hazel", "green", "blue", "grey")
EYE_RGB = (
    (0.38, 0.21, 0.10),
    (0.17, 0.09, 0.05),
    (0.52, 0.38, 0.15),
    (0.25, 0.48, 0.22),
    (0.20, 0.45, 0.78),
    (0.55, 0.62, 0.66),
)
SKIN_RGB = ((1.0, 0.87, 0.77), (0.95, 0.76, 0.61), (0.84, 0.62, 0.44), (0.63, 0.42, 0.28), (0.40, 0.26, 0.18))


def pick(value, names):
    """Index of the slice of [0, 1] that value lies in."""
    return (value * len(names)).long().clamp(0, len(names) - 1)


def sample(n, seed):
    """n random people: {trait: (n,) float32 in [0, 1]}."""
    g = torch.Generator().manual_seed(seed)
    who = dict(zip(TRAITS, torch.rand(len(TRAITS), n, generator=g)))
    # Presentation leans on shape (wide jaw, heavy brow, no beard for women); grey hair and lines come with age.
    m = who["masculine"] = torch.where(who["masculine"] < 0.5, who["masculine"] * 0.6, 0.4 + who["masculine"] * 0.6)
    for trait, lean in (("jaw", 0.35), ("brow_thick", 0.35), ("neck", 0.4), ("lip", -0.35), ("eye_size", -0.25)):
        who[trait] = (who[trait] + lean * (m - 0.5)).clamp(0, 1)
    who["beard"] = torch.where(m < 0.5, torch.zeros(n), who["beard"])
    style = who["hair_style"]
    # Women are rarely bald here, men rarely wear a bob or a bun: fold those slices into others.
    who["hair_style"] = torch.where(
        (m < 0.5) & (style < 0.2),
        style + 0.6,
        torch.where((m >= 0.5) & (style > 0.55) & (style < 0.9), style - 0.3, style),
    )
    grey = pick(who["hair_colour"], HAIR_COLOURS) >= 5
    who["age"] = torch.where(grey, 0.5 + 0.5 * who["age"], 0.7 * who["age"])
    return who


def near_twin(who, seed, moved=3, step=0.35):
    """The same people with `moved` traits of facial geometry shifted by `step`: hard negatives for a recogniser."""
    g = torch.Generator().manual_seed(seed)
    shape = [
        t
        for t in TRAITS
        if t
        not in (
            "masculine",
            "skin",
            "hair_style",
            "hair_colour",
            "beard",
            "mole",
            "mole_place",
            "freckles",
            "eye_colour",
            "hair_volume",
            "undertone",
            "neck",
            "ear",
            "age",
        )
    ]
    n = len(who["skin"])
    order = torch.rand(len(shape), n, generator=g).argsort(0)
    out = dict(who)
    for i, t in enumerate(shape):
        v = who[t]
        out[t] = torch.where(order[i] < moved, torch.where(v > 0.5, v - step, v + step), v)
    return out


def traits(who, i):
    """The words for person i."""

    def word(trait, names):
        return names[int(pick(who[trait][i], names))]

    return {
        "noun": "man" if who["masculine"][i] > 0.5 else "woman",
        "hair": word("hair_style", HAIR_STYLES),
        "hair_colour": word("hair_colour", HAIR_COLOURS),
        "eyes": word("eye_colour", EYE_COLOURS),
        "beard": word("beard", BEARDS),
        "skin": ("very light", "light", "tan", "brown", "dark")[int(pick(who["skin"][i], SKIN_RGB))],
        "freckles": bool(who["freckles"][i] > 0.7),
        "mole": bool(who["mole"][i] > 0.7),
        "age": ("young", "middle-aged", "old")[int(who["age"][i] * 2.999)],
    }
