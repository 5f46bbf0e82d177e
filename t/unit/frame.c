/*
 * The wire: what is written is read back; every cut, every flipped byte and
 * every wrong length is refused or waits, and none is read beyond its end.
 */

#include <stdlib.h>

#include "../../src/engine/frame.h"
#include "tap.h"


#define str(s)  { s, sizeof(s) - 1 }


/* in memory of exactly that size, so that a sanitizer sees each byte over */

static ssize_t
parse(sd_request_t *r, const char *data, size_t len, const uint8_t *cookie)
{
    char        *p;
    ssize_t      n;
    sd_error_t   err;

    p = malloc(len ? len : 1);
    memcpy(p, data, len);
    n = sd_frame_parse_request(r, p, len, cookie, &err);
    free(p);

    return n;
}


int
main(void)
{
    int           bad, wait;
    size_t        i;
    ssize_t       n;
    uint8_t       cookie[SD_COOKIE_SIZE];
    sd_buf_t      b = { 0 };
    sd_error_t    err;
    sd_request_t  r = {
        .location = { 1, SD_DIALECT_SAGEMAKER, 1000, 50, 65536, 4,
                      SD_PREVIEW_RGB, SD_LATENT_ALL, 1 },
        .method = SD_METHOD_POST,
        .uri = str("/generate"), .args = str("a=b"), .accept = str("*/*"),
        .content_type = str("application/json"), .id = str("0123"),
        .body_length = 123456789012
    }, q;

    for (i = 0; i < SD_COOKIE_SIZE; i++) {
        cookie[i] = i * 7;
    }

    is_int(sd_frame_request(&b, cookie, &r, &err), SD_OK, "a request");

    n = sd_frame_parse_request(&q, b.data, b.len, cookie, &err);

    is_int(n, b.len, "parsed whole");
    ok(memcmp(&q.location, &r.location, sizeof(sd_location_t)) == 0,
       "the location");
    is_int(q.method, SD_METHOD_POST, "the method");
    is_int(q.body_length, r.body_length, "the body's length");
    ok(q.uri.len == 9 && memcmp(q.uri.data, "/generate", 9) == 0, "the uri");
    ok(q.args.len == 3 && memcmp(q.args.data, "a=b", 3) == 0, "the query");
    ok(q.last_event_id.len == 0, "an empty string");
    ok(q.id.len == 4 && memcmp(q.id.data, "0123", 4) == 0, "the id");

    wait = 0;

    for (i = 0; i < b.len; i++) {
        wait += parse(&q, b.data, i, cookie) == 0;
    }

    is_int(wait, b.len, "each cut waits for more");

    sd_buf_puts(&b, "body");
    is_int(parse(&q, b.data, b.len, cookie), b.len - 4, "the body stays");
    b.len -= 4;

    cookie[31] ^= 1;
    is_int(parse(&q, b.data, b.len, cookie), SD_ERROR, "a wrong cookie");
    cookie[31] ^= 1;

    b.data[0] ^= 1;
    is_int(parse(&q, b.data, 4, cookie), SD_ERROR, "another version, at once");
    b.data[0] ^= 1;

    bad = 0;

    for (i = 0; i < b.len; i++) {
        b.data[i] ^= 0x80;
        bad += parse(&q, b.data, b.len, cookie) > (ssize_t) b.len;
        b.data[i] ^= 0x80;
    }

    is_int(bad, 0, "no flipped byte makes it longer than it is");

    r.location.dialect = 99;
    b.len = 0;
    sd_frame_request(&b, cookie, &r, &err);
    is_int(parse(&q, b.data, b.len, cookie), SD_ERROR, "an unknown dialect");

    b.len = 0;
    r.location.dialect = 0;
    r.args.len = 65537;
    r.accept.len = 65537;
    is_int(sd_frame_request(&b, cookie, &r, &err), SD_OK, "a long query");
    is_int(sd_frame_parse_request(&q, b.data, b.len, cookie, &err), b.len,
           "parsed");
    is_int(q.too_long, 414, "which is a 414");
    ok(strcmp(q.too_long_name, "args") == 0, "by name");
    is_int(q.args.len + q.accept.len, 0, "and left out");
    is_int(q.uri.len, 9, "what is short is not");

    b.len = 0;
    sd_frame_header(&b, 200, -1, "image/jpeg", "A: b\r\n", 6);

    is_int(((sd_frame_t *) b.data)->length + sizeof(sd_frame_t), b.len,
           "a header's length");
    ok(memcmp(b.data + b.len - 16, "image/jpegA: b\r\n", 16) == 0,
       "and its strings");

    sd_buf_free(&b);

    return done();
}
