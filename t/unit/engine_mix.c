/*
 * Sixty-four jobs of all kinds, from many clients at a time, with the embedded
 * model: whoever leaves, whatever runs beside, and whether a picture is made
 * in one go or from half-way on, it has the bytes that it has alone.  And how
 * much slower a picture's steps are while others are decoded.
 *
 * argv[1]: a seed; each run has another one, and prints it.
 */

#define _GNU_SOURCE

#include <pthread.h>
#include <sched.h>

#include "../../src/io/base64.h"
#include "client.h"


/* asan takes its time */

#if defined(__SANITIZE_ADDRESS__)
#define JOBS     8
#else
#define JOBS     64
#endif

#define CLIENTS  12
#define GAPS     10


typedef enum {
    WHOLE,
    LEAVES,                     /* after some frames */
    GOES_ON,                    /* leaves with a state, and comes again */
    KINDS
} kind_t;

typedef struct {
    char             body[512];         /* without its closing brace */
    kind_t           kind;
    sd_priority_t    priority;
    int              frames;            /* after which it leaves */
    int              nap;               /* ms before it comes */
    int              status, same, left, resumed;
    sd_buf_t         alone;
} mix_t;


static mix_t        jobs[JOBS];
static int          order[JOBS];
static atomic_int   next_job;


static void
make(mix_t *j, int i, unsigned *s)
{
    int  n;

    static const char  *prompts[] = { "a red house on a hill", "the sea",
                                      "rain", "a field of wheat", "x" };
    static const char  *samplers[] = { "ddim", "euler", "euler_a" };
    static const char  *guidance[] = { "1", "4", "7.5" };
    static const char  *previews[] = { "none", "rgb", "rgb", "vae" };
    static const int    sizes[][2] = { { 64, 64 }, { 96, 64 }, { 64, 96 },
                                       { 64, 64 } };

    n = rand_r(s) % 4;

    j->kind = i < KINDS ? i : rand_r(s) % 2 ? WHOLE : rand_r(s) % KINDS;
    j->priority = rand_r(s) % SD_PRIORITIES;
    j->frames = 1 + rand_r(s) % 5;
    j->nap = rand_r(s) % 40;

    snprintf(j->body, sizeof(j->body), "{\"prompt\":\"%s\",\"width\":%d,"
             "\"height\":%d,\"steps\":%d,\"seed\":%d,\"sampler\":\"%s\","
             "\"guidance_scale\":%s,\"preview\":\"%s\",\"preview_every\":%d,"
             "\"latent\":2,\"output_format\":\"png\",\"n\":%d",
             prompts[rand_r(s) % 5], sizes[n][0], sizes[n][1],
             3 + rand_r(s) % 4, rand_r(s) % 1000, samplers[rand_r(s) % 3],
             guidance[rand_r(s) % 3], previews[rand_r(s) % 4],
             1 + rand_r(s) % 3,
             j->kind == GOES_ON || rand_r(s) % 8 ? 1 : 2);
}


static int
send_job(const mix_t *j, const char *more)
{
    int           fd;
    sd_buf_t      b = { 0 };
    sd_request_t  r;

    r = request(SD_DIALECT_NATIVE, "multipart/mixed");
    r.location.priority = j->priority;

    sd_buf_printf(&b, "%s%s}", j->body, more);
    sd_buf_append(&b, "", 1);

    fd = send_request(&r, b.data);
    sd_buf_free(&b);

    return fd;
}


/* the last state so far, as the field that goes on from it */

static int
state(const answer_t *a, sd_buf_t *out)
{
    char    *p, *s, *end, *found;
    size_t   n, size;

    found = NULL;
    size = 0;

    if (a->body.len == 0) {
        return 0;
    }

    for (p = a->body.data, end = p + a->body.len;
         (p = memmem(p, end - p, "Content-Length: ", 16)) != NULL;
         p = s + 4 + n)
    {
        n = strtoul(p + 16, NULL, 10);
        s = memmem(p, end - p, "\r\n\r\n", 4);

        if (s == NULL || s + 4 + n > end) {
            break;
        }

        if (memmem(p, s - p, "SD-Event: latent\r\n", 18)) {
            found = s + 4;
            size = n;
        }
    }

    if (found == NULL) {
        return 0;
    }

    out->len = 0;
    sd_buf_puts(out, ",\"latents\":\"");
    n = sd_base64_encoded_size(size);

    if (sd_buf_reserve(out, n + 2) == NULL) {
        return 0;
    }

    out->len += sd_base64_encode(out->data + out->len, found, size);
    sd_buf_append(out, "\"", 2);

    return 1;
}


static void
client_job(mix_t *j)
{
    int        fd, frames, going_on;
    sd_buf_t   b = { 0 }, got = { 0 };
    answer_t   a = { 0 };

    nap(j->nap);

    fd = send_job(j, "");
    going_on = 0;

    if (j->kind == LEAVES) {
        for (frames = 0; frames < j->frames; frames++) {
            (void) read_frame(fd, &a);
        }

        j->left = 1;
        close(fd);
        forget(&a);

        return;
    }

    if (j->kind == GOES_ON) {
        while (read_frame(fd, &a) != -1) {
            if (state(&a, &b)) {
                going_on = 1;
                break;
            }
        }
    }

    if (going_on) {
        close(fd);
        forget(&a);
        fd = send_job(j, b.data);
        j->resumed = 1;
    }

    finish(fd, &a);
    finals(&a, &got);

    j->status = a.status;
    j->same = got.len && got.len == j->alone.len
              && memcmp(got.data, j->alone.data, got.len) == 0;

    if (!j->same) {
        printf("# %s}: %s, %zu bytes, alone %zu\n", j->body,
               going_on ? "gone on" : "whole", got.len, j->alone.len);
    }

    sd_buf_free(&b);
    sd_buf_free(&got);
    forget(&a);
}


