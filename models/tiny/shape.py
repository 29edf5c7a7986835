"""Signed distances of one person: head, hair, eyes, body, hand, accessories. Plain torch, element by element.

Lengths are head half-heights: the skull's top is near y = 1, the chin near y = -1, +z looks at the camera, the person's
left is +x. `c` is a Constants object: one (frames, 1) column per name, so every function broadcasts over (frames, pixels).
"""
import torch

# Hair as data: thickness of the cap, hairline height, nape, side curtain length, fringe, top, bun, bulk, curl. One row a style.
HAIR = torch.tensor([
    # cap,  line,  nape, sides, part, quiff,  bun, bulk, curl
    [-.60,  .60,  -.20,   0.,   0.,   0.,   0.,   0.,   0.],    # bald
    [.012,  .62,  -.30,   0.,   0.,   0.,   0.,   0.,   0.],    # buzz cut
    [.085,  .58,  -.35,   0.,   0.,   0.,   0.,   0.,   0.],    # short
    [.090,  .60,  -.40,   0.,   .32,  .55,  0.,   0.,   0.],    # side-parted
    [.050,  .66,  -.30,   0.,   0.,   1.,   0.,   0.,   0.],    # quiff
    [.150,  .58,  -.45,   0.,   0.,   0.,   0.,   .3,   1.],    # curly
    [.110,  .40,  -.70,   .50,  0.,   0.,   0.,   .2,   0.],    # bob
    [.110,  .64,  -1.2,   1.,   .12,  0.,   0.,   .4,   0.],    # long
    [.055,  .66,  -.40,   0.,   0.,   0.,   1.,   0.,   0.],    # bun
    [.180,  .58,  -.55,   0.,   0.,   0.,   0.,   1.,   .8],    # afro
])
HAIR_FIELDS = ("cap", "line", "nape", "sides", "part", "quiff", "bun", "bulk", "curl")


class Constants:
    """Named columns of one (frames, K) tensor: a single buffer, so that a compiled kernel reads one pointer."""

    def __init__(self, names, table):
        self.names, self.table = names, table

    def __getattr__(self, name):
        i = self.names[name]
        return self.table[:, i:i + 1]


def length(*p):
    s = p[0] * p[0]
    for q in p[1:]:
        s = s + q * q
    return torch.sqrt(s + 1e-12)


def ellipsoid(x, y, z, rx, ry, rz):
    """A bound, exact on the surface; good enough to march with steps of 0.9."""
    k0 = length(x / rx, y / ry, z / rz)
    k1 = length(x / (rx * rx), y / (ry * ry), z / (rz * rz))
    return k0 * (k0 - 1) / k1


def capsule(x, y, z, a, b, r):
    """Segment a-b (points of floats or columns) with radius r."""
    dx, dy, dz = b[0] - a[0], b[1] - a[1], b[2] - a[2]
    px, py, pz = x - a[0], y - a[1], z - a[2]
    t = ((px * dx + py * dy + pz * dz) / (dx * dx + dy * dy + dz * dz)).clamp(0, 1)
    return length(px - t * dx, py - t * dy, pz - t * dz) - r


def smin(a, b, k):
    h = (k - (a - b).abs()).clamp(min=0) / k
    return torch.minimum(a, b) - h * h * (k * .25)


def smax(a, b, k):
    return -smin(-a, -b, k)


def to_head(c, x, y, z):
    """World point -> head coordinates: turn about the neck."""
    x, y, z = x - c.shift_x, y - c.shift_y + .75, z + .12
    return (c.r00 * x + c.r10 * y + c.r20 * z,
            c.r01 * x + c.r11 * y + c.r21 * z - .75,
            c.r02 * x + c.r12 * y + c.r22 * z - .12)


def to_body(c, x, y, z):
    x, y = x - c.shift_x * .6, y - c.shift_y
    return c.body_cos * x - c.body_sin * z, y, c.body_sin * x + c.body_cos * z


def skin(c, x, y, z):
    """Head without hair, in head coordinates."""
    s = x.abs()
    d = smin(ellipsoid(x, y - .24, z + .10, c.skull_w, c.skull_h, .80), ellipsoid(x, y + .30, z - .06, c.jaw_w, .66, .60), .25)
    d = smin(d, ellipsoid(x, y - c.chin_y, z - .34, c.chin_w, .17, .20), .22)
    d = smin(d, length(s - c.cheek_x, y + .20, z - .40) - c.cheek_r, .18)
    d = smin(d, ellipsoid(s - .24, y - .30, z - .57, .24, .06, .12) - c.ridge, .14)
    d = smax(d, .13 - length(s - c.eye_x, y - .09, z - .80), .12)
    tip = c.nose_y
    d = smin(d, capsule(x, y, z, (0., .14, .62), (0., tip, .79), .065), .10)
    d = smin(d, length(x, y - tip, z - .80) - c.nose_r, .08)
    d = smin(d, length(s - c.nose_w, y - tip + .01, z - .71) - .065, .06)
    # The upper and lower lip follow the smile: x bends y.
    bend = y - c.mouth_y - c.smile * (x * x / (c.mouth_w * c.mouth_w) - .4)
    d = smin(d, ellipsoid(x, bend - c.open - c.lip_h * .45, z - .60, c.mouth_w * .8, c.lip_h * .75, .13), .06)
    d = smin(d, ellipsoid(x, bend + c.open + c.lip_h * .55, z - .58, c.mouth_w * .7, c.lip_h * .85, .14), .06)
    return smin(d, ellipsoid(s - c.skull_w - .01, y - .02, z + .12, .07, c.ear_h, c.ear_h * .62), .06)


