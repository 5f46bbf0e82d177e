"""The things that stand in a landscape, drawn where they stand.

x, y is the middle of a thing's foot and s its size; f is 1 or -1, the way it
faces.  An even tone and its shade (dk, wd, rd ...) are all that a thing has.
"""

import math

import numpy as np

from canvas import mix, pick, tone
from landscape import palm, pine, round_tree
from palette import LEAF


def shadow(canvas, x, y, w):
    """On the ground, away from the light."""
    canvas.ellipse(
        x + w * 0.12 * canvas.side,
        y + 0.5,
        w,
        w * 0.13,
        canvas.lit((20, 30, 60)),
        blur=2.2,
        alpha=0.38,
    )


def window_colour(canvas, scene):
    """Lamps in the evening, the sky by day."""
    return (
        tone(255, 214, 118)
        if scene["time"] in ("night", "dusk", "sunset")
        else tone(176, 216, 240) * canvas.tint
    )


def house(canvas, scene, x, y, s, rgb):
    """Gable end and long side, chimney, windows; it glows at night."""
    rng = canvas.rng
    w, h = 33 * s, 27 * s
    shadow(canvas, x, y, w * 1.15)
    wall, wd = canvas.lit(rgb), canvas.lit(mix(rgb, (40, 20, 70), 0.36))
    f = -canvas.side
    roof = canvas.lit(pick(rng, [(96, 66, 62), (74, 74, 92), (122, 72, 56)]))
    rd = mix(roof, (20, 14, 40), 0.3)
    gx = x - f * w * 0.30
    gw = w * 0.42  # gable end and long side
    l0, l1 = gx - gw / 2, gx + gw / 2
    o0, o1 = (l1, x + w * 0.5 + w * 0.12) if f > 0 else (x - w * 0.5 - w * 0.12, l0)
    if rng.random() < 0.8:
        chx = x + f * w * 0.28
        canvas.rectangle(
            chx - 3 * s,
            y - h * 1.72,
            chx + 3 * s,
            y - h * 1.1,
            canvas.lit((132, 80, 70)),
        )
        if rng.random() < 0.5:
            for k in range(4):
                canvas.ellipse(
                    chx + k * 3.2 * s * f + rng.normal(),
                    y - h * 1.85 - k * 6 * s,
                    (2.6 + k * 1.3) * s,
                    (2.2 + k) * s,
                    canvas.lit((240, 240, 245), 0.15),
                    blur=1.6,
                    alpha=0.55 - 0.09 * k,
                )
    canvas.rectangle(o0, y - h, o1, y, mix(wall, wd, 0.55), wd)
    canvas.polygon(
        [(l0, y), (l0, y - h), (gx, y - h * 1.62), (l1, y - h), (l1, y)],
        wall,
        mix(wall, wd, 0.3),
    )
    e0, e1 = min(o0, o1) - 2 * s, max(o0, o1) + 2 * s
    if f > 0:
        canvas.polygon(
            [
                (gx, y - h * 1.68),
                (e1 - 5 * s, y - h * 1.68),
                (e1 + 1.5 * s, y - h * 0.94),
                (l1, y - h * 0.94),
            ],
            roof,
            rd,
        )
    else:
        canvas.polygon(
            [
                (gx, y - h * 1.68),
                (e0 + 5 * s, y - h * 1.68),
                (e0 - 1.5 * s, y - h * 0.94),
                (l0, y - h * 0.94),
            ],
            roof,
            rd,
        )
    t = 2.6 * s
    canvas.polygon(
        [
            (l0 - 2.6 * s, y - h * 0.93),
            (gx, y - h * 1.72),
            (l1 + 2.6 * s, y - h * 0.93),
            (l1 + 2.6 * s, y - h * 0.93 - t),
            (gx, y - h * 1.72 - t),
            (l0 - 2.6 * s, y - h * 0.93 - t),
        ],
        mix(roof, (255, 255, 255), 0.12),
    )
    wc = window_colour(canvas, scene)
    fr = canvas.lit((250, 246, 238)) if sum(rgb) < 640 else canvas.lit((110, 92, 90))

    def win(wx, wy, ww, wh):
        canvas.rectangle(
            wx - ww - 1 * s, wy - wh - 1 * s, wx + ww + 1 * s, wy + wh + 1 * s, fr
        )
        canvas.rectangle(wx - ww, wy - wh, wx + ww, wy + wh, wc)
        canvas.line([(wx, wy - wh), (wx, wy + wh)], 1.5 * s, fr)

    canvas.rectangle(
        gx - 3.3 * s,
        y - 12 * s,
        gx + 3.3 * s,
        y,
        canvas.lit((110, 66, 46)),
        canvas.lit((84, 50, 40)),
    )
    if s > 0.75:
        win(gx, y - h * 1.12, 2.3 * s, 2.8 * s)
    om = (o0 + o1) / 2
    win(om - w * 0.15, y - h * 0.5, 3.1 * s, 3.9 * s)
    win(om + w * 0.15, y - h * 0.5, 3.1 * s, 3.9 * s)
    if scene["time"] in ("night", "dusk"):
        canvas.glow(om, y - h * 0.45, 17 * s, (255, 200, 110), 0.38, 1.4)


