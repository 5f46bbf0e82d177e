#!/bin/sh
# nginx under valgrind: what it says is in $SD_VALGRIND_LOG, any error, or leak
# of the kinds in $SD_VALGRIND_LEAKS, makes exit code 99.  --fair-sched, since
# the pool's threads wait for each other; --keep-debuginfo, since nginx unloads
# the module before leaks are looked for.
exec valgrind --leak-check=full --show-leak-kinds="$SD_VALGRIND_LEAKS" \
    --errors-for-leak-kinds="$SD_VALGRIND_LEAKS" --num-callers=30 \
    --keep-debuginfo=yes --fair-sched=yes --error-exitcode=99 \
    --suppressions="$(dirname "$0")/nginx.supp" \
    --log-file="$SD_VALGRIND_LOG" /usr/sbin/nginx "$@"
