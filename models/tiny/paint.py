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
    """Skin with eyes, brows, mouth, beard and marks, in head coordinates: colour, gloss and a mask of the features."""
    s = x.abs()
    front = step(0.15, 0.35, z)
    base = rgb(c, "skin")
    col = base
    # Blush on cheeks and nose, darker eye sockets: what keeps a face from looking like clay.
    red = tuple(p * q for p, q in zip(base, (1.02, 0.74, 0.70)))
    col = blend(col, red, front * 0.55 * torch.exp(-((s - 0.36) ** 2 + (y + 0.22) ** 2) / 0.05))
    col = blend(col, red, front * 0.45 * torch.exp(-(x * x + (y - c.nose_y) ** 2) / 0.018))
    dark = tuple(p * q for p, q in zip(base, (0.62, 0.50, 0.46)))
    col = blend(col, dark, front * 0.30 * torch.exp(-((s - c.eye_x) ** 2 / 0.045 + (y - 0.10) ** 2 / 0.02)))
    # Age: forehead, under the eyes, beside the mouth.
    a = (c.age - 0.35).clamp(min=0)
    wave = 0.02 * torch.cos(6 * x)
    lines = sum(torch.exp(-(((y - h - wave) / 0.018) ** 2)) for h in (0.50, 0.62)) * step(0.45, 0.30, s)
    lines = lines + torch.exp(-((((s - c.eye_x) ** 2 * 1.2 + y - 0.09 + c.eye_h + 0.075) / 0.02) ** 2)) * step(
        0.16, 0.10, (s - c.eye_x).abs()
    )
    fold = s - 0.15 - 0.16 * (c.nose_y - y) / 0.3 - c.smile * 0.5
    lines = lines + 1.2 * torch.exp(-((fold / 0.022) ** 2)) * step(c.nose_y + 0.06, c.nose_y - 0.06, y) * step(
        c.mouth_y - 0.12, c.mouth_y, y
    )
    col = blend(col, dark, (front * 1.0 * a * lines).clamp(0, 0.75))
    # Freckles and a mole.
    dots = (
        step(0.62, 0.85, torch.sin(37 * x + 11 * y) * torch.sin(41 * y - 7 * x + 1))
        * torch.exp(-(((y + 0.12) / 0.20) ** 2))
        * step(0.62, 0.45, s)
    )
    col = blend(col, tuple(p * q for p, q in zip(base, (0.60, 0.40, 0.30))), front * c.freckles * dots * 0.9)
    spot = step(0.050, 0.025, shape.length(x - c.mole_x, y - c.mole_y))
    col = blend(col, (0.05, 0.025, 0.02), front * c.mole * spot * 0.9)
    # Beard: hair colour, a little darker, over jaw, chin and upper lip.
    fuzz = times(rgb(c, "hair"), 0.75)
    mouth = (y - c.mouth_y) / 0.10
    jaw = (
        step(0.00, -0.16, y + 0.34 - 0.66 * (s - 0.30).clamp(min=0)) * step(-0.25, 0.0, z + 0.1) * step(-1.10, -0.98, y)
    )
    lip_zone = step(0.30, 0.24, s) * torch.exp(-(((y - (c.mouth_y + c.nose_y) * 0.5 + 0.035) / 0.052) ** 2))
    chin = step(0.27, 0.20, s) * step(c.mouth_y - 0.10, c.mouth_y - 0.17, y) * front
    keep_lips = 1 - torch.exp(-(mouth * mouth + (x / (c.mouth_w * 0.9)) ** 2) * 1.2)
    col = blend(col, blend(base, fuzz, 0.55), c.stubble * jaw * (0.60 * keep_lips))
    col = blend(
        col,
        fuzz,
        (
            torch.maximum(c.full * jaw * keep_lips, torch.maximum(c.moustache * lip_zone * front, c.goatee * chin))
            * 0.92
        ),
    )
    # Mouth: lips around an opening, teeth when laughing.
    u = x / (c.mouth_w * (1 + 0.9 * c.smile.clamp(min=0) + 0.3 * c.smile - 1.6 * c.open * (c.smile < 0.02)))
    arch = (1 - u * u).clamp(min=0)
    yc = y - c.mouth_y - c.smile * (u * u - 0.4)
    lip = tuple(p * q for p, q in zip(base, (0.86, 0.46, 0.46)))
    lip = blend(lip, (0.52, 0.07, 0.08), 0.45 * c.fem)
    over = step(0.02, -0.02, yc - c.open * arch**0.5 - c.lip_h * arch * (1 - 0.25 * torch.exp(-((x / 0.05) ** 2))))
    under = step(-0.02, 0.02, yc + c.open * arch**0.5 + c.lip_h * 1.15 * arch)
    lips = over * under * step(0, 0.12, arch) * front
    col = blend(col, lip, lips * 0.9)
    gap = step(0.012, -0.012, yc.abs() - c.open * arch**0.5 - 0.002) * step(0, 0.2, arch) * front
    inside = blend(
        (0.10, 0.015, 0.015),
        (0.88, 0.86, 0.80),
        step(-0.01, 0.02, yc - c.open * 0.1) * (c.smile > 0.03) * (c.open > 0.02),
    )
    col = blend(col, blend(times(lip, 0.25), inside, step(0, 0.02, c.open)), gap * 0.95)
    # Brows.
    v = (s - c.eye_x - 0.01) / 0.205
    by = y - c.brow_y - c.raise_ - c.brow_a * (s - c.eye_x) * 0.6 + c.slant * (s - c.eye_x) + 0.05 * v * v
    brow = step(0.022, -0.022, by.abs() - c.brow_t * (1 - 0.45 * (v + 0.3).clamp(min=0))) * step(1.05, 0.85, v.abs())
    col = blend(col, times(rgb(c, "hair"), 0.55), front * brow * 0.9)
    # Eyes: an almond cut in the lids; sclera, iris, pupil, a light; lashes along the upper lid.
    ex, ey = (s - c.eye_x) / c.eye_w, y - 0.09 - c.eye_tilt * (s - c.eye_x)
    lid = (1 - ex * ex).clamp(min=0)
    h = c.eye_h * c.eye_open
    top, bottom = ey - h * lid, -ey - 0.75 * c.eye_h * lid * c.eye_open.clamp(max=1.15)
    hole = step(0.014, -0.014, torch.maximum(top, bottom)) * front * step(0, 0.1, lid)
    gx, gy = x - torch.sign(x) * c.eye_x - c.gaze_x * 0.16, y - 0.09 - c.gaze_y * 0.12
    r = shape.length(gx, gy)
    iris = rgb(c, "iris")
    eye = blend((0.86, 0.85, 0.83), times(iris, 0.45), step(0.102, 0.084, r))
    eye = blend(eye, times(iris, 1.15), step(0.082, 0.066, r))
    eye = blend(eye, (0.01, 0.01, 0.012), step(0.046, 0.032, r))
    eye = times(eye, 0.72 + 0.28 * step(0.0, -0.06, top))
    eye = blend(eye, (1.0, 1.0, 1.0), step(0.030, 0.016, shape.length(gx - 0.03, gy - 0.035)))
    col = blend(col, eye, hole)
    lash = torch.exp(-((top / (0.016 + 0.010 * c.fem)) ** 2)) * step(1.15, 1.0, ex.abs()) * front
    col = blend(col, (0.03, 0.02, 0.02), lash * (0.65 + 0.3 * c.fem))
    features = (
        torch.exp(-((s - c.eye_x) ** 2 / 0.05 + (y - 0.16) ** 2 / 0.06))
        + torch.exp(-(x * x / 0.12 + (y - c.mouth_y) ** 2 / 0.025))
        + torch.exp(-(x * x / 0.03 + (y - c.nose_y) ** 2 / 0.03))
    )
    return col, 0.10 + 0.5 * hole, front * (0.55 + 0.45 * features.clamp(0, 1))


