"""Writes a checkpoint of train.py as a diffusers folder, weights in fp16.

    python export.py CHECKPOINT OUT
"""
import argparse
import json
import os

import torch
from safetensors.torch import save_file

import architecture as arch
import tokenizer as tokenizers

COMPONENTS = {
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def write_json(path, value):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as f:
        json.dump(value, f, indent=2)
        f.write("\n")


def write_weights(path, state):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in state.items()}, path,
              metadata={"format": "pt"})
    os.chmod(path, 0o644)           # safetensors makes its files private


def export(checkpoint, out):
    bpe = tokenizers.load()
    write_json(out + "/model_index.json", {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.30.0",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        **COMPONENTS})
    write_json(out + "/scheduler/scheduler_config.json",
               {"_class_name": "DDIMScheduler", **arch.SCHEDULER})
    if os.path.realpath(out + "/tokenizer") != os.path.realpath(
            tokenizers.SHIPPED):
        tokenizers.write(out + "/tokenizer", bpe.merges)

    write_json(out + "/text_encoder/config.json",
               {"architectures": ["CLIPTextModel"],
                "model_type": "clip_text_model", "torch_dtype": "float16",
                **arch.text_config(bpe)})
    write_weights(out + "/text_encoder/model.safetensors", checkpoint["text"])
    for name, key, config in (("UNet2DConditionModel", "unet", arch.UNET),
                              ("AutoencoderKL", "vae", arch.VAE)):
        write_json(out + "/" + key + "/config.json",
                   {"_class_name": name, **config})
        write_weights(
            out + "/" + key + "/diffusion_pytorch_model.safetensors",
            checkpoint[key])


def size(folder):
    return sum(os.path.getsize(os.path.join(where, name))
               for where, _, names in os.walk(folder) for name in names)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("out")
    args = parser.parse_args()
    export(torch.load(args.checkpoint, map_location="cpu",
                      weights_only=False), args.out)
    print("%.2f MB" % (size(args.out) / 1e6))
