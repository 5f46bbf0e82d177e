"""Trains the model: first the VAE, then the text encoder and the UNet.

    python train.py --out RUN                   a GPU, half an hour
    python train.py --out RUN --device cpu      a night

It draws its own pictures (pool.py), saves as it goes and ends with a
diffusers folder in RUN/model.  The same command again goes on where the last
one stopped: the learning rate follows the share of its wall time that a stage
has spent, and that is kept with the weights.
"""
import argparse
import atexit
import math
import os
import signal
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

import architecture as arch
import captions
import export
import pool
import preview
import tokenizer as tokenizers

HERE = os.path.dirname(os.path.abspath(__file__))
STARTED = time.time()

PRESETS = {
    "cuda": dict(vae_minutes=6., unet_minutes=20., vae_batch=16, batch=256,
                 vae_lr=1e-3, lr=7e-4, pictures=150000, first=24000,
                 kept=60000, ema=.9995, workers=None, log_every=250),
    "cpu": dict(vae_minutes=240., unet_minutes=480., vae_batch=4, batch=16,
                vae_lr=5e-4, lr=3e-4, pictures=20000, first=2000,
                kept=2000, ema=.999, workers=1, log_every=25),
}


def log(*words):
    print("%7.1f" % (time.time() - STARTED), *words, flush=True)


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--out", required=True, help="folder of the run")
    add("--device", choices=PRESETS, default="cuda")
    add("--stage", choices=("all", "vae", "unet"), default="all")
    add("--vae-minutes", type=float)
    add("--unet-minutes", type=float)
    add("--until", type=float, default=0,
        help="end the UNet's stage at this Unix time instead")
    add("--vae-batch", type=int)
    add("--batch", type=int)
    add("--vae-lr", type=float)
    add("--lr", type=float)
    add("--pictures", type=int, help="to draw in all")
    add("--first", type=int, help="pictures to wait for before the UNet")
    add("--kept", type=int, help="pictures the VAE keeps in memory")
    add("--workers", type=int, help="processes that draw")
    add("--pool", help="a pool that another process fills")
    add("--init", help="weights to start from, when the run is new")
    add("--compile", action="store_true", help="torch.compile the networks")
    add("--no-graph", action="store_true", help="no CUDA graphs")
    add("--steps", type=int, default=0, help="end each stage after so many")
    add("--log-every", type=int)
    add("--save-every", type=float, default=60., help="seconds")
    add("--seed", type=int, default=0)
    args = parser.parse_args()
    for name, value in PRESETS[args.device].items():
        if getattr(args, name, None) is None:
            setattr(args, name, value)
    return args


# --------------------------------------------------------------- the pieces

class Models:
    """The networks, and how far their training is."""

    def __init__(self, args):
        from diffusers import AutoencoderKL, UNet2DConditionModel

        self.tokenizer = tokenizers.load()
        torch.manual_seed(args.seed)
        self.nets = {
            "vae": AutoencoderKL(**arch.VAE),
            "unet": UNet2DConditionModel(**arch.UNET),
            "text": arch.TextEncoder(arch.text_config(self.tokenizer)),
            "heads": nn.Linear(128, sum(captions.HEADS.values())),
        }
        for net in self.nets.values():
            net.to(args.device)
        self.progress = dict(vae_seconds=0., vae_samples=0, unet_seconds=0.,
                             unet_samples=0, vae_done=False, psnr=0.)
        self.stage_state = None         # optimizer and average, to resume

    def load(self, state):
        for name, net in self.nets.items():
            if name in state:
                net.load_state_dict(
                    {k: v.float() for k, v in state[name].items()})
        self.progress.update(state.get("progress", {}))
        self.stage_state = state.get("stage")

    def state(self):
        return {name: net.state_dict() for name, net in self.nets.items()}

    def half(self):
        return {name: {k: v.detach().half().cpu() for k, v in sd.items()}
                for name, sd in self.state().items()}


