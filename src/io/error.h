/*
 * Status codes and the error object.  Functions return SD_OK or one of the
 * codes below and put the reason into the caller's sd_error_t; nothing below
 * src/cli prints, exits or aborts.  An error that a client may see carries the
 * HTTP status and the name of the parameter that is wrong.
 */

#ifndef SD_ERROR_H
#define SD_ERROR_H


#define SD_OK          0
#define SD_ERROR      -1
#define SD_AGAIN      -2
#define SD_CANCELLED  -3


typedef struct {
    int          status;        /* HTTP: 400, 404, 406, 409, 413, 415, 503 ... */
    const char  *type;          /* "invalid_request_error", "server_error" */
    const char  *code;          /* static, for machines: "invalid_value" ... */
    char         param[64];     /* request field, file, key or tensor; or "" */
    char         message[512];  /* for people, valid UTF-8, no newline */
} sd_error_t;


/*
 * fills err (which may be NULL) and returns SD_ERROR.  type follows from
 * status: below 500 "invalid_request_error", else "server_error".  code is
 * kept by reference, param may be NULL, both texts are cut to fit.
 */
int sd_error(sd_error_t *err, int status, const char *code, const char *param,
    const char *fmt, ...) __attribute__((format(printf, 5, 6)));


/* the short form for what no request is to blame for: 500 "internal_error" */
#define sd_fail(err, ...)                                                     \
    sd_error(err, 500, "internal_error", NULL, __VA_ARGS__)

/* what a request needs is not there now, or not on this host */
#define sd_no_memory(err, ...)                                                \
    sd_error(err, 503, "no_memory", NULL, __VA_ARGS__)


#endif