def boat(canvas, scene, x, y, s, rgb):
    """A sailboat: the colour is that of the sails."""
    f = 1 if canvas.rng.random() < 0.5 else -1
    hull = (
        canvas.lit((126, 76, 54))
        if canvas.rng.random() < 0.6
        else canvas.lit((240, 236, 230))
    )
    sail = canvas.lit(rgb)
    sd = canvas.lit(mix(rgb, (50, 30, 80), 0.3))
    canvas.ellipse(
        x, y + 2 * s, 26 * s, 2.6 * s, canvas.lit((20, 30, 60)), blur=1.5, alpha=0.4
    )
    for k in range(5):
        canvas.ellipse(
            x + canvas.rng.normal() * 5 * s,
            y + (5 + k * 5) * s,
            (12 - k * 1.6) * s,
            1.5 * s,
            sail,
            alpha=0.4 - 0.06 * k,
        )
    canvas.rectangle(
        x - 1.3 * s, y - 48 * s, x + 1.3 * s, y - 4 * s, canvas.lit((88, 60, 48))
    )
    canvas.polygon(
        [
            (x + 2 * s * f, y - 47 * s),
            (x + 12 * s * f, y - 26 * s),
            (x + 23 * s * f, y - 9 * s),
            (x + 2 * s * f, y - 9 * s),
        ],
        sail,
        sd,
    )
    canvas.polygon(
        [
            (x - 2 * s * f, y - 42 * s),
            (x - 16 * s * f, y - 10 * s),
            (x - 2 * s * f, y - 10 * s),
        ],
        mix(sail, sd, 0.35),
        sd,
    )
    canvas.polygon(
        [
            (x - 22 * s, y - 6.5 * s),
            (x + 24 * s, y - 6.5 * s),
            (x + 16 * s, y + 2 * s),
            (x - 16 * s, y + 2 * s),
        ],
        hull,
        mix(hull, (30, 16, 40), 0.4),
    )
    canvas.rectangle(
        x - 22 * s,
        y - 7.5 * s,
        x + 24 * s,
        y - 5.6 * s,
        mix(hull, (255, 255, 255), 0.4),
    )


