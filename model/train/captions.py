"""What one could say of a scene: captions in many wordings.

A caption may leave an attribute out, so that the model learns to fill in what
a prompt does not say.  HEADS and attribute_vector() say what is in a picture
to the auxiliary loss of the training.
"""
import os
import re

from canvas import pick
from palette import CAT_RGB, COLORS
from scenes import CELESTIAL, SEASONS, SKIES, STYLES, TERRAINS, TIMES

# a terrain: its nouns, the prepositions before them, a name for the view
TERRAIN_WORDS = {
    "mountains": (
        ["the mountains", "snowy peaks", "a mountain range", "mountains",
         "the alps", "rocky mountains", "high mountains", "mountain peaks",
         "tall mountains"],
        ["in", "in front of", "below", "near", "under"],
        ["mountain landscape", "alpine landscape"]),
    "hills": (
        ["green hills", "rolling hills", "a meadow", "the countryside",
         "a grassy field", "hills", "the hills", "a valley", "grassland",
         "a field", "fields"],
        ["on", "in", "among"],
        ["hilly landscape", "country landscape", "pastoral landscape"]),
    "sea": (
        ["the sea", "the ocean", "the open sea", "calm sea", "the water",
         "ocean", "the sea coast", "sea waves"],
        ["by", "at", "near", "on"],
        ["seascape", "ocean view", "sea view"]),
    "lake": (
        ["a lake", "a mountain lake", "a still lake", "an alpine lake",
         "a calm lake", "the lake", "a lake with reflections"],
        ["by", "at", "near", "beside"],
        ["lake landscape", "lake view"]),
    "desert": (
        ["the desert", "sand dunes", "a sandy desert", "the dunes",
         "a desert", "dunes", "the sahara"],
        ["in", "among", "in the middle of"],
        ["desert landscape", "desert scene"]),
    "snow": (
        ["a snowy field", "the snow", "a winter landscape",
         "snow covered hills", "a snowy landscape", "snow", "deep snow",
         "the arctic"],
        ["in", "on"],
        ["winter landscape", "snowy landscape", "winter scene"]),
    "city": (
        ["the city", "a city skyline", "skyscrapers", "downtown",
         "a big city", "the city park", "a skyline", "tall buildings",
         "new york", "a metropolis"],
        ["in", "in front of", "near", "over"],
        ["cityscape", "urban landscape", "city view"]),
    "forest": (
        ["a forest", "the woods", "a pine forest", "pine trees",
         "the forest", "a deep forest", "woodland", "fir trees"],
        ["in", "among", "near"],
        ["forest landscape", "woodland scene"]),
    "beach": (
        ["a beach", "the beach", "a sandy beach", "the shore", "the seaside",
         "a tropical beach", "the coast", "an island beach"],
        ["on", "at", "by"],
        ["beach scene", "coastal landscape"]),
}

# an hour: as an adverb, as an adjective or noun, by its sky
TIME_WORDS = {
    "dawn": (
        ["at dawn", "at sunrise", "in the early morning", "at daybreak",
         "in the morning", "at first light"],
        ["dawn", "sunrise", "morning", "early morning"],
        ["pink sky", "pastel sky"]),
    "day": (
        ["at noon", "during the day", "in daylight", "at midday",
         "in the afternoon", "by day", "on a summer day"],
        ["daytime", "noon", "day", "midday"],
        ["blue sky", "bright daylight"]),
    "sunset": (
        ["at sunset", "at sundown", "during golden hour", "in the evening",
         "in the evening light", "during sunset"],
        ["sunset", "evening", "golden hour"],
        ["orange sky", "red sky", "golden sky"]),
    "dusk": (
        ["at dusk", "at twilight", "after sunset", "in the twilight",
         "at nightfall", "in the blue hour"],
        ["dusk", "twilight", "blue hour"],
        ["purple sky", "violet sky"]),
    "night": (
        ["at night", "at midnight", "in the dark night", "by night",
         "on a dark night", "late at night"],
        ["night", "nighttime", "midnight"],
        ["dark sky", "night sky"]),
}

COLOR_WORDS = {
    "red": ["red", "red", "red", "crimson", "scarlet"],
    "blue": ["blue", "blue", "azure"],
    "yellow": ["yellow", "yellow", "golden"],
    "white": ["white"],
    "green": ["green"],
    "purple": ["purple", "purple", "violet"],
    "pink": ["pink"],
    "orange": ["orange"],
    "black": ["black"],
    "gray": ["gray", "grey"],
}

