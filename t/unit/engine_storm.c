/*
 * The engine over its socket, with a fake model: many clients of all kinds, who
 * come and leave as they like.
 */

#define _GNU_SOURCE

#include <pthread.h>

#include "fake_engine.h"


/* clients of all kinds, half of which leave at some moment or other */

static atomic_int  storm_failed, storm_whole;

static void *
storm(void *data)
{
    int           i, fd, k, n;
    unsigned      seed;
    answer_t      a = { 0 };
    sd_request_t  r;

    static const char  *accept[] = {
        "image/jpeg", "image/png", "multipart/mixed", "text/event-stream",
        "multipart/x-mixed-replace", JSON
    };

    seed = (unsigned) (uintptr_t) data;

    for (i = 0; i < 25; i++) {
        k = rand_r(&seed) % 6;
        r = request(k == 5 ? SD_DIALECT_SAGEMAKER : SD_DIALECT_NATIVE,
                    accept[k]);
        r.location.timeout = rand_r(&seed) % 8 == 0 ? 20 : 0;

        fd = send_request(&r, rand_r(&seed) % 8
                          ? "{\"prompt\":\"x\",\"steps\":6}"
                          : "{\"prompt\":\"x\",\"steps\":\"6\"}");
        forget(&a);

        if (rand_r(&seed) % 2) {
            n = rand_r(&seed) % 4;

            while (n-- && read_frame(fd, &a) != -1) { /* void */ }

            nap(rand_r(&seed) % 10);
            close(fd);
            continue;
        }

        finish(fd, &a);

        if (!a.ended || a.status < 200) {
            storm_failed++;

        } else {
            storm_whole++;
        }
    }

    forget(&a);

    return NULL;
}


static void
test_storm(const char *devices)
{
    int           i;
    pthread_t     t[6];
    sd_engine_t  *e;

    printf("# on %s\n", devices);
    storm_whole = 0;

    e = start_devices(devices, "fake", 3, 2);

    for (i = 0; i < 6; i++) {
        pthread_create(&t[i], NULL, storm, (void *) (uintptr_t) (i + 1));
    }

    for (i = 0; i < 6; i++) {
        pthread_join(t[i], NULL);
    }

    is_int(storm_failed, 0, "whoever stays gets an answer");
    ok(storm_whole > 30, "as many do");
    no_pictures(e);
    is_int(sd_engine_active(e), 0, "nothing is active");

    sd_engine_stop(e);
}


int
main(void)
{
    int  before;

    listen_abstract();
    before = fds();

    test_storm("cpu");
    test_storm("cuda:0");
    test_storm("cuda:0 cuda:1");
    test_storm("cuda:0 cuda:1 cuda:2");
    is_int(fake_races, 0, "nor is anything used by two");

    is_int(fds(), before, "no descriptor is left");

    return done();
}