class Average:
    """Exponential moving average of parameters."""

    def __init__(self, parameters, decay):
        self.parameters = parameters
        self.values = [p.detach().clone() for p in parameters]
        self.decay = decay
        self.count = 0

    @torch.no_grad()
    def update(self):
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        torch._foreach_lerp_(self.values, self.parameters, 1 - decay)

    @torch.no_grad()
    def swap(self):
        for p, v in zip(self.parameters, self.values):
            kept = p.detach().clone()
            p.copy_(v)
            v.copy_(kept)


class Stage:
    """What both stages share: the clock, the optimizer, the saving."""

    def __init__(self, name, args, models, nets, lr, minutes, decay,
                 weight_decay):
        self.name, self.args, self.models = name, args, models
        self.lr, self.limit = lr, minutes * 60
        self.parameters = [p for n in nets for p in models.nets[n].parameters()]
        self.optimizer = torch.optim.AdamW(
            [dict(params=[p for p in self.parameters if p.ndim > 1],
                  weight_decay=weight_decay),
             dict(params=[p for p in self.parameters if p.ndim <= 1],
                  weight_decay=0.)],
            lr=lr, betas=(.9, .99), fused=args.device == "cuda")
        self.average = Average(self.parameters, decay)
        saved = models.stage_state
        if saved and saved["name"] == name:
            self.optimizer.load_state_dict(saved["optimizer"])
            self.average.values = [v.to(args.device) for v in saved["average"]]
            self.average.count = saved["count"]
        self.spent = models.progress[name + "_seconds"]
        self.clock = None               # it starts after the first steps
        self.steps = 0
        self.saved_at = time.time()
        self.stop = False
        signal.signal(signal.SIGTERM, self.interrupt)
        signal.signal(signal.SIGINT, self.interrupt)

    def interrupt(self, *_):
        self.stop = True

    def tick(self):
        """Starts the clock, or adds to what the stage has spent."""
        now = time.time()
        if self.clock is None:
            if self.steps < 4:          # slow: kernels are being chosen
                return
            if self.args.device == "cuda":
                torch.cuda.synchronize()
                now = time.time()
            if self.name == "unet" and self.args.until:
                self.limit = self.spent + max(1., self.args.until - now)
            log(self.name, "first steps done, %.0f s to go"
                % (self.limit - self.spent))
        else:
            self.spent += now - self.clock
        self.clock = now
        self.models.progress[self.name + "_seconds"] = self.spent

    def fraction(self):
        return min(1., self.spent / max(1e-9, self.limit))

    def going(self):
        self.tick()
        if self.stop or (self.args.steps and self.steps >= self.args.steps):
            return False
        return self.clock is None or self.spent < self.limit

    def step(self, batch):
        """The optimizer's step, after the gradients."""
        done = self.fraction()
        lr = self.lr * min(1., (done + 1e-4) / .02)
        lr *= .5 + .5 * math.cos(math.pi * done)
        lr *= min(1., (self.steps + 1) / 100)   # also after a resume
        for group in self.optimizer.param_groups:
            group["lr"] = lr + self.lr * .004
        nn.utils.clip_grad_norm_(self.parameters, 1.)
        self.optimizer.step()
        self.average.update()
        self.steps += 1
        self.models.progress[self.name + "_samples"] += batch

    def save(self):
        """All that a resumed run needs, and the averaged weights apart."""
        progress = dict(self.models.progress)
        state = dict(
            self.models.state(), progress=progress,
            stage=dict(name=self.name, optimizer=self.optimizer.state_dict(),
                       average=self.average.values, count=self.average.count))
        write(state, self.args.out + "/state.pt")
        self.average.swap()
        write(dict(self.models.half(), progress=progress),
              self.args.out + "/weights.pt")
        self.average.swap()
        self.saved_at = time.time()

    def maybe_save(self):
        if time.time() - self.saved_at > self.args.save_every:
            self.save()

    def finish(self):
        """Leaves the averaged weights in place."""
        if self.stop:
            self.save()
            log("interrupted; the same command goes on")
            sys.exit(0)
        self.average.swap()
        self.models.stage_state = None


