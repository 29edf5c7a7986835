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
    "masculine", "skin", "undertone", "head_width", "head_height", "jaw", "chin", "cheek", "ear", "neck",
    "eye_spacing", "eye_size", "eye_tilt", "eye_colour", "brow_thick", "brow_height", "brow_angle",
    "nose_length", "nose_width", "nose_bulb", "mouth_width", "mouth_height", "lip", "hair_style", "hair_colour",
    "hair_volume", "beard", "freckles", "mole", "mole_place", "age",
)
HAIR_STYLES = ("bald", "buzz cut", "short", "side-parted", "quiff", "curly", "bob", "long", "bun", "afro")
HAIR_COLOURS = ("black", "dark brown", "brown", "red", "blond", "grey", "white")
HAIR_RGB = ((.075, .065, .065), (.20, .125, .085), (.42, .26, .14), (.66, .26, .10), (.87, .69, .36), (.55, .55, .57), (.90, .89, .86))
BEARDS = ("no beard", "no beard", "stubble", "moustache", "goatee", "full beard")
EYE_COLOURS = ("brown", "dark brown", "hazel", "green", "blue", "grey")
EYE_RGB = ((.38, .21, .10), (.17, .09, .05), (.52, .38, .15), (.25, .48, .22), (.20, .45, .78), (.55, .62, .66))
SKIN_RGB = ((1.0, .87, .77), (.95, .76, .61), (.84, .62, .44), (.63, .42, .28), (.40, .26, .18))


def pick(value, names):
    """Index of the slice of [0, 1] that value lies in."""
    return (value * len(names)).long().clamp(0, len(names) - 1)


def sample(n, seed):
    """n random people: {trait: (n,) float32 in [0, 1]}."""
    g = torch.Generator().manual_seed(seed)
    who = dict(zip(TRAITS, torch.rand(len(TRAITS), n, generator=g)))
    # Presentation leans on shape (wide jaw, heavy brow, no beard for women); grey hair and lines come with age.
    m = who["masculine"] = torch.where(who["masculine"] < .5, who["masculine"] * .6, .4 + who["masculine"] * .6)
    for trait, lean in (("jaw", .35), ("brow_thick", .35), ("neck", .4), ("lip", -.35), ("eye_size", -.25)):
        who[trait] = (who[trait] + lean * (m - .5)).clamp(0, 1)
    who["beard"] = torch.where(m < .5, torch.zeros(n), who["beard"])
    style = who["hair_style"]
    # Women are rarely bald here, men rarely wear a bob or a bun: fold those slices into others.
    who["hair_style"] = torch.where((m < .5) & (style < .2), style + .6, torch.where((m >= .5) & (style > .55) & (style < .9), style - .3, style))
    grey = (pick(who["hair_colour"], HAIR_COLOURS) >= 5)
    who["age"] = torch.where(grey, .5 + .5 * who["age"], .7 * who["age"])
    return who


def near_twin(who, seed, moved=3, step=.35):
    """The same people with `moved` traits of facial geometry shifted by `step`: hard negatives for a face recogniser."""
    g = torch.Generator().manual_seed(seed)
    shape = [t for t in TRAITS if t not in ("masculine", "skin", "hair_style", "hair_colour", "beard", "mole", "mole_place", "freckles",
                                            "eye_colour", "hair_volume", "undertone", "neck", "ear", "age")]
    n = len(who["skin"])
    order = torch.rand(len(shape), n, generator=g).argsort(0)
    out = dict(who)
    for i, t in enumerate(shape):
        v = who[t]
        out[t] = torch.where(order[i] < moved, torch.where(v > .5, v - step, v + step), v)
    return out


def traits(who, i):
    """The words for person i."""
    def word(trait, names):
        return names[int(pick(who[trait][i], names))]
    return {
        "noun": "man" if who["masculine"][i] > .5 else "woman",
        "hair": word("hair_style", HAIR_STYLES), "hair_colour": word("hair_colour", HAIR_COLOURS),
        "eyes": word("eye_colour", EYE_COLOURS), "beard": word("beard", BEARDS),
        "skin": ("very light", "light", "tan", "brown", "dark")[int(pick(who["skin"][i], SKIN_RGB))],
        "freckles": bool(who["freckles"][i] > .7), "mole": bool(who["mole"][i] > .7),
        "age": ("young", "middle-aged", "old")[int(who["age"][i] * 2.999)],
    }
