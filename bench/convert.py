"""Converts one part of a model to OpenVINO's format, with static shapes.

    python convert.py MODEL PART NOISE OUT.xml

The weights are written in fp32.  (Compressed to fp16 they would stay the same,
as they come from fp16, but the frequencies of the time embedding would not.)
"""
import os
import sys

import openvino
import torch

import modules


def main(model, part, noise, out):
    torch.set_grad_enabled(False)
    inputs = modules.Picture(model, noise).inputs(part)
    converted = openvino.convert_model(
        modules.load(model, part, torch.float32), example_input=inputs,
        input=[(list(i.shape), openvino.Type.i64 if i.dtype == torch.int64
                else openvino.Type.f32) for i in inputs])
    os.makedirs(os.path.dirname(out), exist_ok=True)
    making = out[:-len(".xml")] + ".making.xml"
    openvino.save_model(converted, making, compress_to_fp16=False)
    os.rename(making[:-len(".xml")] + ".bin", out[:-len(".xml")] + ".bin")
    os.rename(making, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
