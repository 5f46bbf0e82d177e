#!/usr/bin/env python3
"""Makes the golden files: what diffusers computes, in fp32.

For the embedded model, and for small random models that between them have
every feature of the Stable Diffusion 1.x and 2.x family that we implement:
text embeddings, the UNet's first input and output, the latent after every
step, and the decoded picture.  t/unit/golden.c compares.

    models/NAME/        a random model, in diffusers' layout
    NAME.safetensors    numbers; the request is in the metadata

usage: make.py [NAME ...]
"""

import json
import os
import shutil
import subprocess
import sys
import warnings

import diffusers
import torch
import transformers
from safetensors.torch import load_file, save_file

HERE = os.path.dirname(os.path.abspath(__file__))
EMBEDDED = os.path.join(HERE, '../../model')

PROMPT = "a red house by the lake, it's café night!"
NEGATIVE = 'blurry, 3 dogs'

TEXT = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=77,
            hidden_act='quick_gelu')

UNET = dict(sample_size=16, in_channels=4, out_channels=4,
            down_block_types=('CrossAttnDownBlock2D', 'CrossAttnDownBlock2D',
                              'DownBlock2D'),
            up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D',
                            'CrossAttnUpBlock2D'),
            block_out_channels=(8, 16, 24), layers_per_block=2,
            norm_num_groups=8, cross_attention_dim=32, attention_head_dim=2)

VAE = dict(in_channels=3, out_channels=3, latent_channels=4,
           down_block_types=('DownEncoderBlock2D',) * 4,
           up_block_types=('UpDecoderBlock2D',) * 4,
           block_out_channels=(8, 8, 16, 16), layers_per_block=2,
           norm_num_groups=4, sample_size=128)

SCHEDULER = dict(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012,
                 beta_schedule='scaled_linear')

# each model's own twist on top of the above; runs: sampler, steps, guidance,
# width, height

MODELS = {
    # Stable Diffusion 1.5's shape, four levels, fp16 files by their variant
    'sd15': dict(
        dtype=torch.float16, variant='fp16', old_text_names=True,
        unet=dict(
            down_block_types=('CrossAttnDownBlock2D',) * 3 + ('DownBlock2D',),
            up_block_types=('UpBlock2D',) + ('CrossAttnUpBlock2D',) * 3,
            block_out_channels=(8, 16, 16, 24)),
        scheduler=dict(_class_name='PNDMScheduler', skip_prk_steps=True,
                       set_alpha_to_one=False, steps_offset=1,
                       clip_sample=False),
        runs=[('ddim', 6, 7.5, 64, 64), ('euler', 5, 7.5, 64, 128)]),

    # 2.1-base's: linear projections, a list of heads, exact GELU; bf16 weights,
    # shards, bare names in the text encoder, a latent of 13 x 24
    'sd21base': dict(
        dtype=torch.bfloat16, shard='100KB',
        text=dict(hidden_act='gelu'),
        unet=dict(use_linear_projection=True, attention_head_dim=[1, 2, 4]),
        scheduler=dict(_class_name='DDIMScheduler', set_alpha_to_one=False,
                       steps_offset=1, clip_sample=False),
        runs=[('ddim', 6, 9.0, 192, 104), ('euler', 5, 3.0, 104, 192)]),

    # 2.1-v's: velocity, zero terminal SNR, old names in the VAE
    'sd21v': dict(
        dtype=torch.float16, old_vae_names=True,
        text=dict(hidden_act='gelu'),
        unet=dict(use_linear_projection=True, attention_head_dim=[4, 4, 2],
                  upcast_attention=True),
        scheduler=dict(_class_name='DDIMScheduler', set_alpha_to_one=False,
                       steps_offset=1, clip_sample=False,
                       prediction_type='v_prediction',
                       rescale_betas_zero_snr=True,
                       timestep_spacing='trailing'),
        runs=[('ddim', 5, 7.5, 104, 192), ('euler', 5, 7.5, 128, 64)]),

    # 2.1-v as it was published, without guidance; clipped samples
    'sd21v-plain': dict(
        dtype=torch.float16,
        text=dict(hidden_act='gelu'),
        unet=dict(use_linear_projection=True, attention_head_dim=[2, 4, 4],
                  layers_per_block=1),
        vae=dict(layers_per_block=1),
        scheduler=dict(_class_name='DDIMScheduler', set_alpha_to_one=False,
                       steps_offset=1, prediction_type='v_prediction'),
        runs=[('ddim', 5, 1.0, 64, 64), ('euler', 7, 7.5, 64, 64)]),

    # corners that no published model has all at once
    'corners': dict(
        dtype=torch.float32,
        text=dict(hidden_act='gelu_pytorch_tanh', num_attention_heads=1,
                  num_hidden_layers=1),
        unet=dict(
            down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D'),
            up_block_types=('CrossAttnUpBlock2D', 'UpBlock2D'),
            block_out_channels=(8, 12), layers_per_block=[1, 2],
            transformer_layers_per_block=[1, 2], norm_num_groups=4,
            attention_head_dim=[2, 3], flip_sin_to_cos=False, freq_shift=1,
            time_embedding_dim=40, norm_eps=1e-6),
        vae=dict(block_out_channels=(4, 8, 8, 8), layers_per_block=1,
                 mid_block_add_attention=False, use_quant_conv=False,
                 use_post_quant_conv=False, scaling_factor=0.3),
        scheduler=dict(_class_name='EulerDiscreteScheduler',
                       prediction_type='sample'),
        runs=[('ddim', 4, 5.0, 40, 8), ('euler', 4, 5.0, 8, 72)]),
}