def balloon(canvas, scene, x, y, r, rgb):
    """A hot air balloon of radius r, striped."""
    a, b = canvas.lit(rgb, 0.06, 0.8), canvas.lit(
        mix((250, 240, 218), rgb, 0.12) if sum(rgb) < 690 else (214, 84, 78), 0.06, 0.8
    )
    if scene["time"] in ("night", "dusk"):
        canvas.glow(x, y + r * 0.3, r * 1.9, (255, 190, 110), 0.3, 1.5)
    dk = canvas.lit((40, 24, 70))

    def env(k):
        pts = []
        for t in np.linspace(-math.pi, 0, 21):
            pts.append((x + math.cos(t) * r * k, y + math.sin(t) * r))
        return pts + [
            (x + r * k * 0.86, y + r * 0.55),
            (x + r * 0.28 * max(k, 0.35), y + r * 1.22),
            (x - r * 0.28 * max(k, 0.35), y + r * 1.22),
            (x - r * k * 0.86, y + r * 0.55),
        ]

    for i, k in enumerate((1.0, 0.74, 0.42, 0.15)):
        canvas.polygon(env(k), a if i % 2 == 0 else b)
    canvas.polygon(env(1.0), (255, 250, 235), dk, alpha=0.16)
    m = canvas.mask(
        lambda d, place: d.polygon(place(env(1.0)), fill=255),
        (x - r, y - r, x + r, y + r * 1.25),
    )
    if m is not None:
        canvas.fill(
            m,
            (x - r, y, x + r, y + r),
            mix(a, (255, 255, 240), 0.6) if canvas.side > 0 else dk,
            dk if canvas.side > 0 else mix(a, (255, 255, 240), 0.6),
            0.22,
            horiz=True,
        )
    for sx in (-1, 1):
        canvas.line(
            [(x + sx * r * 0.24, y + r * 1.22), (x + sx * r * 0.15, y + r * 1.52)],
            1.6,
            canvas.lit((70, 50, 50)),
        )
    canvas.rectangle(
        x - r * 0.18,
        y + r * 1.5,
        x + r * 0.18,
        y + r * 1.76,
        canvas.lit((150, 98, 60)),
        canvas.lit((100, 60, 46)),
    )
    if scene["time"] in ("night", "dusk"):
        canvas.ellipse(x, y + r * 1.3, r * 0.09, r * 0.13, (255, 230, 150))


def lighthouse(canvas, scene, x, y, s, rgb):
    """Striped, its lamp lit from sunset on."""
    h = 76 * s
    shadow(canvas, x, y, 14 * s)
    white, dk = canvas.lit((246, 242, 236)), canvas.lit((176, 176, 204))
    f = canvas.side

    def band(t0, t1, ca, cb):
        w0, w1 = (9.5 - 4 * t0) * s, (9.5 - 4 * t1) * s
        canvas.polygon(
            [
                (x - w0, y - h * t0),
                (x - w1, y - h * t1),
                (x + w1, y - h * t1),
                (x + w0, y - h * t0),
            ],
            ca if f > 0 else cb,
            cb if f > 0 else ca,
            horiz=True,
        )

    n = 6
    red, rdk = canvas.lit(rgb), canvas.lit(mix(rgb, (40, 10, 60), 0.4))
    for i in range(n):
        band(i / n * 0.82, (i + 1) / n * 0.82, *((red, rdk) if i % 2 else (white, dk)))
    canvas.rectangle(
        x - 8.2 * s, y - h * 0.85, x + 8.2 * s, y - h * 0.82, canvas.lit((66, 62, 80))
    )
    on = scene["time"] in ("night", "dusk", "sunset")
    lamp = tone(255, 232, 150) if on else tone(200, 226, 240) * canvas.tint
    if on:
        d = f
        canvas.polygon(
            [
                (x, y - h * 0.905),
                (x + d * 150, y - h * 0.905 - 34 * s),
                (x + d * 150, y - h * 0.905 + 16 * s),
            ],
            (255, 240, 180),
            alpha=0.24,
            blur=2.5,
        )
        canvas.glow(x, y - h * 0.905, 24 * s, (255, 236, 170), 0.6, 1.2)
    canvas.rectangle(x - 4.6 * s, y - h * 0.945, x + 4.6 * s, y - h * 0.85, lamp)
    canvas.line([(x, y - h * 0.945), (x, y - h * 0.85)], 1.6, canvas.lit((66, 62, 80)))
    canvas.polygon(
        [(x - 6.6 * s, y - h * 0.94), (x, y - h * 1.04), (x + 6.6 * s, y - h * 0.94)],
        red,
        rdk,
    )
    canvas.rectangle(x - 2 * s, y - 8 * s, x + 2 * s, y, canvas.lit((96, 66, 60)))
    canvas.rectangle(
        x - 1.7 * s, y - h * 0.49, x + 1.7 * s, y - h * 0.42, canvas.lit((60, 60, 80))
    )


