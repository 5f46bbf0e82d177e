#!/usr/bin/env python3
"""Writes tokenizer.txt: what transformers' CLIPTokenizer makes of hard text,
for t/unit/tokenizer.c.  A line each:

    REPEAT COUNT HASH IDS TEXT

TEXT, percent-encoded, is REPEAT times repeated; COUNT ids come of it, begin and
end included; HASH is FNV-1a over them as 32-bit little-endian numbers; IDS are
the first of them, hexadecimal, for people.  A line whose TEXT is U+XXXXXX
stands for the 4096 characters from there on, each between "a" and "b", with
spaces between them; surrogates and the characters of LATER, which the lines
with REPEAT 0 list, are left out.

usage: tokenizer.py TOKENIZER_DIR OUTPUT
       tokenizer.py --full BPE_SIMPLE_VOCAB_16E6.txt.gz DIR OUTPUT
           the same with CLIP's own vocabulary, written to DIR first
"""

import gzip
import json
import os
import random
import sys
import unicodedata
import urllib.parse

from transformers import CLIPTokenizer

HARD = [
    '', ' ', '   ', '\t\n\r\v\f', 'a', 'A', ' a ', 'a red house', 'A Red HOUSE',
    "it's", "IT'S", "can't won't I'll you're they've I'm he'd", "''s", "!'s",
    "'sup", "'", "''", "'''", "don''t", "it’s", "rock'n'roll", "'S 'T 'RE",
    "o'clock", "'ll'd's't", "x'", "'ſ", "'K", "s's's's", "'\u0301s",
    '<|startoftext|>', '<|endoftext|>', '<|STARTOFTEXT|>', '<|EndOfText|>',
    'a<|endoftext|>b', 'a <|startoftext|> b', '!!<|EndOfText|>!!',
    '<|startoftext|><|startoftext|>', '<|startoftext', '<<|endoftext|>>',
    '< |endoftext|>', '<|endoftext|', '|endoftext|>', '<|EndOfText|>\'s',
    '<|ﬁ|>', '<|start\u200boftext|>', '<|ENDOFTEXT|><|endoftext|>',
    '!', '!!', '!!!', '! ! !', '...', '…', '?!?', '--', '—', '- - -', 'a-b',
    'a_b', '__init__', 'a.b.c', 'http://example.com/a?b=c&d=%20', '#tag @user',
    '$1,234.56', '50%', '1 2 3', '123', '1a2b', 'v2.1', '½', '²', 'Ⅷ', '①',
    '٣٤٥', '１２３', '९', '𝟘𝟙', '一二三', '〇',
    'café', 'cafe\u0301', 'CAFÉ', 'CAFE\u0301', 'naïve', 'Ångström',
    'A\u030angstro\u0308m', 'ÅÅÅ', '\u212b', '\u2126', '\u1e9e', 'ß', 'STRASSE',
    'straße', 'İstanbul', 'ISTANBUL', 'ı', 'I\u0307', 'i\u0307', '\u0130\u0307',
    'ΣΑΣ', 'Σ', 'ΟΔΥΣΣΕΥΣ ΤΗΣ', 'ΑΣ.', 'ς', 'ǅ ǈ ǋ ǲ', 'ﬁ ﬂ ﬀ ﬃ', 'Ǆ', 'ŉ',
    'ΐ', 'ᾳ ᾼ ᾲ', 'Ⓐ', '𝐀𝔄', '𐐀𐐨', 'Ꭰ ꭰ', 'Ა ა', 'Ⴀ', 'Ⱥ ⱥ', 'Ω Ω', 'K k',
    'q\u0307\u0323', 'q\u0323\u0307', 'a\u0327\u0301\u0323', '\u0301a', '\u0344',
    '\u0f73', '\u0f71\u0f72', '\u0958', '\u2adc', '\ufb1d', '\u1100\u1161\u11a8',
    '가각', '\u1100\u1161', '\u11a8', 'ᄀ각', '\u0b47\u0b3e', '\u1025\u102e',
    'が か\u3099', 'ｶﾞ', 'Ａｂｃ', '\u3000', 'a\u3000b', '東京タワー', '春天的花',
    '漢字かな交じり文', '한국어 텍스트', 'ภาษาไทย', 'हिन्दी', 'தமிழ்', 'עברית',
    'שָׁלוֹם', 'العربية', 'مرحبا بالعالم', 'русский ТЕКСТ', 'Ελληνικά', 'ქართული',
    'Tiếng Việt', 'Vie\u0302\u0323t', 'ｈｅｌｌｏ', '\U00020000', '\U0002f800',
    '😀', '😀😀', '😀 😀', '👍🏽', '👨\u200d👩\u200d👧\u200d👦', '❤️', '❤', '🏳️\u200d🌈',
    '🇯🇵🇺🇸', '1️⃣', '©®™', '→←', '☃', '♀♂', '🧑🏿\u200d🚀', '🫠',
    'a\u200bb', 'a\u200cb', 'a\u200db', 'a\u2060b', '\ufeffa', 'a\u00adb',
    'a\u00a0b', 'a\u202fb', 'a\u2028b', 'a\u2029b', 'a\u0085b', 'a\u180eb',
    'a\u2000b', 'a\u200ab', 'a\u205fb', 'a\u1680b', 'a\x1cb', 'a\x1fb', 'a\x00b',
    '\x00', '\x01\x02\x03', '\x7f', '\x1b[31mred\x1b[0m', 'a\x0bb', 'a\x0cb',
    '\u202eabc', '\u061c', '\ufffd', '\ufffe', '\uffff', '\U0010ffff', '\ue000',
    '\ufdd0', 'a\u034fb', 'e\u0301\u0301\u0301', 'Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢',
    'a snowy mountain at night, flat illustration',
    'a red house by a lake, sunset, black and white',
    'masterpiece, best quality, (trees:1.2), [sky], {sea}',
    'ONE two\tthree\nfour\r\nfive', ' leading', 'trailing ', 'a  b   c',
]

