"""A peer on a GPU: diffusers, as shipped or compiled, measured in fp16.

    python gpu_peer.py eager|compile|rate MODEL BATCHES STEPS ROUNDS

Prints a line of JSON.  eager: StableDiffusionPipeline with DDIM, as its manual
has it.  compile: what torch offers at best without tuning for hours: channels
last, fused QKV, torch.compile in mode reduce-overhead with fullgraph, so that a
whole step with guidance and sampler is one CUDA graph, and a loop in which the
host never waits.  Times end when the picture is a tensor on the GPU that has
been waited for.  rate: of a product of 8192 x 8192 matrices.
"""
import json
import sys
import time

import torch

PROMPT = "a red house beside a lake at sunset"
GUIDANCE = 7.5


def spread(times):
    times = sorted(times)
    return [times[len(times) // 2], times[0], times[-1]]


def once(run):
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(run, rounds):
    return spread([once(run) for _ in range(rounds)])


def memory():
    free, total = torch.cuda.mem_get_info()
    return total - free


def rate(rounds):
    a, b = (torch.randn(8192, 8192, dtype=torch.float16, device="cuda")
            for _ in range(2))
    torch.mm(a, b)
    took = measure(lambda: [torch.mm(a, b) for _ in range(20)], rounds)
    copied = torch.empty(2 ** 30, dtype=torch.uint8, device="cuda")
    other = torch.empty_like(copied)
    other.copy_(copied)
    moved = measure(lambda: [other.copy_(copied) for _ in range(20)], rounds)
    return {"flops": 20 * 2 * 8192 ** 3 / took[0],
            "bandwidth": 20 * 2 * 2 ** 30 / moved[0],
            "name": torch.cuda.get_device_name()}


def pipeline(model):
    import diffusers
    diffusers.utils.logging.disable_progress_bar()
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(
        model, torch_dtype=torch.float16, safety_checker=None,
        requires_safety_checker=False).to("cuda")
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def eager(model, batches, steps, rounds):
    start = time.perf_counter()
    pipe = pipeline(model)
    result = {"batches": {}}
    for n in batches:
        def whole(count):
            return pipe(PROMPT, num_images_per_prompt=n, guidance_scale=GUIDANCE,
                        num_inference_steps=count, output_type="pt").images
        whole(2)
        result.setdefault("start", time.perf_counter() - start)
        times = [(once(lambda: whole(10)), once(lambda: whole(steps)))
                 for _ in range(rounds)]
        result["batches"][n] = {
            "step": spread([(m - f) / (steps - 10) for f, m in times]),
            "whole": spread([m for _, m in times])}
    latent = torch.randn(1, 4, pipe.unet.config.sample_size,
                         pipe.unet.config.sample_size, device="cuda",
                         dtype=torch.float16)
    with torch.no_grad():
        pipe.vae.decode(latent)
        result["decode"] = measure(lambda: pipe.vae.decode(latent), rounds + 5)
        result["prompt"] = measure(lambda: pipe.encode_prompt(
            PROMPT, "cuda", 1, True, ""), rounds + 5)
    result["memory"] = memory()
    return result


class Compiled:
    def __init__(self, model, steps):
        self.pipe = pipe = pipeline(model)
        self.steps = steps
        torch.backends.cudnn.benchmark = True
        torch._inductor.config.conv_1x1_as_mm = True
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
        pipe.unet.fuse_qkv_projections()
        pipe.vae.fuse_qkv_projections()
        pipe.scheduler.set_timesteps(steps, device="cuda")
        self.t = pipe.scheduler.timesteps
        a = pipe.scheduler.alphas_cumprod.cuda()
        before = self.t - pipe.scheduler.config.num_train_timesteps // steps
        last = pipe.scheduler.final_alpha_cumprod.to("cuda")
        now, then = a[self.t], torch.where(before >= 0, a[before.clamp(0)],
                                           last)
        self.ca = (then / now).sqrt()
        self.cb = (1 - then).sqrt() - self.ca * (1 - now).sqrt()
        how = {"mode": "reduce-overhead", "fullgraph": True}
        self.step = torch.compile(self._step, **how)
        self.text = torch.compile(self._text, **how)
        self.decode = torch.compile(self._decode, **how)

    def _step(self, x, t, text, ca, cb):
        both = self.pipe.unet(torch.cat([x, x]).half(), t, text,
                              return_dict=False)[0]
        without, guided = both.float().chunk(2)
        return ca * x + cb * (without + GUIDANCE * (guided - without))

    def _text(self, ids):
        return self.pipe.text_encoder(ids, return_dict=False)[0]

    def _decode(self, x):
        return self.pipe.vae.decode(
            x.half() / self.pipe.vae.config.scaling_factor,
            return_dict=False)[0]

    def prompt(self):
        ids = self.pipe.tokenizer(["", PROMPT], padding="max_length",
                                  max_length=77, truncation=True,
                                  return_tensors="pt").input_ids.cuda()
        torch.compiler.cudagraph_mark_step_begin()
        return self.text(ids).clone()

    def loop(self, x, text, steps):
        for i in range(steps):
            torch.compiler.cudagraph_mark_step_begin()
            x = self.step(x, self.t[i], text, self.ca[i], self.cb[i]).clone()
        return x

    def picture(self, noise):
        n = len(noise)
        text = self.prompt().repeat_interleave(n, dim=0)
        x = self.loop(noise.clone(), text, self.steps)
        for one in x.split(1):          # 8 at a time are 2 % faster
            torch.compiler.cudagraph_mark_step_begin()
            out = self.decode(one.contiguous(
                memory_format=torch.channels_last))
        return out


@torch.no_grad()
def compiled(model, batches, steps, rounds):
    start = time.perf_counter()
    c = Compiled(model, steps)
    result = {"batches": {}, "compile": {}}
    size = c.pipe.unet.config.sample_size
    for n in batches:
        noise = torch.randn(n, 4, size, size, device="cuda").contiguous(
            memory_format=torch.channels_last)
        started = time.perf_counter()
        c.picture(noise)
        c.picture(noise)
        torch.cuda.synchronize()
        result["compile"][n] = time.perf_counter() - started
        result.setdefault("start", time.perf_counter() - start)
        text = c.prompt().repeat_interleave(n, dim=0)
        loop = measure(lambda: c.loop(noise, text, steps), rounds)
        result["batches"][n] = {"step": [t / steps for t in loop],
                                "whole": measure(lambda: c.picture(noise),
                                                 rounds)}
        if "decode" not in result:
            def decode():
                torch.compiler.cudagraph_mark_step_begin()
                c.decode(noise[:1])
            decode()
            result["decode"] = measure(decode, rounds + 5)
            result["prompt"] = measure(c.prompt, rounds + 5)
            result["memory"] = memory()
        say(result)
    return result


def say(result):
    """the last line counts, also where the next batch takes too long"""
    result["versions"] = "torch %s, cuDNN %s" % (
        torch.__version__, torch.backends.cudnn.version())
    print(json.dumps(result), flush=True)


def main(what, model=None, batches="1", steps="50", rounds="5"):
    if what == "rate":
        result = rate(5)
    else:
        result = {"eager": eager, "compile": compiled}[what](
            model, list(map(int, batches.split(","))), int(steps), int(rounds))
    say(result)


if __name__ == "__main__":
    main(*sys.argv[1:])