def write(state, path):
    torch.save(state, path + ".new")
    os.replace(path + ".new", path)     # a run that dies leaves a whole file


class Gradients:
    """One forward and backward pass over fixed buffers.

    On a GPU it becomes one CUDA graph: the networks are small, and launching
    their kernels one by one takes as long as running them.
    """

    def __init__(self, loss, buffers, parameters, args):
        self.loss, self.buffers, self.parameters = loss, buffers, parameters
        self.cuda = args.device == "cuda"
        self.want_graph = self.cuda and not args.no_graph
        self.graph = self.result = None
        self.calls = 0
        self.function = loss
        if args.compile:
            self.function = torch.compile(loss)

    def plain(self):
        with torch.autocast("cuda", torch.bfloat16, enabled=self.cuda,
                            cache_enabled=False):
            result = self.function(*self.buffers)
        result[0].backward()
        return [r.detach() for r in result]

    def clear(self):
        for p in self.parameters:
            p.grad = None

    def first(self):
        try:
            return self.plain()
        except Exception as error:
            if self.function is self.loss:
                raise
            log("not compiled:", repr(error)[:300])
            self.function = self.loss
            self.clear()
            return self.plain()

    def capture(self):
        self.want_graph = False
        try:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(2):
                    self.clear()
                    self.plain()
                self.clear()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.result = self.plain()
            self.graph = graph
            log("captured as a CUDA graph")
        except Exception as error:
            log("no CUDA graph:", repr(error)[:300])
            self.clear()

    def __call__(self):
        self.calls += 1
        if self.want_graph and self.calls == 4:
            self.capture()
        if self.graph is not None:
            self.graph.replay()
            return self.result
        self.clear()
        return self.first() if self.calls == 1 else self.plain()


def to_float(pictures, device):
    x = torch.as_tensor(pictures).to(device, non_blocking=True)
    return x.permute(0, 3, 1, 2).float() / 127.5 - 1


def start_pool(args):
    if args.pool:
        return args.pool
    folder = args.out + "/pool"
    command = [sys.executable, HERE + "/pool.py", folder, "--pictures",
               str(args.pictures)]
    if args.workers:
        command += ["--workers", str(args.workers)]
    process = subprocess.Popen(command)
    atexit.register(process.terminate)
    return folder


def wait_for(reader, count):
    while reader.drawn() < count:
        time.sleep(.5)


# -------------------------------------------------------------------- VAE

class VaeLoss(nn.Module):
    """L1 and L2 of the pictures, and L1 of their gradients at three scales:
    edges are what a flat illustration is made of."""

    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def forward(self, x, noise):
        moments = self.vae.quant_conv(self.vae.encoder(x)).float()
        mean, variance = moments.chunk(2, 1)
        variance = variance.clamp(-20, 8)               # its logarithm
        kl = .5 * (mean ** 2 + variance.exp() - 1 - variance).mean()

        z = mean + (.5 * variance).exp() * noise
        y = self.vae.decoder(self.vae.post_quant_conv(z)).float()
        error = y - x
        l1 = error.abs().mean()
        total = l1 + 4 * error.pow(2).mean() + 1.5e-4 * kl
        for scale in range(3):
            e = error
            if scale:
                e = F.avg_pool2d(error, 2 ** scale)
                total = total + .5 * e.abs().mean()
            total = total + .5 * (e[..., 1:] - e[..., :-1]).abs().mean()
            total = total + .5 * (e[..., 1:, :]
                                  - e[..., :-1, :]).abs().mean()
        return total, l1, kl


class Pictures:
    """The pictures that the VAE trains on, in the device's memory."""

    def __init__(self, args, reader):
        self.reader, self.limit = reader, args.kept
        self.data = torch.empty((self.limit, arch.SIDE, arch.SIDE, 3),
                                dtype=torch.uint8, device=args.device)
        self.count = 0

    def grow(self, most=1024):
        room = min(most, self.limit - self.count)
        new = self.reader.next(room) if room > 0 else None
        if new is None:
            return
        new = new[0][:room]
        self.data[self.count:self.count + len(new)] = torch.from_numpy(new)
        self.count += len(new)

    def sample(self, batch):
        chosen = torch.randint(self.count, (batch,), device=self.data.device)
        return to_float(self.data[chosen], self.data.device)


