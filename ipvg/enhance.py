"""Enhancement of prompts by a chat model (TPIGE's PE and the text of its IE, arXiv 2509.01362).

>>> enhancer = PromptEnhancer("gpt-4o", cache="runs/cache")       # OPENAI_API_KEY, OPENAI_BASE_URL
>>> found = enhancer.face_aware("A woman walks on the beach.", "alice.png")
>>> found.text, found.verbatim
('A woman in her thirties with freckles and a calm smile walks on the beach.', True)
>>> enhancer.appearance("A woman walks on the beach.").text       # what an image generator is told

Any callable does in place of a model's name: `PromptEnhancer(lambda instruction, text, image: ...)`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _arguments, verbatim
from .cache import Cache, OfflineMiss, key_of
from .chat import Endpoint, Limits
from .instructions import Instructions
from .pool import run_all
from .video import encode_jpeg, read_image

MAX_SIDE, QUALITY = 1024, 90  # of an uploaded picture
_QUOTES = {'"': '"', "“": "”", "「": "」"}


@dataclass(frozen=True)
class Usage:
    """calls: sent to the service; cached: answered by the cache. Tokens are of the calls sent; uncounted: calls whose
    service told no tokens. price: in the currency of `prices`, None without them or with uncounted calls."""

    calls: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    price: float | None = None


@dataclass(frozen=True)
class Enhanced:
    """A text and where it comes from; plain data, see `to_dict`.

    kind: "face_aware" or "appearance". original: the caption. verbatim: whether the text holds each word and mark of
    the caption unchanged and in order (None for "appearance"); problem: what is missing if not.
    repaired: whether the model needed a second call for it. cached: whether no call was sent. model: who answered.
    instructions: version of the texts. usage: of this result alone. details: what a local enhancer saw.
    """

    text: str
    original: str
    kind: str
    verbatim: bool | None
    problem: str
    repaired: bool
    cached: bool
    model: str
    instructions: str
    usage: Usage
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; people may edit "text" in it."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return self.text


class PromptEnhancer:
    """Asks a chat model about captions. Threads may share one.

    model: a name of the service's, or a callable (instruction, text, image) -> str; image: uint8 (H, W, 3) or None.
    base_url, api_key, ca_file, limits: see ipvg.chat.Endpoint. cache: a path or a Cache; answers in it are not asked
    for again. offline: use the cache alone; a missing answer raises OfflineMiss. concurrency: calls at once of the
    `..._many` methods, 1 to 256. instructions: the texts. max_tokens, and options (temperature, seed, ...), go into the
    request. prices: per million prompt and completion tokens.
    max_side, quality: of the uploaded JPEG, made from pixels alone, so that no EXIF (a place, a name) leaves us.

    Raises TypeError and ValueError (arguments; a callable has no cache, since nothing tells what it depends on).
    """

    def __init__(
        self,
        model: str | Callable[[str, str, np.ndarray | None], str] = "gpt-4o",
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        cache: Cache | str | os.PathLike | None = None,
        offline: bool = False,
        concurrency: int = 8,
        instructions: Instructions | None = None,
        max_tokens: int = 5000,
        options: dict[str, float | str | bool] | None = None,
        prices: tuple[float, float] | None = None,
        limits: Limits | None = None,
        ca_file: str | os.PathLike | None = None,
        max_side: int = MAX_SIDE,
        quality: int = QUALITY,
    ):
        self.concurrency = _arguments.integer("concurrency", concurrency, 1, 256)
        self.instructions = _arguments.instance("instructions", instructions or Instructions(), Instructions)
        self.max_side = _arguments.integer("max_side", max_side, 16, 16384)
        self.quality = _arguments.integer("quality", quality, 1, 100)
        self.options = {"max_tokens": _arguments.integer("max_tokens", max_tokens, 1, 1 << 24), **(options or {})}
        self.prices = prices and tuple(_arguments.number("prices", p, 0) for p in prices)
        self.cache = Cache(cache) if isinstance(cache, str | os.PathLike) else cache
        self.offline = offline
        self._call = model if callable(model) else None
        if self._call and cache is not None:
            raise ValueError("cache: a callable has none, since nothing tells what its answer depends on")
        if offline and self.cache is None:
            raise ValueError("offline: needs a cache")
        self._endpoint = None if self._call else Endpoint(model, base_url, api_key, limits=limits, ca_file=ca_file)
        self._total = Usage()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"PromptEnhancer({self._call or self._endpoint!r}, cache={self.cache!r}, offline={self.offline})"

    @property
    def usage(self) -> Usage:
        """Of all calls so far."""
        return self._total

    def describe(self) -> dict[str, Any]:
        """What its answers depend on besides their inputs; plain data without the key."""
        texts = json.dumps(dataclasses.astuple(self.instructions))
        about = {"instructions": hashlib.sha256(texts.encode()).hexdigest()[:16], "options": self.options}
        if self._call:
            return {"by": "callable", "name": getattr(self._call, "__name__", type(self._call).__name__), **about}
        size = {"max_side": self.max_side, "quality": self.quality}
        return {"by": "chat", "service": self._endpoint.base_url, "asked": self._endpoint.model, **size, **about}

    def remember(self, kind: str, prompt: str, text: str, image=None, model: str = "imported") -> bool:
        """Puts an answer into the cache as if the service had given it, e.g. a released prompt; False: there was one.

        kind: "face_aware" (with an image) or "appearance". Raises ValueError without a cache.
        """
        _arguments.choice("kind", kind, ("face_aware", "appearance"))
        if self.cache is None:
            raise ValueError("remember: needs a cache")
        pixels = read_image(image) if kind == "face_aware" else None
        request = self._request(self._messages(kind, _checked_prompt(prompt), pixels))
        if self.cache.get(request) is not None:
            return False
        counts = {"prompt_tokens": -1, "completion_tokens": -1}
        self.cache.put(request, {"content": text, "finish_reason": "stop", "model": model, **counts})
        return True

    # ---- what it does ----

    def face_aware(self, prompt: str, image) -> Enhanced:
        """The caption with features of the face inserted (PE). image: a path, a file's bytes or uint8 (H, W, 3).

        When words of the caption changed, the model is asked once more; when that does not help, the result has
        verbatim False and names the problem. Raises RemoteError, OfflineMiss, ipvg.Cancelled, and what read_image does.
        """
        return self._enhance("face_aware", prompt, read_image(image))

    def appearance(self, prompt: str) -> Enhanced:
        """One sentence with only the person's visible appearance (for IE). Raises RemoteError, OfflineMiss."""
        return self._enhance("appearance", prompt, None)

    def face_aware_many(self, pairs: Iterable[tuple[str, Any]], *, progress=None, errors: str = "raise") -> list:
        """`face_aware` of each (prompt, image), `concurrency` at once, in order.

        progress: called as (stage, done, total). errors: "raise" ends at the first failure; "return" puts the exception
        in the place of the result. Ctrl-C ends all calls; what was answered is in the cache.
        """
        jobs = [(prompt, image) for prompt, image in pairs]
        return self._many(lambda job: self.face_aware(*job), jobs, "face-aware prompts", progress, errors)

    def appearance_many(self, prompts: Sequence[str], *, progress=None, errors: str = "raise") -> list:
        """`appearance` of each prompt; see `face_aware_many`."""
        return self._many(self.appearance, list(prompts), "appearance sentences", progress, errors)

    def preview(self, kind: str, prompt: str, image=None) -> dict[str, Any]:
        """What the first call would send, without sending it: url, body (pictures shortened), bytes, and whether the
        cache answers it. No key is needed. kind: "face_aware" or "appearance"."""
        _arguments.choice("kind", kind, ("face_aware", "appearance"))
        if self._endpoint is None:
            raise ValueError("preview: a callable sends nothing")
        pixels = read_image(image) if kind == "face_aware" else None
        messages = self._messages(kind, _checked_prompt(prompt), pixels)
        data = self._endpoint.body(self._upload(messages), self.options)
        body = json.loads(data)
        for message in body["messages"]:
            for part in message["content"] if isinstance(message["content"], list) else []:
                if "image_url" in part:
                    url = part["image_url"]["url"]
                    part["image_url"]["url"] = f"{url[:40]}... ({len(url)} characters)"
        cached = self.cache is not None and self.cache.get(self._request(messages)) is not None
        url = self._endpoint.url("/chat/completions")
        return {"url": url, "body": body, "bytes": len(data), "cached": cached}

    # ---- how ----

    def _enhance(self, kind: str, prompt: str, image: np.ndarray | None) -> Enhanced:
        messages = self._messages(kind, _checked_prompt(prompt), image)
        answer, usage = self._ask(messages)
        text = _tidy(answer["content"], prompt)
        problem, repaired = None, False
        if kind == "face_aware":
            problem = verbatim.check(prompt, text)
            if problem:
                repaired = True
                repair = self.instructions.repair.format(problem=problem, caption=prompt)
                answer, more = self._ask((*messages, ("assistant", (answer["content"],)), ("user", (repair,))))
                usage = _sum(usage, more)
                text = _tidy(answer["content"], prompt)
                problem = verbatim.check(prompt, text)
        return Enhanced(
            text=text, original=prompt, kind=kind, verbatim=problem is None if kind == "face_aware" else None,
            problem=problem or "", repaired=repaired, cached=self._call is None and usage.calls == 0,
            model=answer["model"], instructions=self.instructions.version, usage=usage,
        )  # fmt: skip

    def _messages(self, kind: str, prompt: str, image: np.ndarray | None) -> tuple:
        parts = (prompt,) if image is None else (prompt, image)
        return ("system", (getattr(self.instructions, kind),)), ("user", parts)

    def _ask(self, messages: tuple) -> tuple[dict, Usage]:
        if self._call:
            image = next((part for _, parts in messages for part in parts if not isinstance(part, str)), None)
            # A repair's own text holds the caption, so that a callable without a memory can do it.
            content = self._call(messages[0][1][0], messages[-1][1][0], image)
            _arguments.instance("the callable's answer", content, str)
            if not content.strip():
                raise ValueError("the callable's answer has no text")
            name = getattr(self._call, "__name__", type(self._call).__name__)
            return {"content": content, "model": name}, Usage()
        if self.cache is None:
            return self._send(messages)
        request = self._request(messages)
        with self.cache.alone(request):
            answer = self.cache.get(request)
            if answer is not None:
                return answer, self._add(Usage(cached=1))
            if self.offline:
                raise OfflineMiss(
                    f"{self.cache.path} has no answer of {self._endpoint.model} at {self._endpoint.base_url} to "
                    f"{_arguments.short(messages[-1][1][0])} (key {key_of(request)[:16]}; pictures, instructions and "
                    "options count too)"
                )
            answer, usage = self._send(messages)
            return self.cache.put(request, answer), usage

    def _send(self, messages: tuple) -> tuple[dict, Usage]:
        answer = self._endpoint.ask(self._upload(messages), self.options)
        counts = [answer[f"{kind}_tokens"] for kind in ("prompt", "completion")]
        known = min(counts) >= 0
        price = sum(p * n for p, n in zip(self.prices, counts)) / 1e6 if self.prices and known else None
        return answer, self._add(Usage(1, 0, *(max(n, 0) for n in counts), int(not known), price))

    def _upload(self, messages: tuple) -> tuple:
        def sent(part):
            if isinstance(part, str):
                return part
            return "image/jpeg", encode_jpeg(part, max_side=self.max_side, quality=self.quality)

        return tuple((role, tuple(sent(part) for part in parts)) for role, parts in messages)

    def _request(self, messages: tuple) -> dict:
        """Everything that changes the answer. Pictures count by their pixels: a JPEG's bytes vary with FFmpeg."""

        def named(part):
            if isinstance(part, str):
                return part
            digest = hashlib.sha256(part.tobytes()).hexdigest()
            return {"sha256": digest, "shape": list(part.shape), "max_side": self.max_side, "quality": self.quality}

        listed = [[role, [named(part) for part in parts]] for role, parts in messages]
        endpoint = self._endpoint
        return {
            "format": 1, "base_url": endpoint.base_url, "model": endpoint.model, "messages": listed,
            "options": self.options,
        }  # fmt: skip

    def _add(self, usage: Usage) -> Usage:
        with self._lock:
            self._total = _sum(self._total, usage)
        return usage

    def _many(self, call, jobs: list, stage: str, progress, errors: str) -> list:
        cancel = self._endpoint.cancel if self._endpoint else None
        return run_all(call, jobs, self.concurrency, stage=stage, progress=progress, errors=errors, cancel=cancel)


def _sum(a: Usage, b: Usage) -> Usage:
    prices = [u.price for u in (a, b) if u.calls]
    counts = [getattr(a, f.name) + getattr(b, f.name) for f in dataclasses.fields(Usage) if f.name != "price"]
    return Usage(*counts, None if not prices or None in prices else sum(prices))


def _checked_prompt(prompt: str) -> str:
    _arguments.instance("prompt", prompt, str)
    if not prompt.strip():
        raise ValueError("prompt: is empty")
    return prompt


def _tidy(reply: str, prompt: str) -> str:
    """One line, without the quotation marks that some models put around it although told not to."""
    text = " ".join(reply.split())
    closing = _QUOTES.get(text[:1])
    if closing and len(text) > 2 and text.endswith(closing) and not prompt.lstrip().startswith(text[0]):
        text = text[1:-1].strip()
    return text
