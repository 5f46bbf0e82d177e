/*
 * Which processors a cpu device has: see cores.h.
 */

#define _GNU_SOURCE

#include <string.h>
#include <sys/sysinfo.h>

#include "cores.h"


static const char *sd_cores_number(const char *p, int *n);


/* NULL: it is none */

static const char *
sd_cores_number(const char *p, int *n)
{
    if (*p < '0' || *p > '9') {
        return NULL;
    }

    for (*n = 0; *p >= '0' && *p <= '9'; p++) {
        *n = *n * 10 + *p - '0';

        if (*n >= CPU_SETSIZE) {
            return NULL;
        }
    }

    return p;
}


int
sd_cpu_cores(const char *name, cpu_set_t *set, sd_error_t *err)
{
    int          from, to, machine;
    const char  *p;

    CPU_ZERO(set);

    p = name + 3;

    if (*p == '\0') {
        return SD_OK;
    }

    machine = get_nprocs_conf();

    do {
        p = sd_cores_number(p + 1, &from);
        to = from;

        if (p && *p == '-') {
            p = sd_cores_number(p + 1, &to);
        }

        if (p == NULL || (*p && *p != ',') || to < from) {
            return sd_fail(err, "invalid list of processors \"%s\", must be as "
                           "\"cpu:0-3,8\"", name);
        }

        if (to >= machine) {
            return sd_fail(err, "\"%s\": there is no processor %d, as this "
                           "machine has %d", name, to, machine);
        }

        for ( /* void */ ; from <= to; from++) {
            if (CPU_ISSET(from, set)) {
                return sd_fail(err, "\"%s\": processor %d is there twice", name,
                               from);
            }

            CPU_SET(from, set);
        }

    } while (*p);

    return SD_OK;
}
