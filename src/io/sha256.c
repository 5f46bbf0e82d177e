/*
 * SHA-256: see sha256.h.  For fingerprints of some kilobytes: plain, not fast.
 */

#include <string.h>

#include "sha256.h"


static const uint32_t  sd_sha256_k[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1,
    0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3,
    0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786,
    0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
    0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13,
    0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
    0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a,
    0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
    0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2
};


static inline uint32_t
sd_ror(uint32_t x, int n)
{
    return x >> n | x << (32 - n);
}


static void
sd_sha256_block(uint32_t *h, const uint8_t *p)
{
    int       i;
    uint32_t  w[64], v[8], a, b;

    for (i = 0; i < 16; i++, p += 4) {
        w[i] = (uint32_t) p[0] << 24 | p[1] << 16 | p[2] << 8 | p[3];
    }

    for ( ; i < 64; i++) {
        a = sd_ror(w[i - 15], 7) ^ sd_ror(w[i - 15], 18) ^ w[i - 15] >> 3;
        b = sd_ror(w[i - 2], 17) ^ sd_ror(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16] + a + w[i - 7] + b;
    }

    memcpy(v, h, sizeof(v));

    for (i = 0; i < 64; i++) {
        a = sd_ror(v[4], 6) ^ sd_ror(v[4], 11) ^ sd_ror(v[4], 25);
        a += v[7] + ((v[4] & v[5]) ^ (~v[4] & v[6])) + sd_sha256_k[i] + w[i];
        b = sd_ror(v[0], 2) ^ sd_ror(v[0], 13) ^ sd_ror(v[0], 22);
        b += (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]);

        memmove(v + 1, v, 7 * sizeof(uint32_t));
        v[4] += a;
        v[0] = a + b;
    }

    for (i = 0; i < 8; i++) {
        h[i] += v[i];
    }
}


void
sd_sha256_init(sd_sha256_t *s)
{
    static const uint32_t  h[8] = {
        0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19
    };

    memcpy(s->h, h, sizeof(h));
    s->bytes = 0;
}


void
sd_sha256_update(sd_sha256_t *s, const void *data, size_t n)
{
    size_t          at, part;
    const uint8_t  *p = data;

    while (n) {
        at = s->bytes % 64;
        part = n < 64 - at ? n : 64 - at;

        memcpy(s->block + at, p, part);
        s->bytes += part;
        p += part;
        n -= part;

        if (at + part == 64) {
            sd_sha256_block(s->h, s->block);
        }
    }
}


void
sd_sha256_hex(sd_sha256_t *s, char hex[65])
{
    static const char  digits[] = "0123456789abcdef";

    int       i;
    uint8_t   b;
    uint64_t  bits = s->bytes * 8;

    sd_sha256_update(s, "\x80", 1);

    while (s->bytes % 64 != 56) {
        sd_sha256_update(s, "", 1);
    }

    for (i = 56; i >= 0; i -= 8) {
        b = bits >> i;
        sd_sha256_update(s, &b, 1);
    }

    for (i = 0; i < 64; i++) {
        hex[i] = digits[s->h[i / 8] >> (28 - i % 8 * 4) & 15];
    }

    hex[64] = '\0';
}
