"""From a prompt to the token ids that umT5 was trained on: Wan's text cleaning, then tokenizer.json as it is.

    tokenizer = Tokenizer("Wan2.1-VACE-1.3B/google/umt5-xxl/tokenizer.json")
    tokenizer("Tom &amp; Jerry")         # [..., 1]: the last id is always </s>

Source of the rules: wan/modules/tokenizers.py (HuggingfaceTokenizer with clean="whitespace") of Wan2.1.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
from pathlib import Path

MAX_TOKENS = 512  # of a text, </s> included: what the model was trained on
PAD, EOS, UNK = 0, 1, 3

NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，"
    "杂乱的背景，三条腿，背景人很多，倒着走"
)
"""Wan's default negative prompt: the text of the "null" branch unless another is given."""


def clean(text: str) -> str:
    """Repairs encoding accidents, resolves HTML entities (twice), makes every run of blanks one space and strips.

    No NFKC and no lower case beyond that: full-width forms and ligatures change only where ftfy changes them.
    Raises TypeError if `text` is not a str.
    """
    import ftfy  # here, not above: `import ipvg` stays quick

    if not isinstance(text, str):
        raise TypeError(f"text: expected str, got {type(text).__name__}")
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    # split() knows four more blanks than \s of the reference's regex module, U+001C to U+001F. None gets here: ftfy
    # removes them, and html.unescape makes nothing of &#28;.
    return " ".join(text.split())


class Tokenizer:
    """A Hugging Face tokenizer.json, used as it is.

    path: the file, `google/umt5-xxl/tokenizer.json` of an official checkpoint or `tokenizer/tokenizer.json` of a
    diffusers one. Raises OSError if it cannot be read and ipvg.FormatError if it is not such a tokenizer.

    Attributes: path; vocabulary, the number of entries (256300 for umT5; the model has a few more embedding rows);
    sha256 of the file.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        data = self.path.read_bytes()
        self.sha256 = hashlib.sha256(data).hexdigest()
        self._tokenizer = _load(data, self.path)
        self.vocabulary: int = self._tokenizer.get_vocab_size(with_added_tokens=True)

    def __call__(self, text: str, *, max_tokens: int = MAX_TOKENS) -> list[int]:
        """The ids of the cleaned text, 1 to `max_tokens` (1 to 512) of them, the last one </s> = 1, without padding.

        A longer text loses its end, as in the reference; `count(text)` tells. Special tokens in the text are matched
        literally: "<pad>" is the token 0, and the model sees it as any other.
        """
        if not isinstance(max_tokens, int) or isinstance(max_tokens, bool):
            raise TypeError(f"max_tokens: expected int, got {type(max_tokens).__name__}")
        if not 1 <= max_tokens <= MAX_TOKENS:
            raise ValueError(f"max_tokens: expected 1 to {MAX_TOKENS}, got {max_tokens}")
        ids = self._tokenizer.encode(clean(text)).ids
        return ids if len(ids) <= max_tokens else ids[: max_tokens - 1] + [EOS]

    def count(self, text: str) -> int:
        """How many tokens the cleaned text has, </s> included, before any cut."""
        return len(self._tokenizer.encode(clean(text)).ids)

    def tokens(self, text: str) -> list[str]:
        """The pieces behind the ids, "▁" for a blank: what the model sees of a prompt."""
        return [self._tokenizer.id_to_token(i) for i in self(text)]

    def token_id(self, token: str) -> int | None:
        """The id of a piece or special token, None if there is none."""
        return self._tokenizer.token_to_id(token)


def check_published(tokenizer: Tokenizer) -> dict:
    """Compares a tokenizer with what is published about umT5's: 22 texts and some facts. For `ipvg info --check`.

    Returns {"ok": bool, "texts": how many were compared, "failed": [{"what", "expected", "found"}, ...],
    "sha256_known": whether the file is the one of Wan2.1's releases, byte for byte}. "ok" does not ask for the latter:
    the same tokenizer may be written in another way.
    """
    published = json.loads(Path(__file__).with_name("data").joinpath("umt5_published.json").read_text(encoding="utf-8"))
    failed = []

    def expect(what, expected, found):
        if expected != found:
            failed.append({"what": what, "expected": expected, "found": found})

    facts = published["facts"]
    expect("entries in the vocabulary", facts["vocabulary"], tokenizer.vocabulary)
    for token, token_id in {**facts["added"], **published["pieces seen"]}.items():
        expect(f"id of {token!r}", token_id, tokenizer.token_id(token))
    for name, case in published["cases"].items():
        expect(f"cleaned text of '{name}'", case["cleaned"], clean(case["text"]))
        expect(f"ids of '{name}'", case["ids"], tokenizer(case["text"]))
    return {
        "ok": not failed,
        "texts": len(published["cases"]),
        "failed": failed,
        "sha256_known": tokenizer.sha256 == published["tokenizer.json"]["sha256"],
    }


def _load(data: bytes, path: Path):
    """A tokenizers.Tokenizer of the file's bytes, without truncation and padding (they are ours)."""
    import tokenizers

    from ._core import FormatError

    def refuse(why):
        return FormatError(f"{path}: not a tokenizer.json that ipvg can use: {why}")

    try:
        spec = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise refuse(f"not JSON ({error})") from None
    if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
        raise refuse('no object with a "model" inside')
    normalizer = _without_empty_precompiled(spec.get("normalizer"))
    if normalizer != spec.get("normalizer"):
        data = json.dumps({**spec, "normalizer": normalizer}).encode()
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(data)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        empty = tokenizer.encode("").ids
    except BaseException as error:
        # The library reports some bad files as a Rust panic, which is no Exception. Ctrl-C is none either, and goes on.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise refuse(str(error)) from None
        raise
    for token, token_id in (("<pad>", PAD), ("</s>", EOS), ("<unk>", UNK)):
        if tokenizer.token_to_id(token) != token_id:
            raise refuse(f"{token} has id {tokenizer.token_to_id(token)}, umT5's is {token_id}")
    if empty != [EOS]:
        raise refuse(f"the empty text has ids {empty}, umT5's are [{EOS}]: no </s> is added at the end")
    return tokenizer


def _without_empty_precompiled(normalizer):
    """Some exports carry a Precompiled normalizer with an empty map: it does nothing, and the library refuses it."""
    if not isinstance(normalizer, dict):
        return normalizer
    if normalizer.get("type") == "Precompiled" and not normalizer.get("precompiled_charsmap"):
        return None
    if normalizer.get("type") == "Sequence" and isinstance(normalizer.get("normalizers"), list):
        kept = [n for n in map(_without_empty_precompiled, normalizer["normalizers"]) if n is not None]
        return {**normalizer, "normalizers": kept}
    return normalizer
