"""Progress on a terminal: one line that is rewritten, with the time that is left. Elsewhere: a line a stage."""

from __future__ import annotations

import sys
import time
from typing import TextIO


class Progress:
    """Call it with (stage, done, total) as often as you like.

    >>> with Progress() as progress:
    ...     progress("denoising", 3, 50)        # denoising  3/50  6 %  4.1 s each, 3:13 left

    A terminal shows the current stage; a file or pipe gets one line when a stage ends. quiet: nothing at all.
    """

    def __init__(self, stream: TextIO | None = None, quiet: bool = False):
        self.stream = sys.stderr if stream is None else stream
        self.quiet = quiet
        self.live = not quiet and self.stream.isatty()
        self.stage, self.done, self.total = "", 0, 0
        self.began = self.shown = 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self.stage:
            self.close()
            self.stage, self.began, self.shown = stage, now, 0.0
        self.done, self.total = done, total
        if self.live and (now - self.shown > 0.1 or done >= total):
            self.shown = now
            self.stream.write(f"\r\x1b[K{self.text(now)}")
            self.stream.flush()

    def text(self, now: float | None = None) -> str:
        """The line as it stands, without the end of line."""
        elapsed = (time.monotonic() if now is None else now) - self.began
        line = self.stage
        if self.total > 1:
            line += f"  {self.done}/{self.total}  {100 * self.done // self.total} %"
        if 0 < self.done < self.total:
            each = elapsed / self.done
            line += f"  {each:.3g} s each, {clock(each * (self.total - self.done))} left"
        elif self.done >= self.total:
            line += f"  {elapsed:.3g} s"
        return line

    def close(self) -> None:
        """Ends the current line. Called on leaving a `with`; a next call begins a new stage."""
        if self.stage and not self.quiet:
            self.stream.write(f"\r\x1b[K{self.text()}\n" if self.live else f"{self.text()}\n")
            self.stream.flush()
        self.stage = ""


def clock(seconds: float) -> str:
    """0:07, 3:13, 1:02:40"""
    whole = round(seconds)
    minutes, seconds = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
