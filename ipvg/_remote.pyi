"""Types of the libcurl extension; ipvg/chat.py is its face in Python."""

from collections.abc import Buffer
from typing import Any, final

@final
class Client:
    def __new__(cls) -> Client: ...
    def post(
        self, url: str, key: str | None, body: Buffer, connect_timeout: float, timeout: float, silence_timeout: float,
        max_bytes: int, ca_file: str | None, attempts: int, deadline: float, first_wait: float,
    ) -> dict[str, Any]: ...
    def cancel(self) -> None: ...
    def close(self) -> None: ...

def body(
    model: str,
    messages: tuple[tuple[str, tuple[str | tuple[str, bytes], ...]], ...],
    options: dict[str, float | str | bool],
) -> bytes: ...
