"""Colour of the rendered world: materials painted on the shapes of shape.py, light, and backgrounds."""
import torch

import shape


def step(edge0, edge1, x):
    """Smoothstep; edge0 > edge1 falls."""
    t = ((x - edge0) / (edge1 - edge0)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def blend(a, b, m):
    return tuple(p + (q - p) * m for p, q in zip(a, b))


def times(a, k):
    return tuple(p * k for p in a)


def rgb(c, name):
    return tuple(getattr(c, f"{name}_{ch}") for ch in "rgb")


def face(c, x, y, z):
    """Skin with eyes, brows, mouth, beard and marks, in head coordinates. Returns colour, gloss, mask of the features."""
    s = x.abs()
    front = step(.15, .35, z)
    base = rgb(c, "skin")
    col = base
    # Blush on cheeks and nose, darker eye sockets: what keeps a face from looking like clay.
    red = tuple(p * q for p, q in zip(base, (1.02, .74, .70)))
    col = blend(col, red, front * .55 * torch.exp(-((s - .36) ** 2 + (y + .22) ** 2) / .05))
    col = blend(col, red, front * .45 * torch.exp(-(x * x + (y - c.nose_y) ** 2) / .018))
    dark = tuple(p * q for p, q in zip(base, (.62, .50, .46)))
    col = blend(col, dark, front * .30 * torch.exp(-((s - c.eye_x) ** 2 / .045 + (y - .10) ** 2 / .02)))
    # Age: forehead, under the eyes, beside the mouth.
    a = (c.age - .35).clamp(min=0)
    wave = .02 * torch.cos(6 * x)
    lines = sum(torch.exp(-((y - h - wave) / .018) ** 2) for h in (.50, .62)) * step(.45, .30, s)
    lines = lines + torch.exp(-(((s - c.eye_x) ** 2 * 1.2 + y - .09 + c.eye_h + .075) / .02) ** 2) * step(.16, .10, (s - c.eye_x).abs())
    fold = s - .15 - .16 * (c.nose_y - y) / .3 - c.smile * .5
    lines = lines + 1.2 * torch.exp(-(fold / .022) ** 2) * step(c.nose_y + .06, c.nose_y - .06, y) * step(c.mouth_y - .12, c.mouth_y, y)
    col = blend(col, dark, (front * 1.0 * a * lines).clamp(0, .75))
    # Freckles and a mole.
    dots = step(.62, .85, torch.sin(37 * x + 11 * y) * torch.sin(41 * y - 7 * x + 1)) * torch.exp(-((y + .12) / .20) ** 2) * step(.62, .45, s)
    col = blend(col, tuple(p * q for p, q in zip(base, (.60, .40, .30))), front * c.freckles * dots * .9)
    spot = step(.050, .025, shape.length(x - c.mole_x, y - c.mole_y))
    col = blend(col, (.05, .025, .02), front * c.mole * spot * .9)
    # Beard: hair colour, a little darker, over jaw, chin and upper lip.
    fuzz = times(rgb(c, "hair"), .75)
    mouth = (y - c.mouth_y) / .10
    jaw = step(.00, -.16, y + .34 - .66 * (s - .30).clamp(min=0)) * step(-.25, .0, z + .1) * step(-1.10, -.98, y)
    lip_zone = step(.30, .24, s) * torch.exp(-((y - (c.mouth_y + c.nose_y) * .5 + .035) / .052) ** 2)
    chin = step(.27, .20, s) * step(c.mouth_y - .10, c.mouth_y - .17, y) * front
    keep_lips = 1 - torch.exp(-(mouth * mouth + (x / (c.mouth_w * .9)) ** 2) * 1.2)
    col = blend(col, blend(base, fuzz, .55), c.stubble * jaw * (.60 * keep_lips))
    col = blend(col, fuzz, (torch.maximum(c.full * jaw * keep_lips, torch.maximum(c.moustache * lip_zone * front, c.goatee * chin)) * .92))
    # Mouth: lips around an opening, teeth when laughing.
    u = x / (c.mouth_w * (1 + .9 * c.smile.clamp(min=0) + .3 * c.smile - 1.6 * c.open * (c.smile < .02)))
    arch = (1 - u * u).clamp(min=0)
    yc = y - c.mouth_y - c.smile * (u * u - .4)
    lip = tuple(p * q for p, q in zip(base, (.86, .46, .46)))
    lip = blend(lip, (.52, .07, .08), .45 * c.fem)
    over = step(.02, -.02, yc - c.open * arch ** .5 - c.lip_h * arch * (1 - .25 * torch.exp(-(x / .05) ** 2)))
    under = step(-.02, .02, yc + c.open * arch ** .5 + c.lip_h * 1.15 * arch)
    lips = over * under * step(0, .12, arch) * front
    col = blend(col, lip, lips * .9)
    gap = step(.012, -.012, yc.abs() - c.open * arch ** .5 - .002) * step(0, .2, arch) * front
    inside = blend((.10, .015, .015), (.88, .86, .80), step(-.01, .02, yc - c.open * .1) * (c.smile > .03) * (c.open > .02))
    col = blend(col, blend(times(lip, .25), inside, step(0, .02, c.open)), gap * .95)
    # Brows.
    v = (s - c.eye_x - .01) / .205
    by = y - c.brow_y - c.raise_ - c.brow_a * (s - c.eye_x) * .6 + c.slant * (s - c.eye_x) + .05 * v * v
    brow = step(.022, -.022, by.abs() - c.brow_t * (1 - .45 * (v + .3).clamp(min=0))) * step(1.05, .85, v.abs())
    col = blend(col, times(rgb(c, "hair"), .55), front * brow * .9)
    # Eyes: an almond cut in the lids; sclera, iris, pupil, a light; lashes along the upper lid.
    ex, ey = (s - c.eye_x) / c.eye_w, y - .09 - c.eye_tilt * (s - c.eye_x)
    lid = (1 - ex * ex).clamp(min=0)
    h = c.eye_h * c.eye_open
    top, bottom = ey - h * lid, -ey - .75 * c.eye_h * lid * c.eye_open.clamp(max=1.15)
    hole = step(.014, -.014, torch.maximum(top, bottom)) * front * step(0, .1, lid)
    gx, gy = x - torch.sign(x) * c.eye_x - c.gaze_x * .16, y - .09 - c.gaze_y * .12
    r = shape.length(gx, gy)
    iris = rgb(c, "iris")
    eye = blend((.86, .85, .83), times(iris, .45), step(.102, .084, r))
    eye = blend(eye, times(iris, 1.15), step(.082, .066, r))
    eye = blend(eye, (.01, .01, .012), step(.046, .032, r))
    eye = times(eye, .72 + .28 * step(.0, -.06, top))
    eye = blend(eye, (1., 1., 1.), step(.030, .016, shape.length(gx - .03, gy - .035)))
    col = blend(col, eye, hole)
    lash = torch.exp(-(top / (.016 + .010 * c.fem)) ** 2) * step(1.15, 1.0, ex.abs()) * front
    col = blend(col, (.03, .02, .02), lash * (.65 + .3 * c.fem))
    features = torch.exp(-((s - c.eye_x) ** 2 / .05 + (y - .16) ** 2 / .06)) + torch.exp(-(x * x / .12 + (y - c.mouth_y) ** 2 / .025)) + torch.exp(-(x * x / .03 + (y - c.nose_y) ** 2 / .03))
    return col, .10 + .5 * hole, front * (.55 + .45 * features.clamp(0, 1))


def background(c, u, v):
    """Soft, out of focus; u and v in [-1, 1]. One of eight."""
    k = c.background
    seed = c.bg_seed * 6.28
    n1 = torch.sin(2.1 * u + 1.3 * v + seed) * torch.sin(1.7 * v - 1.1 * u + 2 * seed)
    n2 = torch.sin(5.3 * u + 2 * seed) * torch.sin(4.7 * v + 3 * seed)
    one = torch.ones_like(u)
    flat = lambda *rgb: tuple(one * q for q in rgb)
    grey = times(flat(.42, .42, .43), 1.05 - .28 * (u * u + v * v) + .04 * n1)
    blue = times(flat(.10, .24, .46), 1.0 + .12 * v + .06 * n1)
    sun = blend(flat(.95, .38, .12), flat(.20, .14, .40), step(-.5, .9, v + .06 * n1))
    green = blend(flat(.03, .12, .04), flat(.22, .42, .10), step(-.9, .9, n1 + .5 * n2 + .4 * v))
    sand = blend(flat(.72, .56, .34), blend(flat(.05, .28, .42), flat(.38, .62, .86), step(.12, .2, v)), step(-.30, -.22, v + .02 * n1))
    night = blend(flat(.015, .018, .045), flat(.05, .05, .12), step(.5, -1., v))
    for i, tint in enumerate(((1., .55, .18), (.25, .6, 1.), (1., .3, .35), (.95, .85, .5), (.3, .9, .6), (1., .6, .3))):
        bx, byy = torch.sin(seed * (i + 1.3) + 2.1 * i) * .95, .15 + .75 * torch.sin(seed * (i + .7) + 1.7 * i)
        night = blend(night, tint, .75 * step(.22, .10, shape.length(u - bx, v - byy)))
    snow = blend(flat(.80, .84, .90), flat(.36, .50, .70), step(-.25 + .0 * v, .35, v + .10 * torch.sin(2.2 * u + seed)))
    fold = .5 + .5 * torch.sin(9 * u + .6 * torch.sin(2 * u + seed) + seed)
    red = times(flat(.42, .03, .04), .45 + .75 * fold)
    out = grey
    for i, other in enumerate((blue, sun, green, sand, night, snow, red)):
        out = blend(out, other, (k == i + 1).float())
    return out


def colour(names, table, u, v, x, y, z, nx, ny, nz, ao, dx, dy, dz):
    """Colour of every ray at its hit (x, y, z) with its normal and openness: r, g, b in [0, 1] (display) and the face mask."""
    c = shape.Constants(names, table)
    h, b = shape.to_head(c, x, y, z), shape.to_body(c, x, y, z)
    palm, arm = shape.hand(c, *b)
    d_skin = torch.minimum(torch.minimum(shape.skin(c, *h), shape.eyes(c, *h)), shape.neck(c, *b))
    d_hair = shape.hair(c, *h)
    d_cloth = torch.minimum(shape.clothes(c, *b), arm)
    col, gloss, mask = face(c, *h)
    near = d_skin

    def over(col, gloss, mask, near, d, colour, shine, keep=0.):
        m = step(.010, -.010, d - near)
        return blend(col, colour, m), gloss + (shine - gloss) * m, mask * (1 - m * (1 - keep)), torch.minimum(near, d)

    # Hair: strands as a faint stripe along the head, darker at the roots.
    ang = torch.atan2(h[0], h[2] + .3)
    strand = .90 + .10 * torch.sin(26 * ang + 3 * torch.sin(4 * h[1])) * (1 - .5 * c.curl) + .10 * c.curl * torch.sin(17 * h[0]) * torch.sin(15 * h[1])
    col, gloss, mask, near = over(col, gloss, mask, near, d_hair, times(rgb(c, "hair"), strand), .22)
    cloth = rgb(c, "cloth")
    stripe = step(-.25, .25, torch.sin(21 * b[1])) * c.striped
    cloth = blend(cloth, tuple(.88 - .75 * q for q in cloth), stripe * .85)
    neckline = step(1.05, .95, shape.length(b[0] / .52, (b[1] + 1.42) / .30)) * (1 - c.turtleneck)
    cloth = blend(cloth, rgb(c, "skin"), neckline * (arm > shape.clothes(c, *b)).float())
    col, gloss, mask, near = over(col, gloss, mask, near, d_cloth, cloth, .03)
    col, gloss, mask, near = over(col, gloss, mask, near, palm, rgb(c, "skin"), .10)
    col, gloss, mask, near = over(col, gloss, mask, near, shape.scarf(c, *b), times(rgb(c, "scarf"), .85 + .15 * torch.sin(14 * b[1] + 6 * b[0])), .02)
    col, gloss, mask, near = over(col, gloss, mask, near, shape.headphones(c, *h), (.035, .035, .04), .35)
    col, gloss, mask, near = over(col, gloss, mask, near, shape.glasses(c, *h), (.02, .02, .025), .4, keep=1.)
    # Light: wrapped key, sky and bounce, a rim, a soft highlight.
    wrap = ((nx * c.lx + ny * c.ly + nz * c.lz + .35) / 1.35).clamp(0, 1)
    key = (1.05 * c.hard + .35) * wrap * wrap.sqrt()
    sky = (.62 - .38 * c.hard) * (.75 + .25 * ny) + .10
    rim = .22 * (1 - nz.clamp(0, 1)) ** 3 * (.4 + .6 * (ny + nx * torch.sign(-c.lx)).clamp(0, 1))
    hx, hy, hz = c.lx - dx, c.ly - dy, c.lz - dz
    spec = ((nx * hx + ny * hy + nz * hz) / shape.length(hx, hy, hz)).clamp(0, 1) ** 24 * gloss
    lit = tuple((q * (key * k + sky) + spec * k * .6 + rim * q) * ao for q, k in zip(col, (c.key_r, c.key_g, c.key_b)))
    miss = step(.03, .06, near)
    lit = blend(lit, background(c, u, v), miss)
    return (*(q.clamp(1e-4, 1) ** (1 / 2.2) for q in lit), mask * (1 - miss) * (h[1] > -1.12).float())
