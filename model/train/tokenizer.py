"""The byte-level BPE of CLIP with fewer merges.

CLIP's 49408 tokens would be most of a model this small.  Ours keeps the 256
byte symbols, the first merges of CLIP's table and every further merge that
the words of words.txt need, in CLIP's order.  Any text still tokenizes, and
the words of the captions tokenize as they do in CLIP.

    python tokenizer.py CLIP_MERGES OUT     writes a diffusers tokenizer folder
"""
import gzip
import json
import os
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
SHIPPED = os.path.join(HERE, "..", "tokenizer")

LENGTH = 77
BOS, EOS = "<|startoftext|>", "<|endoftext|>"

PIECES = re.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    r"|[^\W\d_]+|\d|(?:[^\s\w]|_)+", re.IGNORECASE)


def byte_symbols():
    """A printable character for each byte, in the order of CLIP's table."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = {b: chr(b) for b in printable}
    for b in range(256):
        if b not in symbols:
            symbols[b] = chr(256 + len(symbols) - len(printable))
    return symbols


class Tokenizer:
    def __init__(self, merges):
        self.merges = merges
        self.rank = {pair: i for i, pair in enumerate(merges)}
        self.symbols = byte_symbols()
        base = list(self.symbols.values())
        tokens = base + [s + "</w>" for s in base]
        tokens += ["".join(pair) for pair in merges] + [BOS, EOS]
        self.vocab = {token: i for i, token in enumerate(tokens)}
        self.bos, self.eos = self.vocab[BOS], self.vocab[EOS]
        self.cache = {}
        self.used = set()

    def word(self, text):
        """The tokens of one word, merged in the order of the table."""
        if text in self.cache:
            return self.cache[text]
        parts = [self.symbols[b] for b in text.encode()]
        parts[-1] += "</w>"
        while len(parts) > 1:
            pairs = list(zip(parts, parts[1:]))
            best = min(pairs, key=lambda p: self.rank.get(p, len(self.rank)))
            if best not in self.rank:
                break
            self.used.add(best)
            merged, i = [], 0
            while i < len(parts):
                if tuple(parts[i:i + 2]) == best:
                    merged.append(parts[i] + parts[i + 1])
                    i += 2
                else:
                    merged.append(parts[i])
                    i += 1
            parts = merged
        self.cache[text] = [self.vocab[p] for p in parts]
        return self.cache[text]

    def __call__(self, text):
        text = re.sub(r"\s+", " ", text).strip().lower()
        return [t for piece in PIECES.findall(text) for t in self.word(piece)]

    def padded(self, text, length=LENGTH):
        """The ids of a text as Stable Diffusion pads them: with EOS."""
        ids = [self.bos] + self(text)[:length - 2] + [self.eos]
        return ids + [self.eos] * (length - len(ids))


def load(folder=SHIPPED):
    with open(os.path.join(folder, "merges.txt"), encoding="utf-8") as f:
        lines = f.read().split("\n")[1:]
    return Tokenizer([tuple(line.split()) for line in lines if line])


def clip_merges(path):
    """The 48894 merges of CLIP, of its own .txt.gz or of a merges.txt."""
    opened = gzip.open if path.endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8") as f:
        lines = f.read().split("\n")[1:49152 - 256 - 2 + 1]
    return [tuple(line.split()) for line in lines]


def reduce_merges(merges, words, first=1600):
    full = Tokenizer(merges)
    for word in words:
        full.word(word)
        full.word(word + "s")
    return [m for i, m in enumerate(merges) if i < first or m in full.used]


def write(folder, merges):
    """The four files that transformers' CLIPTokenizer reads."""
    os.makedirs(folder, exist_ok=True)

    def put(name, value):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
            json.dump(value, f, ensure_ascii=False, indent=2)
            f.write("\n")

    def special(text):
        return dict(content=text, lstrip=False, normalized=True, rstrip=False,
                    single_word=False)

    put("vocab.json", Tokenizer(merges).vocab)
    put("special_tokens_map.json",
        dict(bos_token=special(BOS), eos_token=special(EOS), pad_token=EOS,
             unk_token=special(EOS)))
    put("tokenizer_config.json",
        dict(add_prefix_space=False, do_lower_case=True, errors="replace",
             model_max_length=LENGTH, bos_token=BOS, eos_token=EOS,
             pad_token=EOS, unk_token=EOS, tokenizer_class="CLIPTokenizer"))
    with open(os.path.join(folder, "merges.txt"), "w", encoding="utf-8") as f:
        f.write("#version: 0.2\n")
        f.writelines(" ".join(pair) + "\n" for pair in merges)


if __name__ == "__main__":
    with open(os.path.join(HERE, "words.txt")) as f:
        kept = reduce_merges(clip_merges(sys.argv[1]), f.read().split())
    write(sys.argv[2], kept)
    print("%d merges, %d tokens" % (len(kept), len(Tokenizer(kept).vocab)))
