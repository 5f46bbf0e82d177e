"""The sky and the land: everything that is behind the things."""

import math

import numpy as np

from canvas import F32, SIDE, XX, YY, mix, noise1, noise2, pick, tone
from palette import GRASS, LEAF


def sky(canvas, scene, horizon):
    """The gradient of the hour, and at night the stars and northern lights."""
    rng, light = canvas.rng, canvas.light
    a, b, e = (tone(*v) for v in light["sky"])
    t = np.clip(np.arange(SIDE, dtype=F32) / (horizon * 1.02), 0, 1)[:, None]
    k = rng.uniform(0.48, 0.66)
    col = np.where(t < k, mix(a, b, t / k), mix(b, e, (t - k) / (1 - k)))
    canvas.image[:] = col[:, None]
    canvas.image += noise2(rng, 3, 5, 2)[..., None] * (
        3.5 if scene["time"] != "night" else 2.0
    )
    if scene["time"] == "night" and scene["sky"] != "cloudy":
        if scene["aurora"]:
            base = horizon * rng.uniform(0.62, 0.8)
            for _ in range(rng.integers(2, 4)):
                yb = base + noise1(rng, scale=90, octaves=2) * 22 - rng.uniform(0, 40)
                hh = rng.uniform(45, 85)
                d = (yb[None] - YY) / hh
                streak = 0.65 + 0.35 * noise1(rng, scale=14, octaves=2)[None]
                m = (
                    np.where(d > 0, np.exp(-d * 2.2), np.exp(d * 9))
                    * streak
                    * rng.uniform(0.5, 0.8)
                )
                cA = tone(70, 240, 160)
                cB = tone(150, 80, 220) if rng.random() < 0.7 else tone(60, 160, 230)
                tt = np.clip(d * 1.2, 0, 1)[..., None]
                canvas.image += (mix(cA, cB, tt) - canvas.image) * np.clip(m, 0, 0.85)[
                    ..., None
                ]
        stars(canvas, horizon, int(rng.integers(24, 44)))
    elif scene["time"] == "dusk" and scene["sky"] != "cloudy":
        stars(canvas, horizon * 0.6, int(rng.integers(5, 13)))


def stars(canvas, horizon, n):
    """Soft points: nothing under three pixels survives the VAE."""
    rng = canvas.rng
    for _ in range(n):
        x = rng.uniform(6, SIDE - 7)
        y = rng.uniform(6, horizon * 0.92)
        r = rng.choice([1.5, 1.8, 2.3], p=[0.45, 0.35, 0.2])
        al = rng.uniform(0.6, 1.0) * (1 - 0.55 * y / horizon)
        x0, y0 = int(x) - 5, int(y) - 5
        yy, xx = YY[y0 : y0 + 11, x0 : x0 + 11], XX[y0 : y0 + 11, x0 : x0 + 11]
        if y0 < 0 or x0 < 0:
            continue
        m = np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / (r * r)) * al
        canvas.blend(m, (255, 250, 232), x0, y0)


