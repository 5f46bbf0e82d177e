/*
 * A request's body and query into job parameters.  The first byte chooses the
 * dialect and how much of the rest is the query.
 */

#include <string.h>

#include "../../src/http/http.h"


int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t           n;
    sd_error_t       err;
    sd_model_t       model;
    sd_request_t     r;
    sd_job_params_t  p;

    if (size == 0) {
        return 0;
    }

    memset(&model, 0, sizeof(sd_model_t));
    memset(&r, 0, sizeof(sd_request_t));

    model.default_width = 64;
    model.default_height = 64;
    model.vae_scale = 8;

    n = (data[0] & 7) == 7 ? (size - 1) / 2 : 0;

    r.method = SD_METHOD_POST;
    r.location.dialect = data[0] >> 3 & 1;
    r.location.pagination = data[0] >> 4 & 1;
    r.location.max_steps = 100;
    r.args.data = (const char *) data + 1;
    r.args.len = n;

    (void) sd_job_request(&p, sd_dialect(r.location.dialect), &r,
                          data + 1 + n, size - 1 - n, &model, &err);
    sd_job_params_free(&p);

    /* the rest once more, as an Accept */

    r.accept.data = (const char *) data + 1;
    r.accept.len = size - 1;

    (void) sd_format_negotiate(sd_dialect(SD_DIALECT_NATIVE), r.accept);

    return 0;
}
