"""Flat-illustration landscapes, 256x256, made of attributes that combine.

make(seed) gives a picture and the attributes it was drawn from: the hour, the
land, the season, the sky and up to two things.  No data set, no assets.

    python scenes.py OUT.png [COUNT [SEED]]     a sheet to look at
"""
import math
import sys

import numpy as np
from PIL import Image

import landscape
import things
from canvas import (F32, SIDE, XX, YY, Canvas, mix, noise1, noise2, pick,
                    tone)
from palette import CAT_RGB, COLORS, GRASS, LEAF, LIGHT, RGB

TIMES = ["dawn", "day", "sunset", "dusk", "night"]
TERRAINS = ["mountains", "hills", "sea", "lake", "desert", "snow", "city",
            "forest", "beach"]
SEASONS = ["green", "autumn", "spring", "snow"]
SKIES = ["clear", "clouds", "cloudy"]
CELESTIAL = ["none", "sun", "moon", "crescent"]
STYLES = ["none", "bw", "sepia"]

# combinations that no training picture has: do attributes compose?
HELD = [
    dict(obj="house", color="blue", terrain="snow"),
    dict(obj="house", color="red", terrain="desert"),
    dict(obj="balloon", color="yellow", time="sunset"),
    dict(obj="balloon", color="purple", terrain="city"),
    dict(obj="boat", color="red", time="night"),
    dict(obj="fox", terrain="snow", time="night"),
    dict(obj="lighthouse", time="dawn"),
    dict(obj="castle", terrain="hills", time="sunset"),
    dict(obj="cat", terrain="desert"),
    dict(terrain="forest", time="sunset"),
]

COLORED = {"house", "boat", "balloon", "tent", "windmill"}
SMALL = {"cat", "fox"}              # they stand in front
# of two things in a picture, one is of these: houses do not overlap
SECOND = {"balloon", "boat", "cat", "fox", "tree"}

# how often a thing is chosen, and what a terrain changes in that
WEIGHTS = dict(house=2.0, tree=1.2, balloon=1.4, cat=0.8, fox=0.8, tent=0.7,
               windmill=0.5, castle=0.7, boat=0, lighthouse=0.15, cactus=0)
WEIGHTS_IN = {
    "hills": dict(windmill=1.2),
    "sea": dict(boat=4.0, lighthouse=2.2, house=1.0, tree=0.5, windmill=0.2,
                tent=0.3, castle=0.6),
    "lake": dict(boat=2.6),
    "beach": dict(boat=2.0, lighthouse=1.2, windmill=0.2, castle=0.4),
    "desert": dict(cactus=2.6, tree=0.8),
    "city": dict(castle=0.0, windmill=0.15, lighthouse=0, tree=1.6,
                 house=1.0),
}

HORIZON = {
    "mountains": (146, 172), "hills": (122, 150), "sea": (128, 156),
    "lake": (142, 162), "desert": (132, 156), "snow": (126, 150),
    "city": (176, 196), "forest": (120, 142), "beach": (118, 138),
}

OVERCAST = {
    "day": (176, 192, 206), "dawn": (214, 190, 196),
    "sunset": (190, 110, 100), "dusk": (104, 88, 124), "night": (40, 50, 84),
}
ROCKS = [(112, 122, 150), (128, 116, 136), (96, 116, 134), (136, 124, 122)]
FLOWERS = [(250, 240, 220), (250, 200, 80), (236, 110, 120), (180, 130, 220)]


# --------------------------------------------------------------- attributes

def held(scene):
    """Is the scene one of the combinations that are held out?"""
    for combination in HELD:
        if any(scene[k] != combination[k] for k in ("time", "terrain")
               if k in combination):
            continue
        if "obj" not in combination:
            return True
        for thing, color in scene["objs"]:
            if (thing == combination["obj"]
                    and combination.get("color", color) == color):
                return True
    return False