def celestial(canvas, scene, horizon):
    """The sun or the moon; says where in the scene, for the reflections."""
    rng, light = canvas.rng, canvas.light
    what = scene["celestial"]
    x = rng.uniform(50, SIDE - 50)
    scene["sun_x"] = x
    scene["sun_y"] = None
    if what == "none":
        if scene["time"] in ("sunset", "dawn"):
            canvas.glow(x, horizon, 95, light["sun"], 0.6, 1.2)
        return
    if what == "sun":
        if scene["time"] == "day":
            y = horizon * rng.uniform(0.16, 0.45)
            r = rng.uniform(13, 20)
        else:
            y = horizon * rng.uniform(0.58, 0.92)
            r = rng.uniform(17, 27)
        scene["sun_y"] = y
        sun = tone(*light["sun"])
        canvas.glow(x, y, r * 4.2, sun, 0.55, 1.0)
        canvas.glow(x, y, r * 1.7, sun, 0.55, 2.0)
        if scene["time"] == "sunset":
            canvas.ellipse(x, y, r, r, tone(255, 240, 170), tone(255, 150, 84))
        else:
            canvas.ellipse(x, y, r, r, mix(sun, (255, 255, 255), 0.5))
    else:
        y = horizon * rng.uniform(0.16, 0.5)
        r = rng.uniform(12, 20)
        scene["sun_y"] = y
        m = tone(250, 246, 226)
        canvas.glow(x, y, r * 4.0, mix(m, canvas.light["sky"][2], 0.35), 0.34, 1.0)
        if what == "crescent":
            s = -1 if rng.random() < 0.5 else 1
            r *= 1.12
            bg = canvas.image[
                max(0, int(y - r - 2)) : int(y + r + 3),
                max(0, int(x - r - 2)) : int(x + r + 3),
            ].copy()
            x0, y0 = max(0, int(x - r - 2)), max(0, int(y - r - 2))
            yy, xx = (
                YY[y0 : y0 + bg.shape[0], x0 : x0 + bg.shape[1]],
                XX[y0 : y0 + bg.shape[0], x0 : x0 + bg.shape[1]],
            )
            d1 = np.clip(r - np.hypot(xx - x, yy - y) + 0.5, 0, 1)
            d2 = np.clip(
                np.hypot(xx - x - s * r * 0.48, yy - y + r * 0.18) - r * 0.86 + 0.5,
                0,
                1,
            )
            canvas.blend(d1 * d2, m, x0, y0)
        else:
            canvas.ellipse(x, y, r, r, m, mix(m, canvas.light["sky"][1], 0.12))
            for _ in range(4):
                a, d = rng.uniform(0, 6.3), r * rng.uniform(0.1, 0.62)
                q = r * rng.uniform(0.16, 0.28)
                canvas.ellipse(
                    x + math.cos(a) * d,
                    y + math.sin(a) * d,
                    q,
                    q * 0.9,
                    mix(m, canvas.light["sky"][1], 0.18),
                    alpha=0.8,
                    blur=0.5,
                )


def clouds(canvas, scene, horizon):
    """Overcast noise, long flat streaks or heaped cumulus."""
    rng, light = canvas.rng, canvas.light
    t = scene["time"]
    if scene["sky"] == "clear":
        return
    lit = {
        "day": (255, 255, 255),
        "dawn": (255, 236, 226),
        "sunset": (255, 196, 130),
        "dusk": (214, 150, 178),
        "night": (72, 90, 140),
    }[t]
    shd = {
        "day": (206, 222, 238),
        "dawn": (228, 172, 188),
        "sunset": (196, 84, 104),
        "dusk": (92, 68, 130),
        "night": (34, 46, 92),
    }[t]
    lit, shd = tone(*lit), tone(*shd)
    if scene["sky"] == "cloudy":
        n = noise2(rng, 3, 9, 4, 0.55)
        n = (n - n.mean()) / n.std()
        m = np.clip(n * 0.8 + 0.35, 0, 1) * np.clip(1.25 - YY / horizon, 0, 1) ** 0.5
        n2 = np.roll(n, -5, 0)
        sh = np.clip((n2 - n) * 1.6 + 0.5, 0, 1)[..., None]
        canvas.blend(np.clip(m, 0, 0.92), mix(lit, shd, sh) * 0.96)
    k = {"clouds": rng.integers(2, 6), "cloudy": rng.integers(1, 3)}[scene["sky"]]
    if rng.random() < 0.3 and scene["sky"] == "clouds":  # long flat streaks
        for _ in range(k + 4):
            y = rng.uniform(0.15, 0.92) * horizon
            x = rng.uniform(0, SIDE)
            w = rng.uniform(40, 110)
            h = rng.uniform(2.2, 5.5)
            es = [
                (
                    x + dx * w * 0.35,
                    y + rng.uniform(-1.5, 1.5),
                    w * rng.uniform(0.3, 0.55),
                    h * rng.uniform(0.5, 1),
                )
                for dx in (-1, -0.3, 0.4, 1)
            ]
            canvas.ellipses(es, lit, shd, blur=1.2, alpha=rng.uniform(0.55, 0.85))
        return
    for i in range(k):  # cumulus
        x = rng.uniform(0, SIDE)
        y = rng.uniform(0.12, 0.7) * horizon
        w = rng.uniform(22, 50) * (0.55 + 0.5 * (1 - y / horizon))
        es = []
        n = rng.integers(4, 8)
        for j in range(n):
            u = (j + 0.5) / n * 2 - 1
            r = w * (0.22 + 0.34 * (1 - u * u)) * rng.uniform(0.75, 1.15)
            es.append((x + u * w, y - r * 0.45, r, r * 0.82))
        es.append((x, y - 1, w * 1.05, w * 0.12))
        canvas.ellipses(
            es,
            mix(lit, shd, 0.05),
            mix(lit, shd, 0.75),
            blur=0.8,
            alpha=rng.uniform(0.82, 0.97),
            clip_y=y + w * 0.07,
        )
        canvas.ellipses(
            [
                (ex - r * 0.18, ey - r2 * 0.25, r * 0.7, r2 * 0.62)
                for ex, ey, r, r2 in es[:-1]
            ],
            lit,
            mix(lit, shd, 0.5),
            blur=1.8,
            alpha=0.6,
            clip_y=y - 1,
        )