@torch.no_grad()
def reconstruct(vae, x):
    z = vae.quant_conv(vae.encoder(x))[:, :4]
    return vae.decoder(vae.post_quant_conv(z))


@torch.no_grad()
def psnr(vae, pictures, device, size=16):
    values = []
    for i in range(0, len(pictures), size):
        x = to_float(pictures[i:i + size], device)
        with torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda"):
            y = reconstruct(vae, x).float().clamp(-1, 1)
        values.append(10 * torch.log10(4 / (y - x).pow(2).mean((1, 2, 3))))
    return torch.cat(values).mean().item()


@torch.no_grad()
def moments(vae, pictures, device):
    latents = []
    for i in range(0, len(pictures), 16):
        x = to_float(pictures[i:i + 16], device)
        latents.append(vae.quant_conv(vae.encoder(x))[:, :4])
    z = torch.cat(latents)
    return z.mean((0, 2, 3)), z.std((0, 2, 3))


@torch.no_grad()
def fold_scale(vae, mean, std, wanted):
    """Gives the latents mean 0 and the wanted deviation, channel by channel,
    by changing the 1x1 convolutions at both sides of them alone."""
    into, out = vae.quant_conv, vae.post_quant_conv
    ratio = wanted / std
    into.weight[:4] *= ratio[:, None, None, None]
    into.bias[:4] = (into.bias[:4] - mean) * ratio
    into.bias[4:] += 2 * torch.log(ratio)
    out.bias += (out.weight[:, :, 0, 0] * mean[None]).sum(1)
    out.weight /= ratio[None, :, None, None]


def train_vae(args, models, folder):
    vae = models.nets["vae"]
    reader = pool.Reader(folder)
    wait_for(reader, 64 + 8 * args.vae_batch)
    held = reader.next(64)[0]           # not trained on: they measure
    pictures = Pictures(args, reader)
    pictures.grow()
    if args.init and not models.progress["vae_samples"]:
        # the KL term wants the latents as wide as they were in training
        mean, std = moments(vae, held, args.device)
        fold_scale(vae, mean, std, 1.)
        log("started from %s: %.2f dB" % (args.init,
                                          psnr(vae, held, args.device)))

    stage = Stage("vae", args, models, ["vae"], args.vae_lr,
                  args.vae_minutes, .998, 1e-3)
    x = torch.zeros(args.vae_batch, 3, arch.SIDE, arch.SIDE,
                    device=args.device)
    noise = torch.zeros(args.vae_batch, 4, arch.LATENT_SIDE,
                        arch.LATENT_SIDE, device=args.device)
    gradients = Gradients(VaeLoss(vae), [x, noise], stage.parameters, args)
    log("VAE: %d pictures" % pictures.count)
    while stage.going():
        x.copy_(pictures.sample(args.vae_batch))
        noise.normal_()
        total, l1, kl = gradients()
        stage.step(args.vae_batch)
        if stage.steps % 20 == 0:
            pictures.grow()
        if stage.steps % args.log_every == 0 or stage.steps in (1, 4, 50):
            log("vae %d: loss %.4f l1 %.4f kl %.2f, %d pictures, %.0f a second"
                % (stage.steps, total.item(), l1.item(), kl.item(),
                   pictures.count, models.progress["vae_samples"]
                   / max(1e-3, stage.spent)))
        if stage.steps % (8 * args.log_every) == 0:
            stage.average.swap()
            log("vae: %.2f dB on pictures it has not seen"
                % psnr(vae, held, args.device))
            stage.average.swap()
        stage.maybe_save()
    stage.finish()

    # scaled latents of deviation .8, so that the factor is SD's own
    mean, std = moments(vae, held, args.device)
    fold_scale(vae, mean, std, .8 / arch.SCALING)
    models.progress["psnr"] = psnr(vae, held, args.device)
    models.progress["vae_done"] = True
    write(dict(models.state(), progress=models.progress, stage=None),
          args.out + "/state.pt")
    write(dict(models.half(), progress=models.progress),
          args.out + "/weights.pt")
    log("VAE done:", models.progress, "latents", mean.tolist(), std.tolist())


