/*
 * The checks before anything is started.  That of a model opens the files with
 * the eyes of the user who will load them, so that what root can read and the
 * worker cannot is found by `nginx -t`, supplementary groups and access lists
 * included.
 */

#define _GNU_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <unistd.h>

#include "../ops/cpu/cores.h"
#include "../sd/model.h"
#include "check.h"


#define SD_CHECK_GROUPS  1024
#define SD_CHECK_NAME    64     /* of sd_device_t */


typedef struct {
    int     n;
    gid_t   groups[SD_CHECK_GROUPS];
    uid_t   fsuid;
    gid_t   fsgid;
} sd_identity_t;


/* what a file access is checked against; needs root, as the caller is */

static int
sd_check_become(sd_identity_t *saved, const sd_user_t *as, sd_error_t *err)
{
    saved->n = getgroups(SD_CHECK_GROUPS, saved->groups);

    if (saved->n == -1 || initgroups(as->name, as->gid) == -1) {
        return sd_fail(err, "cannot check as user \"%s\": %s", as->name,
                       strerror(errno));
    }

    saved->fsgid = setfsgid(as->gid);
    saved->fsuid = setfsuid(as->uid);

    return SD_OK;
}


static void
sd_check_return(const sd_identity_t *saved)
{
    (void) setfsuid(saved->fsuid);
    (void) setfsgid(saved->fsgid);

    /* cannot fail: it was our own list, and we still are root */
    if (setgroups(saved->n, saved->groups) == -1) {
        return;
    }
}


int
sd_check_model(const char *path, const sd_user_t *as, sd_error_t *err)
{
    int             rc;
    sd_model_t     *model;
    sd_device_t    *device;
    sd_identity_t   saved;

    if (sd_device_plan(&device, "cpu", SD_PRECISION_EXACT, err) != SD_OK) {
        return SD_ERROR;
    }

    if (as != NULL && sd_check_become(&saved, as, err) != SD_OK) {
        sd_device_close(device);
        return SD_ERROR;
    }

    model = NULL;

    rc = sd_model_open(&model, path, device, err);

    if (as != NULL) {
        sd_check_return(&saved);
    }

    sd_model_close(model);
    sd_device_close(device);

    return rc;
}


int
sd_check_directory(const char *path, const sd_user_t *as, sd_error_t *err)
{
    int             fd, rc;
    char            name[PATH_MAX];
    sd_identity_t   saved;

    snprintf(name, sizeof(name), "%.4000s/.check-%ld", path, (long) getpid());

    if (as != NULL && sd_check_become(&saved, as, err) != SD_OK) {
        return SD_ERROR;
    }

    rc = SD_OK;
    fd = open(name, O_WRONLY|O_CREAT|O_EXCL|O_CLOEXEC, 0600);

    if (fd == -1) {
        rc = sd_fail(err, "%s", strerror(errno));

    } else {
        close(fd);
        (void) unlink(name);
    }

    if (as != NULL) {
        sd_check_return(&saved);
    }

    return rc;
}


/* the number of a card; -1: it names none */

static int
sd_check_card(const char *name)
{
    size_t  n;

    if (strcmp(name, "cuda") == 0) {
        return 0;
    }

    if (strncmp(name, "cuda:", 5) != 0) {
        return -1;
    }

    name += 5;
    n = strspn(name, "0123456789");

    if (n == 0 || n > 3 || name[n] || (n > 1 && name[0] == '0')) {
        return -1;
    }

    return atoi(name);
}


int
sd_check_devices(const char *const *names, int n, sd_error_t *err)
{
    int        i, k, card;
    cpu_set_t  cores, both, all;

    CPU_ZERO(&all);

    for (i = 0; i < n; i++) {

        if (strncmp(names[i], "cpu:", 4) == 0) {

            if (strlen(names[i]) >= SD_CHECK_NAME) {
                return sd_fail(err, "\"%s\" is too long", names[i]);
            }

            if (sd_cpu_cores(names[i], &cores, err) != SD_OK) {
                return SD_ERROR;
            }

            CPU_AND(&both, &all, &cores);

            if (CPU_COUNT(&both)) {
                return sd_fail(err, "\"%s\" has processors of another one",
                               names[i]);
            }

            if (i && strncmp(names[i - 1], "cpu:", 4) != 0) {
                return sd_fail(err, "\"%s\" does not go with \"%s\"", names[i],
                               names[i - 1]);
            }

            CPU_OR(&all, &all, &cores);
            continue;
        }

        if (CPU_COUNT(&all)) {
            return sd_fail(err, "\"%s\" does not go with \"%s\"", names[i],
                           names[i - 1]);
        }

        if (strcmp(names[i], "auto") == 0 || strcmp(names[i], "cpu") == 0) {

            if (n > 1) {
                return sd_fail(err, "\"%s\" stands alone", names[i]);
            }

            continue;
        }

        card = sd_check_card(names[i]);

        if (card == -1) {
            return sd_fail(err, "invalid value \"%s\", must be \"auto\", "
                           "\"cpu\", \"cuda\", or as \"cuda:1\" or "
                           "\"cpu:0-3\"", names[i]);
        }

        for (k = 0; k < i; k++) {
            if (sd_check_card(names[k]) == card) {
                return sd_fail(err, "\"%s\" is there already", names[i]);
            }
        }
    }

    return SD_OK;
}


int
sd_check_size(const char *text, sd_size_t *size, sd_error_t *err)
{
    int  n = 0;

    if (sscanf(text, "%5dx%5d%n", &size->width, &size->height, &n) != 2
        || text[n] != '\0' || text[0] == '+' || text[0] == ' '
        || size->width < 8 || size->width > 16384 || size->width % 8
        || size->height < 8 || size->height > 16384 || size->height % 8)
    {
        return sd_fail(err, "invalid value \"%s\", must be as \"512x512\", "
                       "both from 8 to 16384 and divisible by 8", text);
    }

    return SD_OK;
}
