#!/usr/bin/env python3
"""Writes samplers.json: diffusers' own schedulers, in double precision, on a
toy model that t/unit/sampler.c repeats.

A scheduler is built as it is (its tables in fp32), then runs its own code with
float64 in the place of float32, so that what is left to differ is the formula
and not the rounding.  (torch's sqrt() is replaced where the tables are built:
the one that it takes from a vector library is not correctly rounded.)

usage: samplers.py OUTPUT
"""

import json
import sys

import diffusers
import torch
import numpy as np
from diffusers.schedulers import (scheduling_ddim, scheduling_euler_discrete,
                                  scheduling_euler_ancestral_discrete)

SIZE = 3
STEPS = (1, 2, 7, 20, 50, 1000)


class Double:
    """A module with float64 in the place of float32."""

    def __init__(self, module):
        self.module = module

    def __getattr__(self, name):
        return getattr(self.module, 'float64' if name == 'float32' else name)


def model(x, t):
    out = [0.9 * v / (1 + abs(v)) + 0.1 * (j - 1) + t / 2000
           for j, v in enumerate(x.tolist())]
    return torch.tensor(out, dtype=torch.float64)


def noise(draw):
    return torch.tensor([((draw * 7 + j * 3) % 11 - 5) / 4
                         for j in range(SIZE)], dtype=torch.float64)


def run(module, cls, config, steps):
    sqrt_was = torch.Tensor.sqrt
    torch.Tensor.sqrt = lambda self: torch.from_numpy(np.sqrt(self.numpy()))
    sched = cls(**config)
    torch.Tensor.sqrt = sqrt_was
    torch_was, np_was = module.torch, getattr(module, 'np', None)
    module.torch, module.np = Double(torch), Double(np)

    draw = [0]

    def randn(*args, **kwargs):
        draw[0] += 1
        return noise(draw[0])

    if hasattr(module, 'randn_tensor'):
        module.randn_tensor = randn

    try:
        for name in ('alphas_cumprod', 'final_alpha_cumprod'):
            if hasattr(sched, name):
                setattr(sched, name, getattr(sched, name).double())

        sched.set_timesteps(steps)
        sigma = float(sched.init_noise_sigma)
        x = noise(0) * sigma
        points = []
        keep = {0, 1, steps // 2, steps - 2, steps - 1}

        for i, t in enumerate(sched.timesteps[:steps]):
            inp = sched.scale_model_input(x, t)
            got = sched.step(model(inp, float(t)), t, x)
            x = got.prev_sample
            if i in keep:
                points.append([i, float(t), x.tolist(),
                               got.pred_original_sample.tolist()])
    finally:
        module.torch = torch_was
        if np_was is not None:
            module.np = np_was

    return sigma, points


def rounded(v):
    if isinstance(v, list):
        return [rounded(e) for e in v]
    return float('%.10g' % v) if isinstance(v, float) else v


def configs():
    sd = {'beta_start': 0.00085, 'beta_end': 0.012,
          'beta_schedule': 'scaled_linear'}

    for spacing in ('leading', 'linspace', 'trailing'):
        for prediction in ('epsilon', 'v_prediction', 'sample'):
            for zero in (False, True):
                if zero and prediction == 'epsilon':
                    continue
                base = dict(sd, timestep_spacing=spacing,
                            prediction_type=prediction,
                            rescale_betas_zero_snr=zero)
                for clip in (False, True):
                    yield 'ddim', dict(base, clip_sample=clip)
                yield 'euler', base
                if prediction != 'sample':
                    yield 'euler_a', base

    # defaults of the classes, and what else is in the configuration
    trained = np.linspace(0.001, 0.03, 200).tolist()

    for name in ('ddim', 'euler', 'euler_a'):
        yield name, {}
        yield name, {'beta_schedule': 'squaredcos_cap_v2'}
        yield name, dict(sd, steps_offset=1, timestep_spacing='leading')
        yield name, {'trained_betas': trained, 'num_train_timesteps': 200}

    yield 'ddim', dict(sd, set_alpha_to_one=False, steps_offset=1)
    yield 'ddim', dict(sd, clip_sample_range=3.0)


def main():
    classes = {
        'ddim': (scheduling_ddim, diffusers.DDIMScheduler),
        'euler': (scheduling_euler_discrete, diffusers.EulerDiscreteScheduler),
        'euler_a': (scheduling_euler_ancestral_discrete,
                    diffusers.EulerAncestralDiscreteScheduler),
    }
    out = []

    for name, config in configs():
        module, cls = classes[name]
        runs = []

        for steps in STEPS:
            train = config.get('num_train_timesteps', 1000)
            # an offset leaves the schedule where every timestep is used
            if steps + config.get('steps_offset', 0) > train:
                continue
            sigma, points = run(module, cls, config, steps)
            runs.append({'steps': steps, 'sigma': rounded(sigma),
                         'points': rounded(points)})

        out.append({'sampler': name,
                    'config': dict(config, _class_name=cls.__name__),
                    'runs': runs})

    with open(sys.argv[1], 'w') as f:
        f.write('[\n' + ',\n'.join(json.dumps(e, separators=(',', ':'))
                                   for e in out) + '\n]\n')


main()
