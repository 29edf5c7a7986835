"""Whether a text still holds every word and mark of a caption, unchanged and in order: only insertions are allowed.

>>> check("A man walks.", "A man with grey eyes walks.") is None
True
>>> check("A man walks.", "A tall man is walking.")
"'walks' is missing or changed"

A token is a word, a mark, or, in scripts written without spaces (Chinese, Japanese, Thai, ...), one character. A word
includes what is joined to it: "well-known", "man's" and "3.5" are one each, so that "man" does not survive in "man's".
A run of one mark is one token: "..." does not hold ".". Capitals count. White space does not, and neither does the form
of a quotation mark (' or ’), which the cleaning before the tokenizer makes equal; composed and decomposed accents are
the same character.
"""

from __future__ import annotations

import re
import unicodedata

# Scripts written without spaces: each character counts alone.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u3005-\u3007\u3021-\u3029\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
_LETTER = rf"[^\W{_UNSPACED}]"
# Joined to a letter or sign before it: accents without a composed form, variation selectors, zero-width joiners.
_ATTACHED = (
    r"[\u0300-\u036f\u0483-\u0489\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0900-\u0903\u093a-\u094f"
    r"\u200c\u200d\ufe00-\ufe0f]"
)
_TOKEN = re.compile(
    rf"""
      {_LETTER}(?:{_LETTER}|{_ATTACHED}|['\-‐‑.,·](?={_LETTER}))*  # a word; marks inside it belong to it
    | [{_UNSPACED}]{_ATTACHED}*
    | (?P<mark>\S)(?:(?P=mark)|{_ATTACHED})*                       # the same mark, any number of times
    """,
    re.VERBOSE,
)
_QUOTES = str.maketrans({"‘": "'", "’": "'", "‚": "'", "‛": "'", "“": '"', "”": '"', "„": '"', "‟": '"'})


def tokens(text: str) -> list[str]:
    """The words and marks of a text, in order."""
    plain = unicodedata.normalize("NFC", text).translate(_QUOTES)
    return [match.group() for match in _TOKEN.finditer(plain)]


def check(caption: str, text: str) -> str | None:
    """None when the caption's tokens are a subsequence of the text's; else what is missing, in words."""
    rest = iter(tokens(text))
    for token in tokens(caption):
        if token not in rest:  # consumes up to the token found
            return f"{token!r} is missing or changed"
    return None
