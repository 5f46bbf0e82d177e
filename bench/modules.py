"""A model's parts as torch modules of tensors to one tensor, and the picture
that every participant of the benchmark computes: one prompt, one initial noise.
"""
import diffusers
import torch
import transformers
from safetensors.torch import load_file

PROMPT = "a red house beside a lake at sunset"
STEPS = 20
GUIDANCE = 7.5


class TextEncoder(torch.nn.Module):
    def __init__(self, text_encoder):
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, ids):
        return self.text_encoder(input_ids=ids, return_dict=False)[0]


class UNet(torch.nn.Module):
    def __init__(self, unet):
        super().__init__()
        self.unet = unet

    def forward(self, x, timestep, prompt):
        return self.unet(x, timestep, prompt, return_dict=False)[0]


class Decoder(torch.nn.Module):
    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def forward(self, latent):
        return self.vae.decode(latent, return_dict=False)[0]


PARTS = {
    "text_encoder": (transformers.CLIPTextModel, TextEncoder),
    "unet": (diffusers.UNet2DConditionModel, UNet),
    "vae": (diffusers.AutoencoderKL, Decoder),
}


def load(model, part, dtype):
    kind, wrapper = PARTS[part]
    return wrapper(kind.from_pretrained(model, subfolder=part,
                                        torch_dtype=dtype).eval())


class Picture:
    """noise: a safetensors file with the tensor "latents" """

    def __init__(self, model, noise):
        self.tokenizer = transformers.CLIPTokenizer.from_pretrained(
            model, subfolder="tokenizer")
        self.scheduler = diffusers.DDIMScheduler.from_pretrained(
            model, subfolder="scheduler")
        self.scheduler.set_timesteps(STEPS)
        self.noise = load_file(noise)["latents"]
        self.width = diffusers.UNet2DConditionModel.load_config(
            model, subfolder="unet")["cross_attention_dim"]
        self.unscale = 1 / diffusers.AutoencoderKL.load_config(
            model, subfolder="vae")["scaling_factor"]

    def ids(self):
        return self.tokenizer(["", PROMPT], padding="max_length",
                              max_length=77, truncation=True,
                              return_tensors="pt").input_ids

    def inputs(self, part):
        """an example of the part's inputs"""
        if part == "text_encoder":
            return (self.ids(),)
        if part == "unet":
            return (torch.cat([self.noise, self.noise]),
                    self.scheduler.timesteps[:1],
                    torch.zeros(2, 77, self.width))
        return (self.noise,)
