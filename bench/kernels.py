#!/usr/bin/env python3
"""Where a step's and a decode's time goes on a GPU: tables from a trace.

    kernels.py MODEL TRACE [--pictures 1,2,4,8,16] [--size N] [--top N]
               [--only 1,8,0]

TRACE: what bench/trace.c wrote of `sd bench --device cuda --model MODEL`.  Of
the replays of each recording the one of median length is shown.  A kind's floor
is the sum over its operations of max(FLOPs / 755 TFLOP/s, bytes / 3.0 TB/s),
what an H100's largest matrix products and copies reach; each input is read and
each output written once, attention computes 16 exponentials a clock and
multiprocessor.  A kernel that starts before the one before it has ended waits
within its time, so that times may add up to more than there was.  Operations
are counted as the model has them: a convolution into which the upsampling
before it is folded does less, and may go below.
"""
import argparse
import collections
import json
import os
import re
import statistics

RATE = 755e12
BANDWIDTH = 3.0e12
EXPONENTIALS = 16 * 132 * 1.98e9
LEAST = 150                     # kernels in a recording of a step

KINDS = (
    ("convolution", r"xmma|fprop|cudnn|conv|^sd_upsample"),
    ("attention", r"attention|softmax|sdpa|flash"),
    ("GroupNorm", r"^sd_gn|group_?norm"),
    ("LayerNorm", r"^sd_ln|layer_?norm"),
    ("GEGLU", r"product_sm90<[0-9]+, 1,|geglu"),
    ("product", r"product_sm90|nvjet|gemm|cutlass|cublas|splitK"),
    ("copy, fill", r"^copy$|^fill$"),
)


def kind(name):
    return next((k for k, pattern in KINDS if re.search(pattern, name)),
                "other")


def plain(name):
    """mangled or not, the function's name; template arguments that are
    numbers stay"""
    if not name.startswith("_Z"):
        name = re.sub(r"^void ", "", name)
        name = re.sub(r"^sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_"
                      r"nhwckrsc_nhwc_", "xmma ", name)
        return re.sub(r"_execute|_kernel__5x_cudnn", "", name)
    rest, last = re.sub(r"^_ZN?", "", name), name
    while found := re.match(r"\d+", rest):
        end = found.end() + int(found[0])
        last, rest = rest[found.end():end], rest[end:]
    arguments = re.match(r"I((?:L[a-z]+\d+E)+)E", rest)
    return last + ("<%s>" % ", ".join(re.findall(r"\d+", arguments[1]))
                   if arguments else "")


# the trace

Record = collections.namedtuple("Record", "start end graph launch grid name")


def read(path):
    records = []
    with open(path) as f:
        for line in f:
            v = line.rstrip("\n").split(",", 10)
            records.append(Record(int(v[0]), int(v[1]), int(v[2]), int(v[4]),
                                  v[8], plain(v[10])))
    return sorted(records)


def span(records):
    return max(r.end for r in records) - records[0].start


