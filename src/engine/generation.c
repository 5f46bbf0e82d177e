/*
 * Engines before and after this one: those of a configuration that is going,
 * of a binary that is being replaced.
 *
 * All engines of one nginx have a file in common, and each that has devices
 * holds a read lock on it.  One that shall wait asks for a write lock, which it
 * gets when there is nobody else, and then goes on as everybody else does.  The
 * locks are the process's (fcntl), not the file's: they are not inherited, and
 * go with the process, however it ends.
 */

#define _GNU_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"


#define SD_GENERATION_POLL  20      /* ms */


static int
sd_generation_lock(sd_engine_t *e, int cmd, int type, pid_t *pid)
{
    int           rc;
    struct flock  lock;

    memset(&lock, 0, sizeof(struct flock));

    lock.l_type = type;
    lock.l_whence = SEEK_SET;

    rc = fcntl(e->conf.generations, cmd, &lock);

    if (pid) {
        *pid = rc == 0 && lock.l_type != F_UNLCK ? lock.l_pid : 0;
    }

    return rc == 0 ? SD_OK
           : errno == EACCES || errno == EAGAIN || errno == EINTR ? SD_AGAIN
           : SD_ERROR;
}


int
sd_generation_enter(sd_engine_t *e)
{
    int              rc, type;
    pid_t            pid, told;
    struct timespec  nap = { 0, SD_GENERATION_POLL * 1000000 };

    if (e->conf.generations <= 0) {
        return SD_OK;
    }

    /* who does not wait for all others is kept from entering by one only that
     * has just got its write lock, and will have changed it in a moment */

    type = e->conf.reload_waits ? F_WRLCK : F_RDLCK;
    told = 0;

    while ((rc = sd_generation_lock(e, F_SETLK, type, NULL)) == SD_AGAIN) {

        if (atomic_load(&e->stopping)) {
            return SD_ERROR;
        }

        if (e->conf.reload_waits
            && sd_generation_lock(e, F_GETLK, type, &pid) == SD_OK
            && pid != 0 && pid != told)
        {
            sd_engine_log(e, SD_LOG_NOTICE, "waiting for the engine of "
                          "process %ld to end", (long) pid);
            told = pid;
        }

        nanosleep(&nap, NULL);
    }

    if (rc == SD_OK && type == F_WRLCK) {
        rc = sd_generation_lock(e, F_SETLK, F_RDLCK, NULL);
    }

    if (rc != SD_OK) {
        sd_engine_log(e, SD_LOG_WARN, "cannot tell other engines: fcntl() "
                      "failed: %s", strerror(errno));
    }

    return SD_OK;
}


void
sd_generation_leave(sd_engine_t *e)
{
    if (e->conf.generations > 0) {
        (void) sd_generation_lock(e, F_SETLK, F_UNLCK, NULL);
    }
}
