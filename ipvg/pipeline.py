"""A photo and a sentence become a video: the stages of Wan2.1-VACE in order, each callable alone on NumPy arrays.

>>> pipe = Pipeline.load("models/Wan2.1-VACE-1.3B")
>>> text = pipe.encode_text({"cond": "A woman walks on the beach.", "negative": NEGATIVE})
>>> source = pipe.encode_source(references=[read_image("alice.png")], size=(832, 480), frames=81)
>>> run = pipe.sampler(text, source, guidance=tpige_code(), steps=50, shift=16, seed=2025)
>>> for step in run:
...     ...                                     # step.velocity["weak"], step.x0, step.sigma
>>> pipe.decode(run.latents).save("alice.mp4")
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from . import _arguments, _core
from .checkpoint import Checkpoint
from .enhancement import Enhancement
from .guidance import PRESETS, Guidance
from .guidance.spec import nearest
from .lora import Lora, merged
from .manifest import Stages, describe
from .prepare import fit_mask, fit_video, resampled, vace_context
from .sampler import Sampler
from .schedule import Schedule
from .source import Source, check_size
from .text import NEGATIVE, Tokenizer
from .video import Video

Progress = Callable[[str, int, int], None]  # (stage, done, total)
SAMPLING = (
    "steps", "shift", "solver", "sigmas_from", "seed", "noise", "start", "record", "edit_velocity", "edit_combined",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Defaults:
    """What a job gets when it does not say: the released run's, unless the checkpoint's ipvg.json names others."""

    size: tuple[int, int] = (832, 480)
    frames: int = 81
    steps: int = 50
    shift: float = 16.0
    w: float = 5.0  # of classifier-free guidance
    s: float = 0.5  # of the weak branch
    note: str = ""  # what whoever uses the checkpoint should be told

    @property
    def guidance(self) -> Guidance:
        """tpige_code(w, s)."""
        return PRESETS["tpige_code"](w=self.w, s=self.s)


class Pipeline:
    """The models of one checkpoint on one device. Models are made at first use; weights stay in the mapped files.

    Attributes: checkpoint (Checkpoint), device (_core.Device), defaults (Defaults), loras (those that act, in order),
    keep_text_encoder (bool).
    """

    def __init__(self, checkpoint: Checkpoint, device: _core.Device, *, keep_text_encoder: bool = False):
        self.checkpoint, self.device, self.keep_text_encoder = checkpoint, device, keep_text_encoder
        self.defaults = _defaults(checkpoint.path)
        self.loras: tuple[Lora, ...] = ()
        self._zeros: dict = {}  # the encoded all-zero video of the sizes and frame counts used last

    @classmethod
    def load(
        cls,
        path: str | os.PathLike | None = None,
        *,
        device: str = "cpu",
        threads: int | None = None,
        dtype: str = "float32",
        memory_limit: int | str | None = None,
        keep_text_encoder: bool = False,
    ) -> Pipeline:
        """Opens a checkpoint folder (official or diffusers layout); None: the bundled one, `bundled()`.

        Reads headers only. threads: of the CPU; None: all cores. The same seed and thread count give the same bytes.
        dtype: "float32", or "bfloat16" for the matrix products of the transformers, or on a Hopper GPU "fp8" for the
            large ones of the diffusion model (help(ipvg.Device) says more).
        memory_limit: of a GPU, in bytes or as "24GB": what does not fit is streamed, to the same bytes.
        keep_text_encoder: False: on a GPU its memory is given back after `encode_text`, and filled again for the next.
        Raises OSError, ipvg.FormatError (names the file and tensor), ValueError (device, threads,
        dtype, memory_limit), ipvg.UnsupportedError (this device has no such dtype).
        """
        threads = 0 if threads is None else threads
        _arguments.instance("keep_text_encoder", keep_text_encoder, bool, "True or False")
        if memory_limit is not None:
            from .memory import parse

            memory_limit = parse(memory_limit)
        on = _core.Device(device, threads, dtype, memory_limit)
        return cls(Checkpoint.open(bundled() if path is None else path), on, keep_text_encoder=keep_text_encoder)

    # ---- the models ----

    @cached_property
    def tokenizer(self) -> Tokenizer:
        if self.checkpoint.tokenizer_path is None:
            raise FileNotFoundError(
                f"{self.checkpoint.path}: tokenizer.json is missing; it belongs in google/umt5-xxl/ (official layout) "
                "or tokenizer/ (diffusers layout)"
            )
        return Tokenizer(self.checkpoint.tokenizer_path)

    @cached_property
    def text_encoder(self) -> _core.TextEncoder:
        return self._model(_core.TextEncoder, "text")

    @cached_property
    def vae(self) -> _core.Vae:
        return self._model(_core.Vae, "vae")

    @cached_property
    def dit(self) -> _core.Dit:
        return self._model(_core.Dit, "dit")

    def _model(self, kind, name: str):
        component = self.checkpoint.components[name]
        changed = merged(component, self.loras) if name == "dit" and self.loras else {}
        return kind(self.device, dataclasses.asdict(component.config), component.weights(changed))

    def load_lora(
        self,
        path: str | os.PathLike,
        strength: float = 1.0,
        blocks: Collection[int] | Mapping[int, float] | None = None,
        *,
        skip_unknown: bool = False,
    ) -> Lora:
        """A LoRA acts on the diffusion model from now on, added to those that do; samplers that exist keep their model.

        Arguments and errors: `Lora.open`. Nothing is merged before the model is needed.
        """
        config = self.checkpoint.components["dit"].config
        lora = Lora.open(path, config, strength=strength, blocks=blocks, skip_unknown=skip_unknown)
        self._change_loras((*self.loras, lora))
        return lora

    def unload_lora(self, lora: Lora | None = None) -> None:
        """Takes a LoRA away, or all. The weights are the file's again, to the last bit. ValueError: it does not act."""
        if lora is not None and not any(one is lora for one in self.loras):
            raise ValueError(f"lora: {lora!r} does not act on this pipeline")
        self._change_loras(tuple(one for one in self.loras if lora is not None and one is not lora))

    def _change_loras(self, loras: tuple[Lora, ...]) -> None:
        self.loras = loras
        self.__dict__.pop("dit", None)  # made again at its next use

    @contextlib.contextmanager
    def _room(self, size, frames: int | None, guidance: Guidance, references: int):
        """A job on a GPU: refused if it cannot fit; a MemoryError says what it needs and what would fit."""
        if self.device.memory is None:
            yield
            return
        from . import memory

        width, height = self.defaults.size if size is None else size
        job = {"width": width, "height": height, "frames": self.defaults.frames if frames is None else frames}
        job |= {"guidance": guidance, "references": references}
        memory.check(self.checkpoint, self.device, self.keep_text_encoder, **job)
        try:
            yield
        except MemoryError as error:
            told = memory.advice(self.checkpoint, self.device, self.keep_text_encoder, **job)
            raise MemoryError(f"{error}. {told}") from None

    # ---- the stages ----

    def encode_text(self, prompts: Mapping[str, str], progress: Progress | None = None) -> dict[str, np.ndarray]:
        """umT5 states of named prompts: name -> float32 (tokens, text_dim), 1 to 512 tokens.

        The names are what a guidance's branches ask for: "cond", "negative" and "null" in the presets.
        """
        states = {}
        _arguments.instance("prompts", prompts, Mapping, "a mapping of names to prompts")
        for i, (name, prompt) in enumerate(prompts.items()):
            if not isinstance(prompt, str):
                raise TypeError(f"prompt {name!r}: expected str, got {type(prompt).__name__}")
            _tell(progress, "text", i, len(prompts))
            states[name] = self.text_encoder.encode(self.tokenizer(prompt))
            _tell(progress, "text", i + 1, len(prompts))
        if self.device.memory is not None and not self.keep_text_encoder:
            self.__dict__.pop("text_encoder", None)
        return states

    def encode_source(
        self,
        references: Sequence[np.ndarray] = (),
        *,
        video: Video | np.ndarray | None = None,
        mask: Video | np.ndarray | None = None,
        size: tuple[int, int] | None = None,
        frames: int | None = None,
    ) -> Source:
        """The VACE context of a job.

        references: pictures uint8 (H, W, 3), fitted whole onto a white canvas, in the official order.
        video: a source, Video or uint8 (F, H, W, 3): brought to 16 frames a second (an array counts as such), scaled to
            cover `size`, cropped; where it then has not `frames` frames, they are taken at even distances.
        mask: of the video, fitted as the video is: Video, uint8 (F, H, W, 3) or (F, H, W), or float in [0, 1]; one
            frame stands for all; a mask of the target's size is taken as it is. Above one half (white) is generated
            anew, the rest (black) is kept. None with a video: everything is generated, the video only steers.
        size: (width, height), multiples of 16. frames: 4n + 1. Both default to the checkpoint's (`defaults`).
        Without a video the VAE encodes frames of zeros. Their latents are a constant: computed once for a size and
        frame count, and kept in memory with this pipeline, the 4 that were used last.
        Raises TypeError and ValueError that name the argument.
        """
        size = self.defaults.size if size is None else size
        frames = self.defaults.frames if frames is None else frames
        check_size(size, frames)
        references = list(_arguments.instance("references", references, Sequence, "a list of pictures"))
        if video is not None:
            pixels, mask = resampled(video, mask)
            video = fit_video(pixels, size, frames)
            if mask is not None:
                mask = fit_mask(mask, size, frames, like=pixels.shape[:3])
        context = vace_context(
            self.vae.encode, size=size, frames=frames, references=references, video=video, mask=mask, cache=self._zeros
        )
        return Source(context, len(references), frames, (int(size[0]), int(size[1])))

    def sampler(
        self,
        text: Mapping[str, np.ndarray],
        source: Source,
        guidance: Guidance | None = None,
        *,
        steps: int | None = None,
        shift: float | None = None,
        solver: str = "unipc",
        sigmas_from: str = "official",
        seed: int = 2025,
        noise: np.ndarray | None = None,
        **options: Any,
    ) -> Sampler:
        """A denoising run that has not begun: iterate over it, or call its run(). See sampler.py.

        text: what encode_text gave. guidance, steps, shift: None = the checkpoint's (`defaults`).
        noise: float32 of `source.latent_shape`, the start; None: drawn from `seed` (ipvg.noise).
        options: start, record, edit_velocity, edit_combined of `Sampler`.
        """
        return Sampler(
            self.dit,
            text,
            source,
            guidance=self.defaults.guidance if guidance is None else guidance,
            schedule=self._schedule(steps, shift, solver, sigmas_from),
            seed=seed if noise is None else None,
            noise=noise,
            **options,
        )

    def _schedule(self, steps=None, shift=None, solver="unipc", sigmas_from="official", **_) -> Schedule:
        defaults = self.defaults
        steps, shift = defaults.steps if steps is None else steps, defaults.shift if shift is None else shift
        return Schedule(steps, shift, solver, sigmas_from)

    def restore(self, path: str | os.PathLike, **options: Any) -> Sampler:
        """The run that `Sampler.snapshot` wrote, on this checkpoint. See `Sampler.restore`."""
        return Sampler.restore(path, self.dit, **options)

    def decode(self, latents: np.ndarray | _core.Tensor, progress: Progress | None = None) -> Video:
        """Frames of a latent float32 (16, f, h, w) without reference slots (`Sampler.latents`, or `latents_tensor`,
        which spares a GPU's the way over the host): a Video of 4f - 3 frames, 16 a second, rounded to uint8. Decoded
        one latent frame at a time: scratch does not grow with it."""
        latents = latents if hasattr(latents, "__dlpack__") else np.asarray(latents)
        frames, total = None, 0
        if len(latents.shape) == 4:
            _, total, height, width = latents.shape
            time, space = self.vae.stride
            frames = np.empty((max(time * (total - 1) + 1, 0), space * height, space * width, 3), np.uint8)
        with contextlib.suppress(RuntimeError):  # another thread's call runs: it keeps its scratch
            self.device.release()  # the stream has scratch of its own; both at once would be more than was estimated
        for i, _ in enumerate(self.vae.decode_stream(latents, out=frames)):
            _tell(progress, "decoding", i + 1, total)
        return Video(frames)

    def enhance(self, image, prompt: str, **arguments: Any) -> Enhancement:
        """PE and IE: the caption and the picture made to fit each other, as an `Enhancement` that `generate` takes.
        Arguments (prompt_enhancer, reference_enhancer, embedder, minimum, progress) and errors: `enhancing.enhance`."""
        from .enhancing import enhance

        return enhance(image, prompt, pipe=self, **arguments)

    def generate(
        self,
        prompt: str | Enhancement,
        references: Sequence[np.ndarray] = (),
        *,
        negative: str = NEGATIVE,
        video: Video | np.ndarray | None = None,
        mask: Video | np.ndarray | None = None,
        size: tuple[int, int] | None = None,
        frames: int | None = None,
        guidance: Guidance | None = None,
        progress: Progress | None = None,
        chunk: int | None = None,
        overlap: int | None = None,
        match: str = "gain",
        resume: str | os.PathLike | None = None,
        **sampling: Any,
    ) -> Video:
        """All stages as one call. prompt: or an Enhancement, whose picture is then the reference unless others are
        given. Arguments as in encode_source and sampler (`sampling`: steps, shift, solver, sigmas_from, seed, noise and
        its options); only the prompts that the guidance needs are encoded. The result's `manifest` holds all settings,
        and each stage's seconds and peak memory.

        chunk: a long video: at most so many frames at once, each chunk beginning with the last `overlap` frames of the
        one before (None: 17, less for short chunks), its colours matched to them ("gain", "mean" or "none"). video and
        mask, if any, are of all `frames`. resume: a folder for finished chunks, from which the same call goes on. See
        `ipvg.long`; the manifest's "chunks" and "seams" tell seeds, corrections and how visible the seams are."""
        guidance = self.defaults.guidance if guidance is None else guidance
        _arguments.instance("guidance", guidance, Guidance, "a Guidance, such as guidance.cfg(5)")
        _arguments.instance("prompt", prompt, str | Enhancement, "text or an Enhancement")
        _arguments.instance("references", references, Sequence, "a list of pictures")
        enhancement = prompt if isinstance(prompt, Enhancement) else None
        if enhancement is not None:
            prompt, references = enhancement.prompt, list(references) or [enhancement.picture()]
        known = {"cond": prompt, "negative": negative, "null": ""}
        if unknown := [name for name in guidance.texts if name not in known]:
            raise ValueError(
                f"guidance: its branches ask for the text {unknown[0]!r}; generate() knows {', '.join(known)}. "
                "Call encode_text and sampler yourself for others"
            )
        prompts = {name: known[name] for name in guidance.texts}
        if chunk is not None:
            from . import long

            made = long.generate(
                self, prompts, references, chunk=chunk, overlap=overlap, match=match, resume=resume, video=video,
                mask=mask, size=size, frames=frames, guidance=guidance, progress=progress, **sampling,
            )  # fmt: skip
            if enhancement is not None:
                made.manifest["enhancement"] = enhancement.record()
            return made
        if overlap is not None or resume is not None:
            raise ValueError(f"{'resume' if overlap is None else 'overlap'}: is for long videos; give chunk= as well")
        if wrong := sampling.keys() - SAMPLING:
            raise TypeError(f"generate: no argument {min(wrong)!r}{nearest(min(wrong), SAMPLING)}")
        check_size(self.defaults.size if size is None else size, self.defaults.frames if frames is None else frames)
        self._schedule(**sampling)  # what cannot work is said before the work
        stages = Stages()
        _arguments.instance("references", references, Sequence, "a list of pictures")
        with self._room(size, frames, guidance, len(references)):
            with stages.stage("text"):
                text = self.encode_text(prompts, progress)
            _tell(progress, "source", 0, 1)
            with stages.stage("source"):
                source = self.encode_source(references, video=video, mask=mask, size=size, frames=frames)
            _tell(progress, "source", 1, 1)
            with stages.stage("denoising"):
                run = self.sampler(text, source, guidance, **sampling)
                run.run(progress=(lambda p: progress("denoising", p.done, p.total)) if progress else False)
            with stages.stage("decoding"):
                made = self.decode(run.latents_tensor, progress)
        inputs = {"references": list(references), "video": video, "mask": mask, "noise": sampling.get("noise")}
        inputs["start"] = sampling["start"][0] if sampling.get("start") else None
        made.manifest = describe(
            self, schedule=run.schedule, guidance=run.guidance, seed=run.seed, size=source.size, frames=source.frames,
            texts=prompts, inputs=inputs, stages=stages, hooks=sampling,
        )  # fmt: skip
        if enhancement is not None:
            made.manifest["enhancement"] = enhancement.record()
        return made


