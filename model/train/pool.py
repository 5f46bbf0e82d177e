"""Draws the training pictures, in worker processes, into memory-mapped files.

The pool outlives a training run: a second one finds the pictures there, and
drawing goes on where it stopped.

    python pool.py POOL [--pictures 60000] [--workers 2]
"""
import argparse
import multiprocessing
import os
import signal
import sys

# a worker is one thread: numpy's own would only fight with the others
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np

import captions
import scenes
import tokenizer as tokenizers

CAPTIONS = 6                # captions a picture
LENGTH = 56                 # tokens kept of one; the rest is EOS
SEEDS_A_SHARD = 1_000_000
SIDE = 256

ARRAYS = {
    "pictures": (np.uint8, (SIDE, SIDE, 3)),
    "tokens": (np.int16, (CAPTIONS, LENGTH)),
    "attributes": (np.int8, (len(captions.HEADS),)),
}


def open_shard(folder, shard, size=None):
    """The arrays of one worker and the count of pictures that are done."""
    arrays = {}
    for name, (dtype, shape) in ARRAYS.items():
        path = os.path.join(folder, "%s.%d" % (name, shard))
        if size is None:
            bytes_each = np.dtype(dtype).itemsize * int(np.prod(shape))
            length = os.path.getsize(path) // bytes_each
            arrays[name] = np.memmap(path, dtype, "r", shape=(length, *shape))
        else:
            with open(path, "ab") as f:         # sparse: nothing is written
                f.truncate(size * np.dtype(dtype).itemsize
                           * int(np.prod(shape)))
            arrays[name] = np.memmap(path, dtype, "r+", shape=(size, *shape))
    path = os.path.join(folder, "count.%d" % shard)
    if size is not None:
        with open(path, "ab") as f:
            f.truncate(8)
    arrays["count"] = np.memmap(path, np.int64, "r" if size is None else "r+",
                                shape=(1,))
    return arrays


def encode(tokenizer, text):
    return tokenizer.padded(text, LENGTH)


def draw(seed, tokenizer, fillers):
    picture, attributes = scenes.make(seed)
    rng = np.random.default_rng(seed + 7)
    texts = [captions.caption(attributes, rng, fillers)
             for _ in range(CAPTIONS)]
    return (picture, [encode(tokenizer, t) for t in texts],
            captions.attribute_vector(attributes))


def work(folder, shard, size):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(15)                             # the training comes first
    tokenizer = tokenizers.load()
    fillers = captions.fillers(tokenizer)
    arrays = open_shard(folder, shard, size)
    for i in range(int(arrays["count"][0]), size):
        picture, tokens, attributes = draw(
            shard * SEEDS_A_SHARD + i, tokenizer, fillers)
        arrays["pictures"][i] = picture
        arrays["tokens"][i] = tokens
        arrays["attributes"][i] = attributes
        arrays["count"][0] = i + 1


def run(folder, pictures, workers):
    os.makedirs(folder, exist_ok=True)
    size = -(-pictures // workers)
    processes = [
        multiprocessing.Process(target=work, args=(folder, w, size),
                                daemon=True) for w in range(workers)]
    for p in processes:
        p.start()
    for p in processes:
        p.join()


class Reader:
    """Hands out what the workers have drawn since the last call."""

    def __init__(self, folder):
        self.folder = folder
        self.shards = []
        self.read = []

    def open_new(self):
        names = os.listdir(self.folder) if os.path.isdir(self.folder) else []
        count = sum(name.startswith("count.") for name in names)
        for shard in range(len(self.shards), count):
            try:
                self.shards.append(open_shard(self.folder, shard))
                self.read.append(0)
            except (OSError, ValueError):
                return                      # just being made

    def drawn(self):
        self.open_new()
        return sum(int(s["count"][0]) for s in self.shards)

    def next(self, limit):
        """Up to `limit` new pictures, tokens, attributes; None if none."""
        self.open_new()
        parts = {name: [] for name in ARRAYS}
        share = max(1, limit // max(1, len(self.shards)))
        for i, shard in enumerate(self.shards):
            begin = self.read[i]
            end = min(int(shard["count"][0]), begin + share)
            if end > begin:
                for name in ARRAYS:
                    parts[name].append(shard[name][begin:end])
                self.read[i] = end
        if not parts["tokens"]:
            return None
        return tuple(np.concatenate(parts[name]) for name in ARRAYS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pool")
    parser.add_argument("--pictures", type=int, default=60000)
    parser.add_argument("--workers", type=int,
                        default=max(1, (os.cpu_count() or 2) - 1))
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    run(args.pool, args.pictures, args.workers)
