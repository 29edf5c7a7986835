"""Rows of the other stages: VAE, text encoder, loading, the whole video."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from ipvg import _core, memory
from ipvg.checkpoint import Checkpoint
from ipvg.guidance import tpige_code
from ipvg.pipeline import Pipeline
from ipvg.video import Video

from . import peers, weights, work
from .bench import Bench, Size, apart, array, dit_inputs
from .meter import Timing
from .row import GIB, Row

#: How the peer's VAE is run: side -> (dtype, channels last, compiled).
VAE_SIDES = {
    "eager": (torch.bfloat16, False, False),
    "fp16 NDHWC": (torch.float16, True, False),
    "compiled": (torch.bfloat16, False, True),
}


def vae_decode(bench: Bench) -> Iterator[Row]:
    yield _vae(bench, "decode")


def vae_encode(bench: Bench) -> Iterator[Row]:
    yield _vae(bench, "encode")


def _vae(bench: Bench, what: str) -> Row:
    c, size = bench.sizes.vae, bench.sizes.p480
    row = Row(f"vae_{what}", f"VAE {what} {size[0]}x{size[1]}x{size[2]}, 16-bit")
    latent = (c.z_dim, *work.latent(*size, references=0))
    given = array("latent", latent) if what == "decode" else array("video", (3, *size)).clip(-1, 1)
    results: dict[str, np.ndarray] = {}

    def ours() -> None:
        with bench.ours(row) as device:
            model = _core.Vae(device, asdict(c), weights.taken(c, bench.device))

            def run() -> None:
                results["ours"] = getattr(model, what)(given)

            row.ours = bench.timed(row, "ours", run)

    def theirs(side: str) -> None:
        dtype, last, compiled = VAE_SIDES[side]
        with bench.peer(), _tuned(side != "eager"):
            model = peers.vae(c, weights.make(c, bench.device), dtype, last)
            if compiled:
                peers.compile_vae(model, f"{what}r")
            stage = peers.vae_run(model, f"{what}r", torch.from_numpy(given).to(bench.device), last)
            kept = {}

            def run() -> None:
                kept["result"] = stage()

            row.peers[side] = bench.timed(row, side, run, 3)  # a compiled one compiles once more now and then
            results[side] = kept["result"].float().cpu().numpy()

    for side in VAE_SIDES:
        if bench.args.compile_vae and bench.wants("compiled") if side == "compiled" else bench.wants("eager"):
            row.attempt(side, lambda side=side: theirs(side))
    if bench.wants("ours"):
        row.attempt("ours", ours)
    if what == "decode" and "ours" in results:
        results["ours"] = results["ours"].clip(-1, 1)  # as the peer does
    apart(row, results.get("ours"), results.get("fp16 NDHWC"))
    stage = work.vae_decode if what == "decode" else work.vae_encode
    bench.floor(row, stage(c, *size))
    bench.best[f"vae_{what} floor"] = row.least
    if row.fastest:
        bench.best[f"vae_{what} side"] = row.fastest[0]
    return row


@contextlib.contextmanager
def _tuned(on: bool) -> Iterator[None]:
    """cuDNN tries its convolutions out."""
    torch.backends.cudnn.benchmark = on
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = False


def umt5(bench: Bench) -> Iterator[Row]:
    c = bench.sizes.umt5
    row = Row("umt5", f"umT5-XXL {work.TEXT} tokens")
    ids = np.random.default_rng(0).integers(0, c.vocab, work.TEXT)
    results: dict[str, np.ndarray] = {}

    def ours() -> None:
        with bench.ours(row) as device:
            config = asdict(c) | {"norm_eps": c.eps}
            model = _core.TextEncoder(device, config, weights.taken(c, bench.device))

            def run() -> None:
                results["ours"] = model.encode(ids)

            row.ours = bench.timed(row, "ours", run)

    def theirs() -> None:
        with bench.peer(), torch.no_grad():
            model = peers.umt5(c, weights.make(c, bench.device))
            given = torch.from_numpy(ids)[None].to(bench.device)
            for side in ("eager", "compiled"):
                if not bench.wants(side):
                    continue
                if side == "compiled":
                    peers.compile_umt5(model)

                def one(side: str = side) -> None:
                    row.peers[side] = bench.timed(row, side, lambda: model(given))
                    results[side] = model(given).last_hidden_state[0].float().cpu().numpy()

                row.attempt(side, one)

    if bench.wants("eager") or bench.wants("compiled"):
        row.attempt("peers", theirs)
    if bench.wants("ours"):
        row.attempt("ours", ours)
    apart(row, results.get("ours"), results.get("eager", results.get("compiled")))
    bench.floor(row, work.umt5(c))
    bench.best["umt5 floor"] = row.least
    yield row


def load13(bench: Bench) -> Iterator[Row]:
    """From the page cache to weights on the GPU, ready: headers read and checked, copied, cast. The floor is the file's
    bytes at the bus's rate; the peer is safetensors' own loader, which casts nothing."""
    c = bench.sizes.b13
    row = Row("load13", "load 1.3B, page cache to GPU")
    folder = bench.folder("1.3B", 20)
    weights.write_dit(folder, c, weights.make(c, bench.device))
    size = (folder / "diffusion_pytorch_model.safetensors").stat().st_size

    def ours() -> None:
        with bench.ours(row) as device:

            def load() -> None:
                pipe = Pipeline(Checkpoint.open(folder, components=("dit",)), device)
                assert pipe.dit is not None

            row.ours = row.seen("ours", bench.meter.time(load, least=3))

    def theirs() -> None:
        from safetensors.torch import load_file

        with bench.peer():
            path = folder / "diffusion_pytorch_model.safetensors"
            row.peers["eager"] = row.seen("eager", bench.meter.time(lambda: load_file(path, bench.device), least=3))

    def floor() -> None:
        row.floor = {"upload": size / bench.ceilings.upload}
        row.note = f"{size / 1e9:.2f} GB, the bus gives {bench.ceilings.upload / 1e9:.1f} GB/s"

    if bench.wants("ours"):
        row.attempt("ours", ours)
    if bench.wants("eager"):
        row.attempt("eager", theirs)
    if bench.wants("floor"):
        row.attempt("floor", floor)
    yield row


def video(bench: Bench) -> Iterator[Row]:
    """A sentence and a picture become an mp4. Models loaded and shapes tuned before (a run of one step); the encoded
    all-zero video is not kept from it. Fewer steps than 50 are timed and scaled: the note says so. The mp4 is of other
    frames, as many bits as a film's: random weights make noise, which takes x264 more than twice as long."""
    sizes, steps, full = bench.sizes, bench.args.steps, 50
    frames, height, width = sizes.p480
    row = Row("video", f"1.3B video {frames}x{height}x{width}, {full} steps x 3")
    row.note = f"{steps} of {full} steps timed" if steps != full else ""

    def scaled(stages: dict[str, float]) -> Timing:
        total = sum(s * full / steps if name == "denoising" else s for name, s in stages.items())
        return Timing([total], 0.0)

    def ours() -> None:
        folder = bench.folder("1.3B", 20)
        if not (folder / "config.json").exists():
            weights.write_dit(folder, sizes.b13, weights.make(sizes.b13, bench.device))
        weights.write_rest(folder, weights.make(sizes.umt5, bench.device), weights.make(sizes.vae, bench.device))
        bench.meter.empty()
        with bench.ours(row) as device:
            pipe = Pipeline(Checkpoint.open(folder), device, keep_text_encoder=True)  # loaded before, as the peer's is
            _generated(pipe, sizes.p480, steps=1)
            if device.memory:
                _estimate(row, pipe, sizes.p480, keep_text_encoder=True)
            pipe._zeros.clear()
            done = _generated(pipe, sizes.p480, steps).manifest["stages"]
            stages = {stage["name"]: stage["seconds"] for stage in done}
            film = _filmed(*sizes.p480)
            stages["mp4"] = _seconds(bench, lambda: _save(film, row))
            row.more["stages"] = stages
            row.ours = row.seen("ours", scaled(stages))

    def theirs() -> None:
        with bench.peer():
            stages = _peer_stages(bench, steps)
            if "stages" in row.more:
                stages["mp4"] = row.more["stages"]["mp4"]  # the same writer's
            row.more["peer_stages"] = stages
            row.peers["compiled" if bench.wants("compiled") else "eager"] = row.seen("peer", scaled(stages))

    def floor() -> None:
        forward = bench.best.get("forward13 floor")
        if not forward:
            forward = _floor(bench, work.dit(sizes.b13, work.latent(*sizes.p480), keys=sizes.words + 1))
        text = bench.best.get("umt5 floor") or _floor(bench, work.umt5(sizes.umt5))
        encode = bench.best.get("vae_encode floor") or _floor(bench, work.vae_encode(sizes.vae, *sizes.p480))
        decode = bench.best.get("vae_decode floor") or _floor(bench, work.vae_decode(sizes.vae, *sizes.p480))
        row.floor = {"denoising": 3 * full * forward, "text": 2 * text, "source": encode, "decoding": decode}

    if bench.wants("ours"):
        row.attempt("ours", ours)
    if bench.wants("eager") or bench.wants("compiled"):
        row.attempt("peers", theirs)
    if bench.wants("floor"):
        row.attempt("floor", floor)
    yield row


