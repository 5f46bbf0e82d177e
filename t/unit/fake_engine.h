/*
 * The engine over its socket, with the fake model: what the tests of it share.
 * They wait for what the status tells, and steps are held until then, so that
 * it does not matter how busy the machine is.
 */

#ifndef FAKE_ENGINE_H
#define FAKE_ENGINE_H

#include "client.h"
#include "fake.h"


static UNUSED sd_engine_t *
start(int queue, int slots)
{
    return start_model("fake", queue, slots);
}


/* a device's thread is a moment behind the last byte */

static void UNUSED
no_pictures(sd_engine_t *e)
{
    idle(e);
    until(fake_pictures == 0, "no picture is left");
}


/* so many pictures are past their beginning, and there were steps since */

static void UNUSED
wait_steps(int begun, int steps)
{
    int  from;

    until(fake_begun >= begun, "%d pictures have begun", begun);

    from = fake_steps;
    until(fake_steps - from >= steps, "and are stepped");
}


/*
 * A request whose time passes once its answer has come as far as this: a busy
 * machine needs more of it.  Its location's time, or its own: the body lacks
 * the brace that closes it.
 */

static void UNUSED
ask_late(answer_t *a, sd_request_t r, int own, const char *body,
    const char *what)
{
    int   ms;
    char  whole[256], time[32];

    time[0] = '\0';

    for (ms = 200; ms < PATIENCE; ms *= 2) {

        if (own) {
            snprintf(time, sizeof(time), ",\"timeout\":%.1f", ms / 1e3);

        } else {
            r.location.timeout = ms;
        }

        snprintf(whole, sizeof(whole), "%s%s}", body, time);
        ask(a, r, whole);

        if (has(a, what)) {
            return;
        }
    }
}


#endif