THING_WORDS = {
    "house":
        ["house", "house", "cottage", "cabin", "home", "hut", "farmhouse"],
    "tree": ["tree"],
    "boat": ["boat", "sailboat", "sailing boat", "ship", "yacht"],
    "lighthouse": ["lighthouse"],
    "balloon":
        ["hot air balloon", "hot air balloon", "balloon", "air balloon"],
    "cat": ["cat", "cat", "kitten", "kitty"],
    "fox": ["fox"],
    "cactus": ["cactus", "saguaro cactus"],
    "castle": ["castle", "castle", "fairytale castle", "palace", "fortress"],
    "tent": ["tent", "tent", "camping tent", "camp tent"],
    "windmill": ["windmill", "windmill", "mill"],
}

ADJECTIVES = [
    "small", "little", "lonely", "beautiful", "cute", "tiny", "pretty",
    "big", "large", "cozy"]

STYLES_OF_TEXT = [
    "", "", "", "", "", "a picture of ", "an illustration of ",
    "a painting of ", "a drawing of ", "a flat illustration of ",
    "a digital painting of ", "an image of ", "a landscape with ",
    "a photo of ", "artwork of ", "a scene with ", "a beautiful view of ",
    "a peaceful scene of "]

SUFFIXES = [
    "beautiful", "high quality", "detailed", "4k", "highly detailed",
    "digital art", "illustration", "vector art", "minimalist", "flat design",
    "peaceful", "calm", "scenic", "serene", "soft light", "wallpaper",
    "concept art", "masterpiece", "best quality", "colorful",
    "storybook illustration", "trending on artstation"]

BLACK_AND_WHITE = [
    "black and white ", "a black and white picture of ", "monochrome ",
    "a black and white photo of ", "grayscale "]
SEPIA = [
    "sepia ", "a vintage photo of ", "an old photo of ", "sepia picture of ",
    "a retro picture of "]
ASKING = [
    "there is ", "you can see ", "we see ", "show me ", "draw ",
    "please draw "]

TREES = {
    "warm": ["palm tree", "palm", "tree", "palm tree"],
    "spring": ["cherry tree", "blossoming tree", "pink tree",
               "cherry blossom tree", "tree"],
    "autumn": ["autumn tree", "orange tree", "tree", "maple tree"],
    "snow": ["pine tree", "fir tree", "snowy tree", "tree"],
    "green": ["tree", "oak tree", "green tree", "tree"],
}

CLOUDS = [
    "clouds", "with fluffy clouds", "clouds in the sky", "clouds",
    "with clouds"]
CLOUDS_BY_DAY = CLOUDS[:3] + ["white clouds"] + CLOUDS[4:]
OVERCAST = [
    "overcast", "a cloudy sky", "dramatic clouds", "cloudy", "stormy sky",
    "heavy clouds"]
CLEAR = ["clear sky", "a cloudless sky", "no clouds"]
SUN = {
    "day": ["bright sun", "the sun is shining", "sunny", "sunshine",
            "with a sun"],
    "dawn": ["rising sun", "the sun is rising", "with the sun"],
    "sunset": ["setting sun", "the sun is setting", "a big sun",
               "with the sun"],
}
MOON = [
    "full moon", "with a full moon", "the moon", "a big moon", "moonlight",
    "under the full moon"]
CRESCENT = [
    "crescent moon", "with a crescent moon", "a sickle moon",
    "under a crescent moon"]
STARS = [
    "stars", "starry sky", "under the stars", "with many stars",
    "starry night"]
AURORA = [
    "northern lights", "aurora", "aurora borealis", "with northern lights",
    "green aurora in the sky", "under the northern lights"]
FOG = ["fog", "misty", "foggy", "mist", "in the fog"]
SNOWFALL = [
    "snowfall", "falling snow", "snowing", "snowflakes", "it is snowing"]
BIRDS = ["birds", "a flock of birds", "birds in the sky", "flying birds"]
SEASON_WORDS = {
    "autumn": ["autumn", "in autumn", "fall colors", "orange leaves",
               "in the fall", "autumn colors"],
    "spring": ["spring", "in spring", "cherry blossoms", "in bloom",
               "pink blossoms", "springtime"],
    "snow": ["winter", "in winter", "snow", "covered in snow", "snowy",
             "winter time"],
}


def with_article(words):
    return ("an " if words[0] in "aeiou" else "a ") + words


def without_article(words, articles="a|an|the"):
    return re.sub(r"^(%s) " % articles, "", words)


