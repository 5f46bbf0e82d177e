"""Does the model follow the prompt?  Checked by pixels, eight seeds a prompt.

Every check compares a measure of the pictures of two prompts.  It passes if
the means differ by the margin asked for, and the pictures themselves, seed by
seed, in seven cases of eight.

    python pixelcheck.py MODEL [--seeds 8] [--guidance 6] [--sheet OUT.png]
"""
import argparse
import sys

import numpy as np

import generate


def luma(x):
    """Brightness, 0 to 255."""
    return (x @ np.array([.299, .587, .114])).mean()


def warmth(x):
    """Red less blue in the upper half, where the sky is."""
    sky = x[:x.shape[0] // 2]
    return (sky[..., 0] - sky[..., 2]).mean()


def red(x):
    """Percent of the pixels that are red: far above green and blue."""
    r, g, b = x[..., 0], x[..., 1], x[..., 2]
    return 100 * ((r > 110) & (r > 2 * g) & (r > 2 * b)).mean()


def blue(x):
    """Percent of the pixels under the sky that are a strong blue."""
    low = x[x.shape[0] // 2:]
    r, g, b = low[..., 0], low[..., 1], low[..., 2]
    return 100 * ((b > 90) & (b > 1.4 * g) & (b > 1.8 * r)).mean()


def saturation(x):
    """The largest channel less the smallest."""
    return (x.max(-1) - x.min(-1)).mean()


def white(x):
    """The smallest channel in the lower half: white only if all are high."""
    return x[x.shape[0] // 2:].min(-1).mean()


HILLS = "green hills at noon"
CHECKS = [
    # name, measure, the prompt with more of it, the one with less, margin
    ("night is darker than noon", luma,
     HILLS, "green hills at night", 40),
    ("sunset is warmer than noon", warmth,
     "green hills at sunset", HILLS, 40),
    ("a red house is redder", red,
     "a red house on green hills at noon",
     "a blue house on green hills at noon", 1),
    ("a blue house is bluer", blue,
     "a blue house on green hills at noon",
     "a red house on green hills at noon", 1),
    ("black and white has no colour", saturation,
     HILLS, "a black and white picture of green hills", 40),
    ("snow is whiter than a meadow", white,
     "a snowy field at noon", "a green meadow at noon", 60),
    # never seen in training: HELD of scenes.py
    ("held out: a blue house in the snow", blue,
     "a blue house in the snow at noon", "a red house in the snow at noon", 1),
    ("held out: a red house in the desert", red,
     "a red house in the desert at noon",
     "a blue house in the desert at noon", 1),
    ("held out: a castle on hills at sunset", warmth,
     "a castle on green hills at sunset",
     "a castle on green hills at noon", 40),
    ("held out: a fox in the snow at night", luma,
     "a fox in the snow at noon", "a fox in the snow at night", 40),
    ("held out: a forest at sunset", warmth,
     "a pine forest at sunset", "a pine forest at noon", 40),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--guidance", type=float, default=generate.GUIDANCE)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sheet")
    args = parser.parse_args()
    pipe = generate.load(args.model, args.device)
    prompts = list(dict.fromkeys(p for c in CHECKS for p in c[2:4]))
    drawn = {p: generate.pictures(pipe, [p] * args.seeds, range(args.seeds),
                                  args.guidance) for p in prompts}
    if args.sheet:
        from PIL import Image
        rows = np.concatenate([drawn[p] for p in prompts])
        Image.fromarray(generate.grid(rows, args.seeds)).save(args.sheet)

    failed = 0
    for name, measure, more, less, margin in CHECKS:
        a, b = (np.array([measure(x.astype(float)) for x in drawn[p]])
                for p in (more, less))
        won = int((a > b).sum())
        good = (a.mean() - b.mean() >= margin
                and won >= args.seeds * 7 / 8)
        failed += not good
        print("%-4s %-38s %-10s %6.1f - %6.1f = %6.1f (of %d), %d of %d seeds"
              % ("ok" if good else "FAIL", name, measure.__name__, a.mean(),
                 b.mean(), a.mean() - b.mean(), margin, won, args.seeds))
    print("%d of %d checks passed"
          % (len(CHECKS) - failed, len(CHECKS)))
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