EMBEDDED_RUNS = [('ddim', 8, 7.5, 128, 128), ('euler', 6, 5.0, 192, 104)]

CLASSES = {'ddim': diffusers.DDIMScheduler,
           'euler': diffusers.EulerDiscreteScheduler}


def make_tokenizer(path):
    """CLIP's alphabet, a few merges, begin and end."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [b for b in range(256) if b not in printable]
    letters = [chr(b) for b in printable]
    letters += [chr(256 + i) for i in range(len(other))]
    merges = ['h o', 'u s', 'ho us', 'hous e</w>', 'r e', 're d</w>',
              't h', 'th e</w>', 'l a', 'la k', 'lak e</w>', 'n i', 'g h',
              'ni gh', 'nigh t</w>', "' s</w>"]
    vocab = letters + [c + '</w>' for c in letters]
    vocab += [m.replace(' ', '') for m in merges]
    vocab += ['<|startoftext|>', '<|endoftext|>']
    os.makedirs(path)
    with open(path + '/vocab.json', 'w') as f:
        json.dump({t: i for i, t in enumerate(vocab)}, f, ensure_ascii=False)
    with open(path + '/merges.txt', 'w') as f:
        f.write('#version: 0.2\n' + '\n'.join(merges) + '\n')
    with open(path + '/tokenizer_config.json', 'w') as f:
        json.dump(dict(tokenizer_class='CLIPTokenizer', model_max_length=77,
                       bos_token='<|startoftext|>', eos_token='<|endoftext|>',
                       pad_token='<|endoftext|>', unk_token='<|endoftext|>',
                       do_lower_case=True, errors='replace'), f)
        f.write('\n')
    return len(vocab)


def randomize(module):
    """Defaults are mostly 1 and 0, which hides what is mixed up."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.ndim == 1:
                p.add_(0.2 * torch.randn_like(p))
            elif 'embedding' in name and p.ndim == 2:
                p.copy_(0.5 * torch.randn_like(p))
    return module.eval()


def save(tensors, path, metadata):
    """As save_file(), which writes the metadata in another order each time."""
    header, data = {'__metadata__': metadata}, b''
    for name, t in sorted(tensors.items()):
        raw = t.float().contiguous().numpy().tobytes()
        header[name] = dict(dtype='F32', shape=list(t.shape),
                            data_offsets=[len(data), len(data) + len(raw)])
        data += raw
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)
    with open(path, 'wb') as f:
        f.write(len(text).to_bytes(8, 'little') + text + data)


def rename(path, names):
    tensors = load_file(path)
    for old, new in names:
        tensors = {k.replace(old, new): v for k, v in tensors.items()}
    save_file(tensors, path, {'format': 'pt'})


def make_model(name, spec, vocab):
    path = '%s/models/%s' % (HERE, name)
    shutil.rmtree(path, ignore_errors=True)
    dtype = spec['dtype']
    kwargs = dict(safe_serialization=True)
    if 'variant' in spec:
        kwargs['variant'] = spec['variant']

    text = transformers.CLIPTextModel(transformers.CLIPTextConfig(
        vocab_size=vocab, bos_token_id=vocab - 2, eos_token_id=vocab - 1,
        **{**TEXT, **spec.get('text', {})}))
    randomize(text).to(dtype).save_pretrained(path + '/text_encoder', **kwargs)

    unet = diffusers.UNet2DConditionModel(**{**UNET, **spec.get('unet', {})})
    shard = dict(max_shard_size=spec['shard']) if 'shard' in spec else {}
    randomize(unet).to(dtype).save_pretrained(path + '/unet', **kwargs,
                                              **shard)

    vae = diffusers.AutoencoderKL(**{**VAE, **spec.get('vae', {})})
    randomize(vae).to(dtype)
    vae.save_pretrained(path + '/vae', **kwargs)

    # the encoder's tensors are of no use here, and half of the file

    for file in os.listdir(path + '/vae'):
        if file.endswith('.safetensors'):
            file = path + '/vae/' + file
            tensors = {k: v for k, v in load_file(file).items()
                       if not k.startswith(('encoder', 'quant'))}
            save_file(tensors, file, {'format': 'pt'})

    if spec.get('old_vae_names'):
        rename(path + '/vae/diffusion_pytorch_model.safetensors',
               [('to_q.', 'query.'), ('to_k.', 'key.'), ('to_v.', 'value.'),
                ('to_out.0.', 'proj_attn.')])

    file = path + '/text_encoder/model.safetensors'
    if 'variant' in spec:
        file = file.replace('model.', 'model.%s.' % spec['variant'])
    tensors = load_file(file)
    tensors = {k.removeprefix('text_model.'): v for k, v in tensors.items()}
    if spec.get('old_text_names'):
        tensors = {'text_model.' + k: v for k, v in tensors.items()}
        tensors['text_model.embeddings.position_ids'] = torch.arange(77)[None]
    save_file(tensors, file, {'format': 'pt'})

    os.makedirs(path + '/scheduler')
    with open(path + '/scheduler/scheduler_config.json', 'w') as f:
        json.dump({**SCHEDULER, **spec['scheduler']}, f, indent=2)
        f.write('\n')
    with open(path + '/model_index.json', 'w') as f:
        json.dump(dict(
            _class_name='StableDiffusionPipeline',
            scheduler=['diffusers', spec['scheduler']['_class_name']],
            text_encoder=['transformers', 'CLIPTextModel'],
            tokenizer=['transformers', 'CLIPTokenizer'],
            unet=['diffusers', 'UNet2DConditionModel'],
            vae=['diffusers', 'AutoencoderKL'],
            safety_checker=[None, None], feature_extractor=[None, None]),
            f, indent=2)
        f.write('\n')
    os.symlink('../../tokenizer', path + '/tokenizer')
    return path, text, unet, vae