def fillers(tokenizer):
    """Words that mean nothing here: the model learns to pass over them."""
    here = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(here, "words.txt")) as f:
        known = set(f.read().split())
    heads = [t for t in tokenizer.vocab if re.fullmatch(r"[a-z]{2,5}", t)]
    words = [t[:-4] for t in tokenizer.vocab
             if re.fullmatch(r"[a-z]{2,9}</w>", t)]
    words = [w for w in words if w not in known and w + "s" not in known
             and w.rstrip("s") not in known]
    joined = [a + b for a, b in zip(heads, words)]
    joined += [a + b for a, b in zip(heads[::-1], words[::-1])]
    return words + [w for w in joined if w not in known]


def thing_noun(rng, scene, thing):
    noun = pick(rng, THING_WORDS[thing])
    if thing != "tree":
        return noun
    if scene["terrain"] in ("beach", "desert", "sea"):
        return pick(rng, TREES["warm"])
    if scene["season"] in ("spring", "autumn"):
        return pick(rng, TREES[scene["season"]])
    if scene["terrain"] == "snow":
        return pick(rng, TREES["snow"])
    return pick(rng, TREES["green"])


def coloured(rng, thing, noun, color):
    word = pick(rng, COLOR_WORDS[color])
    if thing == "cat" and color == "orange":
        word = pick(rng, ["orange", "ginger", "orange"])
    if thing == "boat" and rng.random() < 0.4:
        sails = pick(rng, [word + " sails", with_article(word) + " sail"])
        return noun + " with " + sails
    if thing == "house" and rng.random() < 0.08:
        return noun + " with " + word + " walls"
    return word + " " + noun


def thing_phrase(rng, scene, thing, color):
    words = thing_noun(rng, scene, thing)
    if thing == "fox" and rng.random() < 0.3:
        words = pick(rng, ["red fox", "orange fox", "young fox"])
    elif color and rng.random() < 0.86:
        words = coloured(rng, thing, words, color)
    if rng.random() < 0.15:
        words = pick(rng, ADJECTIVES) + " " + words
    if thing == "tent" and scene["time"] != "day" and rng.random() < 0.3:
        words += pick(rng, [" and a campfire", " with a camp fire",
                            " and a fire"])
    r = rng.random()
    if r < 0.12:
        return "the " + words
    if r < 0.2:
        return "one " + words
    return with_article(words)


def details(rng, scene):
    """Sky, weather and season: each said with a probability of its own."""
    time, terrain, season = scene["time"], scene["terrain"], scene["season"]
    shore = terrain in ("sea", "beach")
    stars = time == "night" and scene["sky"] != "cloudy"
    possible = [
        (scene["sky"] == "clouds", 0.45,
         CLOUDS_BY_DAY if time == "day" else CLOUDS),
        (scene["sky"] == "cloudy", 0.7, OVERCAST),
        (scene["sky"] == "clear", 0.25, CLEAR),
        (scene["celestial"] == "sun", 0.5, SUN.get(time, ["sun"])),
        (scene["celestial"] == "moon", 0.7, MOON),
        (scene["celestial"] == "crescent", 0.7, CRESCENT),
        (stars, 0.4, STARS),
        (scene["aurora"], 0.92, AURORA),
        (scene["fog"], 0.85,
         FOG + ["morning mist" if time == "dawn" else "thick fog"]),
        (scene["snowing"], 0.85, SNOWFALL),
        (scene["birds"], 0.85,
         BIRDS + ["seagulls" if shore else "with birds"]),
        (season == "autumn", 0.92, SEASON_WORDS["autumn"]),
        (season == "spring", 0.92, SEASON_WORDS["spring"]),
        (season == "snow" and terrain != "snow", 0.92, SEASON_WORDS["snow"]),
    ]
    return [pick(rng, words) for there, often, words in possible
            if there and rng.random() < often]


def tags(rng, things, noun, hour, extra):
    """A list of words, as some write their prompts."""
    parts = [without_article(t, "a|an|the|one") if rng.random() < 0.7 else t
             for t in things]
    parts += [without_article(noun)] if noun else []
    if hour:
        parts.append(hour[1] if rng.random() < 0.7 else hour[2])
    parts += extra
    return ", ".join(parts[i] for i in rng.permutation(len(parts)))


def subject(rng, form, things, place, say_place, hour):
    """The sentence without its hour, and the hour if it is yet to be said."""
    noun, preposition, view = place
    if not things:
        if rng.random() < 0.35:
            before = hour and rng.random() < 0.6
            words = with_article((hour[1] + " " if before else "") + view)
            return words, None if hour and hour[1] in words else hour
        if hour and rng.random() < 0.25:
            return hour[1] + " " + pick(rng, ["in ", "over ", "at "]) + noun, None
        return noun, hour
    if not say_place:
        return things, hour
    where = " " + preposition + " " + noun
    if form < 0.62:
        return things + where, hour
    if form < 0.72:
        verb = pick(rng, [" standing", " seen", " somewhere", " placed"])
        return things + verb + where, hour
    if form < 0.88:
        return noun + " with " + things, hour
    if form < 0.94:
        return with_article(view) + " with " + things, hour
    return pick(rng, ASKING) + things + where, hour


