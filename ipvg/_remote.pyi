"""Types of the libcurl extension; ipvg/chat.py and ipvg/images.py are its face in Python."""

from typing import Any, final

Limits = tuple[float, float, float, float, int, float, int]
Part = str | tuple[str, bytes]
Field = tuple[str, str] | tuple[str, str, str, bytes]

@final
class Client:
    def __new__(cls) -> Client: ...
    def chat(
        self, url: str, key: str | None, plain_key: bool, limits: Limits, ca_file: str | None, body: bytes
    ) -> dict[str, Any]: ...
    def edit(
        self, url: str, key: str | None, plain_key: bool, limits: Limits, ca_file: str | None, form: tuple[Field, ...]
    ) -> dict[str, Any]: ...
    def fetch(
        self, url: str, service: str, any_http: bool, limits: Limits, ca_file: str | None
    ) -> dict[str, Any]: ...
    def cancel(self) -> None: ...
    def ready(self) -> None: ...
    def close(self) -> None: ...

def body(
    model: str, messages: tuple[tuple[str, tuple[Part, ...]], ...], options: dict[str, float | str | bool]
) -> bytes: ...