def load(path):
    """Each part alone and in fp32: what is checked is the reading too."""
    fp32 = dict(torch_dtype=torch.float32)
    return (transformers.CLIPTextModel.from_pretrained(path, subfolder=
                                                       'text_encoder', **fp32),
            diffusers.UNet2DConditionModel.from_pretrained(path, subfolder=
                                                           'unet', **fp32),
            diffusers.AutoencoderKL.from_pretrained(path, subfolder='vae',
                                                    **fp32))


@torch.no_grad()
def run(path, text, unet, vae, sampler, steps, guidance, width, height):
    with open(path + '/scheduler/scheduler_config.json') as f:
        config = json.load(f)
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae, unet=unet, text_encoder=text,
        tokenizer=transformers.CLIPTokenizer.from_pretrained(
            path, subfolder='tokenizer'),
        scheduler=CLASSES[sampler].from_config(config),
        safety_checker=None, feature_extractor=None,
        requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)

    # the pipeline's constructor has set clip_sample and steps_offset to what
    # it likes better; we do what the configuration says

    pipe.scheduler = CLASSES[sampler].from_config(config)

    noise = torch.randn(1, 4, height // 8, width // 8,
                        generator=torch.Generator().manual_seed(steps))
    out = {'latents': noise.clone()}

    def first(module, args, kwargs, result):
        if 'unet_in_000' not in out:
            out['unet_in_000'] = args[0].clone()
            out['unet_out_000'] = result[0].clone()

    def step(pipe, i, t, tensors):
        out['latent_%03d' % i] = tensors['latents'].clone()
        return tensors

    hook = unet.register_forward_hook(first, with_kwargs=True)
    cond, uncond = pipe.encode_prompt(PROMPT, 'cpu', 1, guidance > 1, NEGATIVE)
    out['cond'] = cond
    if guidance > 1:
        out['uncond'] = uncond
    last = pipe(PROMPT, negative_prompt=NEGATIVE, width=width, height=height,
                num_inference_steps=steps, guidance_scale=guidance,
                latents=noise, output_type='latent',
                callback_on_step_end=step).images
    hook.remove()
    out['image'] = vae.decode(last / vae.config.scaling_factor).sample

    for name, tensor in out.items():
        assert torch.isfinite(tensor).all(), name
    return out


def main():
    names = sys.argv[1:] or ['embedded', *MODELS]
    tokenizer = HERE + '/tokenizer'
    shutil.rmtree(tokenizer, ignore_errors=True)
    vocab = make_tokenizer(tokenizer)
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()

    for number, name in enumerate(['embedded', *MODELS]):
        if name not in names:
            continue
        torch.manual_seed(number)
        if name == 'embedded':
            path, runs = EMBEDDED, EMBEDDED_RUNS
            parts = load(path)
        else:
            spec = MODELS[name]
            path, *parts = make_model(name, spec, vocab)
            parts = [p.float() for p in parts]
            runs = spec['runs']
        for r in runs:
            out = run(path, *parts, *r)
            file = '%s/%s-%s.safetensors' % (HERE, name, r[0])
            save(out, file, dict(
                model='model' if name == 'embedded'
                      else 't/golden/models/' + name,
                sampler=r[0], steps=str(r[1]), guidance=str(r[2]),
                width=str(r[3]), height=str(r[4]),
                prompt=PROMPT, negative_prompt=NEGATIVE))
            print('%s-%s: %d bytes' % (name, r[0], os.path.getsize(file)))

    if not sys.argv[1:]:
        for args in (['samplers.py', 'samplers.json'],
                     ['tokenizer.py', EMBEDDED + '/tokenizer',
                      'tokenizer.txt']):
            subprocess.check_call([sys.executable, *args], cwd=HERE)


if __name__ == '__main__':
    main()