def background(c, u, v):
    """Soft, out of focus; u and v in [-1, 1]. One of eight."""
    k = c.background
    seed = c.bg_seed * 6.28
    n1 = torch.sin(2.1 * u + 1.3 * v + seed) * torch.sin(1.7 * v - 1.1 * u + 2 * seed)
    n2 = torch.sin(5.3 * u + 2 * seed) * torch.sin(4.7 * v + 3 * seed)
    one = torch.ones_like(u)
    flat = lambda *rgb: tuple(one * q for q in rgb)
    grey = times(flat(0.42, 0.42, 0.43), 1.05 - 0.28 * (u * u + v * v) + 0.04 * n1)
    blue = times(flat(0.10, 0.24, 0.46), 1.0 + 0.12 * v + 0.06 * n1)
    sun = blend(flat(0.95, 0.38, 0.12), flat(0.20, 0.14, 0.40), step(-0.5, 0.9, v + 0.06 * n1))
    green = blend(flat(0.03, 0.12, 0.04), flat(0.22, 0.42, 0.10), step(-0.9, 0.9, n1 + 0.5 * n2 + 0.4 * v))
    sand = blend(
        flat(0.72, 0.56, 0.34),
        blend(flat(0.05, 0.28, 0.42), flat(0.38, 0.62, 0.86), step(0.12, 0.2, v)),
        step(-0.30, -0.22, v + 0.02 * n1),
    )
    night = blend(flat(0.015, 0.018, 0.045), flat(0.05, 0.05, 0.12), step(0.5, -1.0, v))
    for i, tint in enumerate(
        ((1.0, 0.55, 0.18), (0.25, 0.6, 1.0), (1.0, 0.3, 0.35), (0.95, 0.85, 0.5), (0.3, 0.9, 0.6), (1.0, 0.6, 0.3))
    ):
        bx, byy = torch.sin(seed * (i + 1.3) + 2.1 * i) * 0.95, 0.15 + 0.75 * torch.sin(seed * (i + 0.7) + 1.7 * i)
        night = blend(night, tint, 0.75 * step(0.22, 0.10, shape.length(u - bx, v - byy)))
    snow = blend(
        flat(0.80, 0.84, 0.90),
        flat(0.36, 0.50, 0.70),
        step(-0.25 + 0.0 * v, 0.35, v + 0.10 * torch.sin(2.2 * u + seed)),
    )
    fold = 0.5 + 0.5 * torch.sin(9 * u + 0.6 * torch.sin(2 * u + seed) + seed)
    red = times(flat(0.42, 0.03, 0.04), 0.45 + 0.75 * fold)
    out = grey
    for i, other in enumerate((blue, sun, green, sand, night, snow, red)):
        out = blend(out, other, (k == i + 1).float())
    return out