def birds(canvas, horizon):
    """A few, one flock."""
    rng = canvas.rng
    bx, by = rng.uniform(60, SIDE - 60), rng.uniform(0.18, 0.6) * horizon
    col = (
        mix(canvas.light["sky"][0], (20, 20, 34), 0.75)
        if canvas.light["sky"][0][2] > 90
        else tone(190, 200, 226)
    )
    for _ in range(rng.integers(3, 6)):
        x, y = bx + rng.normal() * 30, by + rng.normal() * 13
        w = rng.uniform(6.5, 10)
        f = rng.uniform(0.35, 0.6)
        canvas.line(
            [
                (x - w, y - w * f),
                (x - w * 0.45, y - w * f * 0.95),
                (x, y),
                (x + w * 0.45, y - w * f * 0.95),
                (x + w, y - w * f),
            ],
            2.2,
            col,
            0.95,
        )


def peaks(canvas, base, n, hmin, hmax, rock, depth, snowcap=True, spread=1.0):
    """Overlapping mountains, each with a lit and a shaded face."""
    rng = canvas.rng
    lx = 1 if rng.random() < 0.5 else -1
    xs = (np.arange(n) + rng.uniform(0.2, 0.8, n)) / n * SIDE * 1.1 - SIDE * 0.05
    order = rng.permutation(n)
    for i in order:
        cx = xs[i]
        H = rng.uniform(hmin, hmax)
        half = H * rng.uniform(0.85, 1.35) * spread
        ay = base - H
        x = np.arange(SIDE, dtype=F32)
        jag = noise1(rng, scale=22, octaves=3) * H * 0.07
        h = (
            ay
            + np.abs(x - cx) / half * H
            + jag * np.clip(np.abs(x - cx) / half * 3, 0.12, 1)
        )
        y0, y1 = max(0, int(h.min()) - 1), min(SIDE, int(base) + 3)
        xa, xb = max(0, int(cx - half * 1.15)), min(SIDE, int(cx + half * 1.15))
        if xb - xa < 2 or y1 - y0 < 2:
            continue
        y, xx = YY[y0:y1, xa:xb], XX[y0:y1, xa:xb]
        hh = h[None, xa:xb]
        m = np.clip(y - hh + 0.5, 0, 1)
        ctr = (
            cx
            + noise1(rng, scale=26, octaves=3)[y0:y1, None]
            * H
            * 0.16
            * np.clip((y - ay) / H * 2, 0, 1)
            + (y - ay) * rng.uniform(-0.12, 0.12)
        )
        shade = np.clip((xx - ctr) * lx + 0.5, 0, 1)
        fac = noise2(rng, 6, 6, 2, size=(xb - xa, y1 - y0))
        t = np.clip((y - ay) / H, 0, 1)[..., None]
        light = canvas.lit(mix(rock, (255, 244, 230), 0.16), depth)
        dark = canvas.lit(mix(rock, (30, 34, 66), 0.34), depth)
        colr = mix(light, dark, shade[..., None]) * (1 + 0.045 * fac[..., None])
        if snowcap:
            line = ay + H * (
                0.30 + 0.07 * noise1(rng, scale=13, octaves=2)[None, xa:xb] + 0.05 * fac
            )
            sm = np.clip((line - y) * 0.7 + 0.5, 0, 1)[..., None]
            sl, sd = canvas.lit((252, 252, 255), depth * 0.75), canvas.lit(
                (186, 200, 232), depth * 0.8
            )
            colr = mix(colr, mix(sl, sd, shade[..., None]), sm)
        colr = mix(colr, canvas.haze, (t**2) * 0.55)
        canvas.blend(m, colr, xa, y0)