def _floor(bench: Bench, jobs: work.Work) -> float:
    bench.ceilings.measure(jobs.large())
    return jobs.seconds(bench.ceilings.rate)


def whole14_720(bench: Bench) -> Iterator[Row]:
    """Does everything of a 14B video at 720p fit a card of 80 GB? One step is made of 50, the rest is whole."""
    sizes = bench.sizes
    row = Row("whole14_720", "14B video {}x{}x{}, 1 step x 3".format(*sizes.p720))

    def ours() -> None:
        folder = bench.folder("14B", 50)
        weights.write_dit(folder, sizes.b14, weights.make(sizes.b14, bench.device), half=True)
        weights.write_rest(folder, weights.make(sizes.umt5, bench.device), weights.make(sizes.vae, bench.device))
        bench.meter.empty()
        with bench.ours(row) as device:
            pipe = Pipeline(Checkpoint.open(folder), device)
            row.ours = row.seen("ours", Timing([_seconds(bench, lambda: _generated(pipe, sizes.p720, 1))], 0.0))
            if device.memory:
                _estimate(row, pipe, sizes.p720)
        row.more["ok"] = row.peak["ours"] <= 80e9

    if bench.wants("ours"):
        row.attempt("ours", ours)
    yield row


def _generated(pipe: Pipeline, size: Size, steps: int) -> Video:
    frames, height, width = size
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return pipe.generate("A person walks along the shore. " * 20, references=[picture], size=(width, height),
                         frames=frames, steps=steps, guidance=tpige_code())  # fmt: skip


