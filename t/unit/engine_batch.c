/*
 * The engine on devices that enqueue, record, and step four pictures together
 * (stream.h), with the embedded model: whatever else runs, and wherever, a
 * request gives the bytes that it gives alone on the cpu.
 */

#define _GNU_SOURCE

/* a cpu device becomes such a one when it is opened as "cpu:1" or "cpu:2" */

#define sd_device_open  sd_device_open_plain
#include "../../src/ops/context.c"
#undef sd_device_open

#include "client.h"
#include "stream.h"


#define N  7


static const char  *bodies[N] = {
    "{\"prompt\":\"a red house on a hill\",\"width\":64,\"height\":64,"
        "\"steps\":5,\"seed\":11,\"preview\":\"vae\"}",
    "{\"prompt\":\"the sea\",\"width\":64,\"height\":64,\"steps\":7,"
        "\"seed\":3,\"sampler\":\"euler_a\"}",
    "{\"prompt\":\"rain\",\"width\":64,\"height\":64,\"steps\":4,"
        "\"seed\":5,\"guidance_scale\":1}",
    "{\"prompt\":\"a field\",\"width\":96,\"height\":64,\"steps\":6,"
        "\"seed\":1,\"sampler\":\"euler\",\"preview_every\":1}",
    "{\"prompt\":\"fog\",\"width\":96,\"height\":64,\"steps\":3,\"seed\":9,"
        "\"latent\":\"all\"}",
    "{\"prompt\":\"a lake\",\"width\":64,\"height\":64,\"steps\":5,\"n\":3,"
        "\"seed\":20}",
    "{\"prompt\":\"dunes\",\"width\":64,\"height\":64,\"steps\":8,"
        "\"seed\":2,\"preview\":\"vae\",\"preview_every\":3}"
};


int
sd_device_open(sd_device_t **dev, const char *name, int threads,
    sd_precision_t precision, const char *isa, sd_error_t *err)
{
    if (sd_device_open_plain(dev, "cpu", 1, precision, isa, err) != SD_OK) {
        return SD_ERROR;
    }

    if (strchr(name, ':')) {
        strcpy((*dev)->name, name);
        stream_device(*dev);
    }

    return SD_OK;
}


static void
same(const answer_t *a, const sd_buf_t *whole, const char *name, int i)
{
    sd_buf_t  b = { 0 };

    finals(a, &b);

    ok(b.len && b.len == whole->len && memcmp(b.data, whole->data, b.len) == 0,
       "%s: request %d", name, i);

    sd_buf_free(&b);
}


static void
together(const char *devices, const sd_buf_t *alone)
{
    int           i, k, fd[N];
    answer_t      a = { 0 };
    sd_engine_t  *e;
    sd_request_t  r;

    e = start_devices(devices, "model", N, 5);

    r = request(SD_DIALECT_NATIVE, "multipart/mixed");

    /* once in this order, all at a time, and once the other way round */

    for (k = 0; k < 2; k++) {
        for (i = 0; i < N; i++) {
            fd[i] = send_request(&r, bodies[k ? N - 1 - i : i]);
        }

        for (i = 0; i < N; i++) {
            forget(&a);
            finish(fd[i], &a);
            same(&a, &alone[k ? N - 1 - i : i], devices, k ? N - 1 - i : i);
        }
    }

    /* some leave, the others go on */

    for (i = 0; i < N; i++) {
        fd[i] = send_request(&r, bodies[i]);
    }

    nap(200);

    for (i = 0; i < N; i += 2) {
        close(fd[i]);
    }

    for (i = 1; i < N; i += 2) {
        forget(&a);
        finish(fd[i], &a);
        same(&a, &alone[i], "some leave", i);
    }

    idle(e);
    sd_engine_stop(e);
    is_int(stream_recordings, 0, "no recording is left");
    forget(&a);
}


int
main(void)
{
    int           i, before;
    answer_t      a = { 0 };
    sd_buf_t      alone[N] = { 0 };
    sd_engine_t  *e;

    listen_abstract();
    before = fds();

    e = start_model("model", 4, 1);

    for (i = 0; i < N; i++) {
        ask(&a, request(SD_DIALECT_NATIVE, "multipart/mixed"), bodies[i]);
        is_int(a.status, 200, "alone");
        finals(&a, &alone[i]);
    }

    sd_engine_stop(e);

    together("cpu:1", alone);
    together("cpu:1 cpu:2", alone);

    is_int(fds(), before, "no descriptor is left");
    printf("# %d recordings, %d replays\n", stream_records, stream_replays);

    for (i = 0; i < N; i++) {
        sd_buf_free(&alone[i]);
    }

    forget(&a);

    return done();
}