def pine(canvas, x, y, h, col, dark=None, snow=False):
    """A conifer of height h that stands at x, y."""
    rng = canvas.rng
    w = h * rng.uniform(0.2, 0.27)
    dark = mix(col, (10, 16, 40), 0.3) if dark is None else dark
    light, R = [], []
    n = 4 if h > 24 else 3
    for i in range(n):
        ya = y - h + h * 0.86 * i / n
        yb = y - h + h * 0.86 * (i + 1) / n + h * 0.03
        wi = w * (i + 1.15) / (n + 0.15)
        light += [(x - wi * 0.42 if i else x, ya), (x - wi, yb)]
        R += [(x + wi * 0.42 if i else x, ya), (x + wi, yb)]
    canvas.rectangle(
        x - h * 0.022 - 1.0,
        y - h * 0.16,
        x + h * 0.022 + 1.0,
        y,
        mix(dark, (70, 40, 30), 0.4),
    )
    canvas.polygon(light + R[::-1], col, mix(col, dark, 0.45))
    if h > 20:
        canvas.polygon(
            [(x, y - h)]
            + R[1:]
            + [(x + w * 0.1, y - h * 0.12), (x - w * 0.02, y - h * 0.5)],
            dark,
            alpha=0.55,
        )
    if snow:
        s = canvas.lit((248, 250, 255))
        for i in range(n):
            ya = y - h + h * 0.86 * i / n
            wi = w * (i + 1.15) / (n + 0.15)
            yb = ya + h * 0.13
            canvas.polygon(
                [
                    (x, ya - (h * 0.0 if i == 0 else h * 0.04)),
                    (x + wi * 0.55, yb),
                    (x + wi * 0.2, yb - h * 0.025),
                    (x - wi * 0.05, yb + h * 0.02),
                    (x - wi * 0.3, yb - h * 0.02),
                    (x - wi * 0.55, yb),
                ],
                s,
                alpha=0.95,
            )


