/*
 * A growable byte buffer.  Owned by its caller, one thread at a time.  An
 * allocation that fails marks the buffer and makes the further appends no-ops,
 * so that callers check once, at the end.
 */

#ifndef SD_BUF_H
#define SD_BUF_H

#include <stddef.h>


typedef struct {
    char    *data;              /* malloc'ed, or NULL */
    size_t   len;
    size_t   size;
    int      failed;
} sd_buf_t;


void sd_buf_free(sd_buf_t *b);                       /* and zeroes it */
void *sd_buf_reserve(sd_buf_t *b, size_t n);         /* room for n; or NULL */
void sd_buf_append(sd_buf_t *b, const void *data, size_t n);
void sd_buf_puts(sd_buf_t *b, const char *s);
void sd_buf_printf(sd_buf_t *b, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/* s as the inside of a JSON string, quotes not included; s is valid UTF-8 */
void sd_buf_json(sd_buf_t *b, const char *s, size_t n);
void sd_buf_base64(sd_buf_t *b, const void *data, size_t n);


#endif
