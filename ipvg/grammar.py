"""English sentences about one person: where words about a face go in a caption, and what a caption says of its person.

>>> words = {"hair": "long red hair", "freckles": "freckles", "age": "young"}
>>> add_face("A woman in a red t-shirt smiles.", words)
('A young woman with long red hair and freckles in a red t-shirt smiles.', ['age', 'hair', 'freckles'])
>>> appearance("A woman in a red t-shirt smiles and waves at a sandy beach.")
'A woman in a red t-shirt smiles.'

The person is the first noun of a list; what the caption says already is not said twice. Every word and mark of the
caption stays, by construction (`verbatim.insert`).
"""

from __future__ import annotations

import re

from . import verbatim

VERSION = "1"

#: What a word in the caption says already. Topics that are not named here are always new.
SAID = {
    "hair": {"hair", "haired", "hairstyle", "bald", "afro", "bun", "bob", "quiff", "curls", "blonde", "redhead"},
    "beard": {"beard", "bearded", "stubble", "moustache", "mustache", "goatee", "unshaven", "clean-shaven"},
    "eyes": {"eyes", "eyed", "blue-eyed", "brown-eyed", "green-eyed"},
    "skin": {"skin", "skinned", "complexion"},
    "freckles": {"freckles", "freckled"},
    "mole": {"mole"},
    "glasses": {"glasses", "spectacles", "sunglasses", "headphones", "scarf", "hat", "cap", "helmet", "mask"},
    "age": {"young", "old", "middle-aged", "aged", "elderly", "younger", "older", "teenage", "child", "kid", "girl",
            "boy", "baby", "toddler", "teenager", "senior", "years"},
}  # fmt: skip

_PEOPLE = set(
    "woman man person girl boy lady guy gentleman child kid teenager youth adult individual human figure somebody "
    "someone model actor actress artist astronaut athlete baker barista chef climber coach cook cowboy cyclist "
    "dancer detective diver doctor driver electrician engineer explorer farmer firefighter fisherman gardener "
    "goalkeeper guard gymnast hiker journalist judge king lawyer mechanic musician nurse officer painter "
    "performer photographer pianist pilot player poet policeman presenter priest princess prince queen reporter "
    "runner sailor scientist singer skater soldier speaker student surfer surgeon swimmer tailor teacher tourist "
    "traveler traveller violinist waiter waitress witch wizard worker writer".split()
)
_ARTICLES = {"a", "an", "the", "one", "this", "that"}
# A noun phrase ends before one of these.
_STOPS = set(
    "in on at with wearing under by from of to for who is are was has stands sits walks smiles looks and as into near "
    "inside outside beside behind against through dressed".split()
)
_CLOTHES = (
    "t-shirt shirt blouse turtleneck sweater pullover hoodie jacket coat blazer vest dress gown skirt suit spacesuit "
    "uniform robe kimono sari overalls apron tie jeans trousers pants shorts boots shoes hat cap helmet crown scarf "
    "gloves glasses sunglasses headphones earrings necklace mask veil hood leotard jersey costume clothes outfit "
    "hair beard moustache mustache goatee stubble afro bun bob braid braids ponytail freckles mole eyes skin head "
    "makeup tattoo tattoos"
).split()
_ITEM = (
    r"(?:(?:an?|the|his|her|their|some)\s+)?(?:pair\s+of\s+)?"
    r"(?:(?!(?:in|on|at|with|and|of|to|under|wearing|from|by|for|while|as)\b)[\w-]+\s+){0,3}?"
    rf"(?:{'|'.join(_CLOTHES)})\b"
)
_WEARING = re.compile(
    rf"\b(?:in|with|wearing|dressed\s+in)\s+{_ITEM}(?:(?:\s*,\s*(?:and\s+)?|\s+and\s+|\s+with\s+){_ITEM})*", re.I
)
_EXPRESSION = re.compile(
    r"\b(?:smiles(?:\s+gently)?|is\s+smiling|laughs(?:\s+with\s+an\s+open\s+mouth)?|is\s+laughing|frowns|cries|grins|"
    r"looks\s+(?:calm|sad|surprised|happy|angry|serious|tired|worried|proud|scared|bored)|"
    r"is\s+(?:calm|sad|surprised|happy|angry|serious|tired|worried|proud|scared|bored)|"
    r"has\s+an?\s+[\w-]+\s+expression|looks\s+at\s+the\s+camera\s+calmly)\b",
    re.I,
)