def sample_season(rng, terrain):
    r = rng.random()
    if terrain == "snow":
        return "snow"
    if terrain in ("hills", "forest", "mountains", "lake", "city"):
        if r < 0.16:
            return "autumn"
        if r < 0.30:
            return "spring"
        if r < 0.36 and terrain in ("forest", "mountains", "lake"):
            return "snow"
    return "green"


def sample_sky(rng, scene):
    scene["sky"] = pick(rng, ["clear", "clear", "clouds", "clouds", "cloudy"])
    u = rng.random()
    if scene["time"] == "night":
        scene["celestial"] = ("moon" if u < 0.45 else
                              "crescent" if u < 0.72 else "none")
        clear = scene["sky"] == "clear"
        scene["aurora"] = rng.random() < (0.22 if clear else 0)
    elif scene["time"] == "dusk":
        scene["celestial"] = ("crescent" if u < 0.3 else
                              "moon" if u < 0.45 else "none")
    else:
        often = 0.5 if scene["time"] == "day" else 0.75
        scene["celestial"] = "sun" if u < often else "none"
    forest, winter = scene["terrain"] == "forest", scene["season"] == "snow"
    scene["fog"] = rng.random() < (0.3 if forest else 0.1)
    scene["snowing"] = rng.random() < (0.3 if winter else 0)
    night = scene["time"] == "night"
    scene["birds"] = rng.random() < (0.0 if night else 0.16)


def sample_things(rng, terrain):
    count = int(rng.choice([0, 1, 2], p=[0.2, 0.6, 0.2]))
    weights = {**WEIGHTS, **WEIGHTS_IN.get(terrain, {})}
    chosen = []
    for _ in range(count):
        have = {thing for thing, _ in chosen}
        kinds = [k for k in weights if k not in have]
        p = np.array([weights[k] for k in kinds])
        thing = kinds[int(rng.choice(len(kinds), p=p / p.sum()))]
        if have and not ({thing, *have} & SECOND):
            continue
        color = None
        if thing in COLORED:
            color = pick(rng, COLORS)
        elif thing == "cat":
            color = pick(rng, list(CAT_RGB))
        chosen.append((thing, color))
    return chosen


def sample_attributes(rng):
    while True:
        scene = dict(time=pick(rng, TIMES), terrain=pick(rng, TERRAINS),
                     aurora=False)
        scene["season"] = sample_season(rng, scene["terrain"])
        sample_sky(rng, scene)
        scene["objs"] = sample_things(rng, scene["terrain"])
        v = rng.random()
        scene["style"] = "bw" if v < 0.035 else "sepia" if v < 0.06 else "none"
        if not held(scene):
            return scene


# ------------------------------------------------------------------ drawing

