"""A rendered world of talking heads: identities x scenes -> pictures and clips.

    who, scene = people.sample(4, 1), scenes.sample(4, 2)
    clip, face = world.render(who, scene, frames=17)     # uint8 (4, 17, 128, 128, 3), uint8 face mask (4, 17, 128, 128)

Sphere tracing of smooth shapes (shape.py), painted skin (paint.py), a key light, sky and rim, supersampled edges.
Runs on the CPU or a GPU; on a GPU the inner functions are compiled into a few kernels.
"""

import functools

import torch

import paint
import people
import scenes
import shape

EYE_DISTANCE, LIFT, FIELD = 7.0, -0.22, 1.38  # camera: distance, height, half the frame's height at the face


def _mix(table, value):
    """Piecewise-linear colour ramp: value in [0, 1] -> (n, 3)."""
    t = torch.as_tensor(table, dtype=torch.float32)
    v = value * (len(t) - 1)
    i = v.long().clamp(0, len(t) - 2)
    return t[i] + (v - i)[:, None] * (t[i + 1] - t[i])


def _identity(who):
    """Traits -> shape and colour constants, each (n,)."""
    w = {k: v - 0.5 for k, v in who.items()}
    style = people.pick(who["hair_style"], people.HAIR_STYLES)
    hair = dict(zip(shape.HAIR_FIELDS, shape.HAIR[style].T))
    hair["cap"] = torch.where(hair["cap"] > 0, hair["cap"] * (0.65 + 0.7 * who["hair_volume"]), hair["cap"])
    hair["part"] = hair["part"] * torch.where(who["hair_volume"] > 0.5, 1.0, -1.0)
    hair["bulk"] = hair["bulk"] * (0.85 + 0.3 * who["hair_volume"])
    beard = people.pick(who["beard"], people.BEARDS)
    skin = _mix(people.SKIN_RGB, who["skin"]) * (1 + w["undertone"][:, None] * torch.tensor([0.06, -0.01, -0.14]))
    # A colour is its category's, moved a little inside the slice.
    jitter = lambda trait, names: 1 + 0.25 * ((who[trait] * len(names)) % 1 - 0.5)[:, None]
    hair_rgb = torch.tensor(people.HAIR_RGB)[people.pick(who["hair_colour"], people.HAIR_COLOURS)] * jitter(
        "hair_colour", people.HAIR_COLOURS
    )
    iris = torch.tensor(people.EYE_RGB)[people.pick(who["eye_colour"], people.EYE_COLOURS)] * jitter(
        "eye_colour", people.EYE_COLOURS
    )
    out = {
        "skull_w": 0.70 + 0.16 * w["head_width"],
        "skull_h": 0.74 + 0.12 * w["head_height"],
        "jaw_w": 0.55 + 0.17 * w["jaw"] + 0.06 * w["head_width"],
        "chin_y": -0.82 - 0.16 * w["chin"],
        "chin_w": 0.22 + 0.18 * w["jaw"],
        "cheek_x": 0.34 + 0.06 * w["cheek"],
        "cheek_r": 0.23 + 0.12 * w["cheek"],
        "ridge": 0.02 * w["masculine"],
        "eye_x": 0.285 + 0.10 * w["eye_spacing"],
        "eye_r": 0.195 + 0.02 * w["eye_size"],
        "eye_w": 0.155 + 0.055 * w["eye_size"],
        "eye_h": 0.105 + 0.07 * w["eye_size"],
        "eye_tilt": 0.5 * w["eye_tilt"],
        "nose_y": -0.27 - 0.18 * w["nose_length"],
        "nose_r": 0.095 + 0.06 * w["nose_bulb"],
        "nose_w": 0.10 + 0.09 * w["nose_width"],
        "mouth_y": -0.565 - 0.07 * w["mouth_height"] - 0.06 * w["nose_length"],
        "mouth_w": 0.235 + 0.12 * w["mouth_width"],
        "lip_h": 0.075 + 0.065 * w["lip"],
        "ear_h": 0.21 + 0.12 * w["ear"],
        "neck_r": 0.335 + 0.11 * w["neck"],
        "shoulder": 1.45 + 0.25 * w["masculine"],
        "brow_t": 0.052 + 0.05 * w["brow_thick"],
        "brow_y": 0.355 + 0.11 * w["brow_height"],
        "brow_a": 0.35 * w["brow_angle"],
        "freckles": (who["freckles"] > 0.7).float(),
        "mole": (who["mole"] > 0.7).float(),
        "mole_x": torch.where(who["mole_place"] > 0.5, 1.0, -1.0) * (0.20 + 0.5 * (who["mole_place"] % 0.5)),
        "mole_y": -0.10 - 0.9 * ((who["mole_place"] * 7) % 0.5),
        "age": who["age"],
        "fem": 1 - who["masculine"],
        "stubble": (beard == 2).float(),
        "moustache": ((beard == 3) | (beard == 4) | (beard == 5)).float(),
        "goatee": ((beard == 4) | (beard == 5)).float(),
        "full": (beard == 5).float(),
        **hair,
    }
    for name, rgb in (("skin", skin), ("hair", hair_rgb), ("iris", iris)):
        for ch, v in zip("rgb", rgb.clamp(0, 1).pow(2.2).T):
            out[f"{name}_{ch}"] = v
    return out


