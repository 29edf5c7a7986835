"""The gate: in 16 bits ipvg strays no further from float32 than 1.2 times what PyTorch does in bfloat16, at full width,
with the same weights and inputs. float32 is the peers' own code without TF32."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace

import numpy as np
import torch

from ipvg import _core
from ipvg.checkpoint import DitConfig
from ipvg.parity import relative_l2

from . import peers, weights, work
from .bench import Bench, Size, array, dit_inputs
from .row import Row

SLACK = 1.2
FP8 = 3.8e-2  # what one product of E4M3 numbers errs by on Gaussian data: a net that averages is to stay below


def accuracy(bench: Bench) -> Iterator[Row]:
    yield _guarded(bench, "accuracy", "1.3B forward", lambda row: _dit(bench, row, bench.sizes.b13, bench.sizes.p480))
    yield _guarded(bench, "accuracy", "umT5-XXL", lambda row: _umt5(bench, row))
    for what in ("decode", "encode"):
        yield _guarded(bench, "accuracy", f"VAE {what}", lambda row, what=what: _vae(bench, row, what))


def accuracy14(bench: Bench) -> Iterator[Row]:
    whole, small = bench.sizes.b14, bench.sizes.accuracy
    one = replace(whole, num_layers=1, vace_layers=(0,))
    yield _guarded(bench, "accuracy14", "14B forward", lambda row: _dit(bench, row, whole, small))
    yield _guarded(bench, "accuracy14", "14B block and hint", lambda row: _dit(bench, row, one, bench.sizes.p720))


def accuracy13_fp8(bench: Bench) -> Iterator[Row]:
    """8-bit products of the whole forward against float32; PyTorch's bfloat16 beside it."""

    def run(row: Row) -> None:
        c, size = bench.sizes.b13, bench.sizes.accuracy
        ours, theirs, reference = _dit_results(bench, row, c, size, "fp8")
        mine, other = float(relative_l2(ours, reference)), float(relative_l2(theirs, reference))
        row.apart = mine
        row.more |= {"ours_error": mine, "peer_error": other, "ok": mine <= FP8}
        row.note = f"ours {mine:.2e} of {FP8:.1e}, PyTorch bfloat16 {other:.2e}: {'ok' if mine <= FP8 else 'BEYOND'}"

    yield _guarded(bench, "accuracy13_fp8", "1.3B forward, fp8", run)


def _guarded(bench: Bench, name: str, title: str, run) -> Row:
    row = Row(name, f"error against float32: {title}")
    row.attempt("accuracy", lambda: run(row))
    bench.meter.empty()
    return row


def _judge(row: Row, ours: np.ndarray, theirs: np.ndarray, reference: np.ndarray, more: str = "") -> None:
    mine, other = float(relative_l2(ours, reference)), float(relative_l2(theirs, reference))
    row.apart = mine
    row.more |= {"ours_error": mine, "peer_error": other, "ratio": mine / other, "ok": mine <= SLACK * other}
    verdict = "ok" if mine <= SLACK * other else "NOT WITHIN 1.2"
    row.note = f"ours {mine:.2e}, PyTorch bfloat16 {other:.2e}: {mine / other:.2f} x, {verdict}{more}"


def _dit(bench: Bench, row: Row, c: DitConfig, size: Size) -> None:
    _judge(row, *_dit_results(bench, row, c, size))


def _dit_results(bench: Bench, row: Row, c: DitConfig, size: Size, dtype: str = "bfloat16"):
    """Velocities: ours, the peer's in bfloat16, the peer's in float32."""
    device = bench.device
    inputs = dit_inputs(c, size, bench.sizes.words)
    row.title += f", L {work.tokens(work.latent(*size))}"
    theirs, reference = _dit_peer(bench, c, inputs)
    with bench.ours(row, dtype) as d:
        mine = _core.Dit(d, asdict(c), weights.taken(c, device))
        x, context, states = inputs
        ours = mine.forward(x, 500, mine.text(states), mine.context(context))
    return ours, theirs, reference


def _dit_peer(bench: Bench, c: DitConfig, inputs) -> tuple[np.ndarray, np.ndarray]:
    model = peers.dit(c, weights.make(c, bench.device), bench.device)

    def run(dtype: torch.dtype) -> np.ndarray:
        return model(**peers.dit_inputs(c, *inputs, bench.device, dtype))[0][0].float().cpu().numpy()

    with torch.no_grad():
        theirs = run(torch.bfloat16)
    with peers.exactly(), peers.widened(model):
        return theirs, run(torch.float32)


def _umt5(bench: Bench, row: Row) -> None:
    c, device = bench.sizes.umt5, bench.device
    ids = np.random.default_rng(1).integers(0, c.vocab, work.TEXT)
    given = torch.from_numpy(ids)[None].to(device)

    def run(dtype: torch.dtype) -> np.ndarray:
        model = peers.umt5(c, weights.make(c, device), dtype)
        return model(given).last_hidden_state[0].float().cpu().numpy()

    with torch.no_grad():
        theirs = run(torch.bfloat16)
    bench.meter.empty()
    with peers.exactly():
        reference = run(torch.float32)
    with bench.ours(row) as d:
        mine = _core.TextEncoder(d, asdict(c) | {"norm_eps": c.eps}, weights.taken(c, device))
        ours = mine.encode(ids)
    _judge(row, ours, theirs, reference)


def _vae(bench: Bench, row: Row, what: str) -> None:
    c, device, size = bench.sizes.vae, bench.device, bench.sizes.accuracy
    shape = (c.z_dim, *work.latent(*size, references=0)) if what == "decode" else (3, *size)
    given = array(f"accuracy/{what}", shape)
    given = given if what == "decode" else given.clip(-1, 1)

    def run(dtype: torch.dtype) -> np.ndarray:
        model = peers.vae(c, weights.make(c, device), dtype)
        return peers.vae_run(model, f"{what}r", torch.from_numpy(given).to(device), False)().float().cpu().numpy()

    theirs, half = run(torch.bfloat16), run(torch.float16)
    with peers.exactly():
        reference = run(torch.float32)
    with bench.ours(row) as d:
        mine = _core.Vae(d, asdict(c), weights.taken(c, device))
        ours = getattr(mine, what)(given)
    if what == "decode":
        ours = ours.clip(-1, 1)
    error = relative_l2(half, reference)
    row.more["peer_float16_error"] = float(error)
    _judge(row, ours, theirs, reference, f" (PyTorch float16 {error:.2e})")