def replays(records):
    """of each recording that is a step or a decode, the median replay"""
    graphs = {}
    for r in records:
        if r.graph:
            graphs.setdefault(r.graph, {}).setdefault(r.launch, []).append(r)
    steps, decode = [], None
    for launches in graphs.values():
        launches = sorted(launches.values(), key=span)
        median = launches[len(launches) // 2]
        if any("image_rgb8" in r.name for r in median):
            decode = median
        elif len(median) >= LEAST:
            steps.append(median)
    if decode is None:                  # not recorded: after the last step
        last = max(i for i, r in enumerate(records) if r.graph)
        after = [r for r in records[last + 1:] if r.name != "copy"]
        if any("image_rgb8" in r.name for r in after):
            decode = after
    return steps, decode


# the work, from the configurations: (kind, flops, bytes, exponentials)

class Work:
    def __init__(self, samples):
        self.n = samples
        self.floors = collections.defaultdict(float)
        self.flops = 0

    def add(self, kind, flops, halves, exponentials=0):
        self.flops += flops
        self.floors[kind] += max(flops / RATE, 2 * halves / BANDWIDTH,
                                 exponentials / EXPONENTIALS)

    def conv(self, size, c, k, residual=False, stride=1, up=1):
        pixels = self.n * size * size
        self.add("convolution", 2 * 9 * pixels * c * k,
                 pixels * (c * stride ** 2 / up ** 2 + k * (1 + residual))
                 + 9 * c * k)

    def product(self, rows, c, k, residual=False):
        rows *= self.n
        self.add("product", 2 * rows * c * k,
                 rows * (c + k * (1 + residual)) + c * k)

    def norm(self, kind, rows, c):
        self.add(kind, 0, self.n * rows * 2 * c)

    def geglu(self, rows, c):
        """The product, of which one half multiplies the GELU of the other"""
        rows *= self.n
        self.add("GEGLU", 2 * rows * c * 8 * c, rows * 5 * c + 8 * c * c)

    def attention(self, heads, d, lq, lk):
        scores = self.n * heads * lq * lk
        self.add("attention", 4 * scores * d,
                 self.n * heads * d * 2 * (lq + lk), scores)

    def resnet(self, size, c, k):
        self.norm("GroupNorm", size * size, c)
        self.conv(size, c, k)
        self.norm("GroupNorm", size * size, k)
        self.conv(size, k, k, True)
        if c != k:
            self.product(size * size, c, k)

    def transformer(self, size, c, heads, tokens):
        rows = size * size
        self.norm("GroupNorm", rows, c)
        self.product(rows, c, c)
        self.norm("LayerNorm", rows, c)
        self.product(rows, c, 3 * c)
        self.attention(heads, c // heads, rows, rows)
        self.product(rows, c, c, True)
        self.norm("LayerNorm", rows, c)
        self.product(rows, c, c)
        self.attention(heads, c // heads, rows, tokens)
        self.product(rows, c, c, True)
        self.norm("LayerNorm", rows, c)
        self.geglu(rows, c)
        self.product(rows, 4 * c, c, True)
        self.product(rows, c, c, True)


def unet(config, size, samples):
    w = Work(samples)
    channels = config["block_out_channels"]
    heads = config["attention_head_dim"]
    heads = heads if isinstance(heads, list) else [heads] * len(channels)
    layers = config["layers_per_block"]
    tokens = 77
    w.conv(size, config["in_channels"], channels[0])
    skips = [channels[0]]
    c = channels[0]
    for i, k in enumerate(channels):
        for _ in range(layers):
            w.resnet(size, c, k)
            c = k
            if "CrossAttn" in config["down_block_types"][i]:
                w.transformer(size, c, heads[i], tokens)
            skips.append(c)
        if i < len(channels) - 1:
            size //= 2
            w.conv(size, c, c, stride=2)
            skips.append(c)
    w.resnet(size, c, c)
    w.transformer(size, c, heads[-1], tokens)
    w.resnet(size, c, c)
    for i, k in enumerate(reversed(channels)):
        for _ in range(layers + 1):
            w.resnet(size, c + skips.pop(), k)
            c = k
            if "CrossAttn" in config["up_block_types"][i]:
                w.transformer(size, c, heads[-1 - i], tokens)
        if i < len(channels) - 1:
            size *= 2
            w.conv(size, c, c, up=2)
    w.norm("GroupNorm", size * size, c)
    w.conv(size, c, config["out_channels"])
    return w


def decoder(config, size):
    w = Work(1)
    channels = config["block_out_channels"]
    c = channels[-1]
    w.conv(size, config["latent_channels"], c)
    w.resnet(size, c, c)
    w.norm("GroupNorm", size * size, c)
    w.product(size * size, c, 3 * c)
    w.product(size * size, c, size * size)              # and a softmax
    w.norm("attention", size * size, size * size)
    w.product(size * size, size * size, c)
    w.product(size * size, c, c, True)
    w.resnet(size, c, c)
    for i, k in enumerate(reversed(channels)):
        for _ in range(config["layers_per_block"] + 1):
            w.resnet(size, c, k)
            c = k
        if i < len(channels) - 1:
            size *= 2
            w.conv(size, c, c, up=2)
    w.norm("GroupNorm", size * size, c)
    w.conv(size, c, config["out_channels"])
    return w


# words

def table(head, rows):
    print("| " + " | ".join(head) + " |")
    print("|" + " --- |" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def show(title, records, work, top):
    times = collections.defaultdict(list)
    kinds = collections.defaultdict(list)
    for r in records:
        times[r.name].append((r.end - r.start) / 1e3)
        kinds[kind(r.name)].append((r.end - r.start) / 1e3)
    total = sum(map(sum, times.values()))
    whole = span(records) / 1e3
    floor = 1e6 * sum(work.floors.values())
    print("\n%s: %.0f us, of which kernels %.0f, in %d launches; %.3f TFLOP, "
          "%.0f TFLOP/s; floor %.0f us, %.2f of it\n" % (
              title, whole, total, len(records), work.flops / 1e12,
              work.flops / whole / 1e6, floor, floor / whole))
    rows = []
    for name, values in sorted(kinds.items(), key=lambda i: -sum(i[1])):
        least = 1e6 * work.floors.get(name, 0)
        rows.append([name, "%d" % len(values), "%.0f" % sum(values),
                     "%.1f %%" % (100 * sum(values) / total),
                     "%.0f" % least if least else "",
                     "%.2f" % (sum(values) / least) if least else ""])
    table(["kind", "launches", "us", "share", "floor, us", "times the floor"],
          rows)
    print()
    rows = [["`%s`" % name[:90], "%d" % len(values), "%.0f" % sum(values),
             "%.1f" % statistics.median(values),
             "%.1f %%" % (100 * sum(values) / total)]
            for name, values in sorted(times.items(),
                                       key=lambda i: -sum(i[1]))[:top]]
    table(["kernel", "launches", "us", "median", "share"], rows)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("trace")
    parser.add_argument("--pictures", default="1,2,4,8,16")
    parser.add_argument("--size", type=int, help="of pictures")
    parser.add_argument("--top", type=int, default=10)
    parser.add_argument("--only", help="numbers of pictures, 0 for the decode")
    args = parser.parse_args()

    configs = {}
    for part in ("unet", "vae"):
        with open(os.path.join(args.model, part, "config.json")) as f:
            configs[part] = json.load(f)
    size = args.size // 8 if args.size else configs["unet"]["sample_size"]
    name = os.path.basename(os.path.normpath(args.model))
    wanted = args.only and [int(n) for n in args.only.split(",")]

    steps, decode = replays(read(args.trace))
    for n, records in zip(map(int, args.pictures.split(",")), steps):
        if not wanted or n in wanted:
            show("%s, a step of %d guided picture%s" % (
                name, n, "" if n == 1 else "s"), records,
                unet(configs["unet"], size, 2 * n), args.top)
    if decode and (not wanted or 0 in wanted):
        show("%s, a decode" % name, decode, decoder(configs["vae"], size),
             args.top)


if __name__ == "__main__":
    main()
