"""A 256x256 picture to draw flat shapes on, with soft edges (numpy, PIL)."""
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIDE = 256
OVERSAMPLE = 4              # a shape is drawn so much larger, then averaged
F32 = np.float32
YY, XX = np.mgrid[0:SIDE, 0:SIDE].astype(F32)


def tone(*rgb):
    return np.array(rgb, F32)


def mix(a, b, t):
    return np.asarray(a, F32) * (1 - t) + np.asarray(b, F32) * t


def pick(rng, choices):
    return choices[int(rng.integers(len(choices)))]


def noise1(rng, n=SIDE, scale=64.0, octaves=4, gain=0.5):
    """Smooth value noise along a line: the outlines of hills and peaks."""
    x = np.arange(n, dtype=F32)
    out = np.zeros(n, F32)
    amplitude, width = 1.0, scale
    for _ in range(octaves):
        count = int(n / width) + 4
        values = rng.uniform(-1, 1, count).astype(F32)
        p = x / width + rng.uniform(0, 1)
        i = p.astype(int)
        f = p - i
        f = f * f * (3 - 2 * f)
        out += amplitude * (values[i] * (1 - f) + values[i + 1] * f)
        amplitude *= gain
        width *= 0.5
    return out


def noise2(rng, nx, ny, octaves=3, gain=0.5, size=(SIDE, SIDE)):
    """Smooth noise over an area: clouds, fog, the texture of paper."""
    out, amplitude = None, 1.0
    for _ in range(octaves):
        grid = rng.uniform(-1, 1, (ny + 1, nx + 1)).astype(F32)
        layer = np.asarray(Image.fromarray(grid).resize(size, Image.BICUBIC))
        out = layer * amplitude if out is None else out + layer * amplitude
        amplitude *= gain
        nx *= 2
        ny *= 2
    return out


class Canvas:
    """The picture, the light of its hour, and the shapes to draw.

    `light` has the colours of the sky, the tint of all that is lit, the haze
    that the distance fades into and the sun's colour.  `side` is where the
    light falls from: 1 or -1."""

    def __init__(self, rng, light):
        self.rng, self.light = rng, light
        self.image = np.empty((SIDE, SIDE, 3), F32)
        self.tint = tone(*light["tint"])
        self.haze = tone(*light["haze"])
        self.side = 1

    def lit(self, rgb, depth=0.0, tint=1.0):
        """A colour as it looks in this light, `depth` deep in the haze."""
        r = np.asarray(rgb, F32)
        r = r * mix((1, 1, 1), self.tint, tint)
        return mix(r, self.haze, depth)

    def blend(self, mask, rgb, x0=0, y0=0):
        h, w = mask.shape
        region = self.image[y0:y0 + h, x0:x0 + w]
        region += (np.asarray(rgb, F32) - region) * mask[..., None]

    def mask(self, draw, box, blur=0.0):
        """The coverage of what `draw` draws inside a box: mask, x0, y0."""
        pad = int(blur * 3) + 2
        x0 = max(0, int(math.floor(box[0])) - pad)
        y0 = max(0, int(math.floor(box[1])) - pad)
        x1 = min(SIDE, int(math.ceil(box[2])) + pad)
        y1 = min(SIDE, int(math.ceil(box[3])) + pad)
        if x1 <= x0 or y1 <= y0:
            return None
        size = ((x1 - x0) * OVERSAMPLE, (y1 - y0) * OVERSAMPLE)
        image = Image.new("L", size, 0)
        draw(ImageDraw.Draw(image),
             lambda points: [((x - x0) * OVERSAMPLE, (y - y0) * OVERSAMPLE)
                             for x, y in points])
        image = image.reduce(OVERSAMPLE)
        if blur:
            image = image.filter(ImageFilter.GaussianBlur(blur))
        return np.asarray(image, F32) / 255.0, x0, y0

    def fill(self, shape, box, rgb, rgb2=None, alpha=1.0, horiz=False):
        """Colours a mask: plain, or a gradient down (or across) its box."""
        if shape is None:
            return
        mask, x0, y0 = shape
        if rgb2 is not None:
            h, w = mask.shape
            if horiz:
                t = np.arange(w, dtype=F32) + x0 - box[0]
                t = np.clip(t / max(1e-3, box[2] - box[0]), 0, 1)
                t = t[None, :, None]
            else:
                t = np.arange(h, dtype=F32) + y0 - box[1]
                t = np.clip(t / max(1e-3, box[3] - box[1]), 0, 1)
                t = t[:, None, None]
            rgb = mix(rgb, rgb2, t)
        self.blend(mask * alpha if alpha != 1 else mask, rgb, x0, y0)

    def polygon(self, points, rgb, rgb2=None, blur=0.0, alpha=1.0,
                horiz=False):
        xs = [p[0] for p in points]
        ys = [p[1] for p in points]
        box = (min(xs), min(ys), max(xs), max(ys))
        shape = self.mask(
            lambda d, place: d.polygon(place(points), fill=255), box, blur)
        self.fill(shape, box, rgb, rgb2, alpha, horiz)

    def ellipses(self, shapes, rgb, rgb2=None, blur=0.0, alpha=1.0,
                 horiz=False, clip_y=None):
        """Ellipses (x, y, rx, ry) as one shape, cut off below `clip_y`."""
        box = (min(e[0] - e[2] for e in shapes),
               min(e[1] - e[3] for e in shapes),
               max(e[0] + e[2] for e in shapes),
               max(e[1] + e[3] for e in shapes))

        def draw(d, place):
            for x, y, rx, ry in shapes:
                a, b = place([(x - rx, y - ry), (x + rx, y + ry)])
                d.ellipse([*a, *b], fill=255)
            if clip_y is not None:
                a, b = place([(-999, clip_y), (999, 999)])
                d.rectangle([*a, *b], fill=0)

        self.fill(self.mask(draw, box, blur), box, rgb, rgb2, alpha, horiz)

    def ellipse(self, x, y, rx, ry, *args, **kwargs):
        self.ellipses([(x, y, rx, ry)], *args, **kwargs)

    def rectangle(self, x0, y0, x1, y1, *args, **kwargs):
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)],
                     *args, **kwargs)

    def line(self, points, width, rgb, alpha=1.0, blur=0.0):
        xs = [p[0] for p in points]
        ys = [p[1] for p in points]
        box = (min(xs) - width, min(ys) - width,
               max(xs) + width, max(ys) + width)
        shape = self.mask(
            lambda d, place: d.line(
                place(points), fill=255, joint="curve",
                width=max(1, int(width * OVERSAMPLE))), box, blur)
        self.fill(shape, box, rgb, None, alpha)

    def ridge(self, height, top, bottom, depth=None, texture=0.0):
        """Fills all below the curve height[x]: `top` at it, then `bottom`."""
        y0 = max(0, int(height.min()) - 1)
        if y0 >= SIDE:
            return
        below = YY[y0:] - height[None]
        mask = np.clip(below + 0.5, 0, 1)
        t = np.clip(below / (depth or max(8.0, SIDE - float(height.mean()))),
                    0, 1)
        if texture:
            grain = noise2(self.rng, 5, 8, 2, size=(SIDE, SIDE - y0))
            t = np.clip(t + texture * grain, 0, 1)
        self.blend(mask, mix(top, bottom, t[..., None]), 0, y0)

    def glow(self, x, y, radius, rgb, strength, power=1.0):
        d = np.sqrt((XX - x) ** 2 + (YY - y) ** 2) / radius
        g = strength * np.exp(-(d ** power))
        self.image += ((np.asarray(rgb, F32) - self.image)
                       * np.clip(g, 0, 1)[..., None])