def cat(canvas, scene, x, y, s, rgb):
    """A cat that sits."""
    f = 1 if canvas.rng.random() < 0.5 else -1
    col, dk = canvas.lit(rgb), canvas.lit(mix(rgb, (20, 14, 50), 0.4))
    shadow(canvas, x, y, 17 * s)
    canvas.line(
        [
            (x - f * 11 * s, y - 4 * s),
            (x - f * 20 * s, y - 6 * s),
            (x - f * 24 * s, y - 15 * s),
            (x - f * 20 * s, y - 22 * s),
        ],
        3.6 * s,
        mix(col, dk, 0.4),
    )
    canvas.ellipse(x - f * 20 * s, y - 22 * s, 1.8 * s, 1.8 * s, mix(col, dk, 0.4))
    canvas.ellipses(
        [
            (x - f * 2 * s, y - 12 * s, 12 * s, 12.5 * s),
            (x + f * 1.5 * s, y - 20 * s, 8 * s, 11 * s),
        ],
        col,
        dk,
        clip_y=y + 0.2,
    )
    canvas.ellipses(
        [(x - f * 7 * s, y - 4 * s, 6.5 * s, 4.6 * s)], mix(col, dk, 0.35), clip_y=y
    )
    for k in (0, 5):
        canvas.rectangle(
            x + f * (2 + k) * s - 2 * s,
            y - 12 * s,
            x + f * (2 + k) * s + 1.8 * s,
            y,
            mix(col, dk, 0.12 + 0.05 * k),
        )
    hx, hy = x + f * 3.5 * s, y - 31 * s
    for e in (-1, 1):
        canvas.polygon(
            [
                (hx + e * 8.6 * s, hy - 2 * s),
                (hx + e * 7.6 * s, hy - 13 * s),
                (hx + e * 1.6 * s, hy - 7 * s),
            ],
            col,
        )
        canvas.polygon(
            [
                (hx + e * 7.2 * s, hy - 4 * s),
                (hx + e * 6.8 * s, hy - 10 * s),
                (hx + e * 3.4 * s, hy - 6.4 * s),
            ],
            canvas.lit((240, 160, 160)),
            alpha=0.7,
        )
    canvas.ellipse(
        hx, hy, 9.8 * s, 8.4 * s, mix(col, (255, 255, 255), 0.08), mix(col, dk, 0.3)
    )
    eye = tone(186, 220, 96) if sum(rgb) < 520 else tone(60, 130, 90)
    for e in (-1, 1):
        canvas.ellipse(
            hx + e * 3.9 * s,
            hy - 0.8 * s,
            2.0 * s,
            2.3 * s,
            eye * mix((1, 1, 1), canvas.tint, 0.4),
        )
        canvas.ellipse(hx + e * 3.9 * s, hy - 0.8 * s, 1.0 * s, 2.0 * s, (16, 12, 24))
    canvas.ellipse(hx, hy + 3.4 * s, 3.4 * s, 2.3 * s, mix(col, (255, 255, 255), 0.45))
    canvas.polygon(
        [(hx - 1.2 * s, hy + 2 * s), (hx + 1.2 * s, hy + 2 * s), (hx, hy + 3.4 * s)],
        canvas.lit((220, 110, 110)),
    )