def generate(
    prompt: str,
    references=(),
    *,
    checkpoint=None,
    device="cpu",
    threads=None,
    dtype="float32",
    memory_limit=None,
    **arguments,
) -> Video:
    """Pipeline.load(checkpoint).generate(...): a sentence, and pictures if you like, become a Video."""
    pipe = Pipeline.load(checkpoint, device=device, threads=threads, dtype=dtype, memory_limit=memory_limit)
    return pipe.generate(prompt, references, **arguments)


def bundled() -> Path:
    """The folder of the checkpoint that comes with ipvg. FileNotFoundError when there is none."""
    for folder in (Path(__file__).parent / "models", Path(__file__).parent.parent / "models"):
        if (folder / "ipvg-tiny" / "config.json").is_file():
            return folder / "ipvg-tiny"
    raise FileNotFoundError(
        "no checkpoint is bundled with this installation; pass the folder of one (README.md says where they come from)"
    )


def _tell(progress: Progress | None, stage: str, done: int, total: int) -> None:
    if progress is not None:
        progress(stage, done, total)


def _defaults(folder: Path) -> Defaults:
    """Defaults, with what the folder's ipvg.json says. Raises FormatError for one that cannot be used."""
    path = folder / "ipvg.json"
    if not path.is_file():
        return Defaults()
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        known = {field.name for field in dataclasses.fields(Defaults)}
        found = Defaults(**{k: tuple(v) if k == "size" else v for k, v in table.items() if k in known})
        check_size(found.size, found.frames)
        Schedule(found.steps, found.shift)
        found.guidance  # noqa: B018  (weights that are none raise)
    except (ValueError, TypeError, AttributeError) as error:
        raise _core.FormatError(f"{path}: {error}") from None
    return found
