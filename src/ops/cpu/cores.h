/*
 * Which processors a cpu device has.  For those who define _GNU_SOURCE.
 */

#ifndef SD_CORES_H
#define SD_CORES_H

#include <sched.h>

#include "../../io/error.h"


/* name: "cpu", or as "cpu:0-3,8"; set: those that it lists, empty where it
 * lists none */
int sd_cpu_cores(const char *name, cpu_set_t *set, sd_error_t *err);


#endif