def fox(canvas, scene, x, y, s, rgb=None):
    """A fox that stands."""
    f = 1 if canvas.rng.random() < 0.5 else -1
    o = (232, 120, 44)
    col, dk, wh = canvas.lit(o), canvas.lit((150, 60, 34)), canvas.lit((250, 242, 230))
    bk = canvas.lit((60, 36, 40))
    shadow(canvas, x, y, 24 * s)
    canvas.polygon(
        [
            (x - f * 13 * s, y - 14 * s),
            (x - f * 24 * s, y - 17 * s),
            (x - f * 36 * s, y - 10 * s),
            (x - f * 38 * s, y - 4 * s),
            (x - f * 30 * s, y - 3 * s),
            (x - f * 18 * s, y - 7 * s),
        ],
        col,
        dk,
    )
    canvas.ellipse(x - f * 36.5 * s, y - 5.6 * s, 4.4 * s, 3.8 * s, wh)
    for k, cc in ((-11, dk), (-7, col), (9, dk), (13, col)):
        canvas.polygon(
            [
                (x + f * (k - 2.2) * s, y - 12 * s),
                (x + f * (k + 2.2) * s, y - 12 * s),
                (x + f * (k + 1.5) * s, y),
                (x + f * (k - 1.5) * s, y),
            ],
            cc,
        )
        canvas.rectangle(
            x + f * k * s - 1.6 * s, y - 4.5 * s, x + f * k * s + 1.6 * s, y, bk
        )
    canvas.ellipses(
        [
            (x, y - 14.5 * s, 17 * s, 7.2 * s),
            (x + f * 10 * s, y - 16 * s, 9 * s, 8 * s),
        ],
        col,
        dk,
    )
    canvas.ellipses([(x + f * 14 * s, y - 13.5 * s, 5 * s, 6 * s)], wh, alpha=0.9)
    hx, hy = x + f * 19 * s, y - 25 * s
    for e in (-1, 1):
        canvas.polygon(
            [
                (hx + e * 8 * s, hy - 2 * s),
                (hx + e * 7 * s, hy - 14 * s),
                (hx + e * 1 * s, hy - 5 * s),
            ],
            col,
        )
        canvas.polygon(
            [
                (hx + e * 7.2 * s, hy - 7 * s),
                (hx + e * 7 * s, hy - 14 * s),
                (hx + e * 3.8 * s, hy - 9 * s),
            ],
            bk,
        )
    canvas.polygon(
        [
            (hx - 9.5 * s, hy - 3 * s),
            (hx - 4 * s, hy - 7.5 * s),
            (hx + 4 * s, hy - 7.5 * s),
            (hx + 9.5 * s, hy - 3 * s),
            (hx + 8 * s, hy + 2.5 * s),
            (hx, hy + 9 * s),
            (hx - 8 * s, hy + 2.5 * s),
        ],
        col,
    )
    for e in (-1, 1):
        canvas.polygon(
            [
                (hx + e * 9 * s, hy - 0.5 * s),
                (hx + e * 2 * s, hy + 1.5 * s),
                (hx, hy + 9 * s),
                (hx + e * 7.6 * s, hy + 2.8 * s),
            ],
            wh,
        )
        canvas.ellipse(hx + e * 3.8 * s, hy - 1 * s, 1.6 * s, 1.8 * s, (24, 14, 20))
    canvas.ellipse(hx, hy + 7.6 * s, 2.0 * s, 1.6 * s, (24, 14, 20))


def cactus(canvas, scene, x, y, s, rgb=None):
    """With two arms, and now and then a flower."""
    col, dk = canvas.lit((84, 150, 84)), canvas.lit((34, 92, 78))
    shadow(canvas, x, y, 12 * s)
    a, b = (col, dk) if canvas.side > 0 else (dk, col)

    def limb(x0, y0, x1, y1, w):
        canvas.polygon(
            [(x0, y0), (x1, y1), (x1 + w, y1), (x0 + w, y0)], a, b, horiz=True
        )
        canvas.ellipse(x1 + w / 2, y1, w / 2, w / 2, a, b, horiz=True)

    for sd, yy, l in ((-1, 0.45, 0.26), (1, 0.58, 0.22)):
        hh = 56 * s
        yj = y - hh * yy
        canvas.polygon(
            [
                (x, yj - 3 * s),
                (x + sd * 15 * s, yj - 3 * s),
                (x + sd * 15 * s, yj + 3.4 * s),
                (x, yj + 3.4 * s),
            ],
            a,
            b,
        )
        canvas.ellipse(x + sd * 14 * s, yj, 3.6 * s, 3.6 * s, a, b)
        limb(
            x + sd * 14 * s - 3.4 * s,
            yj,
            x + sd * 14 * s - 3.4 * s,
            yj - hh * l,
            6.8 * s,
        )
    limb(x - 5.5 * s, y, x - 5.5 * s, y - 52 * s, 11 * s)
    for k in (-2, 2):
        canvas.line([(x + k * s, y - 1), (x + k * s, y - 53 * s)], 1.6, dk, 0.6)
    if canvas.rng.random() < 0.5:
        canvas.ellipse(x, y - 58 * s, 3 * s, 2.6 * s, canvas.lit((240, 110, 150)))


