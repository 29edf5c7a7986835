"""Prompt enhancement without a service, for pictures of the bundled world: judges read the face, a grammar inserts it.

>>> enhancer = LocalEnhancer()
>>> found = enhancer.face_aware("A woman in a blue turtleneck smiles.", "models/tiny/examples/person6.png")
>>> found.text, found.verbatim
('A woman with bob red hair and green eyes in a blue turtleneck smiles.', True)

What it cannot know it does not say. A picture that is not of that world (a photograph) gets no words, and the result's
`problem` tells so: describe photographs with `ipvg.PromptEnhancer`. Captions are English, with one of some 90 nouns.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from . import _arguments, grammar
from .enhance import Enhanced, PromptEnhancer, Usage
from .video import read_image
from .world import LIKENESS, shared


@runtime_checkable
class Enhancer(Protocol):
    """What `Pipeline.enhance` needs of a prompt enhancer; PromptEnhancer and LocalEnhancer are such."""

    def face_aware(self, prompt: str, image: Any) -> Enhanced: ...

    def appearance(self, prompt: str) -> Enhanced: ...

    def describe(self) -> dict[str, Any]: ...


def as_enhancer(value) -> Enhancer | None:
    """An Enhancer as it is; "local": a LocalEnhancer; a callable: see PromptEnhancer; None: None."""
    if value is None or isinstance(value, Enhancer):
        return value
    if isinstance(value, str) and value == "local":
        return LocalEnhancer()
    if callable(value):
        return PromptEnhancer(value)
    raise TypeError(
        "prompt_enhancer: expected 'local', an object with face_aware and appearance, a callable (instruction, text, "
        f"image) -> str, or None, got {_arguments.short(value)}"
    )


class LocalEnhancer:
    """most: features to insert, besides an age; the bundled checkpoint's captions name two at most. Threads may share
    one. Raises FileNotFoundError, ipvg.UnsupportedError (see World)."""

    concurrency = 1

    def __init__(self, most: int = 2):
        self.most = _arguments.integer("most", most, 1, 8)

    def __repr__(self) -> str:
        return f"LocalEnhancer(most={self.most})"

    def describe(self) -> dict[str, Any]:
        """What its answers depend on besides its inputs."""
        return {"by": "local", "grammar": grammar.VERSION, "most": self.most}

    def face_aware(self, prompt: str, image) -> Enhanced:
        """The caption with what the picture shows of the face. image: a path, a file's bytes or uint8 (H, W, 3).

        `details` has the reading. Raises TypeError, ValueError (arguments), what read_image raises.
        """
        _arguments.instance("prompt", prompt, str)
        reading = shared().read(read_image(image))
        text, said, problem = prompt, [], ""
        if not reading.belongs:
            problem = (
                f"nothing was added: the picture is not of the bundled world ({reading.likeness:.1f} dB through its "
                f"autoencoder, {LIKENESS} or more expected); PromptEnhancer describes photographs"
            )
        else:
            try:
                text, said = grammar.add_face(prompt, dict(reading.words), self.most)
            except grammar.NoPerson as error:
                problem = f"nothing was added: {error}"
        return self._result("face_aware", prompt, text, problem, {"reading": reading.to_dict(), "said": said})

    def appearance(self, prompt: str) -> Enhanced:
        """One sentence with the visible appearance that the caption names. "" when no person was found in it."""
        _arguments.instance("prompt", prompt, str)
        text, problem = "", ""
        try:
            text = grammar.appearance(prompt)
        except grammar.NoPerson as error:
            problem = str(error)
        return self._result("appearance", prompt, text, problem, {})

    def _result(self, kind: str, prompt: str, text: str, problem: str, details: dict[str, Any]) -> Enhanced:
        return Enhanced(
            text=text, original=prompt, kind=kind, verbatim=True if kind == "face_aware" else None, problem=problem,
            repaired=False, cached=False, model="local", instructions=f"grammar {grammar.VERSION}", usage=Usage(),
            details=details,
        )  # fmt: skip
