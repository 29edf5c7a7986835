"""Signed distances of one person: head, hair, eyes, body, hand, accessories. Plain torch, element by element.

Lengths are head half-heights: the skull's top is near y = 1, the chin near y = -1, +z looks at the camera, the person's
left is +x. `c` is a Constants object: one (frames, 1) column a name, so functions broadcast over (frames, pixels).
"""

import torch

# Hair as data, one row a style: cap thickness, hairline, nape, side curtains, parting, top, bun, bulk, curl.
HAIR = torch.tensor(
    [
        # cap,  line,  nape, sides, part, quiff,  bun, bulk, curl
        [-0.60, 0.60, -0.20, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],  # bald
        [0.012, 0.62, -0.30, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],  # buzz cut
        [0.085, 0.58, -0.35, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],  # short
        [0.090, 0.60, -0.40, 0.0, 0.32, 0.55, 0.0, 0.0, 0.0],  # side-parted
        [0.050, 0.66, -0.30, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0],  # quiff
        [0.150, 0.58, -0.45, 0.0, 0.0, 0.0, 0.0, 0.3, 1.0],  # curly
        [0.110, 0.40, -0.70, 0.50, 0.0, 0.0, 0.0, 0.2, 0.0],  # bob
        [0.110, 0.64, -1.2, 1.0, 0.12, 0.0, 0.0, 0.4, 0.0],  # long
        [0.055, 0.66, -0.40, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0],  # bun
        [0.180, 0.58, -0.55, 0.0, 0.0, 0.0, 0.0, 1.0, 0.8],  # afro
    ]
)
HAIR_FIELDS = ("cap", "line", "nape", "sides", "part", "quiff", "bun", "bulk", "curl")


class Constants:
    """Named columns of one (frames, K) tensor: a single buffer, so that a compiled kernel reads one pointer."""

    def __init__(self, names, table):
        self.names, self.table = names, table

    def __getattr__(self, name):
        i = self.names[name]
        return self.table[:, i : i + 1]


def length(*p):
    s = p[0] * p[0] + 1e-12
    for q in p[1:]:
        s = s + q * q
    return s * torch.rsqrt(s)  # a third of the cost of a rounded square root on a GPU


def ellipsoid(x, y, z, rx, ry, rz):
    """A bound, exact on the surface; good enough to march with steps of 0.9."""
    rx, ry, rz = 1 / rx, 1 / ry, 1 / rz
    x, y, z = x * rx, y * ry, z * rz
    k0 = length(x, y, z)
    x, y, z = x * rx, y * ry, z * rz
    return k0 * (k0 - 1) * torch.rsqrt(x * x + y * y + z * z + 1e-12)


def capsule(x, y, z, a, b, r):
    """Segment a-b (points of floats or columns) with radius r."""
    dx, dy, dz = b[0] - a[0], b[1] - a[1], b[2] - a[2]
    px, py, pz = x - a[0], y - a[1], z - a[2]
    t = ((px * dx + py * dy + pz * dz) / (dx * dx + dy * dy + dz * dz)).clamp(0, 1)
    return length(px - t * dx, py - t * dy, pz - t * dz) - r


def smin(a, b, k):
    h = (k - (a - b).abs()).clamp(min=0) / k
    return torch.minimum(a, b) - h * h * (k * 0.25)


def smax(a, b, k):
    return -smin(-a, -b, k)


def to_head(c, x, y, z):
    """World point -> head coordinates: turn about the neck."""
    x, y, z = x - c.shift_x, y - c.shift_y + 0.75, z + 0.12
    return (
        c.r00 * x + c.r10 * y + c.r20 * z,
        c.r01 * x + c.r11 * y + c.r21 * z - 0.75,
        c.r02 * x + c.r12 * y + c.r22 * z - 0.12,
    )


def to_body(c, x, y, z):
    x, y = x - c.shift_x * 0.6, y - c.shift_y
    return c.body_cos * x - c.body_sin * z, y, c.body_sin * x + c.body_cos * z