def castle(canvas, scene, x, y, s, rgb=None):
    """Five towers and a gate."""
    st, dk = canvas.lit((200, 192, 196)), canvas.lit((122, 116, 150))
    rf, rd = canvas.lit(rgb or (78, 92, 160)), canvas.lit(
        mix(rgb or (78, 92, 160), (30, 10, 60), 0.4)
    )
    wc = (
        window_colour(canvas, scene)
        if scene["time"] != "day"
        else canvas.lit((70, 70, 100))
    )
    a, b = (st, dk) if canvas.side > 0 else (dk, st)
    shadow(canvas, x, y, 34 * s)

    def tower(tx, w, h, rh):
        canvas.rectangle(tx - w, y - h, tx + w, y, a, b, horiz=True)
        canvas.rectangle(
            tx - w * 1.22,
            y - h - 3 * s,
            tx + w * 1.22,
            y - h + 1.5 * s,
            a,
            b,
            horiz=True,
        )
        canvas.polygon(
            [
                (tx - w * 1.35, y - h - 3 * s),
                (tx, y - h - rh),
                (tx + w * 1.35, y - h - 3 * s),
            ],
            rf if canvas.side > 0 else rd,
            rd if canvas.side > 0 else rf,
            horiz=True,
        )
        canvas.rectangle(tx - 1.7 * s, y - h * 0.78, tx + 1.7 * s, y - h * 0.62, wc)
        canvas.line([(tx, y - h - rh + 2), (tx, y - h - rh - 8 * s)], 1.6, dk)
        canvas.polygon(
            [
                (tx, y - h - rh - 8.4 * s),
                (tx + 8 * s, y - h - rh - 5.8 * s),
                (tx, y - h - rh - 3.2 * s),
            ],
            canvas.lit((226, 76, 70)),
        )

    tower(x - 6 * s, 5.6 * s, 58 * s, 20 * s)
    tower(x + 13 * s, 4.6 * s, 47 * s, 17 * s)
    canvas.rectangle(
        x - 27 * s,
        y - 25 * s,
        x + 27 * s,
        y,
        mix(a, b, 0.2),
        mix(a, b, 0.7),
        horiz=True,
    )
    for k in range(9):
        canvas.rectangle(
            x - 27 * s + k * 6.2 * s,
            y - 29 * s,
            x - 27 * s + k * 6.2 * s + 3.6 * s,
            y - 24.5 * s,
            mix(mix(a, b, 0.2), mix(a, b, 0.7), k / 8),
        )
    tower(x - 27 * s, 6 * s, 37 * s, 16 * s)
    tower(x + 27 * s, 6 * s, 37 * s, 16 * s)
    canvas.ellipses([(x, y - 11 * s, 5 * s, 5 * s)], canvas.lit((74, 46, 44)))
    canvas.rectangle(x - 5 * s, y - 11 * s, x + 5 * s, y, canvas.lit((74, 46, 44)))
    for k in (-15, 15):
        canvas.rectangle(
            x + k * s - 1.8 * s, y - 18 * s, x + k * s + 1.8 * s, y - 11.5 * s, wc
        )


