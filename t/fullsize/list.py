"""Writes sd15.txt and sd21.txt: the tensors of Stable Diffusion's published
files, as t/fullsize.t makes empty files of them.

    python list.py

A tree of the names' parts, shapes at its leaves, a type where it is another;
"0-3" stands for four equal subtrees.  The first line of each tree is the file's
path and the type of its tensors.  Needs torch, diffusers and transformers, but
computes nothing.
"""
import os

import diffusers
import torch
import transformers

UNET = {
    "block_out_channels": [320, 640, 1280, 1280],
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "sample_size": 64,
}

VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
}

TEXT = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}

MODELS = {
    "sd15": (UNET, VAE, TEXT),
    "sd21": ({**UNET, "cross_attention_dim": 1024,
              "attention_head_dim": [5, 10, 20, 20],
              "use_linear_projection": True}, VAE,
             {**TEXT, "hidden_size": 1024, "intermediate_size": 4096,
              "num_hidden_layers": 23, "num_attention_heads": 16}),
}

OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value",
                 "to_out.0": "proj_attn"}


def shapes(module):
    return {name: tuple(t.shape) for name, t in module.state_dict().items()}


def text_encoder(config):
    found = shapes(transformers.CLIPTextModel(
        transformers.CLIPTextConfig(**config)))
    return {"text_model." + name.removeprefix("text_model."): shape
            for name, shape in found.items()}


def old_attention(found):
    """as the files of SD 1.x have it"""
    renamed = {}
    for name, shape in found.items():
        if ".attentions." in name:
            for new, old in OLD_ATTENTION.items():
                name = name.replace("." + new + ".", "." + old + ".")
        renamed[name] = shape
    return renamed


def tree(found):
    root = {}
    for name, shape in found.items():
        node = root
        *parts, leaf = name.split(".")
        for part in parts:
            node = node.setdefault(part, {})
        node[leaf] = " ".join(map(str, shape))
    return root


def lines(node, depth):
    numbers = sorted(int(k) for k in node if k.isdigit())
    names = sorted(k for k in node if not k.isdigit())
    while numbers:
        first = last = numbers.pop(0)
        while numbers[:1] == [last + 1] and (node[str(last + 1)]
                                             == node[str(first)]):
            last = numbers.pop(0)
        label = str(first) if first == last else "%d-%d" % (first, last)
        yield " " * depth + label
        yield from lines(node[str(first)], depth + 1)
    for name in names:
        if isinstance(node[name], str):
            yield " " * depth + name + " " + node[name]
        else:
            yield " " * depth + name
            yield from lines(node[name], depth + 1)


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    for model, (unet, vae, text) in MODELS.items():
        with torch.device("meta"):
            parts = {
                "text_encoder/model": text_encoder(text),
                "unet/diffusion_pytorch_model": shapes(
                    diffusers.UNet2DConditionModel(**unet)),
                "vae/diffusion_pytorch_model": shapes(
                    diffusers.AutoencoderKL(**vae)),
            }
        if model == "sd15":             # of 2022, with that time's names
            parts["vae/diffusion_pytorch_model"] = old_attention(
                parts["vae/diffusion_pytorch_model"])
            parts["text_encoder/model"][
                "text_model.embeddings.position_ids"] = ("I64", 1, 77)
        with open(os.path.join(here, model + ".txt"), "w") as f:
            for path, found in parts.items():
                print(path, "F16", file=f)
                for line in lines(tree(found), 1):
                    print(line, file=f)


if __name__ == "__main__":
    main()