def skin(c, x, y, z):
    """Head without hair, in head coordinates."""
    s = x.abs()
    d = smin(
        ellipsoid(x, y - 0.24, z + 0.10, c.skull_w, c.skull_h, 0.80),
        ellipsoid(x, y + 0.30, z - 0.06, c.jaw_w, 0.66, 0.60),
        0.25,
    )
    d = smin(d, ellipsoid(x, y - c.chin_y, z - 0.34, c.chin_w, 0.17, 0.20), 0.22)
    d = smin(d, length(s - c.cheek_x, y + 0.20, z - 0.40) - c.cheek_r, 0.18)
    d = smin(d, ellipsoid(s - 0.24, y - 0.30, z - 0.57, 0.24, 0.06, 0.12) - c.ridge, 0.14)
    d = smax(d, 0.13 - length(s - c.eye_x, y - 0.09, z - 0.80), 0.12)
    tip = c.nose_y
    d = smin(d, capsule(x, y, z, (0.0, 0.14, 0.62), (0.0, tip, 0.79), 0.065), 0.10)
    d = smin(d, length(x, y - tip, z - 0.80) - c.nose_r, 0.08)
    d = smin(d, length(s - c.nose_w, y - tip + 0.01, z - 0.71) - 0.065, 0.06)
    # The upper and lower lip follow the smile: x bends y.
    bend = y - c.mouth_y - c.smile * (x * x / (c.mouth_w * c.mouth_w) - 0.4)
    d = smin(d, ellipsoid(x, bend - c.open - c.lip_h * 0.45, z - 0.60, c.mouth_w * 0.8, c.lip_h * 0.75, 0.13), 0.06)
    d = smin(d, ellipsoid(x, bend + c.open + c.lip_h * 0.55, z - 0.58, c.mouth_w * 0.7, c.lip_h * 0.85, 0.14), 0.06)
    return smin(d, ellipsoid(s - c.skull_w - 0.01, y - 0.02, z + 0.12, 0.07, c.ear_h, c.ear_h * 0.62), 0.06)


def eyes(c, x, y, z):
    return length(x.abs() - c.eye_x, y - 0.09, z - 0.45) - c.eye_r


def neck(c, x, y, z):
    return capsule(x, y, z, (0.0, -0.7, -0.14), (0.0, -1.9, -0.22), c.neck_r)


def hair(c, x, y, z):
    s = x.abs()
    # Curls are a ripple on the surface; its slope stays below one, so marching stays safe.
    ripple = c.curl * 0.030 * (torch.sin(17 * x + 3 * z) * torch.sin(15 * y + 1.0) * torch.sin(13 * z + 5 * y))
    d = ellipsoid(x, y - 0.26, z + 0.12, c.skull_w + c.cap, c.skull_h + c.cap, 0.80 + c.cap) - ripple
    d = smin(
        d,
        ellipsoid(x, y - 0.42, z + 0.30, 0.72 + 0.40 * c.bulk, 0.70 + 0.32 * c.bulk, 0.66 + 0.30 * c.bulk)
        - ripple
        + 0.6 * (c.bulk < 0.05),
        0.12,
    )
    d = smin(
        d,
        ellipsoid(x - 0.8 * c.part, y - 0.84, z - 0.30, 0.46, 0.16 + 0.20 * c.quiff, 0.42) + 0.5 * (c.quiff < 0.05),
        0.16,
    )
    line = c.line + c.part * x - 0.25 * x * x
    d = smax(d, 0.70 * (line + 1.0 * (z - 0.60) - y), 0.07)
    d = smax(d, c.nape - y, 0.10)
    side = ellipsoid(
        s - c.skull_w * 0.98, y + c.sides * 0.42 - 0.12, z + 0.16, 0.17, 0.42 + 0.62 * c.sides, 0.42
    ) + 0.9 * (c.sides < 0.05)
    d = smin(d, side, 0.10)
    return smin(d, length(x, y - 1.12, z + 0.20) - 0.30 * c.bun + 0.9 * (c.bun < 0.05), 0.06) + 0.9 * (c.cap < -0.5)


