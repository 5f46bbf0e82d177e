"""The sizes of the model, as diffusers' and transformers' configurations."""
import math

import torch
import torch.nn.functional as F
from torch import nn

SIDE = 256                  # pixels of a picture
LATENT_SIDE = SIDE // 8
SCALING = 0.18215           # Stable Diffusion's: the training makes it true
STEPS = 1000

UNET = dict(
    sample_size=LATENT_SIDE, in_channels=4, out_channels=4,
    center_input_sample=False, flip_sin_to_cos=True, freq_shift=0,
    down_block_types=["CrossAttnDownBlock2D", "CrossAttnDownBlock2D",
                      "DownBlock2D"],
    up_block_types=["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    block_out_channels=[96, 128, 160], layers_per_block=1,
    downsample_padding=1, mid_block_scale_factor=1, act_fn="silu",
    norm_num_groups=16, norm_eps=1e-5, cross_attention_dim=128,
    attention_head_dim=4)

VAE = dict(
    in_channels=3, out_channels=3,
    down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
    block_out_channels=[32, 64, 64, 96], layers_per_block=1, act_fn="silu",
    latent_channels=4, norm_num_groups=8, sample_size=SIDE,
    scaling_factor=SCALING)

SCHEDULER = dict(
    num_train_timesteps=STEPS, beta_start=0.00085, beta_end=0.012,
    beta_schedule="scaled_linear", trained_betas=None, clip_sample=False,
    set_alpha_to_one=False, steps_offset=1, prediction_type="epsilon",
    timestep_spacing="leading", skip_prk_steps=True)


def text_config(tokenizer):
    return dict(
        vocab_size=len(tokenizer.vocab), hidden_size=128,
        intermediate_size=512, projection_dim=128, num_hidden_layers=4,
        num_attention_heads=4, max_position_embeddings=77,
        hidden_act="quick_gelu", layer_norm_eps=1e-5, attention_dropout=0.0,
        dropout=0.0, initializer_factor=1.0, initializer_range=0.02,
        bos_token_id=tokenizer.bos, eos_token_id=tokenizer.eos,
        pad_token_id=1)


def alphas_cumprod():
    low, high = SCHEDULER["beta_start"], SCHEDULER["beta_end"]
    betas = torch.linspace(low ** .5, high ** .5, STEPS, dtype=torch.float64)
    return torch.cumprod(1 - betas ** 2, 0).float()


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x):
        batch, length, width = x.shape

        def split(t):
            t = t.view(batch, length, self.heads, width // self.heads)
            return t.transpose(1, 2)

        x = F.scaled_dot_product_attention(
            split(self.q_proj(x)), split(self.k_proj(x)),
            split(self.v_proj(x)), is_causal=True)
        return self.out_proj(x.transpose(1, 2).reshape(batch, length, width))


class Mlp(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x):
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))


class Layer(nn.Module):
    def __init__(self, width, heads, inner):
        super().__init__()
        self.self_attn = Attention(width, heads)
        self.layer_norm1 = nn.LayerNorm(width)
        self.mlp = Mlp(width, inner)
        self.layer_norm2 = nn.LayerNorm(width)

    def forward(self, x):
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class TextEncoder(nn.Module):
    """transformers' CLIPTextModel: its parameters by their names, without
    its branches, so that the whole step fits in one CUDA graph."""

    def __init__(self, config):
        super().__init__()
        width, layers = config["hidden_size"], config["num_hidden_layers"]
        self.text_model = model = nn.Module()
        model.embeddings = nn.Module()
        model.embeddings.token_embedding = nn.Embedding(
            config["vocab_size"], width)
        model.embeddings.position_embedding = nn.Embedding(
            config["max_position_embeddings"], width)
        model.encoder = nn.Module()
        model.encoder.layers = nn.ModuleList(
            Layer(width, config["num_attention_heads"],
                  config["intermediate_size"]) for _ in range(layers))
        model.final_layer_norm = nn.LayerNorm(width)
        self.initialize(width, layers)

    def initialize(self, width, layers):
        model = self.text_model
        nn.init.normal_(model.embeddings.token_embedding.weight, std=.02)
        nn.init.normal_(model.embeddings.position_embedding.weight, std=.01)
        for layer in model.encoder.layers:
            attn, mlp = layer.self_attn, layer.mlp
            for m in (attn.q_proj, attn.k_proj, attn.v_proj, mlp.fc1):
                nn.init.normal_(m.weight, std=width ** -.5)
                nn.init.zeros_(m.bias)
            for m in (attn.out_proj, mlp.fc2):      # these end in the residual
                std = m.in_features ** -.5 / math.sqrt(2 * layers)
                nn.init.normal_(m.weight, std=std)
                nn.init.zeros_(m.bias)

    def forward(self, ids):
        model = self.text_model
        x = model.embeddings.token_embedding(ids)
        x = x + model.embeddings.position_embedding.weight[:ids.shape[1]]
        for layer in model.encoder.layers:
            x = layer(x)
        return model.final_layer_norm(x)
