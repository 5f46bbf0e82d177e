"""A peer of the benchmark: one library, one precision, driven line by line.

    python peer.py torch|openvino f32|bf16 MODEL NOISE THREADS [IR]

Reads commands, answers each with one line:

    prompt, step, decode    computes once; the answer is the seconds taken
    generate                prompt to JPEG, 20 steps; the same
    save NAME               the last embeddings, UNet output, latent and
                            picture to the file NAME; the answer is "ok"
    memory                  the highest resident size so far, in bytes

The first line that it prints says that it is ready, and its versions.  A prompt
is the text encoder on two rows of 77 tokens, a step the UNet on two samples
(guidance) and the scheduler.  IR: the directory of OpenVINO's conversions.
"""
import io
import os
import sys
import time

import diffusers
import torch
from safetensors.torch import save_file

import modules


class Torch:
    """Channels last, the layout that its convolutions on CPUs prefer."""

    def __init__(self, precision, model, threads, ir):
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.type = {"f32": torch.float32, "bf16": torch.bfloat16}[precision]
        self.parts = {part: modules.load(model, part, self.type)
                      for part in modules.PARTS}
        for part in ("unet", "vae"):
            self.parts[part].to(memory_format=torch.channels_last)

    def run(self, part, *inputs):
        inputs = [i.to(self.type) if i.is_floating_point() else i
                  for i in inputs]
        if part != "text_encoder":
            inputs[0] = inputs[0].contiguous(memory_format=torch.channels_last)
        return self.parts[part](*inputs).float()

    def version(self):
        return "torch " + torch.__version__


class OpenVINO:
    def __init__(self, precision, model, threads, ir):
        import openvino
        torch.set_num_threads(threads)
        self.versions = openvino.get_version()
        core = openvino.Core()
        self.parts = {part: core.compile_model(
            os.path.join(ir, part + ".xml"), "CPU",
            {"INFERENCE_PRECISION_HINT": precision,
             "INFERENCE_NUM_THREADS": threads,
             "NUM_STREAMS": "1",
             "PERFORMANCE_HINT": "LATENCY"}) for part in modules.PARTS}

    def run(self, part, *inputs):
        return torch.from_numpy(self.parts[part](
            [i.numpy() for i in inputs], share_inputs=True)[0])

    def version(self):
        return "openvino " + self.versions.split("-")[0]


class Commands:
    def __init__(self, library, picture):
        self.library = library
        self.picture = picture
        self.ids = picture.ids()
        self.embeddings = self.out = self.latent = self.image = None

    def prompt(self):
        self.embeddings = self.library.run("text_encoder", self.ids)

    def step(self):
        self.denoise(self.picture.noise, self.picture.scheduler.timesteps[0])

    def denoise(self, x, timestep):
        self.out = self.library.run("unet", torch.cat([x, x]),
                                    timestep.reshape(1), self.embeddings)
        without, guided = self.out.chunk(2)
        self.latent = self.picture.scheduler.step(
            without + modules.GUIDANCE * (guided - without), timestep,
            x).prev_sample

    def decode(self):
        self.image = self.library.run("vae",
                                      self.latent * self.picture.unscale)

    def generate(self):
        self.ids = self.picture.ids()
        self.prompt()
        self.latent = self.picture.noise
        for timestep in self.picture.scheduler.timesteps:
            self.denoise(self.latent, timestep)
        self.decode()
        image = diffusers.image_processor.VaeImageProcessor().postprocess(
            self.image)[0]
        image.save(io.BytesIO(), "JPEG", quality=90)

    def save(self, name):
        without, guided = self.embeddings.chunk(2)
        tensors = {"uncond": without, "cond": guided,
                   "unet_out_000": self.out, "latent_000": self.latent,
                   "image": self.image}
        save_file({k: v.contiguous() for k, v in tensors.items()}, name)


def peak_memory():
    with open("/proc/self/status") as f:
        line = next(line for line in f if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main(library, precision, model, noise, threads, ir=None):
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)                       # the libraries may print what they like
    library = {"torch": Torch, "openvino": OpenVINO}[library](
        precision, model, int(threads), ir)
    commands = Commands(library, modules.Picture(model, noise))
    print("ready", library.version(), "diffusers", diffusers.__version__,
          file=out)
    for line in sys.stdin:
        command, *args = line.split()
        if command == "memory":
            print(peak_memory(), file=out)
            continue
        start = time.monotonic()
        getattr(commands, command)(*args)
        took = time.monotonic() - start
        print("ok" if command == "save" else "%.6f" % took, file=out)


if __name__ == "__main__":
    main(*sys.argv[1:])
