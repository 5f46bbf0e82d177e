/*
 * Text as CLIP's tokenizer wants it: NFC, white space runs made one space,
 * lower case.  Unicode's tables are utf8proc's.  Any thread.
 */

#ifndef SD_NORMALIZE_H
#define SD_NORMALIZE_H

#include <stddef.h>
#include <stdint.h>

#include "../io/buf.h"
#include "../io/error.h"


#define SD_TEXT_MAX  (1024 * 1024)      /* bytes of one text */


typedef enum {
    SD_CHAR_SPACE,              /* White_Space: regular expressions' \s */
    SD_CHAR_LETTER,             /* \p{L} */
    SD_CHAR_NUMBER,             /* \p{N} */
    SD_CHAR_OTHER
} sd_char_class_t;


sd_char_class_t sd_char_class(uint32_t c);

/* the character at s, which is valid UTF-8; *n: the bytes that it takes */
uint32_t sd_char_next(const char *s, size_t *n);

/*
 * appends the normal form of text, len bytes.  Lower case is each character's
 * own full mapping, without regard to its neighbours.  400 "prompt" where text
 * is not UTF-8, or too long.
 */
int sd_normalize(sd_buf_t *out, const char *text, size_t len,
    sd_error_t *err);


#endif
