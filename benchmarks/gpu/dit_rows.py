"""Rows of the transformer: one forward, one step of three branches, other lengths, 8-bit products."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import torch

from ipvg import _core
from ipvg.checkpoint import DitConfig
from ipvg.guidance import tpige_code
from ipvg.sampler import Sampler
from ipvg.schedule import Schedule
from ipvg.source import Source

from . import peers, weights, work
from .bench import Bench, Size, apart, array, dit_inputs
from .row import Row


def label(size: Size) -> str:
    return f"{size[1]}p {size[0]} frames, L {work.tokens(work.latent(*size))}"


def forward13(bench: Bench) -> Iterator[Row]:
    yield from _forwards(bench, "forward13", "1.3B forward", bench.sizes.b13, [bench.sizes.p480])


def forward14(bench: Bench) -> Iterator[Row]:
    yield from _forwards(bench, "forward14", "14B forward", bench.sizes.b14, [bench.sizes.p480])


def forward14_720(bench: Bench) -> Iterator[Row]:
    yield from _forwards(bench, "forward14_720", "14B forward", bench.sizes.b14, [bench.sizes.p720], least=1)


def scaling(bench: Bench) -> Iterator[Row]:
    """Eager peers only: every length would be compiled anew."""
    yield from _forwards(bench, "scaling", "1.3B forward", bench.sizes.b13, bench.sizes.scaling, 1, compiled=False)


def _forwards(bench: Bench, name: str, title: str, c: DitConfig, sizes, least: int = 2, compiled: bool = True):
    rows = {size: Row(f"{name}", f"{title} {label(size)}") for size in sizes}
    inputs = {size: dit_inputs(c, size, bench.sizes.words) for size in sizes}
    results: dict[tuple, np.ndarray] = {}
    first, largest = next(iter(rows.values())), max(sizes, key=np.prod)

    def ours() -> None:
        with bench.ours(rows[largest]) as device:
            model = _core.Dit(device, asdict(c), weights.taken(c, bench.device))
            for size, row in rows.items():
                row.attempt("ours", lambda row=row, size=size: one(model, row, size))

    def one(model: _core.Dit, row: Row, size: Size) -> None:
        x, context, states = inputs[size]
        text, prepared = model.text(states), model.context(context)

        def run() -> None:
            results[size, "ours"] = model.forward(x, 500, text, prepared)

        row.ours = bench.timed(row, "ours", run, least)

    def theirs() -> None:
        with bench.peer(), torch.no_grad():
            model = peers.dit(c, weights.make(c, bench.device), bench.device)
            for side in ("eager", "compiled"):
                if not bench.wants(side) or (side == "compiled" and not compiled):
                    continue
                if side == "compiled":
                    peers.compile_dit(model, bench.meter.gpu, bench.args.mode)
                for size, row in rows.items():
                    row.attempt(side, lambda row=row, size=size, side=side: peer(model, row, size, side))

    def peer(model: torch.nn.Module, row: Row, size: Size, side: str) -> None:
        given = peers.dit_inputs(c, *inputs[size], bench.device, torch.bfloat16)
        kept = {}

        def run() -> None:
            kept["velocity"] = model(**given)[0]

        row.peers[side] = bench.timed(row, side, run, least)
        results[size, side] = kept["velocity"][0].float().cpu().numpy()

    if bench.wants("eager") or bench.wants("compiled"):
        first.attempt("peers", theirs)
    if bench.wants("ours"):
        first.attempt("ours", ours)
    for size, row in rows.items():
        other = results.get((size, "eager"), results.get((size, "compiled")))
        apart(row, results.get((size, "ours")), other)
        jobs = work.dit(c, work.latent(*size), keys=bench.sizes.words + 1)
        if name == "scaling" and bench.wants("floor"):  # matrix products hardly depend on the number of rows
            kept = [job for job in jobs.large() if job.kind == "attention"]
            row.attempt("floor", lambda kept=kept: bench.ceilings.measure(kept))
            known = any(job.kind == "gemm" for job in bench.ceilings.known)
            bench.floor(row, jobs, measure=not known)
        else:
            bench.floor(row, jobs)
        bench.best[f"{name} floor"] = row.least
        yield row


def step13(bench: Bench) -> Iterator[Row]:
    """One step of the method's three branches, whole: what a sampler's next() takes, results on the host. The peer
    makes three forwards; it cannot skip a block, which the weak branch does, and it neither combines nor steps."""
    c, size = bench.sizes.b13, bench.sizes.p480
    row = Row("step13", f"1.3B step, 3 branches {label(size)}")
    x, context, states = dit_inputs(c, size, bench.sizes.words)
    texts = {"cond": states, "negative": array("negative", states.shape)}

    def ours() -> None:
        with bench.ours(row) as device:
            model = _core.Dit(device, asdict(c), weights.taken(c, bench.device))
            source = Source(context, 1, size[0], (size[2], size[1]))
            schedule = Schedule(1000, 16.0)  # more steps than are timed
            run = Sampler(model, texts, source, guidance=tpige_code(), schedule=schedule, noise=x)
            row.ours = bench.timed(row, "ours", lambda: next(run))

    def theirs() -> None:
        with bench.peer(), torch.no_grad():
            model = peers.dit(c, weights.make(c, bench.device), bench.device)
            if bench.wants("compiled"):
                peers.compile_dit(model, bench.meter.gpu, bench.args.mode)
            given = [
                peers.dit_inputs(c, x, part, text, bench.device, torch.bfloat16)
                for part, text in ((context, states), (context, texts["negative"]), (context[:, 1:], states))
            ]

            def step() -> None:
                for one in given:
                    model(**one)

            side = "compiled" if bench.wants("compiled") else "eager"
            row.peers[side] = bench.timed(row, side, step)

    if bench.wants("eager") or bench.wants("compiled"):
        row.attempt("peers", theirs)
    if bench.wants("ours"):
        row.attempt("ours", ours)
    bench.floor(row, work.dit(c, work.latent(*size), keys=bench.sizes.words + 1).times(3))
    yield row


def forward13_fp8(bench: Bench) -> Iterator[Row]:
    """Our forward with 8-bit matrix products beside our own in bfloat16."""
    c, size = bench.sizes.b13, bench.sizes.p480
    row = Row("forward13_fp8", f"1.3B forward, fp8 {label(size)}")
    x, context, states = dit_inputs(c, size, bench.sizes.words)
    results = {}

    def one(dtype: str) -> None:
        with bench.ours(row, dtype) as device:
            model = _core.Dit(device, asdict(c), weights.taken(c, bench.device))
            text, prepared = model.text(states), model.context(context)

            def run() -> None:
                results[dtype] = model.forward(x, 500, text, prepared)

            timing = bench.timed(row, f"ours {dtype}", run)
            if dtype == "fp8":
                row.ours = timing
            else:
                row.more["bfloat16_seconds"] = timing.seconds

    for dtype in ("fp8", "bfloat16"):
        if not row.errors:
            row.attempt(dtype, lambda dtype=dtype: one(dtype))
    if row.ours and "bfloat16_seconds" in row.more:
        apart(row, results["fp8"], results["bfloat16"])
        row.note = f"{row.ours.seconds / row.more['bfloat16_seconds']:.3f} of our bfloat16"
    yield row


def stream13(bench: Bench) -> Iterator[Row]:
    yield from _streams(bench, "stream13", "1.3B", bench.sizes.b13, bench.sizes.p480, 8 * 10**9)


def stream14(bench: Bench) -> Iterator[Row]:
    yield from _streams(bench, "stream14", "14B", bench.sizes.b14, bench.sizes.p480, 24 * 10**9)


def stream14_720(bench: Bench) -> Iterator[Row]:
    """Does it fit? How much slower it is, stream14 says: here a step takes most of a minute."""
    yield from _streams(bench, "stream14_720", "14B", bench.sizes.b14, bench.sizes.p720, 24 * 10**9, resident=False)


def _streams(
    bench: Bench, name: str, title: str, c: DitConfig, size: Size, limit: int, resident: bool = True
) -> Iterator[Row]:
    """A step of three branches under a memory limit beside the same with all weights on the GPU: how much slower, with
    how many blocks streamed, and the card's own count of memory. "apart" must be 0."""
    row = Row(name, f"{title} step in {limit / 1e9:.0f} GB {label(size)}")
    x, context, states = dit_inputs(c, size, bench.sizes.words)
    texts = {"cond": states, "negative": array("negative", states.shape)}
    results, told = {}, {}

    def one(side: str, limit: int | None) -> None:
        with bench.ours(row, limit=limit) as device:
            model = _core.Dit(device, asdict(c), weights.taken(c, bench.device))
            source, schedule = Source(context, 1, size[0], (size[2], size[1])), Schedule(1000, 16.0)
            run = Sampler(model, texts, source, guidance=tpige_code(), schedule=schedule, noise=x)
            results[side] = np.array(next(run).velocity["cond"])
            told[side] = bench.timed(row, f"ours {side}", lambda: next(run), least=1)
            if limit:
                row.more |= {"streamed": model.streamed, "blocks": c.num_layers + len(c.vace_layers)}
                row.more |= {"limit_bytes": limit, "accounted_bytes": device.memory["peak"]}

    def smallest() -> int:
        """For small models, whose weights all fit: a limit that streams most of them."""
        free = _core.Device(bench.args.ours, dtype="bfloat16")
        model = _core.Dit(free, asdict(c), weights.taken(c, bench.device))
        need = model.memory(*work.latent(*size), branches=3, hints=3)
        prepared = 2 * (need["text"] + need["context"]) + 12 * x.nbytes + 6 * 2**20  # allocations end in pages of 2 MiB
        return free.memory["fixed"] + need["least"] + need["scratch"] + prepared

    def streamed() -> None:
        one("streamed", smallest() if bench.args.tiny else limit)
        row.peak = {"ours": row.peak["ours"]}

    if bench.wants("ours") and _core.Device(bench.args.ours).memory is not None:
        row.attempt("streamed", streamed)
        measured = row.peak.get("ours")
        if resident:
            row.attempt("resident", lambda: one("resident", None))
            row.more["resident_peak_bytes"] = row.peak.pop("ours", None)
            if measured is not None:
                row.peak["ours"] = measured
    if "streamed" in told:
        row.ours = told["streamed"]
        row.note = (f"{row.more['streamed']} of {row.more['blocks']} blocks streamed, peak {measured / 1e9:.2f} of "
                    f"{row.more['limit_bytes'] / 1e9:.2f} GB")  # fmt: skip
        row.more["ok"] = measured <= row.more["limit_bytes"]
    if "streamed" in told and "resident" in told:
        apart(row, results["streamed"], results["resident"])
        row.more["x_resident"] = row.ours.seconds / told["resident"].seconds
        row.note = f"{row.more['x_resident']:.3f} of resident, {row.note}"
        row.more["ok"] = row.more["ok"] and row.apart == 0
    if not told and not row.errors:
        row.note = "a memory limit is of a GPU"
    bench.floor(row, work.dit(c, work.latent(*size), keys=bench.sizes.words + 1).times(3))
    yield row
