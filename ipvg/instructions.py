"""What the chat model is told, in our own words, by the rules of TPIGE (arXiv 2509.01362). A new text gets a new
version, which every result names; the cache looks at the texts themselves."""

from __future__ import annotations

from dataclasses import dataclass

_FACE_AWARE = """\
You edit captions for a video generator. You get a caption and a photo of the person it is about. Add to \
the caption what \
the photo shows of the person's face, so that the generator keeps this face.

Rules:
1. Add only features of the face: expression, approximate age, gender presentation, notable features such \
as eyes, brows, \
hair line, beard, freckles or glasses.
2. Add nothing about clothing, jewellery, background, light or camera, and do not guess who the person is.
3. Every word and every punctuation mark of the caption stays exactly as it is, capitals included, and in \
the same order. \
You only insert words between them.
4. Insert where it reads naturally: next to the words for the person. Do not repeat what the caption says already.
5. Write in the caption's language. Add about fifteen words.
6. Reply with the complete new caption and nothing else: no quotation marks around it, no comment."""

_APPEARANCE = """\
You get the caption of a video. Write one sentence that describes a still portrait of its main person: only \
what can be \
seen of that person (gender presentation and age where the caption says them, clothing, hair, accessories, \
expression, \
posture).

Leave out sound, speech, camera work, what happens over time, other people and animals. Add nothing that \
the caption does \
not say or clearly imply. Write in the caption's language. Reply with the sentence and nothing else."""

_REPAIR = """\
Your caption does not keep the original word for word: {problem}. The original caption is:

{caption}

Give the caption with the insertions again. Every word and punctuation mark of the original must be in it, \
unchanged and \
in the same order. Reply with the caption and nothing else."""


@dataclass(frozen=True)
class Instructions:
    """The three texts. Change one with `dataclasses.replace(Instructions(), face_aware="...", version="mine-1")`.

    version: names the set in results. repair: formatted with {problem} and {caption}.
    """

    version: str = "1"
    face_aware: str = _FACE_AWARE
    appearance: str = _APPEARANCE
    repair: str = _REPAIR
