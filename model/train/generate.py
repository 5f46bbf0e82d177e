"""Pictures of a model folder, through diffusers: what the checks share."""
import numpy as np
import torch

STEPS = 20
GUIDANCE = 6.


def load(model, device="cpu"):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(
        model, safety_checker=None, torch_dtype=torch.float32).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pictures(pipe, prompts, seeds, guidance=GUIDANCE, steps=STEPS, batch=8):
    """One picture for each prompt and seed, as uint8 [n, h, w, 3].

    The first noise is drawn on the CPU, picture by picture, so that it does
    not depend on the device or on the batch."""
    side = pipe.unet.config.sample_size
    out = []
    for i in range(0, len(prompts), batch):
        noise = torch.cat([
            torch.randn(1, 4, side, side,
                        generator=torch.Generator().manual_seed(seed))
            for seed in seeds[i:i + batch]])
        images = pipe(prompts[i:i + batch], num_inference_steps=steps,
                      guidance_scale=guidance,
                      latents=noise.to(pipe.device), output_type="np").images
        out.append((images * 255).round().astype(np.uint8))
    return np.concatenate(out)


def grid(images, columns):
    rows = [np.concatenate(list(images[i:i + columns]), 1)
            for i in range(0, len(images), columns)]
    return np.concatenate(rows, 0)
