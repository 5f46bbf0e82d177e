"""A sheet of 24 prompts, or of those given.

    python sheet.py MODEL OUT.png [--seed 2] [PROMPT ...]
"""
import argparse

from PIL import Image

import generate

PROMPTS = [
    "a red house on green hills at sunset",
    "a sailboat with white sails on the sea at night, full moon",
    "snowy mountains at dawn, a lake with reflections",
    "a city skyline at night, crescent moon",
    "a blue house in the snow, winter, snowing",
    "a fox in an autumn forest",
    "a yellow hot air balloon over the desert at sunset",
    "northern lights over mountains at night, a tent with a campfire",
    "a lighthouse by the sea at dawn, birds",
    "a castle on green hills at sunset",
    "a black cat on the beach at dusk",
    "a cherry blossom tree by a lake, spring, day",
    "a red boat on the ocean at night, stars",
    "a misty pine forest at sunrise",
    "a red house in the desert at noon",
    "a black and white picture of a windmill on the hills, clouds",
    "a purple hot air balloon over the city, sunny day",
    "a white cottage in the mountains, autumn, evening",
    "sand dunes at night, a cactus, starry sky",
    "a fox in the snow at night, full moon",
    "mountains",
    "a meadow with flowers and a big tree at noon",
    "sunset over the ocean",
    "a palm tree on a tropical beach, blue sky",
]

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("prompts", nargs="*", default=[])
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--columns", type=int, default=6)
    parser.add_argument("--guidance", type=float, default=generate.GUIDANCE)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_intermixed_args()
    prompts = args.prompts or PROMPTS
    images = generate.pictures(
        generate.load(args.model, args.device), prompts,
        [args.seed] * len(prompts), guidance=args.guidance)
    Image.fromarray(generate.grid(images, args.columns)).save(args.out)