def _estimate(row: Row, pipe: Pipeline, size: Size, **options) -> None:
    """Beside what was held at the peak; what CUDA takes for itself left out: an allowance on both sides."""
    frames, height, width = size
    held = pipe.device.memory
    told = memory.estimate(pipe.checkpoint, width=width, height=height, frames=frames, device=pipe.device, **options)
    row.more |= {"estimate_bytes": sum(told.values()) - held["fixed"], "held_bytes": held["peak"] - held["fixed"]}
    said = f"{row.more['held_bytes'] / GIB:.2f} GiB held, {row.more['estimate_bytes'] / GIB:.2f} estimated"
    row.note = f"{row.note}; {said}" if row.note else said


def _filmed(frames: int, height: int, width: int) -> Video:
    """A picture with the spectrum of photographs, panned, and the grain of a film."""
    draw = np.random.default_rng(0)
    rows, cols = height + frames, width + 2 * frames
    waves = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(cols)).clip(1 / cols)
    planes = np.fft.irfft2(np.fft.rfft2(draw.standard_normal((3, rows, cols))) / waves**1.2, (rows, cols))
    picture = 128 + 45 * np.moveaxis(planes / planes.std(axis=(1, 2), keepdims=True), 0, 2)
    grain = 1.5 * draw.standard_normal((frames, height, width, 1))
    seen = [picture[i : i + height, 2 * i : 2 * i + width] + grain[i] for i in range(frames)]
    return Video(np.stack(seen).clip(0, 255).astype(np.uint8))