# letters and the like that Unicode has got since version 15, which is what
# Debian 12's utf8proc knows: to us they are what unassigned characters are
LATER = [
    (0x1c89, 0x1c8a), (0xa7cb, 0xa7ce), (0xa7d2, 0xa7d2), (0xa7d4, 0xa7d4),
    (0xa7da, 0xa7dc), (0x105c0, 0x105f3), (0x10d4a, 0x10d65),
    (0x10d6f, 0x10d85), (0x10ec2, 0x10ec4), (0x11380, 0x113d3),
    (0x11bc0, 0x11be0), (0x13460, 0x143fa), (0x16100, 0x1611d),
    (0x16d40, 0x16d6c), (0x16ea0, 0x16eb8), (0x18cff, 0x18cff),
    (0x1e5d0, 0x1e5f0), (0x2ebf0, 0x2ee5d),
]

# repeated: words and runs without end, marks out of order, what fills 77
LONG = [
    ('a', 10000), ('ab', 5000), ('a ', 10000), ('house ', 80), ('house ', 74),
    ('house ', 75), ('house ', 76), ('!', 10000), ('! ', 100), ('1', 10000),
    ('é', 10000), ('e\u0301', 5000), ('\u0301', 10000), ('\u0301\u0323', 5000),
    ('😀', 10000), ('東', 10000), ("'", 10000), ("'s", 5000), ('\x00', 10000),
    (' ', 10000), ('\u3000', 10000), ('<|endoftext|>', 1000), ('<|', 5000),
    ('<|EndOfText|>', 1000), ('aaaaaaaaab', 1000), ('Ab1! ', 2000), ('İ', 10000),
    ('Σ', 10000), ('mountain', 1250), ('\u1100', 10000), ('가', 10000),
    ('a\u0327\u0301\u0323', 2500), ('the quick brown fox ', 500),
    ('trees and houses at the sea in winter', 270), ('𝔸', 5000),
]

WORDS = '''a the red blue green house lake mountain sunset night snow winter sea
    boat tree forest illustration flat city sky moon stars cloud river field
    meadow black white and with in at of on photo realistic painting it's don't
    isn't we're CLIP GPU HDR 8k 4K 1920x1080'''.split()

