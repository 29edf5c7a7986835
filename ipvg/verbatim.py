"""Whether a text still holds every word and mark of a caption, unchanged and in order: only insertions are allowed.

>>> check("A man walks.", "A man with grey eyes walks.") is None
True
>>> check("A man walks.", "A tall man is walking.")
"'walks' is missing or changed"
>>> insert("A man walks.", {1: "tall", 2: "with grey eyes"})        # before the second token, before the third
'A tall man with grey eyes walks.'

A token is a word, a mark, or, in scripts written without spaces (Chinese, Japanese, Thai, ...), one character. A word
includes what is joined to it: "well-known", "man's" and "3.5" are one each, so that "man" does not survive in "man's".
A run of one mark is one token: "..." does not hold ".". Accents, vowel signs, skin tones and what a zero-width joiner
ties belong to the character before them. Capitals count. White space does not, and neither does the form of a quotation
mark (' or ’), which the cleaning before the tokenizer makes equal; composed and decomposed accents are the same
character.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

# Scripts written without spaces: each character counts alone.
_UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x1950, 0x19DF), (0x3005, 0x3007), (0x3021, 0x3029),
    (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xFF66, 0xFF9F),
    (0x1B000, 0x1B16F), (0x20000, 0x3FFFF),
)  # fmt: skip
_JOINERS = "'-‐‑.,·’"  # between two letters they are part of a word
_QUOTES = str.maketrans({"‘": "'", "’": "'", "‚": "'", "‛": "'", "“": '"', "”": '"', "„": '"', "‟": '"'})
_ZWNJ, _ZWJ = "\u200c", "\u200d"


def tokens(text: str) -> list[str]:
    """The words and marks of a text, in order."""
    plain = unicodedata.normalize("NFC", text).translate(_QUOTES)
    return [plain[begin:end] for begin, end in spans(plain)]


def check(caption: str, text: str) -> str | None:
    """None when the caption's tokens are a subsequence of the text's; else what is missing, in words."""
    rest = iter(tokens(text))
    for token in tokens(caption):
        if token not in rest:  # consumes up to the token found
            return f"{token!r} is missing or changed"
    return None


def insert(caption: str, additions: Mapping[int, str]) -> str:
    """The caption with each text put before its n-th token (n = their number: at the end). A space stands where one is
    needed and none where none was. ValueError if the result would not pass `check`, e.g. for a text that would grow
    together with a token."""
    places = spans(caption)
    out, last = [], 0
    for n, added in sorted(additions.items()):
        if n == 0:
            at = places[0][0] if places else len(caption)
        else:
            at = places[n - 1][1]
        before, after = caption[last:at], caption[at:]
        out += [before, "" if not (out or before) or _tight(before[-1:], added) else " ", added]
        if n == 0 and after and not _tight(added[-1:], after):
            out.append(" ")
        last = at
    result = "".join([*out, caption[last:]])
    if problem := check(caption, result):
        raise ValueError(f"additions: the caption would not stay whole: {problem}")
    return result


def spans(text: str) -> list[tuple[int, int]]:
    """(begin, end) of each token in the text as it stands."""
    found, i = [], 0
    while i < len(text):
        begin, c = i, text[i]
        i += 1
        if c.isspace():
            continue
        if _is_letter(c):
            while i < len(text):
                if text[i] in _JOINERS and _is_letter(text[i + 1 : i + 2]):
                    i += 2
                elif _is_letter(text[i]) or _is_attached(text[i]):
                    i += 1
                else:
                    break
        else:
            same = "" if _is_unspaced(c) else c  # a mark stands for its whole run
            while i < len(text) and not text[i].isspace():
                tied = text[i - 1] == _ZWJ or _is_attached(text[i]) or (_is_flag(c) and _is_flag(text[i]))
                if not tied and text[i] != same:
                    break
                i += 1
        found.append((begin, i))
    return found


def _is_letter(c: str) -> bool:
    """Of a word; "" is none."""
    return (c.isalnum() or c == "_") and not _is_unspaced(c)


def _is_unspaced(c: str) -> bool:
    return c >= "\u0e00" and any(low <= ord(c) <= high for low, high in _UNSPACED)


def _is_attached(c: str) -> bool:
    if c < "\u0300":
        return False
    return unicodedata.category(c)[0] == "M" or c in (_ZWNJ, _ZWJ) or "\U0001f3fb" <= c <= "\U0001f3ff"


def _is_flag(c: str) -> bool:
    """A flag is written as two letters of its own kind."""
    return "\U0001f1e6" <= c <= "\U0001f1ff"


def _tight(before: str, after: str) -> bool:
    """Whether no space is needed between two neighbours: one of them is written without spaces, or is one."""
    after = after[:1]
    return not before or not after or before.isspace() or after.isspace() or _is_wide(before) or _is_wide(after)


def _is_wide(c: str) -> bool:
    return _is_unspaced(c) or "\u3000" <= c <= "\u303f" or "\uff00" <= c <= "\uff65"
