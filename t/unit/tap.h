/*
 * TAP for the C tests: ok(cond, fmt, ...), is_int(), is_str(), and done() as
 * main()'s result.  One program a file, no state but these two counters.
 */

#ifndef TAP_H
#define TAP_H

#include <stdarg.h>
#include <stdio.h>
#include <string.h>


static int  tap_count, tap_failed;


static int __attribute__((format(printf, 2, 3), unused))
ok(int cond, const char *fmt, ...)
{
    va_list  args;

    printf("%sok %d - ", cond ? "" : "not ", ++tap_count);

    va_start(args, fmt);
    vprintf(fmt, args);
    va_end(args);

    putchar('\n');

    /* a test that crashes next must not take this line with it */
    fflush(stdout);

    tap_failed += !cond;

    return cond;
}


static int __attribute__((unused))
is_int(long long got, long long expected, const char *name)
{
    int  same;

    same = ok(got == expected, "%s", name);

    if (!same) {
        printf("# got %lld, expected %lld\n", got, expected);
    }

    return same;
}


static int __attribute__((unused))
is_str(const char *got, const char *expected, const char *name)
{
    int  same;

    same = ok(got && strcmp(got, expected) == 0, "%s", name);

    if (!same) {
        printf("# got \"%s\"\n# expected \"%s\"\n", got ? got : "(null)",
               expected);
    }

    return same;
}


static int __attribute__((unused))
done(void)
{
    printf("1..%d\n", tap_count);

    return tap_failed != 0;
}


#endif