def round_tree(canvas, x, y, h, leaf, depth=0.0, small=False):
    """A tree with a round crown, of the colour `leaf`."""
    rng = canvas.rng
    tr = canvas.lit((96, 64, 48), depth)
    w = h * 0.5
    canvas.polygon(
        [
            (x - h * 0.045, y),
            (x - h * 0.025, y - h * 0.5),
            (x + h * 0.025, y - h * 0.5),
            (x + h * 0.045, y),
        ],
        tr,
        mix(tr, (30, 20, 40), 0.3),
        horiz=True,
    )
    lit, mid, drk = (
        canvas.lit(mix(leaf, (255, 250, 190), 0.22), depth),
        canvas.lit(leaf, depth),
        canvas.lit(mix(leaf, (24, 30, 70), 0.35), depth),
    )
    if small:
        canvas.ellipse(x, y - h * 0.62, w * 0.52, h * 0.4, lit, drk)
        return
    blobs = [(x + rng.normal() * w * 0.12, y - h * 0.66, w * 0.55, h * 0.3)]
    for k in range(7):
        a = k / 7 * 6.283 + rng.uniform(-0.3, 0.3)
        blobs.append(
            (
                x + math.cos(a) * w * 0.42,
                y - h * 0.64 + math.sin(a) * h * 0.19,
                w * rng.uniform(0.26, 0.36),
                h * rng.uniform(0.13, 0.19),
            )
        )
    if h > 50:
        for s in (-1, 1):
            canvas.line(
                [(x, y - h * 0.34), (x + s * w * 0.3, y - h * 0.56)], h * 0.025, tr
            )
    canvas.ellipses(blobs, mid, drk)
    canvas.ellipses(
        [
            (bx - bw * 0.2, by - bh * 0.3, bw * 0.66, bh * 0.6)
            for bx, by, bw, bh in blobs
        ],
        lit,
        mid,
        blur=1.0,
        alpha=0.75,
    )
    canvas.ellipses(
        [
            (bx - bw * 0.3, by - bh * 0.45, bw * 0.3, bh * 0.26)
            for bx, by, bw, bh in blobs[1:]
        ],
        mix(lit, (255, 255, 220), 0.25),
        blur=0.8,
        alpha=0.6,
    )


def palm(canvas, x, y, h):
    """A leaning palm."""
    rng = canvas.rng
    lean = rng.choice([-1, 1]) * h * rng.uniform(0.12, 0.28)
    pts = [(x + lean * t * t, y - h * t) for t in np.linspace(0, 1, 9)]
    tr = canvas.lit((132, 92, 62))
    wd = np.linspace(h * 0.045, h * 0.026, 9)
    canvas.polygon(
        [(p[0] - w, p[1]) for p, w in zip(pts, wd)]
        + [(p[0] + w, p[1]) for p, w in list(zip(pts, wd))[::-1]],
        tr,
        mix(tr, (40, 26, 46), 0.4),
        horiz=True,
    )
    tx, ty = pts[-1]
    for i, a in enumerate(np.linspace(-0.5, 3.64, 8) + rng.uniform(-0.12, 0.12, 8)):
        ln = h * rng.uniform(0.36, 0.46)
        g = canvas.lit(mix((46, 140, 84), (16, 70, 70), (i % 3) * 0.3))
        ex, ey = tx + math.cos(a) * ln, ty - math.sin(a) * ln * 0.5 + ln * 0.28
        mx, my = tx + math.cos(a) * ln * 0.55, ty - math.sin(a) * ln * 0.62 - ln * 0.12
        nx, ny = 0, h * 0.06
        canvas.polygon([(tx, ty), (mx, my - ny * 0.4), (ex, ey), (mx, my + ny)], g)
    for s in (-1, 0, 1):
        canvas.ellipse(tx + s * 2.4, ty + 3, 2.1, 2.3, canvas.lit((120, 76, 48)))


def hills(canvas, scene, y0, y1, n, grass, depth0=0.6, trees=True):
    """n overlapping rounded hills, from y0 (far) to y1 (near)."""
    rng = canvas.rng
    last = None
    for i in range(n):
        t = i / max(1, n - 1)
        base = y0 + (y1 - y0) * t
        h = base + noise1(rng, scale=rng.uniform(80, 130), octaves=2, gain=0.3) * (
            14 + 8 * t
        )
        d = depth0 * (1 - t) ** 1.1
        g = mix(grass, (36, 96, 84), 0.22 * rng.uniform(0, 1)) * rng.uniform(0.93, 1.06)
        top = canvas.lit(mix(g, (255, 250, 170), 0.20), d)
        bot = canvas.lit(mix(g, (18, 66, 66), 0.42), d * 0.8)
        if trees and i:
            for _ in range(rng.integers(0, 7)):
                x = int(rng.integers(4, SIDE - 4))
                hh = (9 + 12 * t) * rng.uniform(0.8, 1.4)
                if rng.random() < 0.5:
                    pine(
                        canvas,
                        x,
                        h[x] + 2,
                        hh * 1.2,
                        canvas.lit(mix(g, (20, 80, 70), 0.55), d),
                    )
                else:
                    round_tree(
                        canvas,
                        x,
                        h[x] + 2,
                        hh,
                        pick(rng, LEAF[scene["season"]]),
                        d,
                        small=True,
                    )
        canvas.ridge(h, top, bot, 46 + 30 * t, texture=0.16)
        if rng.random() < 0.45 and t < 0.99:  # crop rows / soft stripes
            m = (
                np.clip(YY - h[None], 0, 1)
                * (
                    0.5
                    + 0.5
                    * np.sin(
                        (YY - h[None] * 0.9) * rng.uniform(0.5, 0.8)
                        + XX * rng.uniform(-0.25, 0.25)
                    )
                )
                * np.clip(1 - (YY - h[None]) / 40, 0, 1)
            )
            canvas.blend(m * 0.13, top * 1.12)
        last = h
    return last