def _scene(scene):
    """Scene categories and numbers -> constants, each (n,)."""
    e = torch.tensor(
        [  # smile, open, brow raise, brow slant, eye openness
            [0.000, 0.000, 0.00, 0.00, 1.0],
            [0.075, 0.000, 0.01, 0.00, 0.85],
            [0.085, 0.075, 0.03, 0.00, 0.70],
            [-0.01, 0.095, 0.10, 0.00, 1.3],
            [-0.085, 0.000, 0.03, 0.38, 0.80],
        ]
    )[scene["expression"]].T
    is_ = lambda key, names, word: (scene[key] == names.index(word)).float()
    rgb = torch.tensor(scenes.CLOTHES_RGB)[scene["clothes"]].pow(2.2)
    scarf = torch.tensor([[0.75, 0.12, 0.15], [0.15, 0.35, 0.70], [0.92, 0.80, 0.30], [0.30, 0.60, 0.45]])[
        (scene["scarf_hue"] * 3.999).long()
    ].pow(2.2)
    az, el = (scene["light_side"] - 0.5) * 2.1, 0.25 + 0.75 * scene["light_up"]
    warm = scene["light_warm"] - 0.5
    out = {
        "smile": e[0],
        "open": e[1],
        "raise_": e[2],
        "slant": e[3],
        "eye_open": e[4],
        "turtleneck": is_("garment", scenes.GARMENTS, "turtleneck"),
        "striped": is_("garment", scenes.GARMENTS, "striped shirt"),
        "glasses": is_("accessory", scenes.ACCESSORIES, "glasses"),
        "headphones": is_("accessory", scenes.ACCESSORIES, "headphones"),
        "scarf": is_("accessory", scenes.ACCESSORIES, "scarf"),
        "lx": torch.sin(az) * torch.cos(el),
        "ly": torch.sin(el),
        "lz": torch.cos(az) * torch.cos(el),
        "key_r": 1 + 0.22 * warm,
        "key_g": 1 + 0.02 * warm,
        "key_b": 1 - 0.28 * warm,
        "hard": 0.55 + 0.35 * scene["light_hard"],
        "background": scene["background"].float(),
        "bg_seed": scene["bg_seed"],
    }
    for name, c in (("cloth", rgb), ("scarf", scarf)):
        for ch, v in zip("rgb", c.T):
            out[f"{name}_{ch}"] = v
    return out


def constants(who, scene, frames, at=None):
    """All per-frame numbers of a batch: (names, float32 (n * frames, K)). at: only these frames of the clip."""
    pose = scenes.poses(scene, frames)
    if at is not None:
        pose = {k: v[:, list(at)] for k, v in pose.items()}
        frames = len(at)
    still = {**_identity(who), **_scene(scene)}
    move = {k: pose[k] for k in ("shift_x", "shift_y", "zoom", "wave", "side")}
    move["body_cos"], move["body_sin"] = torch.cos(pose["body_yaw"]), torch.sin(pose["body_yaw"])
    move["wave_cos"], move["wave_sin"] = torch.cos(pose["wave_angle"]), torch.sin(pose["wave_angle"])
    cy, sy, cp, sp, cr, sr = (f(pose[k]) for k in ("yaw", "pitch", "roll") for f in (torch.cos, torch.sin))
    # R = yaw (about y) @ pitch (about x) @ roll (about z); columns are the head's axes.
    move.update(
        r00=cy * cr + sy * sp * sr,
        r01=-cy * sr + sy * sp * cr,
        r02=sy * cp,
        r10=cp * sr,
        r11=cp * cr,
        r12=-sp,
        r20=-sy * cr + cy * sp * sr,
        r21=sy * sr + cy * sp * cr,
        r22=cy * cp,
    )
    # The eyes stay half on the camera while the head turns.
    move["gaze_x"], move["gaze_y"] = -0.5 * pose["yaw"], 0.5 * pose["pitch"]
    n = len(scene["phase"])
    columns = [v[:, None].expand(n, frames) for v in still.values()] + [v.expand(n, frames) for v in move.values()]
    names = {k: i for i, k in enumerate([*still, *move])}
    return names, torch.stack(columns, -1).reshape(n * frames, -1)