def tent(canvas, scene, x, y, s, rgb):
    """A tent, with a camp fire unless it is day."""
    a, d = canvas.lit(rgb), canvas.lit(mix(rgb, (40, 10, 70), 0.38))
    shadow(canvas, x, y, 26 * s)
    f = -canvas.side
    if scene["time"] in ("night", "dusk"):
        canvas.glow(x, y - 10 * s, 34 * s, (255, 190, 100), 0.42, 1.4)
    canvas.polygon(
        [
            (x - f * 8 * s, y - 25 * s),
            (x + f * 16 * s, y - 23 * s),
            (x + f * 28 * s, y),
            (x + f * 8 * s, y),
        ],
        mix(a, d, 0.5),
        d,
    )
    canvas.polygon(
        [(x - f * 26 * s, y), (x - f * 8 * s, y - 25 * s), (x + f * 8 * s, y)],
        a,
        mix(a, d, 0.3),
    )
    canvas.polygon(
        [(x - f * 14 * s, y), (x - f * 8 * s, y - 19 * s), (x - f * 1 * s, y)],
        tone(255, 220, 130) if scene["time"] in ("night", "dusk") else d,
    )
    fx = x - f * 38 * s  # camp fire
    if scene["time"] != "day":
        canvas.glow(fx, y - 4 * s, 22 * s, (255, 160, 70), 0.6, 1.2)
        canvas.polygon(
            [
                (fx - 5 * s, y),
                (fx - 3 * s, y - 9 * s),
                (fx, y - 15 * s),
                (fx + 3.5 * s, y - 8 * s),
                (fx + 5 * s, y),
            ],
            (255, 130, 50),
        )
        canvas.polygon(
            [(fx - 2.6 * s, y), (fx, y - 9 * s), (fx + 2.6 * s, y)], (255, 226, 120)
        )
    canvas.line(
        [(fx - 6 * s, y + 1), (fx + 6 * s, y - 1)], 2.2 * s, canvas.lit((90, 56, 44))
    )
    canvas.line(
        [(fx - 6 * s, y - 1), (fx + 6 * s, y + 1)], 2.2 * s, canvas.lit((76, 46, 40))
    )


def windmill(canvas, scene, x, y, s, rgb):
    """Four sails at a random angle."""
    h = 54 * s
    shadow(canvas, x, y, 18 * s)
    a, b = canvas.lit(mix(rgb, (250, 244, 232), 0.15)), canvas.lit(
        mix(rgb, (50, 40, 90), 0.4)
    )
    if canvas.side < 0:
        a, b = b, a
    canvas.polygon(
        [(x - 11.5 * s, y), (x - 7 * s, y - h), (x + 7 * s, y - h), (x + 11.5 * s, y)],
        a,
        b,
        horiz=True,
    )
    canvas.polygon(
        [
            (x - 8.6 * s, y - h),
            (x - 5 * s, y - h - 9 * s),
            (x + 5 * s, y - h - 9 * s),
            (x + 8.6 * s, y - h),
        ],
        canvas.lit((110, 70, 62)),
    )
    canvas.rectangle(x - 3 * s, y - 11 * s, x + 3 * s, y, canvas.lit((96, 62, 48)))
    canvas.rectangle(
        x - 2.4 * s,
        y - h * 0.62,
        x + 2.4 * s,
        y - h * 0.48,
        window_colour(canvas, scene),
    )
    hx, hy = x, y - h - 1 * s
    th = canvas.rng.uniform(0.2, 1.3)
    wd = canvas.lit((92, 66, 56))
    sl = canvas.lit((250, 244, 230))
    for k in range(4):
        t = th + k * math.pi / 2
        ux, uy = math.cos(t), math.sin(t)
        px, py = -uy, ux
        R = 34 * s
        canvas.polygon(
            [
                (hx + ux * 7 * s, hy + uy * 7 * s),
                (hx + ux * R, hy + uy * R),
                (hx + ux * R + px * 7 * s, hy + uy * R + py * 7 * s),
                (hx + ux * 8 * s + px * 6 * s, hy + uy * 8 * s + py * 6 * s),
            ],
            sl,
            alpha=0.93,
        )
        canvas.line([(hx, hy), (hx + ux * R, hy + uy * R)], 2.0 * s, wd)
    canvas.ellipse(hx, hy, 2.6 * s, 2.6 * s, wd)


def big_tree(canvas, scene, x, y, s, season):
    """The tree that fits the land: palm, snowy pine or round crown."""
    if scene["terrain"] in ("beach", "desert", "sea"):
        shadow(canvas, x, y, 14 * s)
        palm(canvas, x, y, 84 * s)
        return
    if scene["terrain"] == "snow" and season in ("green", "snow"):
        pine(
            canvas,
            x,
            y,
            92 * s,
            canvas.lit((48, 100, 98)),
            canvas.lit((28, 62, 82)),
            snow=True,
        )
        return
    shadow(canvas, x, y, 24 * s)
    round_tree(
        canvas,
        x,
        y,
        84 * s,
        pick(
            canvas.rng,
            LEAF[
                (
                    "spring"
                    if season == "spring"
                    else season if season != "snow" else "green"
                )
            ],
        ),
    )
