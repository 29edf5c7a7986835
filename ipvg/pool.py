"""Many calls, a bounded number at once, results in order; Ctrl-C ends all of them.

>>> run_all(len, ["a", "bcd"], 8)
[1, 3]
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any

from . import _arguments


def run_all(
    call: Callable[[Any], Any],
    jobs: Sequence,
    concurrency: int,
    *,
    stage: str = "calls",
    progress: Callable[[str, int, int], None] | None = None,
    errors: str = "raise",
    cancel: Callable[[], None] | None = None,
) -> list:
    """`call` of each job, `concurrency` at once; the results, in the order of the jobs.

    progress: called as (stage, done, total). errors: "raise" ends at the first failure, after the calls under way;
    "return" puts the exception in the place of the result. cancel: ends calls under way early, for a failure or Ctrl-C.
    """
    _arguments.choice("errors", errors, ("raise", "return"))
    results: list = [None] * len(jobs)
    stopped = threading.Event()

    def one(job):
        if not stopped.is_set():
            return call(job)

    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="ipvg-enhance")
    waiting: set = set()
    try:
        place = {pool.submit(one, job): i for i, job in enumerate(jobs)}
        waiting = set(place)
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                error = future.exception()
                if error is not None and (errors == "raise" or not isinstance(error, Exception)):
                    raise error
                results[place[future]] = error or future.result()
            if progress:
                progress(stage, len(jobs) - len(waiting), len(jobs))
    finally:
        stopped.set()
        while waiting:  # again and again: a call may have been just before its start
            if cancel:
                cancel()
            _, waiting = wait(waiting, timeout=0.05)
        pool.shutdown()
    return results
