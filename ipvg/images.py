"""An images endpoint as OpenAI's API defines it: a picture and a sentence become other pictures ("/images/edits").

>>> editor = ImageEditor("gpt-image-1")                # OPENAI_API_KEY, OPENAI_BASE_URL
>>> found = editor.edit("alice.png", "A woman in a red dress.", size="1024x1024", n=2)
>>> found.images[0].shape, found.usage                 # uint8 (H, W, 3) each
((1024, 1024, 3), {'input_tokens': 320, 'output_tokens': 4160})
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
from .service import Limits, Service
from .video import encode_jpeg, read_image

LIMITS = Limits(total=600.0, silence=300.0, deadline=1200.0, max_bytes=128 << 20)  # pictures take minutes and megabytes


@dataclass(frozen=True)
class Edited:
    """Pictures and where they come from.

    images: uint8 (H, W, 3), as many as the service sent. provenance: plain data for a manifest: endpoint, model,
    prompt, size, n, options, the hash of what was uploaded, and for each picture its hash (of the pixels), whether it
    came as "base64" or "url", and the prompt as the service rewrote it ("" if it did not say). usage: input_tokens and
    output_tokens, -1 when the service does not say.
    """

    images: tuple[np.ndarray, ...]
    provenance: dict[str, Any]
    usage: dict[str, int]


class ImageEditor(Service):
    """ImageEditor(model="gpt-image-1", base_url=None, api_key=None, *, options=None, upload="png", max_side=1536,
    http_urls=False, limits=LIMITS, ca_file=None)

    model, base_url, api_key, limits, ca_file: see ipvg.service.Service; "/images/edits" is added. options: further
    fields of every request, such as {"input_fidelity": "high", "quality": "high"}; numbers, str or bool.
    upload: "png" or "jpeg", how a picture is sent; made from pixels alone, so that no EXIF (a place, a name) leaves us.
    max_side: a picture with a longer side is scaled down to it first. http_urls: also fetch pictures from plain http
    addresses that a reply names; otherwise https alone, and http from this machine to itself. The key goes to base_url
    only, never to such an address. No redirect is followed.

    Threads may share one. Raises ValueError and TypeError (arguments), ipvg.UnsupportedError.
    """

    def __init__(
        self,
        model: str = "gpt-image-1",
        base_url: str | None = None,
        api_key: str | None = None,
        *,
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

    def edit(self, image, prompt: str, *, size: str | None = None, n: int = 1) -> Edited:
        """The pictures that the service makes of `image` by the words of `prompt`.

        image: a path, a file's bytes or uint8 (H, W, 3); or a list of up to 16 of them. size: "1024x1024" or what the
        service takes, "auto" too; None: its default. n: 1 to 10 pictures.

        Raises RemoteError for everything that the service or the way to it does wrong, a picture that cannot be decoded
        too; ipvg.Cancelled after `cancel()`; KeyboardInterrupt; what read_image does for `image`.
        """
        _arguments.instance("prompt", prompt, str)
        if not prompt.strip():
            raise ValueError("prompt: is empty")
        _arguments.integer("n", n, 1, 10)
        size = _arguments.instance("size", size or "", str)
        if size and not re.fullmatch(r"auto|[1-9]\d{1,4}x[1-9]\d{1,4}", size):
            raise ValueError(f"size: expected WIDTHxHEIGHT or 'auto', got {_arguments.short(size)}")
        several = isinstance(image, list | tuple)
        files = [self._file(one) for one in (image if several else [image])]
        _arguments.integer("image", len(files), 1, 16)
        name = "image[]" if several else "image"
        fields = {"prompt": prompt, "model": self.model, "n": str(n)}
        fields |= {**({"size": size} if size else {}), **self.options}
        ending = {"png": "png", "jpeg": "jpg"}[self.upload]
        form = tuple(fields.items()) + tuple(
            (name, f"image{i or ''}.{ending}", f"image/{self.upload}", data) for i, data in enumerate(files)
        )
        with self._client() as client:
            said = self._send(client.edit, "/images/edits", form)
            images = tuple(self._pixels(client, said, data, url) for data, url, _ in said["images"])
        made = []
        for pixels, (data, _, rewritten) in zip(images, said["images"]):
            made.append({
                "sha256": _digest(pixels), "size": f"{pixels.shape[1]}x{pixels.shape[0]}",
                "from": "base64" if data is not None else "url", "prompt": rewritten or "",
            })  # fmt: skip
        provenance = {
            "service": self.base_url, "model": self.model, "prompt": prompt, "size": size, "n": n,
            "options": dict(self.options), "uploaded": [hashlib.sha256(data).hexdigest() for data in files],
            "request_id": said["request_id"], "images": made,
        }  # fmt: skip
        return Edited(images, provenance, {k: said[k] for k in ("input_tokens", "output_tokens")})

    def _file(self, image) -> bytes:
        pixels = read_image(image)
        if self.upload == "jpeg":
            return encode_jpeg(pixels, max_side=self.max_side, quality=95)
        return encode_png(_scaled(pixels, self.max_side))

    def _pixels(self, client, said: dict, data: bytes | None, url: str | None) -> np.ndarray:
        if data is None:
            got = client.fetch(url, self.base_url, self.http_urls, astuple(self.limits), self._ca_file)
            if got["error"] is not None:
                raise self._failure(f"a picture of the reply: {got['error']}", {**said, **got})
            data = got["data"]
        try:
            return read_image(data)
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
