/*
 * SHA-256 of FIPS 180-4.  No allocation, any thread.
 */

#ifndef SD_SHA256_H
#define SD_SHA256_H

#include <stddef.h>
#include <stdint.h>


typedef struct {
    uint32_t   h[8];
    uint64_t   bytes;
    uint8_t    block[64];
} sd_sha256_t;


void sd_sha256_init(sd_sha256_t *s);
void sd_sha256_update(sd_sha256_t *s, const void *data, size_t n);
/* hex: 64 digits and a '\0' */
void sd_sha256_hex(sd_sha256_t *s, char hex[65]);


#endif
