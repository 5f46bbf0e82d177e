"""Measures the VAE of a model folder on pictures that no training saw.

Each picture goes through the weights as shipped (fp16, computed in fp32) and
is rounded to bytes, as an image would be.

    python eval_vae.py MODEL [--pictures 200] [--device cpu]
"""
import argparse
import math

import numpy as np
import torch

import scenes

FIRST_SEED = 950_000_000            # apart from the seeds of the training


def reconstruct(vae, picture, device):
    x = torch.from_numpy(picture).permute(2, 0, 1)[None].to(device)
    with torch.no_grad():
        z = vae.encode(x.float() / 127.5 - 1).latent_dist.mode()
        y = vae.decode(z).sample
    y = ((y.clamp(-1, 1) + 1) * 127.5).round()
    return y[0].permute(1, 2, 0).to(torch.uint8).cpu().numpy()


def psnr(a, b):
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return 10 * math.log10(255 ** 2 / max(error, 1e-9))


def main():
    from diffusers import AutoencoderKL

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sheet", help="pairs of pictures, as a PNG")
    args = parser.parse_args()
    vae = AutoencoderKL.from_pretrained(
        args.model, subfolder="vae", torch_dtype=torch.float32)
    vae.eval().to(args.device)
    values, pairs = [], []
    for seed in range(FIRST_SEED, FIRST_SEED + args.pictures):
        picture = scenes.make(seed)[0]
        result = reconstruct(vae, picture, args.device)
        values.append(psnr(picture, result))
        if len(pairs) < 12:
            pairs.append(np.concatenate([picture, result], 0))
    if args.sheet:
        from PIL import Image
        rows = [np.concatenate(pairs[i:i + 6], 1) for i in (0, 6)]
        Image.fromarray(np.concatenate(rows, 0)).save(args.sheet)
    values = np.sort(values)
    print("VAE: %.2f dB mean of %d pictures (lowest %.2f, a tenth under %.2f)"
          % (values.mean(), len(values), values[0], values[len(values) // 10]))


if __name__ == "__main__":
    main()