# ----------------------------------------------------- text encoder and UNet

class Latents:
    """Every picture of the pool as a scaled latent, with its captions."""

    def __init__(self, args, models, folder):
        self.vae, self.device = models.nets["vae"], args.device
        self.reader = pool.Reader(folder)
        side, device = arch.LATENT_SIDE, args.device
        self.z = torch.empty((args.pictures, 4, side, side), device=device,
                             dtype=torch.float16)
        self.tokens = torch.empty(
            (args.pictures, pool.CAPTIONS, pool.LENGTH), dtype=torch.int16,
            device=device)
        self.attributes = torch.empty((args.pictures, len(captions.HEADS)),
                                      dtype=torch.int8, device=device)
        self.count = 0
        wait_for(self.reader, args.first)
        while self.count < args.first:
            self.grow(1024)

    @torch.no_grad()
    def grow(self, most):
        room = min(most, len(self.z) - self.count)
        new = self.reader.next(room) if room > 0 else None
        if new is None:
            return
        pictures, tokens, attributes = (n[:room] for n in new)
        begin, end = self.count, self.count + len(pictures)
        for i in range(0, len(pictures), 128):
            x = to_float(pictures[i:i + 128], self.device)
            with torch.autocast("cuda", torch.bfloat16,
                                enabled=self.device == "cuda"):
                z = self.vae.quant_conv(self.vae.encoder(x))[:, :4]
            self.z[begin + i:begin + i + len(z)] = z.float() * arch.SCALING
        self.tokens[begin:end] = torch.from_numpy(tokens)
        self.attributes[begin:end] = torch.from_numpy(attributes)
        self.count = end


class NoiseLoss(nn.Module):
    """The noise that was added, weighted by min-SNR (5); and, from the EOS
    token, what is in the picture: it teaches the text encoder early."""

    def __init__(self, models, device):
        super().__init__()
        self.unet, self.text = models.nets["unet"], models.nets["text"]
        self.heads = models.nets["heads"]
        self.eos = models.tokenizer.eos
        self.register_buffer("alphas", arch.alphas_cumprod().to(device))

    def attribute_loss(self, context, ids, attributes):
        eos = (ids == self.eos).int().argmax(1)
        pooled = context[torch.arange(len(ids), device=ids.device), eos]
        logits, begin, loss = self.heads(pooled).float(), 0, 0.
        for i, size in enumerate(captions.HEADS.values()):
            loss = loss + F.cross_entropy(logits[:, begin:begin + size],
                                          attributes[:, i])
            begin += size
        return loss / len(captions.HEADS)

    def forward(self, z, ids, t, noise, attributes):
        context = self.text(ids)
        attribute = self.attribute_loss(context, ids, attributes)
        alpha = self.alphas[t][:, None, None, None]
        noisy = alpha.sqrt() * z + (1 - alpha).sqrt() * noise
        guess = self.unet(noisy, t, context, return_dict=False)[0].float()
        error = (guess - noise).pow(2).mean((1, 2, 3))
        snr = (alpha / (1 - alpha))[:, 0, 0, 0]
        weighted = (error * snr.clamp(max=5.) / snr).mean()
        return weighted + .05 * attribute, weighted, error.mean(), attribute


