/*
 * UTF-8 as RFC 3629 has it: no overlong forms, no surrogates, nothing above
 * U+10FFFF.  No allocation, any thread.
 */

#ifndef SD_UTF8_H
#define SD_UTF8_H

#include <stddef.h>
#include <stdint.h>


/* bytes of the well-formed character at s, or 0; n: bytes that there are */
size_t sd_utf8_length(const char *s, size_t n);

/* returns the number of bytes written to dst, which has room for 4, or 0 */
size_t sd_utf8_encode(char *dst, uint32_t c);

/* whether all of s is well-formed */
int sd_utf8_valid(const char *s, size_t n);


#endif