ALPHABETS = [
    'abcdefghijklmnopqrstuvwxyz', 'ABCDEFGHIJKLMNOPQRSTUVWXYZ', '0123456789',
    ''.join(map(chr, range(0x21, 0x30))) + ':;<=>?@[\\]^_`{|}~',
    ' \t\n\u00a0\u2003\u3000\u200b\ufeff', "'s't'd'm'll've're’",
    ''.join(map(chr, range(0xa0, 0x180))), ''.join(map(chr, range(0x300, 0x370))),
    ''.join(map(chr, range(0x370, 0x530))), ''.join(map(chr, range(0x5d0, 0x700))),
    ''.join(map(chr, range(0x900, 0x980))), ''.join(map(chr, range(0xe00, 0xe5c))),
    ''.join(map(chr, range(0x1100, 0x1200))), ''.join(map(chr, range(0x1e00, 0x2000))),
    ''.join(map(chr, range(0x2000, 0x2070))), ''.join(map(chr, range(0x2070, 0x2200))),
    ''.join(map(chr, range(0x3040, 0x3100))), ''.join(map(chr, range(0x4e00, 0x4e80))),
    ''.join(map(chr, range(0xac00, 0xac80))), ''.join(map(chr, range(0xf900, 0xfb50))),
    ''.join(map(chr, range(0xff00, 0xffa0))), ''.join(map(chr, range(0x1f600, 0x1f650))),
    '\u200d\ufe0f\U0001f3fb\U0001f3ff\U0001f468\U0001f469\u2764\U0001f1ef',
    ''.join(map(chr, range(0, 0x20))) + '\x7f\x80\x85\x9f',
]


def texts():
    yield from ((s, 1) for s in HARD)
    yield from LONG

    rng = random.Random(20)
    made = 0

    while made < 2000:
        kind = rng.random()
        if kind < 0.3:
            s = ' '.join(rng.choice(WORDS) for _ in range(rng.randint(1, 14)))
            if rng.random() < 0.3:
                s = rng.choice((s.upper(), s.title(), s.replace(' ', ', ')))
        elif kind < 0.5:
            s = ''.join(rng.choice(rng.choice(WORDS) + ' ')
                        for _ in range(rng.randint(1, 40)))
        else:
            some = rng.sample(ALPHABETS, rng.randint(1, 4))
            s = ''.join(rng.choice(rng.choice(some))
                        for _ in range(rng.randint(1, 30)))
            if rng.random() < 0.2:
                s = unicodedata.normalize(rng.choice(('NFC', 'NFD')), s)
        made += 1
        yield s, 1


def fnv(ids):
    h = 0xcbf29ce484222325
    for i in ids:
        for b in i.to_bytes(4, 'little'):
            h = (h ^ b) * 0x100000001b3 & 0xffffffffffffffff
    return h


def full(source, where):
    """CLIP's vocabulary.json and merges.txt, as it makes them itself."""
    merges = gzip.open(source, 'rt', encoding='utf-8').read().split('\n')
    merges = merges[1:49152 - 256 - 2 + 1]
    codes = [*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x100)]
    chars = [chr(c) for c in codes]
    chars += [chr(256 + i) for i in range(256 - len(codes))]
    vocab = chars + [c + '</w>' for c in chars]
    vocab += [m.replace(' ', '') for m in merges]
    vocab += ['<|startoftext|>', '<|endoftext|>']
    os.makedirs(where, exist_ok=True)
    with open(where + '/vocab.json', 'w', encoding='utf-8') as f:
        json.dump({t: i for i, t in enumerate(vocab)}, f, ensure_ascii=False)
    with open(where + '/merges.txt', 'w', encoding='utf-8') as f:
        f.write('#version: 0.2\n' + '\n'.join(merges) + '\n')


def main():
    args = sys.argv[1:]

    if args[0] == '--full':
        full(args[1], args[2])
        args = args[2:]

    tokenizer = CLIPTokenizer.from_pretrained(args[0])

    with open(args[1], 'w', encoding='utf-8') as f:
        for text, repeat in texts():
            ids = tokenizer(text * repeat)['input_ids']
            f.write('%d %d %016x %s %s\n' % (
                repeat, len(ids), fnv(ids),
                ','.join('%x' % i for i in ids[1:-1][:24]) or '-',
                urllib.parse.quote(text, safe=" !\"#$&'()*+,/:;<=>?@[]^`{|}")))

        for pair in LATER:
            f.write('0 0 0 - %X-%X\n' % pair)

        skip = {c for first, last in LATER for c in range(first, last + 1)}
        skip.update(range(0xd800, 0xe000))

        for first in range(0, 0x110000, 4096):
            text = ' '.join('a%cb' % c for c in range(first, first + 4096)
                            if c not in skip)
            ids = tokenizer(text)['input_ids']
            f.write('1 %d %016x - U+%06X\n' % (len(ids), fnv(ids), first))


main()
