"""Draws .github/mask.svg, what the mask means, from the jobs that ipvg.tasks really makes of the bundled photo.

python .github/mask.py
"""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np

from ipvg import tasks
from ipvg.video import Video, encode_jpeg, read_image

HERE = Path(__file__).resolve().parent
SIZE, FRAMES, SHOWN = (160, 128), 9, (0, 2, 4, 6, 8)  # pixels and frames of a job; which frames are drawn
TILE, GAP, LEFT, TOP = (78, 62), 4, 176, 52


def pan(photo: np.ndarray) -> Video:
    """The camera moves over the photo."""
    width, height = 250, 200
    return Video(np.stack([photo[i : i + height, 6 * i : 6 * i + width] for i in range(FRAMES)]))


def jobs(clip: Video) -> dict[str, tuple[str, tasks.Job]]:
    face = np.zeros(clip.frames.shape[1:3], np.uint8)
    face[24:150, 70:170] = 255
    same = {"size": SIZE, "frames": FRAMES}
    return {
        "inpaint": ("a region anew", tasks.inpaint(clip, face, **same)),
        "outpaint": ("more picture around", tasks.outpaint(clip, left=0.3, right=0.3, top=0.3, bottom=0.3, **same)),
        "first_frame": ("a photo starts to move", tasks.first_frame(clip.frames[0], **same)),
        "first_last": ("what lies between", tasks.first_last(clip.frames[0], clip.frames[-1], **same)),
        "extend_after": ("a clip goes on", tasks.extend_after(clip, keep=5, **same)),
    }


def tile(picture: np.ndarray, x: int, y: int) -> str:
    data = base64.b64encode(encode_jpeg(picture, max_side=160, quality=80)).decode()
    place = f'x="{x}" y="{y}" width="{TILE[0]}" height="{TILE[1]}"'
    return (
        f'<image {place} preserveAspectRatio="none" href="data:image/jpeg;base64,{data}"/>'
        f'<rect {place} fill="none" stroke="#8c959f"/>'
    )


def draw() -> str:
    photo = read_image(HERE.parent / "models/examples/astronaut.png")
    strip = len(SHOWN) * (TILE[0] + GAP) + 16
    rows = jobs(pan(photo))
    width, height = LEFT + 2 * strip, TOP + len(rows) * (TILE[1] + 14) + 6
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="15" fill="#1f2328">',
        "<title>The mask of each task: white is generated, black is kept</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="24">video: frames {", ".join(map(str, SHOWN))} of {FRAMES}</text>',
        f'<text x="{LEFT}" y="42" font-size="12" fill="#57606a">grey: nothing known</text>',
        f'<text x="{LEFT + strip}" y="24">mask</text>',
        f'<text x="{LEFT + strip}" y="42" font-size="12" fill="#57606a">white: generated; black: kept</text>',
    ]
    for row, (name, (words, job)) in enumerate(rows.items()):
        y = TOP + row * (TILE[1] + 14)
        out.append(f'<text x="12" y="{y + 27}" font-family="monospace">{name}</text>')
        out.append(f'<text x="12" y="{y + 46}" font-size="12" fill="#57606a">{words}</text>')
        video = np.asarray(job["video"])
        mask = np.rint(np.asarray(job["mask"], np.float32) * 255).astype(np.uint8)
        for i, frame in enumerate(SHOWN):
            x = LEFT + i * (TILE[0] + GAP)
            out.append(tile(video[frame], x, y))
            out.append(tile(mask[frame][..., None].repeat(3, 2), x + strip, y))
    return "\n".join([*out, "</svg>\n"])


if __name__ == "__main__":
    (HERE / "mask.svg").write_text(draw())
