"""Where the person is and what they do: everything in a clip that is not identity.

scene = scenes.sample(8, seed=5)        # dict of (8,) tensors: categories (int64) and numbers in [0, 1]
pose = scenes.poses(scene, frames=17)   # dict of (8, 17) tensors: yaw, pitch, roll, ... in world units
"""

import math

import torch

BACKGROUNDS = (
    "a grey studio",
    "a blue wall",
    "a sunset sky",
    "a green forest",
    "a sandy beach",
    "a city at night",
    "a snowy field",
    "a red curtain",
)
CLOTHES = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
CLOTHES_RGB = (
    (0.78, 0.10, 0.11),
    (0.92, 0.46, 0.10),
    (0.93, 0.80, 0.18),
    (0.13, 0.52, 0.24),
    (0.13, 0.30, 0.72),
    (0.45, 0.18, 0.58),
    (0.93, 0.93, 0.92),
    (0.09, 0.09, 0.10),
)
GARMENTS = ("t-shirt", "turtleneck", "striped shirt")
EXPRESSIONS = ("neutral", "smiling", "laughing", "surprised", "sad")
MOTIONS = ("still", "nod", "shake", "tilt", "approach", "wave")
ACCESSORIES = ("none", "glasses", "headphones", "scarf")
CATEGORIES = {
    "background": BACKGROUNDS,
    "clothes": CLOTHES,
    "garment": GARMENTS,
    "expression": EXPRESSIONS,
    "motion": MOTIONS,
    "accessory": ACCESSORIES,
}
NUMBERS = (
    "phase",
    "speed",
    "cam_yaw",
    "cam_pitch",
    "zoom",
    "off_x",
    "off_y",
    "light_side",
    "light_up",
    "light_warm",
    "light_hard",
    "bg_seed",
    "scarf_hue",
    "sign",
)


def sample(n, seed):
    """n random scenes."""
    g = torch.Generator().manual_seed(seed)
    scene = {k: torch.randint(len(v), (n,), generator=g) for k, v in CATEGORIES.items()}
    # Half of all people wear nothing extra: accessories hide identity.
    scene["accessory"] = torch.where(torch.rand(n, generator=g) < 0.4, 0, scene["accessory"])
    scene.update(zip(NUMBERS, torch.rand(len(NUMBERS), n, generator=g)))
    return scene


def portrait(n, seed):
    """Scenes for reference pictures: a still, head and shoulders, nothing before the face but perhaps glasses."""
    scene = sample(n, seed)
    scene["motion"] = torch.zeros(n, dtype=torch.long)
    scene["accessory"] = torch.where(scene["accessory"] == 1, 1, 0)
    scene["zoom"] = 0.6 + 0.4 * scene["zoom"]
    return scene


def poses(scene, frames, fps_scale=1.0):
    """Head and body over time, each (n, frames). Angles in radians; lengths in head half-heights.

    One gesture lasts about 24 frames at speed 0.5: slow, because four frames share one latent."""
    n = len(scene["phase"])
    f = torch.arange(frames, dtype=torch.float32)[None, :] * fps_scale
    col = lambda k: scene[k][:, None].float()
    is_ = lambda name: (scene["motion"][:, None] == MOTIONS.index(name)).float()
    w = 2 * math.pi / 24 * (0.75 + 0.5 * col("speed"))
    start = 2 * math.pi * col("phase")
    swing = torch.sin(w * f + start)
    sway = torch.sin(w * 0.4 * f + 2 * start)
    sign = torch.where(col("sign") < 0.5, -1.0, 1.0)
    yaw = (col("cam_yaw") - 0.5) * 0.7 + 0.03 * sway + is_("shake") * 0.24 * swing
    pitch = (col("cam_pitch") - 0.5) * 0.24 + 0.015 * sway + is_("nod") * 0.17 * swing
    roll = (col("off_x") - 0.5) * 0.12 + is_("tilt") * 0.22 * swing
    # 'approach' comes from far to near: the last frame is as close as other motions' frames.
    ramp = (f / max(frames - 1, 1)) if frames > 1 else torch.ones(1, 1)
    near = is_("approach") * (ramp - 1.0) * 0.26
    out = {
        "yaw": yaw,
        "pitch": pitch,
        "roll": roll,
        "body_yaw": 0.35 * yaw + 0.02 * sway,
        "shift_x": (col("off_x") - 0.5) * 0.22 + 0.03 * sway + is_("tilt") * 0.10 * -swing,
        "shift_y": (col("off_y") - 0.5) * 0.12,
        "zoom": 1 + 0.14 * (col("zoom") - 0.5) + near,
        "wave": is_("wave"),
        "wave_angle": 0.38 * torch.sin(1.6 * w * f + start),
        "side": sign,
    }
    return {k: v.expand(n, frames) for k, v in out.items()}


def words(scene, i):
    """{category: word} of scene i."""
    return {k: v[int(scene[k][i])] for k, v in CATEGORIES.items()}