def water(canvas, scene, yh, y1=SIDE, reflect=True, calm=False):
    """Water from yh down: a rippled mirror of what is above it."""
    rng, light = canvas.rng, canvas.light
    n = y1 - yh
    deep = {
        "day": (28, 104, 158),
        "dawn": (128, 122, 168),
        "sunset": (96, 48, 92),
        "dusk": (52, 44, 96),
        "night": (10, 24, 58),
    }[scene["time"]]
    if scene["time"] == "day" and rng.random() < 0.4:
        deep = (22, 128, 150)
    t = np.linspace(0, 1, n, dtype=F32)[:, None, None]
    near = mix(canvas.image[max(0, yh - 3)].mean(0), deep, 0.25)
    col = np.broadcast_to(mix(near, deep, t**0.65), (n, SIDE, 3)).copy()
    if reflect:
        src = (yh - 1 - (np.arange(n) * 0.92).astype(int)).clip(0)
        ref = canvas.image[src].copy()
        amp = 1 + np.arange(n) * (0.03 if calm else 0.07)
        ph = np.sin(np.arange(n) * 0.6 + rng.uniform(0, 6)) * amp
        pad = np.pad(ref, ((3, 3), (0, 0), (0, 0)), mode="edge")  # a soft mirror
        ref = sum(pad[k : k + n] for k in range(7)) / 7
        for j in range(n):
            ref[j] = np.roll(ref[j], int(round(ph[j])), 0)
        k = 0.72 if calm else 0.42
        col = mix(col, ref * (0.9, 0.92, 0.96), k * (1 - 0.45 * t))
    canvas.image[yh:y1] = col
    if scene["sun_y"] is not None:  # glitter path
        sx = scene["sun_x"]
        sc = tone(*light["sun"])
        for _ in range(34 if not calm else 20):
            v = rng.uniform(0, 1) ** 1.2
            y = yh + 1 + v * (n - 3)
            w = (3 + 16 * v) * rng.uniform(0.4, 1.1)
            x = sx + rng.normal() * (5 + 15 * v)
            canvas.ellipse(
                x,
                y,
                w,
                1.25 + 1.1 * v,
                sc,
                alpha=rng.uniform(0.35, 0.8)
                * (1 if scene["celestial"] == "sun" else 0.65),
            )
    for _ in range(rng.integers(12, 24)):
        v = rng.uniform(0, 1)
        y = yh + 2 + v * (n - 3)
        w = (5 + 24 * v) * rng.uniform(0.5, 1.2)
        canvas.ellipse(
            rng.uniform(0, SIDE),
            y,
            w,
            1.2 + 0.9 * v,
            mix(canvas.light["sky"][2], (255, 255, 255), 0.3),
            alpha=rng.uniform(0.08, 0.3) * (0.6 if scene["time"] == "night" else 1),
        )


