"""Writes an initial noise for pictures of SIZE x SIZE latent elements.

    python noise.py SIZE OUT
"""
import sys

import torch
from safetensors.torch import save_file

size = int(sys.argv[1])
torch.manual_seed(1)
save_file({"latents": torch.randn(1, 4, size, size)}, sys.argv[2])
