"""An images endpoint as OpenAI's API defines it: a picture and a sentence become other pictures ("/images/edits").

>>> editor = ImageEditor("gpt-image-1")                # OPENAI_API_KEY, OPENAI_BASE_URL
>>> found = editor.edit("alice.png", "A woman in a red dress.", size="1024x1024", n=2)
>>> found.images[0].shape, found.usage                 # uint8 (H, W, 3) each
((1024, 1024, 3), {'input_tokens': 320, 'output_tokens': 4160})
>>> ImageEditor("gpt-image-1", cache="runs/cache", offline=True)     # what was paid for once comes back without a key
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import zlib
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from . import _arguments, _core
from .cache import Cache, OfflineMiss, key_of
from .service import Limits, Service
from .video import encode_jpeg, read_image

LIMITS = Limits(total=600.0, silence=300.0, deadline=1200.0, max_bytes=128 << 20)  # pictures take minutes and megabytes


@dataclass(frozen=True)
class Edited:
    """Pictures and where they come from.

    images: uint8 (H, W, 3), as many as the service sent. provenance: plain data for a manifest: endpoint, model,
    prompt, size, n, options, the hash of what was uploaded, and for each picture its hash (of the pixels), whether it
    came as "base64" or "url", and the prompt as the service rewrote it ("" if it did not say). usage: input_tokens and
    output_tokens, -1 when the service does not say. cached: whether no call was sent; usage is then of the call that
    was.
    """

    images: tuple[np.ndarray, ...]
    provenance: dict[str, Any]
    usage: dict[str, int]
    cached: bool = False


class ImageEditor(Service):
    """ImageEditor(model="gpt-image-1", base_url=None, api_key=None, *, cache=None, offline=False, options=None,
    upload="png", max_side=1536, http_urls=False, limits=LIMITS, ca_file=None)

    model, base_url, api_key, limits, ca_file: see ipvg.service.Service; "/images/edits" is added. options: further
    fields of every request, such as {"input_fidelity": "high", "quality": "high"}; numbers, str or bool.
    upload: "png" or "jpeg", how a picture is sent; made from pixels alone, so that no EXIF (a place, a name) leaves us.
    max_side: a picture with a longer side is scaled down to it first. http_urls: also fetch pictures from plain http
    addresses that a reply names; otherwise https alone, and http from this machine to itself. The key goes to base_url
    only, never to such an address. No redirect is followed. cache: a path or a Cache (PromptEnhancer's too); a call
    answered there is not sent again. offline: use the cache alone; a missing answer raises OfflineMiss.

    Threads may share one. Raises ValueError and TypeError (arguments), ipvg.UnsupportedError.
    """

    def __init__(
        self,
        model: str = "gpt-image-1",
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        cache: Cache | str | os.PathLike | None = None,
        offline: bool = False,
        options: dict[str, float | str | bool] | None = None,
        upload: str = "png",
        max_side: int = 1536,
        http_urls: bool = False,
        limits: Limits | None = None,
        ca_file: str | os.PathLike | None = None,
    ):
        super().__init__(model, base_url, api_key, limits=limits or LIMITS, ca_file=ca_file)
        self.options = {name: _field(name, value) for name, value in (options or {}).items()}
        self.upload = _arguments.choice("upload", upload, ("png", "jpeg"))
        self.max_side = _arguments.integer("max_side", max_side, 16, 16384)
        self.http_urls = bool(http_urls)
        self.cache = Cache(cache) if isinstance(cache, str | os.PathLike) else cache
        self.offline = bool(offline)
        if self.offline and self.cache is None:
            raise ValueError("offline: needs a cache")

    def edit(self, image, prompt: str, *, size: str | None = None, n: int = 1) -> Edited:
        """The pictures that the service makes of `image` by the words of `prompt`.

        image: a path, a file's bytes or uint8 (H, W, 3); or a list of up to 16 of them. size: "1024x1024" or what the
        service takes, "auto" too; None: its default. n: 1 to 10 pictures.

        Raises RemoteError for everything that the service or the way to it does wrong, a picture that cannot be decoded
        too; OfflineMiss; ipvg.Cancelled after `cancel()`; KeyboardInterrupt; what read_image does for `image`.
        """
        _arguments.instance("prompt", prompt, str)
        if not prompt.strip():
            raise ValueError("prompt: is empty")
        _arguments.integer("n", n, 1, 10)
        size = _arguments.instance("size", size or "", str)
        if size and not re.fullmatch(r"auto|[1-9]\d{1,4}x[1-9]\d{1,4}", size):
            raise ValueError(f"size: expected WIDTHxHEIGHT or 'auto', got {_arguments.short(size)}")
        several = isinstance(image, list | tuple)
        pictures = [read_image(one) for one in (image if several else [image])]
        _arguments.integer("image", len(pictures), 1, 16)
        fields = {"prompt": prompt, "model": self.model, "n": str(n)}
        fields |= {**({"size": size} if size else {}), **self.options}
        files = [] if self.offline else [self._file(one) for one in pictures]
        request = self._request(fields, pictures, several)
        if self.cache is None:
            return self._edited(request, *self._ask(fields, files, several))
        with self.cache.alone(request):
            answer, sent = self.cache.get(request), None
            if answer is None and self.offline:
                raise OfflineMiss(
                    f"{self.cache.path} has no pictures of {self.model} at {self.base_url} for "
                    f"{_arguments.short(prompt)} (key {key_of(request)[:16]}; pictures, size, n and options count too)"
                )
            if answer is None:
                answer, sent = self._ask(fields, files, several)
                answer = self.cache.put(request, answer, sent.values())
        return self._edited(request, answer, sent)

    def _request(self, fields: dict[str, str], pictures: list[np.ndarray], several: bool) -> dict:
        """Everything that changes the answer. Pictures count by their pixels and by how they are sent."""
        sent = {"upload": self.upload, "max_side": self.max_side, "list": several}
        named = [{"sha256": _digest(one), "shape": list(one.shape), **sent} for one in pictures]
        return {"format": 1, "call": "/images/edits", "base_url": self.base_url, "fields": fields, "pictures": named}

    def _ask(self, fields: dict[str, str], files: list[bytes], several: bool) -> tuple[dict, dict[str, bytes]]:
        """What is cached, and the pictures as they came, by the hash of their bytes."""
        name, ending = "image[]" if several else "image", {"png": "png", "jpeg": "jpg"}[self.upload]
        form = tuple(fields.items()) + tuple(
            (name, f"image{i or ''}.{ending}", f"image/{self.upload}", data) for i, data in enumerate(files)
        )
        listed, pictures = [], {}
        with self._client() as client:
            said = self._send(client.edit, "/images/edits", form)
            for data, url, rewritten in said["images"]:
                how = "url" if data is None else "base64"
                data = self._fetched(client, said, url) if data is None else data
                self._check(data, said)
                digest = hashlib.sha256(data).hexdigest()
                pictures[digest] = data
                listed.append({"sha256": digest, "from": how, "prompt": rewritten or ""})
        uploaded = [hashlib.sha256(data).hexdigest() for data in files]
        told = {k: said[k] for k in ("request_id", "input_tokens", "output_tokens")}
        return {"images": listed, "uploaded": uploaded, **told}, pictures

    def _edited(self, request: dict, answer: dict, sent: dict[str, bytes] | None) -> Edited:
        """sent: the pictures of this call; None: it is the cache's answer. Another process's may have come first."""
        images, made = [], []
        for image in answer["images"]:
            data = (sent or {}).get(image["sha256"])
            data = self.cache.picture(image["sha256"]) if data is None else data
            pixels = read_image(data)
            images.append(pixels)
            made.append({
                "sha256": _digest(pixels), "size": f"{pixels.shape[1]}x{pixels.shape[0]}",
                "from": image["from"], "prompt": image["prompt"],
            })  # fmt: skip
        fields = request["fields"]
        provenance = {
            "service": self.base_url, "model": self.model, "prompt": fields["prompt"], "size": fields.get("size", ""),
            "n": int(fields["n"]), "options": dict(self.options), "uploaded": answer["uploaded"],
            "request_id": answer["request_id"], "images": made,
        }  # fmt: skip
        return Edited(
            tuple(images), provenance, {k: answer[k] for k in ("input_tokens", "output_tokens")}, cached=sent is None
        )

    def _file(self, pixels: np.ndarray) -> bytes:
        if self.upload == "jpeg":
            return encode_jpeg(pixels, max_side=self.max_side, quality=95)
        return encode_png(_scaled(pixels, self.max_side))

    def _fetched(self, client, said: dict, url: str) -> bytes:
        got = client.fetch(url, self.base_url, self.http_urls, astuple(self.limits), self._ca_file)
        if got["error"] is not None:
            raise self._failure(f"a picture of the reply: {got['error']}", {**said, **got})
        return got["data"]

    def _check(self, data: bytes, said: dict) -> None:
        """Whether a picture can be decoded: one that can not is no answer, and is not kept."""
        try:
            read_image(data)
        except (_core.FormatError, ValueError, MemoryError) as error:
            raise self._failure(f"a picture of the reply cannot be decoded: {error}", said) from None


def encode_png(pixels: np.ndarray) -> bytes:
    """A PNG file of uint8 (H, W, 3), with nothing in it but the pixels."""
    height, width, _ = pixels.shape
    rows = np.empty((height, 1 + 3 * width), np.uint8)
    rows[:, 0] = 1  # filter "Sub": each byte less the one a pixel before it
    flat = pixels.reshape(height, 3 * width)
    rows[:, 1:4] = flat[:, :3]
    np.subtract(flat[:, 3:], flat[:, :-3], out=rows[:, 4:])

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows.tobytes(), 6)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _scaled(pixels: np.ndarray, max_side: int) -> np.ndarray:
    height, width, _ = pixels.shape
    longest = max(height, width)
    if longest <= max_side:
        return np.ascontiguousarray(pixels)
    size = [max(1, round(side * max_side / longest)) for side in (height, width)]
    return _core.cover_frames(np.ascontiguousarray(pixels)[None], *size)[0]


def _field(name: str, value) -> str:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_.\[\]-]+", name):
        raise ValueError(f"options: expected names of fields, got {_arguments.short(name)}")
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else format(_arguments.number(name, value), ".15g")


def _digest(pixels: np.ndarray) -> str:
    return hashlib.sha256(pixels.tobytes()).hexdigest()