static void *
client(void *data)
{
    int  i;

    while ((i = atomic_fetch_add(&next_job, 1)) < JOBS) {
        client_job(&jobs[order[i]]);
    }

    return NULL;
}


static void
storm(const char *devices, unsigned *s)
{
    int           i, k, t, bad, left, resumed;
    pthread_t     id[CLIENTS];
    sd_engine_t  *e;

    for (i = 0; i < JOBS; i++) {
        order[i] = i;
        jobs[i].same = jobs[i].left = jobs[i].resumed = 0;
    }

    for (i = JOBS - 1; i > 0; i--) {
        k = rand_r(s) % (i + 1);
        t = order[i];
        order[i] = order[k];
        order[k] = t;
    }

    e = start_devices(devices, "model", JOBS, 6);
    next_job = 0;

    for (i = 0; i < CLIENTS; i++) {
        pthread_create(&id[i], NULL, client, NULL);
    }

    for (i = 0; i < CLIENTS; i++) {
        pthread_join(id[i], NULL);
    }

    idle(e);
    sd_engine_stop(e);

    for (i = 0, bad = 0, left = 0, resumed = 0; i < JOBS; i++) {
        bad += !jobs[i].left && !jobs[i].same;
        left += jobs[i].left;
        resumed += jobs[i].resumed;
    }

    is_int(bad, 0, "each picture has the bytes that it has alone");
    ok(left > 0 && resumed > 0, "%s: %d have left, %d have gone on half-way",
       devices, left, resumed);
}


static int
by_value(const void *a, const void *b)
{
    double  x = *(double *) a, y = *(double *) b;

    return x < y ? -1 : x > y;
}


/* the median of what passes between two steps, as a client sees it */

static double UNUSED
gap(sd_request_t *r)
{
    int               fd, n, seen, previews;
    double            ms[GAPS];
    answer_t          a = { 0 };
    struct timespec   ts, last = { 0, 0 };

    fd = send_request(r, "{\"prompt\":\"x\",\"steps\":12,\"latent\":\"none\","
                      "\"preview_every\":1}");

    for (n = 0, seen = 0; n < GAPS && read_frame(fd, &a) != -1; /* void */ ) {
        previews = count(&a, "SD-Event: preview");

        if (previews > seen) {
            clock_gettime(CLOCK_MONOTONIC, &ts);

            if (seen) {
                ms[n++] = ((ts.tv_sec - last.tv_sec) * 1e3
                           + (ts.tv_nsec - last.tv_nsec) * 1e-6)
                          / (previews - seen);
            }

            seen = previews;
            last = ts;
        }
    }

    close(fd);
    forget(&a);

    if (n == 0) {
        return 1e9;
    }

    qsort(ms, n, sizeof(double), by_value);

    return ms[n / 2];
}


/* a machine that does other things meanwhile has several chances */

static void UNUSED
test_gaps(void)
{
    int           i, fd;
    double        alone, beside;
    answer_t      a = { 0 };
    sd_request_t  r;
    sd_engine_t  *e;

    e = start_model("model", 4, 4);

    r = request(SD_DIALECT_NATIVE, "multipart/mixed");
    r.location.max_images = 64;

    for (i = 0, alone = 1, beside = 1e9; i < 5 && beside > 2.5 * alone; i++) {
        alone = gap(&r);

        /* a step each, and then a decode: these never end */

        fd = send_request(&r, "{\"prompt\":\"y\",\"steps\":1,\"n\":64,"
                          "\"guidance_scale\":1,\"preview\":\"none\"}");

        while (!has(&a, "SD-Event: final") && read_frame(fd, &a) != -1) { }

        beside = gap(&r);
        printf("# a step every %.1f ms, beside decodes %.1f\n", alone, beside);

        close(fd);
        forget(&a);
        idle(e);
    }

    ok(beside <= 2.5 * alone, "decodes hold no step up: %.2f times its usual "
       "gap, 2.5 at most", beside / alone);

    sd_engine_stop(e);
}


/* the first and the last processor that we may use, if there are two */

static const char *
two_devices(void)
{
    int          i, first, last;
    cpu_set_t    set;
    static char  names[64];

    first = last = -1;
    CPU_ZERO(&set);
    (void) sched_getaffinity(0, sizeof(set), &set);

    for (i = 0; i < CPU_SETSIZE; i++) {
        if (CPU_ISSET(i, &set)) {
            first = first == -1 ? i : first;
            last = i;
        }
    }

    snprintf(names, sizeof(names), first == last ? "cpu:%d" : "cpu:%d cpu:%d",
             first, last);

    return names;
}


int
main(int argc, char **argv)
{
    int           i, fd, bad, before;
    unsigned      seed;
    answer_t      a = { 0 };
    sd_engine_t  *e;

    seed = argc > 1 ? strtoul(argv[1], NULL, 10)
                    : (unsigned) now() ^ (unsigned) getpid();

    printf("# seed %u\n", seed);

    listen_abstract();
    before = fds();

    e = start_model("model", 4, 1);
    bad = 0;

    for (i = 0; i < JOBS; i++) {
        make(&jobs[i], i, &seed);

        fd = send_job(&jobs[i], "");
        forget(&a);
        finish(fd, &a);
        finals(&a, &jobs[i].alone);
        bad += jobs[i].alone.len == 0;
    }

    is_int(bad, 0, "each alone");
    sd_engine_stop(e);

    storm("cpu", &seed);
    storm(two_devices(), &seed);

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    test_gaps();
#endif

    is_int(fds(), before, "no descriptor is left");

    for (i = 0; i < JOBS; i++) {
        sd_buf_free(&jobs[i].alone);
    }

    forget(&a);

    return done();
}