def sentence(rng, form, scene, things, place, say_place, hour, extra):
    words, hour = subject(rng, form, things, place, say_place, hour)
    if hour:
        adverb, adjective, sky = hour
        r = rng.random()
        if r < 0.62:
            words += pick(rng, [" ", " ", ", "]) + adverb
        elif r < 0.78:
            words = adverb + (", " if rng.random() < 0.6 else " ") + words
        elif r < 0.88:
            words += ", " + adjective
        else:
            dark = scene["time"] in ("night", "sunset", "dusk")
            extra = extra + [sky if dark else adverb]
    for e in extra:
        joins = e.startswith(("with", "in ", "under"))
        words += (" " if joins and rng.random() < 0.5 else ", ") + e
    return words


def styled(rng, scene, form, words):
    style = scene["style"]
    if style == "bw" and rng.random() < 0.95:
        return pick(rng, BLACK_AND_WHITE) + words
    if style == "sepia" and rng.random() < 0.95:
        return pick(rng, SEPIA) + words
    opening = (r"(at|in|on|by|during|after|late|there|you|we|show|draw|please)"
               r"\b")
    if form >= 0.2 and not re.match(opening, words):
        return pick(rng, STYLES_OF_TEXT) + words
    return words


def caption(scene, rng, meaningless=None):
    things = [thing_phrase(rng, scene, thing, color)
              for thing, color in scene["objs"] if rng.random() < 0.9]
    if len(things) > 1 and rng.random() < 0.5:
        things = things[::-1]
    joined = pick(rng, [" and ", " and ", ", ", " with "]).join(things)
    place = [pick(rng, words) for words in TERRAIN_WORDS[scene["terrain"]]]
    say_place = rng.random() < 0.92 or not things
    say_time = rng.random() < 0.88
    hour = [pick(rng, words) for words in TIME_WORDS[scene["time"]]]
    extra = details(rng, scene)
    if say_time and rng.random() < 0.12:
        extra.append(hour[2])
    extra = [extra[i] for i in rng.permutation(len(extra))]
    hour = hour if say_time else None

    form = rng.random()
    if form < 0.20:
        words = tags(rng, things, place[0] if say_place else None, hour, extra)
    else:
        words = sentence(rng, form, scene, joined, place, say_place, hour,
                         extra)
    words = styled(rng, scene, form, words)

    if rng.random() < 0.14:
        for _ in range(rng.integers(1, 4)):
            words += ", " + pick(rng, SUFFIXES)
    if meaningless and rng.random() < 0.12:
        parts = words.split(" ")
        for _ in range(rng.integers(1, 4)):
            parts.insert(int(rng.integers(len(parts) + 1)),
                         pick(rng, meaningless))
        words = " ".join(parts)
    words = words.strip().strip(",")
    if rng.random() < 0.15:
        words = words[0].upper() + words[1:] + pick(rng, ["", "."])
    return words


# how many values each attribute has: for a thing, its absence and its colours
HEADS = dict(
    time=len(TIMES), terrain=len(TERRAINS), season=len(SEASONS),
    sky=len(SKIES), celestial=len(CELESTIAL), aurora=2, fog=2, snowing=2,
    birds=2, style=len(STYLES), house=9, tree=2, boat=9, lighthouse=2,
    balloon=9, cat=5, fox=2, cactus=2, castle=2, tent=9, windmill=9)
THINGS = list(HEADS)[10:]


def attribute_vector(scene):
    values = [
        TIMES.index(scene["time"]), TERRAINS.index(scene["terrain"]),
        SEASONS.index(scene["season"]), SKIES.index(scene["sky"]),
        CELESTIAL.index(scene["celestial"]), int(scene["aurora"]),
        int(scene["fog"]), int(scene["snowing"]), int(scene["birds"]),
        STYLES.index(scene["style"])]
    things = dict(scene["objs"])
    for thing in THINGS:
        if thing not in things:
            values.append(0)
        elif HEADS[thing] == 2:
            values.append(1)
        else:
            colors = list(CAT_RGB) if thing == "cat" else COLORS
            values.append(1 + colors.index(things[thing]))
    return values