def dunes(canvas, scene, y0, y1, n):
    """Sand in n waves, lit from one side."""
    rng = canvas.rng
    base = pick(rng, [(232, 178, 112), (240, 190, 128), (222, 160, 100)])
    h = None
    for i in range(n):
        t = i / max(1, n - 1)
        yb = y0 + (y1 - y0) * t
        h = yb + noise1(rng, scale=rng.uniform(80, 120), octaves=2, gain=0.25) * (
            16 + 8 * t
        )
        d = 0.55 * (1 - t)
        lit, sh = canvas.lit(mix(base, (255, 236, 190), 0.3), d), canvas.lit(
            mix(base, (120, 50, 50), 0.42), d
        )
        g = np.gradient(h)
        g = np.convolve(np.pad(g, 12, mode="edge"), np.ones(25) / 25, "valid").astype(
            F32
        )
        s = np.clip(0.5 + g * 2.4 * canvas.side, 0, 1)
        y0i = max(0, int(h.min()) - 1)
        y = YY[y0i:]
        m = np.clip(y - h[None] + 0.5, 0, 1)
        tt = np.clip((y - h[None]) / (60 + 30 * t), 0, 1)
        rip = np.sin((y - h[None]) * 0.55 + np.sin(XX[y0i:] * 0.05 + i) * 2) * 0.5 + 0.5
        colr = mix(
            lit,
            sh,
            np.clip(s[None] * 0.85 * (1 - tt * 0.4) + tt * 0.25 + rip * 0.05, 0, 1)[
                ..., None
            ],
        )
        canvas.blend(m, colr, 0, y0i)
    return h


def snowfield(canvas, scene, y0, y1, n):
    """Snow in n waves, with snowy pines."""
    rng = canvas.rng
    h = None
    for i in range(n):
        t = i / max(1, n - 1)
        yb = y0 + (y1 - y0) * t
        h = yb + noise1(rng, scale=rng.uniform(80, 130), octaves=2, gain=0.25) * (
            13 + 7 * t
        )
        d = 0.5 * (1 - t)
        top, bot = canvas.lit((252, 253, 255), d), canvas.lit((178, 200, 234), d)
        for _ in range(rng.integers(2, 8)):
            x = int(rng.integers(4, SIDE - 4))
            hh = (16 + 26 * t) * rng.uniform(0.8, 1.4)
            pine(
                canvas,
                x,
                h[x] + 3,
                hh,
                canvas.lit((52, 104, 104), d),
                canvas.lit((30, 66, 86), d),
                snow=True,
            )
        canvas.ridge(h, top, bot, 50 + 30 * t, texture=0.12)
    return h