_PRONOUNS = {"he", "she", "him", "her", "his", "hers", "himself", "herself"}


class NoPerson(ValueError):
    """A caption in which no person was found."""

    def __init__(self) -> None:
        super().__init__("no person was found in the caption: the grammar knows English and some 90 nouns")


def add_face(caption: str, words: dict[str, str], most: int = 2) -> tuple[str, list[str]]:
    """The caption with up to `most` of the words, in their order, and an age; the topics that were said.

    words: topic -> phrase: "age" goes before the noun, all others behind it ("a mole", "long red hair"). A caption with
    pronouns but no noun of the list gets a sentence at its end. Raises NoPerson.
    """
    places = verbatim.spans(caption)
    tokens = [caption[begin:end] for begin, end in places]
    plain = [token.lower() for token in tokens]
    fresh = {topic: phrase for topic, phrase in words.items() if not SAID.get(topic, set()) & set(plain)}
    age = fresh.pop("age", None)
    said, phrases = list(fresh)[:most], list(fresh.values())[:most]
    found = _person(plain)
    if found is None:
        if not _PRONOUNS & set(plain):
            raise NoPerson
        if not phrases:
            return caption, []
        ending = "" if re.search(r"[.!?]\s*$", caption) else "."
        return caption.rstrip() + f"{ending} The person has {_listing(phrases)}.", said
    first, noun = found
    additions: dict[int, str] = {}
    after = []
    if age:
        article = plain[first - 1] if first else ""
        if article in ("the", "one", "this", "that") or (article == ("an" if age[0] in "aeiou" else "a")):
            additions[first] = age
        else:  # "A" cannot become "An": every word of the caption stays
            after.append(f"of {age.replace('middle-aged', 'middle')} age")
        said = ["age", *said]
    if phrases and noun + 1 < len(plain) and plain[noun + 1] == "with":
        additions[noun + 2] = f"{', '.join(phrases)} and"
    elif phrases:
        after.append(f"with {_listing(phrases)}")
    if after:
        additions[noun + 1] = " ".join(after)
    return (verbatim.insert(caption, additions) if additions else caption), said


def appearance(caption: str) -> str:
    """One sentence with the person, clothes, hair, accessories and expression that the caption names, nothing else.
    Raises NoPerson."""
    places = verbatim.spans(caption)
    plain = [caption[begin:end].lower() for begin, end in places]
    found = _person(plain)
    if found is None:
        raise NoPerson
    first, noun = found
    lead = caption[places[first][0] : places[noun][1]]
    article = "an" if lead[0].lower() in "aeiou" else "a"
    parts = [f"{article} {lead}"]
    for match in _WEARING.finditer(caption):
        parts.append(" ".join(match.group().split()))
    expression = _EXPRESSION.search(caption)
    if expression:
        parts.append(" ".join(expression.group().split()))
    text = " ".join(parts)
    return text[0].upper() + text[1:] + "."


def _person(plain: list[str]) -> tuple[int, int] | None:
    """(first word of the phrase, without its article; the noun), of the first noun in the list."""
    noun = next((i for i, token in enumerate(plain) if token in _PEOPLE), None)
    if noun is None:
        return None
    first = noun
    while first > 0 and plain[first - 1].replace("-", "").isalpha() and plain[first - 1] not in _ARTICLES | _STOPS:
        first -= 1
    if first == 0 or plain[first - 1] not in _ARTICLES:  # "Woman", "Two happy ...": nothing tells where it begins
        first = noun
    return first, noun


def _listing(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]
