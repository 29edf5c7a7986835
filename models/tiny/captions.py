"""Sentences for scenes: a small grammar with paraphrases.

caption(who, scene, i, rng) names the scene's background, clothes, accessory, expression and motion always, and the face
sometimes: that leaves face-aware prompt enhancement something to insert.
"""

import people
import scenes

EXPRESSIONS = {
    "neutral": ("looks calm", "has a neutral expression", "looks at the camera calmly"),
    "smiling": ("smiles", "is smiling", "smiles gently"),
    "laughing": ("laughs", "is laughing", "laughs with an open mouth"),
    "surprised": ("looks surprised", "is surprised", "has a surprised expression"),
    "sad": ("looks sad", "is sad", "has a sad expression"),
}
MOTIONS = {
    "still": ("keeps still", "stays still", "hardly moves"),
    "nod": ("nods", "nods slowly", "moves the head up and down"),
    "shake": ("shakes the head", "turns the head from side to side", "looks left and right"),
    "tilt": ("tilts the head", "tilts the head from side to side", "sways the head"),
    "approach": ("comes closer", "walks up to the camera", "moves towards the camera"),
    "wave": ("waves", "waves a hand", "waves at the camera"),
}
ACCESSORIES = {
    "none": ("",),
    "glasses": ("glasses", "round glasses", "a pair of glasses"),
    "headphones": ("headphones", "black headphones", "a pair of headphones"),
    "scarf": ("a scarf", "a thick scarf", "a warm scarf"),
}
BACKGROUNDS = {
    "a grey studio": ("in a grey studio", "in front of a grey studio backdrop"),
    "a blue wall": ("in front of a blue wall", "against a blue wall"),
    "a sunset sky": ("under a sunset sky", "in front of a sunset sky"),
    "a green forest": ("in a green forest", "in front of a green forest"),
    "a sandy beach": ("on a sandy beach", "at a sandy beach"),
    "a city at night": ("in a city at night", "in front of a city at night"),
    "a snowy field": ("in a snowy field", "on a snowy field"),
    "a red curtain": ("in front of a red curtain", "against a red curtain"),
}


def face_words(who, i, rng, most=2):
    """Up to `most` phrases about the face, such as "long red hair" or "freckles", and an age or nothing."""
    t = people.traits(who, i)
    found = []
    found.append("a bald head" if t["hair"] == "bald" else f"{t['hair']} {t['hair_colour']} hair".replace("cut ", ""))
    if t["hair"] in ("afro", "bun"):
        found[0] = f"a {t['hair_colour']} {t['hair']}"
    if t["beard"] != "no beard":
        found.append(t["beard"] if t["beard"] == "stubble" else f"a {t['beard']}")
    found.append(f"{t['eyes']} eyes")
    found.append(f"{t['skin']} skin")
    if t["freckles"]:
        found.append("freckles")
    if t["mole"]:
        found.append("a mole")
    rng.shuffle(found)
    return found[: rng.randint(1, most)], (t["age"] if rng.random() < 0.4 else "")


def listing(words):
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def caption(who, scene, i, rng, face=0.4):
    """One sentence or two for person i in scene i. rng: random.Random. face: how often the face is named."""
    w = scenes.words(scene, i)
    noun = people.traits(who, i)["noun"]
    features, age = face_words(who, i, rng) if rng.random() < face else ([], "")
    subject = rng.choice((noun, noun, "person"))
    lead = f"{age} {subject}" if age else subject
    article = "an" if lead[0] in "aeiou" else "a"
    dress = f"{w['clothes']} {w['garment']}"
    dress = rng.choice(("in", "wearing")) + (" an " if dress[0] in "aeiou" else " a ") + dress
    extra = rng.choice(ACCESSORIES[w["accessory"]])
    if features:
        lead += " with " + listing(features)
    if extra:
        dress += rng.choice((f" and {extra}", f" with {extra}"))
    looks, moves = rng.choice(EXPRESSIONS[w["expression"]]), rng.choice(MOTIONS[w["motion"]])
    place = rng.choice(BACKGROUNDS[w["background"]])
    pronoun = {"man": "He", "woman": "She"}.get(subject, "The person")
    form = rng.randrange(4)
    if form == 0:
        text = f"{article} {lead} {dress} {looks} and {moves} {place}."
    elif form == 1:
        text = f"{place}, {article} {lead} {dress} {looks} and {moves}."
    elif form == 2:
        text = f"{article} {lead} {dress} {place}. {pronoun} {looks} and {moves}."
    else:
        text = f"a video of {article} {lead} {place}, {dress}. {pronoun} {moves} and {looks}."
    return text[0].upper() + text[1:]