def skyline(canvas, scene, base):
    """Three layers of houses; the windows of the nearer two are lit."""
    rng = canvas.rng
    t = scene["time"]
    lit = {"day": 0.0, "dawn": 0.12, "sunset": 0.3, "dusk": 0.55, "night": 0.6}[t]
    pal = pick(
        rng,
        [
            [(92, 112, 150), (120, 128, 160), (150, 140, 160)],
            [(70, 96, 130), (100, 124, 150), (176, 140, 130)],
            [(104, 96, 140), (84, 104, 146), (140, 120, 150)],
        ],
    )
    for layer, (d, hmin, hmax, wmin, wmax) in enumerate(
        [(0.68, 50, 112, 12, 26), (0.38, 36, 98, 16, 30), (0.08, 24, 74, 20, 38)]
    ):
        x = rng.uniform(-14, 0)
        while x < SIDE:
            w = rng.uniform(wmin, wmax)
            h = rng.uniform(hmin, hmax) * (1.25 if rng.random() < 0.12 else 1)
            y = base - h
            b = pick(rng, pal)
            col = canvas.lit(b, d)
            dk = canvas.lit(mix(b, (20, 20, 60), 0.4), d * 0.9)
            canvas.rectangle(
                x,
                y,
                x + w,
                base + 2,
                col,
                mix(col, canvas.haze, 0.35 if layer < 2 else 0.1),
            )
            canvas.rectangle(x + w * 0.68, y, x + w, base + 2, dk, alpha=0.45)
            r = rng.random()
            if r < 0.16:
                canvas.polygon(
                    [(x + w * 0.12, y), (x + w * 0.5, y - h * 0.2), (x + w * 0.88, y)],
                    col,
                )
            elif r < 0.30:
                canvas.rectangle(x + w * 0.25, y - 6, x + w * 0.75, y, col)
                canvas.line([(x + w * 0.5, y - 6), (x + w * 0.5, y - 18)], 2.2, col)
            elif r < 0.36:
                canvas.ellipse(x + w * 0.5, y, w * 0.5, w * 0.42, col)
            if layer:
                sx, sy = 10.0, 12.0
                wc = tone(255, 214, 120)
                off = (
                    mix(col, (200, 225, 245), 0.22)
                    if t == "day"
                    else mix(col, (20, 24, 60), 0.3)
                )
                m = None
                for iy in range(int((h - 6) / sy)):
                    for ix in range(int((w - 4) / sx)):
                        on = rng.random() < lit
                        xx, yy = x + 4 + ix * sx, y + 6 + iy * sy
                        x0, y0 = int(xx), int(yy)
                        if x0 < 0 or x0 + 5 > SIDE or y0 + 6 > SIDE:
                            continue
                        reg = canvas.image[y0 : y0 + 6, x0 : x0 + 5]
                        reg += ((wc if on else off) - reg) * (
                            (0.9 if on else 0.4) * (1 - d * 0.5)
                        )
            x += w + rng.uniform(-3, 4 if layer else 1)
        canvas.image[: int(base)] += (canvas.haze - canvas.image[: int(base)]) * (
            np.clip((YY[: int(base)] - base + 50) / 50, 0, 1) ** 2 * 0.28
        )[..., None]


def forest(canvas, scene, y0, y1):
    """Five rows of trees, the far ones in the mist."""
    rng = canvas.rng
    g = {
        "green": (44, 106, 84),
        "autumn": (196, 106, 52),
        "spring": (84, 150, 96),
        "snow": (92, 130, 140),
    }[scene["season"]]
    n = 5
    h = None
    for i in range(n):
        t = i / (n - 1)
        yb = y0 + (y1 - y0) * t
        d = 0.74 * (1 - t) ** 0.9
        h = yb + noise1(rng, scale=90, octaves=2, gain=0.4) * 12
        col, dk = canvas.lit(g, d), canvas.lit(mix(g, (10, 26, 50), 0.45), d)
        for x in np.arange(rng.uniform(-6, 4), SIDE + 8, 10 + 13 * t):
            xi = int(np.clip(x + rng.normal() * 3, 0, SIDE - 1))
            hh = (30 + 38 * t) * rng.uniform(0.65, 1.25)
            if t > 0.95 and rng.random() < 0.42:
                continue
            if scene["season"] != "green" and rng.random() < 0.5:
                round_tree(
                    canvas,
                    xi,
                    h[xi] + 6,
                    hh * 0.85,
                    pick(rng, LEAF[scene["season"]]),
                    d,
                    small=t < 0.7,
                )
            else:
                pine(
                    canvas,
                    xi,
                    h[xi] + 6,
                    hh,
                    mix(col, (255, 255, 255), rng.uniform(0, 0.06)),
                    dk,
                    snow=scene["season"] == "snow",
                )
        gr = canvas.lit(mix(GRASS[scene["season"]], (30, 80, 70), 0.35), d)
        canvas.ridge(
            h,
            gr,
            (
                mix(gr, canvas.haze, 0.5 * (1 - t))
                if i < n - 1
                else mix(gr, (14, 30, 50), 0.35)
            ),
            46,
            texture=0.12,
        )
        if i < n - 1:
            m = np.clip(1 - np.abs(YY - yb - 16) / 34, 0, 1) * (
                0.45 if not scene["fog"] else 0.7
            )
            canvas.blend(
                m * (1 - t * 0.6),
                mix(
                    canvas.haze,
                    (255, 255, 255),
                    0.12 if scene["time"] in ("day", "dawn") else 0,
                ),
            )
    return h
