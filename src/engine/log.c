/*
 * Lines for the error log.  What requests and connections can cause without end
 * goes through sd_engine_complain(), which lets so many lines through in a
 * while, and says then how many there were more.
 */

#include <stdarg.h>
#include <stdio.h>

#include "internal.h"


#define SD_LOG_LINES   20
#define SD_LOG_WHILE   10000        /* ms */


static void
sd_engine_vlog(sd_engine_t *e, sd_log_level_t level, const char *fmt,
    va_list args)
{
    char  *p, buf[1024];

    if (e->conf.log == NULL) {
        return;
    }

    vsnprintf(buf, sizeof(buf), fmt, args);

    for (p = buf; *p; p++) {
        if ((unsigned char) *p < 0x20) {
            *p = ' ';
        }
    }

    e->conf.log(e->conf.log_data, level, buf);
}


void
sd_engine_log(sd_engine_t *e, sd_log_level_t level, const char *fmt, ...)
{
    va_list  args;

    va_start(args, fmt);
    sd_engine_vlog(e, level, fmt, args);
    va_end(args);
}


void
sd_engine_complain(sd_engine_t *e, sd_log_level_t level, const char *fmt, ...)
{
    int      much;
    va_list  args;

    sd_engine_suppressed(e, 0);

    pthread_mutex_lock(&e->log.lock);

    much = e->log.lines == SD_LOG_LINES;

    if (e->log.lines == 0) {
        e->log.since = sd_engine_now();
    }

    e->log.lines += !much;
    e->log.suppressed += much;

    pthread_mutex_unlock(&e->log.lock);

    if (much) {
        sd_stats_count(e->stats, SD_COUNT_SUPPRESSED, 1);
        return;
    }

    va_start(args, fmt);
    sd_engine_vlog(e, level, fmt, args);
    va_end(args);
}


int
sd_engine_suppressed(sd_engine_t *e, int end)
{
    unsigned  n, more;

    pthread_mutex_lock(&e->log.lock);

    n = 0;
    more = e->log.suppressed;

    if (end || sd_engine_now() - e->log.since >= SD_LOG_WHILE) {
        n = more;
        more = 0;
        e->log.suppressed = 0;
        e->log.lines = 0;
    }

    pthread_mutex_unlock(&e->log.lock);

    if (n) {
        sd_engine_log(e, SD_LOG_WARN, "%u more warnings and errors were not "
                      "logged, as there were too many", n);
    }

    return more != 0;
}
