"""The `ipvg` command. One file a subcommand: `add` describes it, `run` does it.

Exit status: 0 done, 1 it failed (one line on stderr says why), 2 wrong usage, 130 stopped with Ctrl-C. Results go to
stdout, progress and errors to stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from pathlib import Path

from . import completion, demo, enhance, generate, guidance, info, parity, rerun, seams
from .parts import FAILED, INTERRUPTED, OK, USAGE, UsageError

__all__ = ["FAILED", "INTERRUPTED", "OK", "USAGE", "UsageError", "main", "parser"]

COMMANDS = (enhance, generate, rerun, guidance, seams, info, demo, parity, completion)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; its exit status. --help and wrong usage leave through SystemExit, as argparse does."""
    args = parser().parse_args(argv)
    try:
        status = args.run(args)
        sys.stdout.flush()  # here, where a failure has an answer, not when the interpreter ends
        return status
    except KeyboardInterrupt:
        print("\nipvg: stopped", file=sys.stderr)
        return INTERRUPTED
    except UsageError as error:
        args.parser.error(str(error))
    except BrokenPipeError:  # the reader of our output has gone; say nothing, and let Python's own flush not complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except ImportError as error:
        if args.debug:
            traceback.print_exc()
        print(f"ipvg: {error}. Build it first: `make build` here, or `pip install .`", file=sys.stderr)
        return FAILED
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        print(_explain(error), file=sys.stderr)
        return FAILED


def _explain(error: Exception) -> str:
    """One line for an expected error; for an unexpected one also where it happened and how to report it."""
    from .. import _core
    from ..cache import OfflineMiss

    expected = (OSError, ValueError, MemoryError, OfflineMiss)
    expected += tuple(getattr(_core, name) for name in ("FormatError", "UnsupportedError", "BackendError", "Cancelled"))
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.filename and error.strerror:
        text = f"{os.fsdecode(error.filename)}: {error.strerror}"
    if isinstance(error, expected):
        return f"ipvg: {text}"
    where = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"ipvg: internal error: {type(error).__name__}: {text} ({Path(where.filename).name}:{where.lineno})\n"
        "      This is a bug in ipvg. Please report it with what the same command prints with --debug."
    )


def parser() -> argparse.ArgumentParser:
    from .. import __version__

    top = argparse.ArgumentParser(
        prog="ipvg",
        description="Identity-preserving text-to-video: Wan2.1-VACE with TPIGE guidance.",
        epilog="`ipvg COMMAND --help` shows examples. Exit status: 0 done, 1 failed, 2 wrong usage, 130 Ctrl-C.",
    )
    top.add_argument("--version", action="version", version=f"ipvg {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return top
