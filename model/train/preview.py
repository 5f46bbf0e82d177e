"""Fits latent_rgb.json: a matrix from scaled latents to small previews.

The least-squares map from the four channels of a scaled latent (what the
UNet sees) to the picture averaged over 8x8 pixels, in [-1, 1].

    python preview.py MODEL [--pictures 200]
"""
import argparse
import json
import os

import numpy as np
import torch

import architecture as arch
import scenes

FIRST_SEED = 900_000_000            # apart from the seeds of the training


@torch.no_grad()
def pairs(vae, count):
    """Latents and averaged pictures, a row for each 8x8 block."""
    latents, colours = [], []
    for seed in range(FIRST_SEED, FIRST_SEED + count):
        picture = torch.from_numpy(scenes.make(seed)[0]).permute(2, 0, 1)
        x = picture[None].float() / 127.5 - 1
        z = vae.encode(x).latent_dist.mode() * arch.SCALING
        small = torch.nn.functional.avg_pool2d(x, 8)
        latents.append(z[0].flatten(1).T)
        colours.append(small[0].flatten(1).T)
    return torch.cat(latents).double(), torch.cat(colours).double()


def fit(vae, count):
    latents, colours = pairs(vae, count)
    ones = torch.ones(len(latents), 1, dtype=torch.double)
    matrix = torch.linalg.lstsq(torch.cat([latents, ones], 1), colours)[0]
    guess = torch.cat([latents, ones], 1) @ matrix
    error = (guess - colours).pow(2).mean().sqrt().item()
    rounded = np.round(matrix.numpy(), 5).tolist()
    return dict(factors=rounded[:4], bias=rounded[4]), error


def write(model, vae, count):
    result, error = fit(vae, count)
    with open(os.path.join(model, "latent_rgb.json"), "w") as f:
        json.dump(result, f, indent=2)
        f.write("\n")
    return error


if __name__ == "__main__":
    from diffusers import AutoencoderKL

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--pictures", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    weights = AutoencoderKL.from_pretrained(args.model, subfolder="vae",
                                            torch_dtype=torch.float32)
    print("rms error %.4f of a range of 2"
          % write(args.model, weights.eval(), args.pictures))