class Batches:
    """Fills the buffers of a step."""

    def __init__(self, args, models, latents):
        self.latents, self.size, device = latents, args.batch, args.device
        shape = (self.size, 4, arch.LATENT_SIDE, arch.LATENT_SIDE)
        self.z = torch.zeros(shape, device=device)
        self.noise = torch.zeros(shape, device=device)
        self.ids = torch.zeros((self.size, tokenizers.LENGTH),
                               dtype=torch.long, device=device)
        self.t = torch.zeros(self.size, dtype=torch.long, device=device)
        self.attributes = torch.zeros(
            (self.size, len(captions.HEADS)), dtype=torch.long, device=device)
        self.empty = torch.tensor(models.tokenizer.padded(""), device=device)
        self.eos = models.tokenizer.eos
        self.order = torch.arange(self.size, device=device)
        self.device = device

    def buffers(self):
        return [self.z, self.ids, self.t, self.noise, self.attributes]

    def fill(self):
        n, device = self.size, self.device
        i = torch.randint(self.latents.count, (n,), device=device)
        self.z.copy_(self.latents.z[i])
        self.attributes.copy_(self.latents.attributes[i])
        which = torch.randint(pool.CAPTIONS, (n,), device=device)
        ids = torch.full_like(self.ids, self.eos)
        ids[:, :pool.LENGTH] = self.latents.tokens[i, which].long()
        # one in ten without words, for the guidance
        drop = torch.rand(n, 1, device=device) < .1
        self.ids.copy_(torch.where(drop, self.empty[None], ids))
        # even steps over the noise levels, from a random start
        t = (torch.rand((), device=device) + self.order) / n
        self.t.copy_((t * arch.STEPS).long() % arch.STEPS)
        # a shift of the whole picture, so that a night can be dark
        self.noise.normal_()
        self.noise.add_(.1 * torch.randn(n, 4, 1, 1, device=device))


def train_unet(args, models, folder):
    models.nets["vae"].eval().requires_grad_(False)
    latents = Latents(args, models, folder)
    log("UNet: %d latents" % latents.count)
    stage = Stage("unet", args, models, ["unet", "text", "heads"], args.lr,
                  args.unet_minutes, args.ema, 1e-2)
    batches = Batches(args, models, latents)
    gradients = Gradients(NoiseLoss(models, args.device), batches.buffers(),
                          stage.parameters, args)
    sums, count = 0., 0
    while stage.going():
        batches.fill()
        result = gradients()
        stage.step(args.batch)
        sums, count = sums + torch.stack(list(result)), count + 1
        if stage.steps % 20 == 0:
            latents.grow(128)
        if stage.steps % args.log_every == 0 or stage.steps in (1, 4, 50):
            loss, weighted, error, attribute = (sums / count).tolist()
            log("unet %d: weighted %.4f error %.4f attribute %.4f, %d latents,"
                " %.0f a second" % (
                    stage.steps, weighted, error, attribute, latents.count,
                    models.progress["unet_samples"] / max(1e-3, stage.spent)))
            sums, count = 0., 0
            if not math.isfinite(loss):
                log("diverged; the same command goes on from the last save")
                sys.exit(1)
        stage.maybe_save()
    stage.finish()
    write(dict(models.state(), progress=models.progress, stage=None),
          args.out + "/state.pt")
    write(dict(models.half(), progress=models.progress),
          args.out + "/weights.pt")
    log("UNet done:", models.progress)


def main():
    args = parse_args()
    os.makedirs(args.out, exist_ok=True)
    if args.device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    folder = start_pool(args)
    models = Models(args)
    if os.path.exists(args.out + "/state.pt"):
        models.load(torch.load(args.out + "/state.pt", weights_only=False,
                               map_location=args.device))
        log("resumed", models.progress)
    elif args.init:
        models.load(torch.load(args.init, map_location=args.device,
                               weights_only=False))

    if args.stage != "unet" and not models.progress["vae_done"]:
        train_vae(args, models, folder)
    if args.stage != "vae":
        train_unet(args, models, folder)
        export.export(models.half(), args.out + "/model")
        preview.write(args.out + "/model", models.nets["vae"].cpu(), 200)
        log("written to %s/model, %.2f MB"
            % (args.out, export.size(args.out + "/model") / 1e6))


if __name__ == "__main__":
    main()
