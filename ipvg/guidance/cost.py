"""What a guidance costs: model forwards at each step, known before any model is there."""

from __future__ import annotations

import numpy as np

from ..schedule import Schedule
from .rule import Guidance


def forwards(guidance: Guidance, schedule: Schedule | None = None) -> list[int]:
    """Of each step: one for every branch that counts there or that an operation reads there; branches that are given
    the same count once. The sampler's own count is `Sampler.forwards_total`. Branches that differ in part are computed
    in part: see csrc/model/dit_pass.c. schedule: None = `Schedule()`, 50 steps.
    """
    schedule = Schedule() if schedule is None else schedule
    rule = guidance.resolve(schedule)
    counts = {name: c.reshape(schedule.steps, -1).any(axis=1) for name, c in rule.coefficients(schedule).items()}
    rescales = [o for o in rule.operations if o.branches and o.replaces is None]
    replacing = [o for o in rule.operations if o.replaces]
    out = []
    for k in range(schedule.begin, schedule.steps):
        needed = {name for name, on in counts.items() if np.any(on[k])}
        needed |= {name for o in rescales if needed for name in o.branches}
        for operation in reversed(replacing):
            if operation.replaces in needed:
                needed.update(operation.branches)
        out.append(len({rule.branches[name] for name in needed}))
    return out