def colour(names, table, u, v, x, y, z, nx, ny, nz, ao, dx, dy, dz):
    """Every ray at its hit (x, y, z), with normal and openness ao: r, g, b in [0, 1] (display) and the face mask."""
    c = shape.Constants(names, table)
    h, b = shape.to_head(c, x, y, z), shape.to_body(c, x, y, z)
    palm, arm = shape.hand(c, *b)
    d_skin = torch.minimum(torch.minimum(shape.skin(c, *h), shape.eyes(c, *h)), shape.neck(c, *b))
    d_hair = shape.hair(c, *h)
    d_cloth = torch.minimum(shape.clothes(c, *b), arm)
    col, gloss, mask = face(c, *h)
    near = d_skin

    def over(col, gloss, mask, near, d, colour, shine, keep=0.0):
        m = step(0.010, -0.010, d - near)
        return blend(col, colour, m), gloss + (shine - gloss) * m, mask * (1 - m * (1 - keep)), torch.minimum(near, d)

    # Hair: strands as a faint stripe along the head, darker at the roots.
    ang = torch.atan2(h[0], h[2] + 0.3)
    strand = (
        0.90
        + 0.10 * torch.sin(26 * ang + 3 * torch.sin(4 * h[1])) * (1 - 0.5 * c.curl)
        + 0.10 * c.curl * torch.sin(17 * h[0]) * torch.sin(15 * h[1])
    )
    col, gloss, mask, near = over(col, gloss, mask, near, d_hair, times(rgb(c, "hair"), strand), 0.22)
    cloth = rgb(c, "cloth")
    stripe = step(-0.25, 0.25, torch.sin(21 * b[1])) * c.striped
    cloth = blend(cloth, tuple(0.88 - 0.75 * q for q in cloth), stripe * 0.85)
    neckline = step(1.05, 0.95, shape.length(b[0] / 0.52, (b[1] + 1.42) / 0.30)) * (1 - c.turtleneck)
    cloth = blend(cloth, rgb(c, "skin"), neckline * (arm > shape.clothes(c, *b)).float())
    col, gloss, mask, near = over(col, gloss, mask, near, d_cloth, cloth, 0.03)
    col, gloss, mask, near = over(col, gloss, mask, near, palm, rgb(c, "skin"), 0.10)
    col, gloss, mask, near = over(
        col,
        gloss,
        mask,
        near,
        shape.scarf(c, *b),
        times(rgb(c, "scarf"), 0.85 + 0.15 * torch.sin(14 * b[1] + 6 * b[0])),
        0.02,
    )
    col, gloss, mask, near = over(col, gloss, mask, near, shape.headphones(c, *h), (0.035, 0.035, 0.04), 0.35)
    col, gloss, mask, near = over(col, gloss, mask, near, shape.glasses(c, *h), (0.02, 0.02, 0.025), 0.4, keep=1.0)
    # Light: wrapped key, sky and bounce, a rim, a soft highlight.
    wrap = ((nx * c.lx + ny * c.ly + nz * c.lz + 0.35) / 1.35).clamp(0, 1)
    key = (1.05 * c.hard + 0.35) * wrap * wrap.sqrt()
    sky = (0.62 - 0.38 * c.hard) * (0.75 + 0.25 * ny) + 0.10
    rim = 0.22 * (1 - nz.clamp(0, 1)) ** 3 * (0.4 + 0.6 * (ny + nx * torch.sign(-c.lx)).clamp(0, 1))
    hx, hy, hz = c.lx - dx, c.ly - dy, c.lz - dz
    spec = ((nx * hx + ny * hy + nz * hz) / shape.length(hx, hy, hz)).clamp(0, 1) ** 24 * gloss
    lit = tuple((q * (key * k + sky) + spec * k * 0.6 + rim * q) * ao for q, k in zip(col, (c.key_r, c.key_g, c.key_b)))
    miss = step(0.03, 0.06, near)
    lit = blend(lit, background(c, u, v), miss)
    return (*(q.clamp(1e-4, 1) ** (1 / 2.2) for q in lit), mask * (1 - miss) * (h[1] > -1.12).float())