def clothes(c, x, y, z):
    """Body coordinates."""
    d = ellipsoid(x, y + 2.46, z + 0.22, c.shoulder, 1.0, 0.70)
    d = smin(d, capsule(x, y, z, (0.0, -1.42, -0.2), (0.0, -1.9, -0.22), c.neck_r + 0.10), 0.35)
    collar = capsule(x, y, z, (0.0, -1.10, -0.16), (0.0, -1.7, -0.22), c.neck_r + 0.055)
    return torch.minimum(d, collar + 3 * (1 - c.turtleneck))


def scarf(c, x, y, z):
    return length(length(x, z + 0.17) - 0.50, (y + 1.32) * 0.8) - 0.19 + 0.02 * torch.sin(9 * x) + 3 * (1 - c.scarf)


def headphones(c, x, y, z):
    s = x.abs()
    band = (
        length(
            (
                length(
                    x / (c.skull_w + 0.11 + c.cap.clamp(min=0) * 0.5),
                    (y - 0.1) / (c.skull_h + 0.24 + c.cap.clamp(min=0)),
                )
                - 1
            )
            * 0.8,
            z + 0.06,
        )
        - 0.06
    )
    cup = ellipsoid(s - c.skull_w - 0.10, y - 0.02, z + 0.06, 0.12, 0.26, 0.24)
    return torch.minimum(torch.maximum(band, -y), cup) + 3 * (1 - c.headphones)


def glasses(c, x, y, z):
    s = x.abs()
    ring = length(length((s - c.eye_x - 0.01) * 0.87, y - 0.07) - 0.215, z - 0.76 + 0.25 * s * s) - 0.028
    bridge = capsule(s, y, z, (0.0, 0.12, 0.83), (0.10, 0.12, 0.80), 0.024)
    arm = capsule(s, y, z, (c.eye_x + 0.24, 0.11, 0.64), (c.skull_w + 0.01, 0.08, -0.05), 0.024)
    return torch.minimum(torch.minimum(ring, bridge), arm) + 3 * (1 - c.glasses)


def hand(c, x, y, z):
    """Open palm beside the head, and its forearm (a second distance: it wears the sleeve). Body coordinates."""
    px, py = x - c.side * 1.00, y + 1.22
    u = (c.wave_cos * px + c.wave_sin * py) * c.side
    v = c.wave_cos * py - c.wave_sin * px
    w = z - 0.75
    palm = ellipsoid(u, v - 0.42, w, 0.165, 0.20, 0.09)
    place = (torch.floor(u / 0.088).clamp(-2, 1) + 0.5) * 0.088
    fingers = capsule(u - place, v, w, (0.0, 0.52, 0.0), (0.0, 0.80, 0.02), 0.038)
    thumb = capsule(u, v, w, (-0.12, 0.34, 0.02), (-0.26, 0.54, 0.05), 0.042)
    d = smin(smin(palm, fingers * 0.8, 0.04), thumb, 0.04)
    far = 9 * (1 - c.wave)
    return d + far, capsule(u, v, w, (0.0, 0.20, 0.0), (0.05, -1.2, -0.1), 0.13) + far


def distance(c, x, y, z):
    """Distance to the nearest surface of any kind: what the ray marcher walks on."""
    h, b = to_head(c, x, y, z), to_body(c, x, y, z)
    palm, arm = hand(c, *b)
    d = smin(skin(c, *h), neck(c, *b), 0.12)
    for other in (eyes(c, *h), hair(c, *h), glasses(c, *h), headphones(c, *h), clothes(c, *b), scarf(c, *b), palm, arm):
        d = torch.minimum(d, other)
    return d
