#!/usr/bin/env python3
"""Pictures of `sd generate --device cuda` against torch and against itself.

    compare.py [--build DIR] [--models DIR] [--keep DIR] [NAME ...]

NAME: embedded, sd15, sd21base, sd21v; the first three by default.  All but the
embedded model have random weights and a published model's size, and are made
in --models by bench/random_model.py unless they are there.

Against torch: the same initial noise, 20 DDIM steps, guidance.  The truth is
torch in fp32, TF32 off; that it computes in fp16 what diffusers' pipeline does
gives the error which ours must not exceed by more than a fifth.  The error is
|ours - truth| / |truth|.  Without torch and diffusers these tests are skipped.

Against itself: the same picture again, with previews, resumed, in the company
of others, step by step: the same bytes.  And against the cpu backend.
"""
import argparse
import array
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, os.path.join(ROOT, "bench"))

try:
    import diffusers
    import torch
    import transformers
    MISSING = None
except ImportError as e:
    MISSING = str(e)

PROMPT = "a red house by the lake at sunset"
NEGATIVE = "blurry, 3 dogs"
STEPS = 20
GUIDANCE = 7.5

LIMIT = 5e-3            # of one pass of a network
FACTOR = 1.2            # of diffusers' own error in fp16
PSNR = 40
MEDIAN = 2              # of 255, against the cpu
ON_CPU = 1e-2           # two steps of rounding: ours, and the cpu's none


# TAP

count = failed = 0


def ok(good, text):
    global count, failed
    count += 1
    failed += not good
    print("%sok %d - %s" % ("" if good else "not ", count, text), flush=True)


def skip(text, why):
    global count
    count += 1
    print("ok %d # SKIP %s: %s" % (count, text, why), flush=True)


def note(text):
    print("#", text, flush=True)


# ours

def generate(args, model, out, *options, device=None):
    """out: a directory, the picture in it is out.png"""
    os.makedirs(out, exist_ok=True)
    picture = os.path.join(out, "out.png")
    command = [os.path.join(args.build, "sd"), "generate", "--quiet",
               "--device", device or args.device, "--model", model,
               "--prompt", PROMPT, "--negative", NEGATIVE, "-o", picture,
               *map(str, options)]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError("%s: %s" % (" ".join(command), done.stderr.strip()))
    note("%s %s: %.1f s" % (os.path.basename(model), " ".join(
        os.path.basename(str(o)) for o in options), time.monotonic() - start))
    return out


def tensor(path, name):
    """of a safetensors file of floats; a list and its shape"""
    with open(path, "rb") as f:
        size = int.from_bytes(f.read(8), "little")
        info = json.loads(f.read(size))[name]
        begin, end = info["data_offsets"]
        f.seek(8 + size + begin)
        values = array.array("f", f.read(end - begin))
    return values, info["shape"]


def dumped(out, name):
    return tensor(os.path.join(out, "dump", name + ".safetensors"), name)


def content(*path):
    with open(os.path.join(*path), "rb") as f:
        return f.read()


def relative(got, want):
    got, want = got.double().flatten(), want.double().flatten()
    return float((got - want).norm() / want.norm())


def relative_lists(got, want):
    diff = sum((g - w) ** 2 for g, w in zip(got, want))
    return math.sqrt(diff / sum(w * w for w in want))


def byte(v):
    return min(max(round(127.5 * v + 127.5), 0), 255)


# torch

class Peer:
    def __init__(self, model, dtype, device):
        self.model, self.dtype, self.device = model, dtype, device
        kinds = {"text_encoder": transformers.CLIPTextModel,
                 "unet": diffusers.UNet2DConditionModel,
                 "vae": diffusers.AutoencoderKL}
        for part, kind in kinds.items():
            setattr(self, part, kind.from_pretrained(
                model, subfolder=part).to(device, dtype).eval())
        self.tokenizer = transformers.CLIPTokenizer.from_pretrained(
            model, subfolder="tokenizer")
        self.scheduler = diffusers.DDIMScheduler.from_pretrained(
            model, subfolder="scheduler")
        self.scheduler.set_timesteps(STEPS)

    def to(self, t):
        return t.to(self.device, self.dtype)

    def paint(self, noise):
        out = {}
        ids = self.tokenizer([NEGATIVE, PROMPT], padding="max_length",
                             max_length=77, truncation=True,
                             return_tensors="pt").input_ids
        text = self.text_encoder(ids.to(self.device)).last_hidden_state
        out["uncond"], out["cond"] = text[:1], text[1:]
        x = self.to(noise)
        for i, t in enumerate(self.scheduler.timesteps):
            both = self.unet(torch.cat([x, x]), t, text).sample
            without, guided = both.chunk(2)
            x = self.scheduler.step(without + GUIDANCE * (guided - without), t,
                                    x).prev_sample
            if i == 0:
                out["unet_out_000"] = both
        out["latent_%03d" % (STEPS - 1)] = x
        out["image"] = self.decode(x)
        return {name: t.float().cpu() for name, t in out.items()}

    def decode(self, x):
        return self.vae.decode(self.to(x) / self.vae.config.scaling_factor
                               ).sample.float().cpu()