class Painter:
    """Draws one scene, from the sky to the foreground.

    A method for each terrain draws the land and leaves in `ground` the height
    of it at each x, where things stand; None if they cannot."""

    def __init__(self, scene, rng):
        self.scene, self.rng = dict(scene), rng
        self.time, self.terrain = scene["time"], scene["terrain"]
        self.canvas = Canvas(rng, self.light())
        self.canvas.side = 1 if rng.random() < 0.5 else -1
        heights = {k: rng.uniform(*v) for k, v in HORIZON.items()}
        self.horizon = heights[self.terrain]
        self.ground = None
        self.standing = (20, SIDE - 20)         # where things can stand

    def light(self):
        light = dict(pick(self.rng, LIGHT[self.time]))
        shift = self.rng.uniform(0.95, 1.05, 3)
        light["sky"] = [tuple(np.clip(np.array(v) * shift, 0, 255))
                        for v in light["sky"]]
        if self.scene["sky"] == "cloudy":
            gray = OVERCAST[self.time]
            light["sky"] = [tuple(mix(v, gray, 0.42)) for v in light["sky"]]
            light["haze"] = tuple(mix(light["haze"], gray, 0.35))
        return light

    def paint(self):
        canvas, scene = self.canvas, self.scene
        landscape.sky(canvas, scene, self.horizon)
        landscape.celestial(canvas, scene, self.horizon)
        if scene["sun_y"] is not None:
            canvas.side = 1 if scene["sun_x"] < SIDE / 2 else -1
        landscape.clouds(canvas, scene, self.horizon)
        if scene["birds"]:
            landscape.birds(canvas, self.horizon)
        self.rock = pick(self.rng, ROCKS)
        self.grass = tone(*GRASS[scene["season"]])
        self.grass = self.grass * self.rng.uniform(0.94, 1.04, 3).astype(F32)

        getattr(self, self.terrain)()

        if scene["fog"]:
            self.fog()
        # things keep more of their own colour than the land
        canvas.tint = mix((1, 1, 1), canvas.tint, 0.74)
        self.boats()
        self.standing_things()
        if (self.terrain in ("hills", "mountains", "lake", "city", "forest")
                and scene["season"] != "snow"):
            self.meadow()
        if scene["snowing"]:
            self.snowfall()
        return self.finish()

    # the land

    def mountains(self):
        c, y = self.canvas, self.horizon
        landscape.peaks(c, y, 4, 46, 80, self.rock, 0.58, True)
        landscape.peaks(c, y + 8, 3, 56, 116, self.rock, 0.26, True, 1.05)
        self.balloons()
        if self.scene["season"] == "snow":
            self.ground = landscape.snowfield(c, self.scene, y - 6, 212, 3)
        else:
            self.ground = landscape.hills(
                c, self.scene, y - 6, self.rng.uniform(198, 216), 3,
                self.grass, 0.42)

    def hills(self):
        if self.rng.random() < 0.6:
            self.far_range()
        self.balloons()
        self.ground = landscape.hills(
            self.canvas, self.scene, self.horizon,
            self.rng.uniform(194, 212), self.rng.integers(3, 6), self.grass,
            0.58)

    def sea(self):
        if self.rng.random() < 0.35:
            self.far_range()
        self.balloons()
        landscape.water(self.canvas, self.scene, int(self.horizon))
        if any(thing not in ("boat", "balloon", "cactus")
               for thing, _ in self.scene["objs"]):
            self.headland()

    def headland(self):
        """Land at one side of the sea, for what cannot swim."""
        c, rng = self.canvas, self.rng
        left = rng.random() < 0.5
        end = rng.uniform(120, 168)
        x = np.arange(SIDE, dtype=F32)
        x = x if left else SIDE - 1 - x
        height = rng.uniform(184, 204) + noise1(rng, scale=60, octaves=2) * 5
        height = height + np.clip((x - end) / 26, 0, None) ** 1.2 * 30
        height = np.where(x > end + 80, 400, height).astype(F32)
        c.ridge(height + 7, c.lit((150, 124, 112)), c.lit((84, 66, 84)), 50,
                texture=0.3)

        edge = (height[None] + 13
                + noise1(rng, scale=10, octaves=2)[None] * 4 - YY
                - np.clip((x[None] - end) * 0.5, 0, 99))
        mask = np.clip(YY - height[None] + 0.5, 0, 1) * np.clip(edge, 0, 1)
        t = np.clip((YY - height[None]) / 14, 0, 1)[..., None]
        c.blend(mask, mix(c.lit(mix(self.grass, (255, 250, 170), 0.15)),
                          c.lit(mix(self.grass, (10, 60, 60), 0.3)), t))
        self.ground = height
        self.standing = ((14, end - 10) if left
                         else (SIDE - end + 10, SIDE - 14))

    def lake(self):
        c, rng, y = self.canvas, self.rng, self.horizon
        landscape.peaks(c, y, 4, 40, 76, self.rock, 0.55, True)
        landscape.peaks(c, y + 2, 3, 50, 104, self.rock, 0.24, True, 1.05)
        shore = y - 5 + noise1(rng, scale=60, octaves=3) * 5
        for _ in range(rng.integers(8, 24)):
            x = int(rng.integers(0, SIDE))
            height = rng.uniform(12, 26)
            leaf = (46, 104, 84)
            if self.scene["season"] == "autumn" and rng.random() >= 0.4:
                leaf = (206, 120, 56)
            landscape.pine(c, x, shore[x] + 4, height, c.lit(leaf, 0.22))
        c.ridge(shore, c.lit(mix(self.grass, (30, 90, 70), 0.3), 0.2),
                c.lit(mix(self.grass, (20, 60, 60), 0.5), 0.15), 12)
        self.balloons()
        landscape.water(c, self.scene, int(y) + 2, calm=True)
        self.ground = self.level(218, 230, 90, 2, 7)
        c.ridge(self.ground, c.lit(mix(self.grass, (255, 250, 170), 0.12)),
                c.lit(mix(self.grass, (14, 50, 60), 0.55)), 34, texture=0.15)

    def desert(self):
        c, rng = self.canvas, self.rng
        if rng.random() < 0.5:                  # table mountains
            mesa = np.clip(noise1(rng, scale=70, octaves=2) * 2.2, 0, 1)
            height = (self.horizon - 8 - 26 * mesa
                      + noise1(rng, scale=8, octaves=2) * 1.2)
            c.ridge(height.astype(F32), c.lit((196, 116, 92), 0.5),
                    c.lit((176, 96, 84), 0.6), 50)
        self.balloons()
        self.ground = landscape.dunes(c, self.scene, self.horizon,
                                      rng.uniform(192, 212),
                                      rng.integers(3, 5))

    def snow(self):
        c, rng = self.canvas, self.rng
        if rng.random() < 0.6:
            landscape.peaks(c, self.horizon + 4, 4, 36, 84, (150, 166, 196),
                            0.5, True)
        self.balloons()
        self.ground = landscape.snowfield(c, self.scene, self.horizon,
                                          rng.uniform(196, 212),
                                          rng.integers(3, 5))

    def city(self):
        c, rng = self.canvas, self.rng
        self.balloons()
        landscape.skyline(c, self.scene, self.horizon)
        boats = any(thing == "boat" for thing, _ in self.scene["objs"])
        if rng.random() < 0.45 or boats:
            landscape.water(c, self.scene, int(self.horizon), calm=False)
            self.ground = self.level(230, 238, 100, 1, 2)
        else:
            self.ground = self.level(196, 206, 100, 2, 4)
        if self.ground.mean() < 220:            # a park
            for _ in range(rng.integers(6, 14)):
                landscape.round_tree(
                    c, int(rng.integers(0, SIDE)), self.horizon + 14,
                    rng.uniform(22, 36),
                    pick(rng, LEAF[self.scene["season"]]), 0.12, small=True)
        c.ridge(self.ground, c.lit(mix(self.grass, (255, 250, 170), 0.1)),
                c.lit(mix(self.grass, (14, 50, 60), 0.5)), 46, texture=0.15)

    def forest(self):
        c, rng = self.canvas, self.rng
        if rng.random() < 0.5:
            landscape.peaks(c, self.horizon + 6, 3, 50, 96, self.rock, 0.55,
                            True)
        self.balloons()
        self.ground = landscape.forest(c, self.scene, self.horizon - 4,
                                       rng.uniform(204, 216))

    def beach(self):
        c = self.canvas
        if self.rng.random() < 0.4:
            self.far_range()
        self.balloons()
        landscape.water(c, self.scene, int(self.horizon))
        self.ground = self.level(188, 202, 120, 2, 8)
        below = YY - self.ground[None]
        foam = np.clip(1 - np.abs(below + 3) / 4.5, 0, 1)
        c.blend(foam * 0.85, c.lit((255, 255, 255)))
        sand = c.lit((244, 214, 164))
        c.ridge(self.ground, mix(sand, c.lit((196, 160, 120)), 0.3), sand, 16,
                texture=0.1)
        c.blend(np.clip((below - 34) / 60, 0, 1) * 0.35,
                c.lit((200, 150, 110)))

    def level(self, low, high, scale, octaves, swing):
        height = self.rng.uniform(low, high)
        wave = noise1(self.rng, scale=scale, octaves=octaves)
        return (height + wave * swing).astype(F32)

    def far_range(self):
        wave = noise1(self.rng, scale=50, octaves=4) * 0.6 + 0.5
        rock = self.canvas.lit(self.rock, 0.72)
        self.canvas.ridge(self.horizon - 16 - 18 * wave, rock,
                          mix(rock, self.canvas.haze, 0.7), 40)

    def fog(self):
        """Banks of it, behind the things of the foreground."""
        n = noise2(self.rng, 2, 8, 2)
        mask = np.clip(1 - np.abs(YY - self.horizon - 14) / 62, 0, 1)
        mask = mask * np.clip(0.72 + n * 0.4, 0, 1)
        bright = 0.25 if self.time in ("day", "dawn") else 0.04
        self.canvas.blend(mask * 0.75, mix(self.canvas.haze, (255, 255, 255),
                                           bright))

    # the things

    def balloons(self):
        c, rng, scene = self.canvas, self.rng, self.scene
        tint = c.tint
        c.tint = mix((1, 1, 1), tint, 0.74)
        for thing, color in scene["objs"]:
            if thing != "balloon":
                continue
            r = rng.uniform(21, 31)
            x = rng.uniform(46, SIDE - 46)
            if scene["sun_y"] is not None and abs(x - scene["sun_x"]) < 45:
                x = (x + 110) % 180 + 38
            y = rng.uniform(r + 8, max(r + 9, self.horizon * 0.52))
            things.balloon(c, scene, x, y, r, RGB[color])
            if rng.random() < 0.3:              # another, far away
                things.balloon(c, scene,
                               (x + rng.uniform(70, 130)) % 200 + 28,
                               y + rng.uniform(-10, 34),
                               r * rng.uniform(0.36, 0.5), RGB[color])
        c.tint = tint

    def boats(self):
        rng, top = self.rng, int(self.horizon)
        lowest = {"sea": 222 if self.ground is None else 196, "lake": 204,
                  "beach": 176, "city": 216}.get(self.terrain, 200)
        for thing, color in self.scene["objs"]:
            if thing != "boat":
                continue
            size = rng.uniform(0.95, 1.45)
            y = rng.uniform(top + 18, max(top + 19, lowest))
            x = rng.uniform(46, SIDE - 46)
            if self.terrain == "sea" and self.ground is not None:
                begin, end = self.standing
                x = (rng.uniform(end + 34, SIDE - 30) if begin < 60
                     else rng.uniform(30, begin - 34))
            things.boat(self.canvas, self.scene, x, y,
                        size * (0.72 + 0.28 * (y - top) / 70), RGB[color])

    def standing_things(self):
        rng, sea = self.rng, self.terrain == "sea"
        slots = [rng.uniform(0.26, 0.40), rng.uniform(0.62, 0.76)]
        rng.shuffle(slots)
        begin, end = self.standing
        standing = [o for o in self.scene["objs"]
                    if o[0] not in ("boat", "balloon")]
        standing.sort(key=lambda o: o[0] in SMALL)
        for i, (thing, color) in enumerate(standing):
            if len(standing) > 1 or sea:
                u = slots[i % 2]
            else:
                u = rng.uniform(0.24, 0.76)
            x = begin + (end - begin) * u
            y = float(self.ground[int(np.clip(x, 0, SIDE - 1))])
            y += rng.uniform(2, 5) if sea else rng.uniform(5, 15)
            if thing in SMALL and not sea:
                y += 10
            size = rng.uniform(1.0, 1.4) * (0.82 if sea else 1)
            self.stand(thing, color, x, min(y, SIDE - 8), size)

    def stand(self, thing, color, x, y, size):
        where = (self.canvas, self.scene, x, y)
        if thing == "house":
            things.house(*where, size * 1.4, RGB[color])
        elif thing == "tree":
            things.big_tree(*where, size * 1.05, self.scene["season"])
        elif thing == "lighthouse":
            things.lighthouse(*where, size * 1.05, RGB["red"])
        elif thing == "cat":
            things.cat(*where, size * 1.75, CAT_RGB[color])
        elif thing == "fox":
            things.fox(*where, size * 1.5)
        elif thing == "cactus":
            things.cactus(*where, size * 1.1)
        elif thing == "castle":
            things.castle(*where, size * 1.1)
        elif thing == "tent":
            things.tent(*where, size * 1.2, RGB[color])
        elif thing == "windmill":
            things.windmill(*where, size * 1.05, RGB[color])

    # the foreground

    def meadow(self):
        """Tufts of grass, half the time with flowers."""
        c, rng = self.canvas, self.rng
        flower = pick(rng, FLOWERS) if rng.random() < 0.5 else None
        for _ in range(18):
            x = rng.uniform(0, SIDE)
            y = rng.uniform(min(244, max(self.ground.mean() + 22, 222)),
                            SIDE + 4)
            height = 6 + 8 * (y - 215) / 40
            other = (20, 70, 60) if rng.random() < 0.6 else (255, 250, 150)
            blade = c.lit(mix(self.grass, other, 0.35))
            for dx in (-3.4, 0, 3.4):
                c.polygon([(x + dx - 1.9, y), (x + dx * 2, y - height),
                           (x + dx + 1.9, y)], blade, alpha=0.9)
            if flower is not None and rng.random() < 0.6:
                c.ellipse(x, y - height, 2.9, 2.7, c.lit(flower))

    def snowfall(self):
        rng = self.rng
        for _ in range(64):
            r = pick(rng, [1.5, 1.9, 2.4, 2.9])
            self.canvas.ellipse(rng.uniform(0, SIDE), rng.uniform(0, SIDE), r,
                                r, (255, 255, 255),
                                alpha=rng.uniform(0.55, 0.95))

    def finish(self):
        """A soft vignette, the texture of paper, and the style."""
        d = ((XX - SIDE / 2) ** 2 + (YY - SIDE / 2) ** 2) / (SIDE * SIDE / 2)
        paper = noise2(self.rng, 12, 12, 2)[..., None] * 1.6
        image = self.canvas.image * (1 - 0.13 * d[..., None]) + paper
        if self.scene["style"] != "none":
            gray = image @ tone(0.30, 0.59, 0.11)
            gray = np.clip((gray - 128) * 1.08 + 130, 0, 255)[..., None]
            if self.scene["style"] == "bw":
                image = gray * tone(1, 1, 1)
            else:
                image = gray * tone(1.06, 0.93, 0.74) + tone(10, 4, -4)
        return np.clip(image, 0, 255).astype(np.uint8)


def make(seed):
    rng = np.random.default_rng(seed)
    scene = sample_attributes(rng)
    return Painter(scene, rng).paint(), scene


def sheet(path, count, seed):
    columns = int(math.ceil(math.sqrt(count)))
    image = Image.new("RGB", (columns * SIDE, -(-count // columns) * SIDE))
    for i in range(count):
        image.paste(Image.fromarray(make(seed + i)[0]),
                    (i % columns * SIDE, i // columns * SIDE))
    image.save(path)


if __name__ == "__main__":
    numbers = [int(v) for v in sys.argv[2:]]
    sheet(sys.argv[1], *(numbers + [36, 0][len(numbers):]))
