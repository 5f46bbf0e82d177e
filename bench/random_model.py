"""Makes a model of a published one's size, with random weights.

    python random_model.py sd15|sd21base|sd21v OUT

Configurations are Stable Diffusion 1.5's, 2.1-base's and 2.1's; weights are the
libraries' own initialisation, in fp16, and the tokenizer is made up: nothing is
downloaded.  What a computation costs does not depend on what the weights say.
The last convolutions of UNet and decoder are scaled, so that noise comes out
with a standard deviation of 1, and a picture with one that bytes can hold:
differences mean something then.  2.1 to 2.6 GB; made on a GPU where there is
one.
"""
import json
import os
import shutil
import string
import sys

import diffusers
import torch
import transformers

UNET = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D",
                         "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D",
                       "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-05,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}

UNET_2 = {
    **UNET,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}

VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}

TEXT = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-05,
    "attention_dropout": 0.0,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 1,
}

TEXT_2 = {
    **TEXT,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "projection_dim": 512,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
}

SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}

VELOCITY = {
    **SCHEDULER,
    "_class_name": "DDIMScheduler",
    "prediction_type": "v_prediction",
}

# unet, text encoder, scheduler
MODELS = {
    "sd15": (UNET, TEXT, SCHEDULER),
    "sd21base": (UNET_2, TEXT_2, SCHEDULER),
    "sd21v": ({**UNET_2, "sample_size": 96, "upcast_attention": True}, TEXT_2,
              VELOCITY),
}

DEVIATION = {"unet": 1.0, "vae": 0.35}

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.30.0",
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}

TOKENIZER = {
    "add_prefix_space": False,
    "do_lower_case": True,
    "errors": "replace",
    "model_max_length": 77,
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "tokenizer_class": "CLIPTokenizer",
}


def write_json(path, value):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=False)


def byte_characters():
    """GPT-2's printable stand-ins for the 256 bytes, in CLIP's order."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1),
           *range(ord("®"), ord("ÿ") + 1)]
    rest = [b for b in range(256) if b not in own]
    return [chr(b) for b in own] + [chr(256 + i) for i in range(len(rest))]


def merges(count):
    """Every string of letters, shortest first: the word so far and a letter."""
    words = list(string.ascii_lowercase)
    for word in words:
        for letter in string.ascii_lowercase:
            yield word, letter
            words.append(word + letter)
            yield word, letter + "</w>"
            count -= 2
            if count <= 0:
                return


def write_tokenizer(out):
    characters = byte_characters()
    pairs = list(merges(TEXT["vocab_size"] - 2 * 256 - 2))
    vocab = (characters + [c + "</w>" for c in characters]
             + [a + b for a, b in pairs]
             + ["<|startoftext|>", "<|endoftext|>"])
    assert len(vocab) == len(set(vocab)) == TEXT["vocab_size"]
    write_json(out + "/vocab.json", {t: i for i, t in enumerate(vocab)})
    write_json(out + "/tokenizer_config.json", TOKENIZER)
    with open(out + "/merges.txt", "w", encoding="utf-8") as f:
        f.write("#version: 0.2\n")
        f.writelines("%s %s\n" % pair for pair in pairs)


def write_model(out, model):
    model.half().save_pretrained(out)
    for name in os.listdir(out):
        os.chmod(os.path.join(out, name), 0o644)


@torch.no_grad()
def balance(conv, deviation, run):
    """so that what run() returns deviates as wanted"""
    conv.weight.mul_(deviation / run().std())
    conv.bias.zero_()


def main(name, out):
    unet, text, scheduler = MODELS[name]
    making = out + ".making"
    shutil.rmtree(making, ignore_errors=True)
    torch.manual_seed(0)
    if torch.cuda.is_available():
        torch.set_default_device("cuda")
    write_json(making + "/model_index.json", {
        **INDEX, "scheduler": ["diffusers", scheduler["_class_name"]]})
    write_json(making + "/scheduler/scheduler_config.json", scheduler)
    write_tokenizer(making + "/tokenizer")
    write_model(making + "/text_encoder", transformers.CLIPTextModel(
        transformers.CLIPTextConfig(**text)))

    noise = torch.randn(1, 4, 32, 32)
    model = diffusers.AutoencoderKL(**VAE)
    balance(model.decoder.conv_out, DEVIATION["vae"],
            lambda: model.decode(noise).sample)
    write_model(making + "/vae", model)

    model = diffusers.UNet2DConditionModel(**unet)
    prompt = torch.randn(1, 77, unet["cross_attention_dim"])
    balance(model.conv_out, DEVIATION["unet"],
            lambda: model(noise, 500, prompt).sample)
    write_model(making + "/unet", model)
    os.rename(making, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