def eyes(c, x, y, z):
    return length(x.abs() - c.eye_x, y - .09, z - .45) - c.eye_r


def neck(c, x, y, z):
    return capsule(x, y, z, (0., -.7, -.14), (0., -1.9, -.22), c.neck_r)


def hair(c, x, y, z):
    s = x.abs()
    # Curls are a ripple on the surface; its slope stays below one, so marching stays safe.
    ripple = c.curl * .030 * (torch.sin(17 * x + 3 * z) * torch.sin(15 * y + 1.) * torch.sin(13 * z + 5 * y))
    d = ellipsoid(x, y - .26, z + .12, c.skull_w + c.cap, c.skull_h + c.cap, .80 + c.cap) - ripple
    d = smin(d, ellipsoid(x, y - .42, z + .30, .72 + .40 * c.bulk, .70 + .32 * c.bulk, .66 + .30 * c.bulk) - ripple + .6 * (c.bulk < .05), .12)
    d = smin(d, ellipsoid(x - .8 * c.part, y - .84, z - .30, .46, .16 + .20 * c.quiff, .42) + .5 * (c.quiff < .05), .16)
    line = c.line + c.part * x - .25 * x * x
    d = smax(d, .70 * (line + 1.0 * (z - .60) - y), .07)
    d = smax(d, c.nape - y, .10)
    side = ellipsoid(s - c.skull_w * .98, y + c.sides * .42 - .12, z + .16, .17, .42 + .62 * c.sides, .42) + .9 * (c.sides < .05)
    d = smin(d, side, .10)
    return smin(d, length(x, y - 1.12, z + .20) - .30 * c.bun + .9 * (c.bun < .05), .06) + .9 * (c.cap < -.5)


def clothes(c, x, y, z):
    """Body coordinates."""
    d = ellipsoid(x, y + 2.46, z + .22, c.shoulder, 1.0, .70)
    d = smin(d, capsule(x, y, z, (0., -1.42, -.2), (0., -1.9, -.22), c.neck_r + .10), .35)
    collar = capsule(x, y, z, (0., -1.10, -.16), (0., -1.7, -.22), c.neck_r + .055)
    return torch.minimum(d, collar + 3 * (1 - c.turtleneck))


def scarf(c, x, y, z):
    return length(length(x, z + .17) - .50, (y + 1.32) * .8) - .19 + .02 * torch.sin(9 * x) + 3 * (1 - c.scarf)


def headphones(c, x, y, z):
    s = x.abs()
    band = length((length(x / (c.skull_w + .11 + c.cap.clamp(min=0) * .5), (y - .1) / (c.skull_h + .24 + c.cap.clamp(min=0))) - 1) * .8, z + .06) - .06
    cup = ellipsoid(s - c.skull_w - .10, y - .02, z + .06, .12, .26, .24)
    return torch.minimum(torch.maximum(band, -y), cup) + 3 * (1 - c.headphones)


def glasses(c, x, y, z):
    s = x.abs()
    ring = length(length((s - c.eye_x - .01) * .87, y - .07) - .215, z - .76 + .25 * s * s) - .028
    bridge = capsule(s, y, z, (0., .12, .83), (.10, .12, .80), .024)
    arm = capsule(s, y, z, (c.eye_x + .24, .11, .64), (c.skull_w + .01, .08, -.05), .024)
    return torch.minimum(torch.minimum(ring, bridge), arm) + 3 * (1 - c.glasses)


def hand(c, x, y, z):
    """Open palm beside the head, and its forearm (a second distance: it wears the sleeve). Body coordinates."""
    px, py = x - c.side * 1.00, y + 1.22
    u = (c.wave_cos * px + c.wave_sin * py) * c.side
    v = c.wave_cos * py - c.wave_sin * px
    w = z - .75
    palm = ellipsoid(u, v - .42, w, .165, .20, .09)
    place = (torch.floor(u / .088).clamp(-2, 1) + .5) * .088
    fingers = capsule(u - place, v, w, (0., .52, 0.), (0., .80, .02), .038)
    thumb = capsule(u, v, w, (-.12, .34, .02), (-.26, .54, .05), .042)
    d = smin(smin(palm, fingers * .8, .04), thumb, .04)
    far = 9 * (1 - c.wave)
    return d + far, capsule(u, v, w, (0., .20, 0.), (.05, -1.2, -.1), .13) + far


def distance(c, x, y, z):
    """Distance to the nearest surface of any kind: what the ray marcher walks on."""
    h, b = to_head(c, x, y, z), to_body(c, x, y, z)
    palm, arm = hand(c, *b)
    d = smin(skin(c, *h), neck(c, *b), .12)
    for other in (eyes(c, *h), hair(c, *h), glasses(c, *h), headphones(c, *h), clothes(c, *b), scarf(c, *b), palm, arm):
        d = torch.minimum(d, other)
    return d
