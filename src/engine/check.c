/*
 * The check of a model before anything is started.  It opens the files with
 * the eyes of the user who will load them, so that what root can read and the
 * worker cannot is found by `nginx -t`, supplementary groups and access lists
 * included.
 */

#include <errno.h>
#include <grp.h>
#include <stdio.h>
#include <string.h>
#include <sys/fsuid.h>
#include <unistd.h>

#include "../sd/model.h"
#include "check.h"


#define SD_CHECK_GROUPS  1024


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