def _save(made: Video, row: Row) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            made.save(Path(folder) / "video.mp4")
        except _core.UnsupportedError as error:
            row.note += f"; no mp4 on either side: {str(error)[:60]}"


def _seconds(bench: Bench, run: Callable[[], object]) -> float:
    return bench.meter.once(run)


def _peer_stages(bench: Bench, steps: int) -> dict[str, float]:
    """Seconds of the stages that diffusers' pipeline has, each warmed up: two prompts, the source (it encodes inactive
    and reactive frames, and the reference for both), three forwards and a solver's step, decoding to bytes on the host.
    One model at a time is on the card."""
    stages = {}
    for name, how in (("text", _peer_text), ("source", _peer_source), ("decoding", _peer_decoding)):
        with torch.no_grad():
            run = how(bench)
            run()
            stages[name] = _seconds(bench, run)
        del run
        bench.meter.empty()
    with torch.no_grad():
        denoise = _peer_denoising(bench)
        denoise(1)
        stages["denoising"] = _seconds(bench, lambda: denoise(steps))
    return stages


def _peer_text(bench: Bench) -> Callable[[], object]:
    c = bench.sizes.umt5
    model = peers.umt5(c, weights.make(c, bench.device))
    ids = torch.randint(c.vocab, (1, work.TEXT), device=bench.device)
    return lambda: [model(ids).last_hidden_state for _ in range(2)]


def _peer_vae(bench: Bench, part: str, given: list[torch.Tensor]) -> list[Callable[[], torch.Tensor]]:
    side = bench.best.get(f"vae_{part[:-1]} side", "fp16 NDHWC")
    dtype, last, compiled = VAE_SIDES[str(side)]
    model = peers.vae(bench.sizes.vae, weights.make(bench.sizes.vae, bench.device), dtype, last)
    if compiled:
        peers.compile_vae(model, part)
    return [peers.vae_run(model, part, one, last) for one in given]


def _peer_source(bench: Bench) -> Callable[[], object]:
    black = torch.zeros(3, *bench.sizes.p480, device=bench.device)
    runs = _peer_vae(bench, "encoder", [black, black, black[:, :1], black[:, :1]])
    return lambda: [run() for run in runs]


def _peer_decoding(bench: Bench) -> Callable[[], object]:
    shape = (bench.sizes.vae.z_dim, *work.latent(*bench.sizes.p480, references=0))
    run = _peer_vae(bench, "decoder", [weights.draw("latent", shape, bench.device)])[0]
    return lambda: ((run().float() + 1) * 127.5).round().byte().cpu()


def _peer_denoising(bench: Bench) -> Callable[[int], object]:
    from diffusers import UniPCMultistepScheduler

    c = bench.sizes.b13
    model = peers.dit(c, weights.make(c, bench.device), bench.device)
    if bench.wants("compiled"):
        peers.compile_dit(model, bench.meter.gpu, bench.args.mode)
    inputs = dit_inputs(c, bench.sizes.p480, bench.sizes.words)
    given = peers.dit_inputs(c, *inputs, bench.device, torch.bfloat16)

    def denoise(count: int) -> None:
        solver = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=16.0)
        solver.set_timesteps(50, device=bench.device)
        x = given["hidden_states"].float()
        for t in solver.timesteps[:count]:
            one = given | {"hidden_states": x.bfloat16(), "timestep": t[None]}
            cond, uncond, weak = (model(**one)[0].float() for _ in range(3))
            v = uncond + 5 * (cond - uncond)
            x = solver.step(v + 0.5 * (v - weak), t, x, return_dict=False)[0]

    return denoise