def loaded(out, name):
    values, shape = dumped(out, name)
    return torch.tensor(values).reshape(shape)


def psnr(got, want):
    got, want = ((127.5 * t + 127.5).round().clamp(0, 255)
                 for t in (got, want))
    return float(10 * torch.log10(255 ** 2 / ((got - want) ** 2).mean()))


def against_torch(args, name, model, work):
    from safetensors.torch import save_file

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    with open(os.path.join(model, "unet", "config.json")) as f:
        size = json.load(f)["sample_size"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    noise = torch.randn(1, 4, size, size,
                        generator=torch.Generator().manual_seed(1))
    latents = os.path.join(work, "noise.safetensors")
    save_file({"latents": noise}, latents)

    out = generate(args, model, os.path.join(work, "ours"), "--latents",
                   latents, "--starting-step", 0, "--steps", STEPS,
                   "--guidance", GUIDANCE, "--sampler", "ddim", "--size",
                   "%dx%d" % (size * 8, size * 8), "--dump",
                   os.path.join(work, "ours", "dump"))
    last = "latent_%03d" % (STEPS - 1)

    with torch.no_grad():
        peer = Peer(model, torch.float32, device)
        truth = peer.paint(noise)
        ours = {key: loaded(out, key) for key in truth}
        decoded = peer.decode(ours[last])
        peer = Peer(model, torch.float16, device)
        half = peer.paint(noise)
        half_decoded = peer.decode(ours[last])
    del peer

    # that the measure measures something

    without, guided = truth["unet_out_000"].chunk(2)
    note("%s: UNet's output: deviation %.3f, guided and not differ by %.2g; "
         "latent's %.3f; picture's %.3f, %.1f%% of it white or black" % (
             name, truth["unet_out_000"].std(), relative(guided, without),
             truth[last].std(), truth["image"].std(),
             100 * (truth["image"].abs() >= 1).float().mean()))
    ok(all(torch.isfinite(t).all() for t in truth.values())
       and truth["image"].std() > 0.05 and relative(guided, without) > 1e-4,
       "%s: the truth is worth comparing with" % name)

    for key, limit in (("uncond", LIMIT), ("cond", LIMIT),
                       ("unet_out_000", LIMIT), (last, None)):
        compare(name, key, relative(ours[key], truth[key]),
                relative(half[key], truth[key]), limit)
    compare(name, "decoder alone", relative(ours["image"], decoded),
            relative(half_decoded, decoded), LIMIT)
    mine, its = (psnr(t["image"], truth["image"]) for t in (ours, half))
    ok(mine >= PSNR, "%s: picture %.1f dB, wanted %d; diffusers fp16 %.1f" % (
        name, mine, PSNR, its))


def compare(name, what, mine, its, limit):
    limits = [FACTOR * its] + ([limit] if limit else [])
    ok(mine <= min(limits), "%s: %s: error %.2e, diffusers fp16 %.2e, "
       "%.2f times%s" % (name, what, mine, its, mine / its,
                         "; limit %.0e" % limit if limit else ""))


# itself

def same(name, what, one, other):
    ok(one == other, "%s: %s: the same bytes" % (name, what))


def against_itself(args, name, model, work, samplers, steps):
    for sampler, guidance in samplers:
        def run(label, *options):
            return generate(args, model, os.path.join(work, label), "--steps",
                            steps, "--sampler", sampler, "--guidance",
                            guidance, *options)
        label = "%s, %s%s" % (name, sampler,
                              "" if guidance > 1 else ", unguided")

        state = os.path.join(work, "end")
        once = run("once", "--seed", 7, "--state", state)
        picture, latent = content(once, "out.png"), content(state)
        run("again", "--seed", 7, "--state", state)
        same(label, "again", content(work, "again/out.png"), picture)
        same(label, "again, state", content(state), latent)

        run("shown", "--seed", 7, "--preview-every", 1)
        same(label, "previews", content(work, "shown/out.png"), picture)

        half = os.path.join(work, "half")
        run("first", "--seed", 7, "--stop", steps // 2, "--state", half)
        run("second", "--seed", 7, "--latents", half, "--state", state)
        same(label, "resumed", content(work, "second/out.png"), picture)
        same(label, "resumed, state", tensor(state, "latents")[0].tobytes(),
             of_bytes(latent, work))

        run("dumped", "--seed", 7, "--dump", os.path.join(work, "dumped"))
        same(label, "step by step", content(work, "dumped/out.png"), picture)

        run("three", "--seed", 5, "--n", 3)
        same(label, "after two others", content(work, "three/out-2.png"),
             picture)
        ok(content(work, "three/out-1.png") != picture,
           "%s: another seed, another picture" % label)


def of_bytes(state, work):
    path = os.path.join(work, "kept")
    with open(path, "wb") as f:
        f.write(state)
    return tensor(path, "latents")[0].tobytes()


# the cpu backend: a whole picture where it is quick, else the first step

def against_cpu(args, name, model, work, whole):
    options = ["--seed", 7, "--steps", STEPS, "--sampler", "ddim"]
    options += [] if whole else ["--stop", 1]
    cpu, cuda = (generate(args, model, os.path.join(work, d), *options,
                          "--dump", os.path.join(work, d, "dump"), device=d)
                 for d in ("cpu", args.device))
    for key in ("uncond", "cond", "unet_out_000", "latent_000"):
        error = relative_lists(dumped(cuda, key)[0], dumped(cpu, key)[0])
        ok(error <= LIMIT, "%s: %s against the cpu: error %.2e; limit %.0e" % (
            name, key, error, LIMIT))
    got, want = (dumped(out, "image")[0] for out in (cuda, cpu))
    if whole:
        diff = sorted(abs(byte(g) - byte(w)) for g, w in zip(got, want))
        median = diff[len(diff) // 2]
        ok(median <= MEDIAN, "%s: picture against the cpu: median difference "
           "%d of 255, mean %.2f, at most %d; limit %d" % (
               name, median, sum(diff) / len(diff), diff[-1], MEDIAN))
    else:
        error = relative_lists(got, want)
        ok(error <= ON_CPU, "%s: image against the cpu: error %.2e; limit "
           "%.0e" % (name, error, ON_CPU))


def find(args, name):
    if name == "embedded":
        return os.path.join(ROOT, "model")
    if os.path.isdir(name):
        return name
    path = os.path.join(args.models, name)
    if not os.path.exists(path):
        if MISSING:
            return None
        import random_model
        note("making " + path)
        os.makedirs(args.models, exist_ok=True)
        random_model.main(name, path)
        torch.set_default_device(None)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return path


def main():
    parser = argparse.ArgumentParser()
    build = os.environ.get("SD_BUILD", os.path.join(ROOT, "build"))
    parser.add_argument("--build", default=build)
    parser.add_argument("--models", default=os.path.join(build, "models"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--keep", help="leave pictures and tensors there")
    parser.add_argument("--only", choices=("torch", "itself", "cpu"))
    parser.add_argument("names", nargs="*",
                        default=["embedded", "sd15", "sd21base"])
    args = parser.parse_args()

    for library in () if MISSING else (diffusers.utils, transformers.utils):
        library.logging.set_verbosity_error()
        library.logging.disable_progress_bar()

    work = args.keep or tempfile.mkdtemp(prefix="sd-compare-")
    samplers = [("ddim", 7.5), ("euler", 1), ("euler_a", 5)]

    for name in args.names:
        small = name == "embedded" or os.path.isdir(name)
        path = os.path.join(work, os.path.basename(name))
        os.makedirs(path, exist_ok=True)
        model = find(args, name)
        tests = {
            "torch": lambda: against_torch(args, name, model, path),
            "cpu": lambda: against_cpu(args, name, model, path, small),
            "itself": lambda: against_itself(
                args, name, model, path, samplers if small else samplers[:1],
                12 if small else 4)}
        for test, run in tests.items():
            if args.only not in (None, test):
                continue
            if MISSING and (test == "torch" or model is None):
                skip("%s against %s" % (name, test), MISSING)
                continue
            try:
                run()
            except Exception as e:
                ok(False, "%s against %s: %s: %s" % (
                    name, test, type(e).__name__, str(e).replace("\n", " ")))

    if not args.keep:
        shutil.rmtree(work)
    print("1..%d" % count)
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