def _distance(names, table, x, y, z):
    return shape.distance(shape.Constants(names, table), x, y, z)


def _march(names, table, dx, dy, dz, t):
    return t + 0.9 * _distance(names, table, t * dx, LIFT + t * dy, EYE_DISTANCE + t * dz)


@functools.lru_cache(None)
def _compiled(device, keys):
    """march, distance, colour for this device; the column order is baked in. One giant kernel compiles for minutes."""
    names = {k: i for i, k in enumerate(keys)}
    found = [functools.partial(f, names) for f in (_march, _distance, paint.colour)]
    if device.startswith("cuda"):
        found = [torch.compile(f, dynamic=False, fullgraph=True) for f in found]
    return found


def _normal(distance, table, x, y, z, e=0.006):
    """Four taps at the corners of a tetrahedron."""
    nx = ny = nz = 0.0
    for sx, sy, sz in ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)):
        d = distance(table, x + e * sx, y + e * sy, z + e * sz)
        nx, ny, nz = nx + sx * d, ny + sy * d, nz + sz * d
    inv = 1 / shape.length(nx, ny, nz)
    return nx * inv, ny * inv, nz * inv


def _occlusion(distance, table, p, n):
    """How open the surface is, near and far along its normal."""
    out = 1.0
    for reach, floor in ((0.12, 0.45), (0.4, 0.6)):
        d = distance(table, *(a + reach * b for a, b in zip(p, n)))
        out = out * (floor + (1 - floor) * (d / reach).clamp(0, 1))
    return out


@torch.no_grad()
def render(who, scene, frames=17, at=None, size=128, samples=2, device="cpu", chunk=None, steps=18):
    """Clips of n people in n scenes.

    Returns uint8 (n, frames, size, size, 3) and a uint8 face mask (n, frames, size, size): 0 off the face, up to 255 on
    eyes and mouth. at: render only these of the clip's frames. samples: rays per axis. chunk: frames at once."""
    names, table = constants(who, scene, frames, at)
    march, distance, colour = _compiled(str(device), tuple(names))
    res = size * samples
    chunk = chunk or (256 if str(device).startswith("cuda") else 4)
    v, u = torch.meshgrid(torch.arange(res, device=device), torch.arange(res, device=device), indexing="ij")
    px = (u.reshape(1, -1) + 0.5) / res * 2 - 1
    py = -((v.reshape(1, -1) + 0.5) / res * 2 - 1)
    total = len(table)
    image = torch.empty(total, size, size, 4, dtype=torch.uint8, device=device)
    for a in range(0, total, chunk):
        part = table[a : a + chunk].to(device)
        b = len(part)
        if b < chunk and part.is_cuda:  # compiled kernels want one shape: pad the last chunk
            part = torch.cat([part, part[:1].expand(chunk - b, -1)])
        c = shape.Constants(names, part)
        focal = FIELD / (EYE_DISTANCE - 0.4) / c.zoom
        dx, dy = px * focal, py * focal
        norm = torch.rsqrt(dx * dx + dy * dy + 1)
        dx, dy, dz = dx * norm, dy * norm, -norm
        t = torch.full_like(dx, EYE_DISTANCE - 1.6)
        for _ in range(steps):
            t = march(part, dx, dy, dz, t)
        point = (t * dx, LIFT + t * dy, EYE_DISTANCE + t * dz)
        normal = _normal(distance, part, *point)
        open_ = _occlusion(distance, part, point, normal)
        rgbm = torch.stack(colour(part, px, py, *point, *normal, open_, dx, dy, dz), -1)
        rgbm = rgbm.reshape(len(part), size, samples, size, samples, 4).mean((2, 4))
        image[a : a + b] = (rgbm[:b] * 255).round().clamp(0, 255).to(torch.uint8)
    n = len(scene["phase"])
    image = image.reshape(n, total // n, size, size, 4)
    return image[..., :3], image[..., 3]
