/*
 * TAP for the C tests: ok(cond, fmt, ...), is_int(), is_str(), and done() as
 * main()'s result.  One program a file, no state but these two counters.  A
 * program that hangs ends by itself.
 */

#ifndef TAP_H
#define TAP_H

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>


/* seconds from one line to the next, whatever else the machine does; 0: any */

#if defined(TAP_PATIENCE)
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define TAP_PATIENCE  1200
#else
#define TAP_PATIENCE  600
#endif


static int  tap_count, tap_failed;


static void
tap_hangs(int signo)
{
    static const char  message[] = "\n# no more lines in a long while: what "
                                   "comes after the last one hangs\n";

    (void) !write(STDOUT_FILENO, message, sizeof(message) - 1);
    _exit(1);
}


static void __attribute__((constructor))
tap_begin(void)
{
    if (TAP_PATIENCE) {
        signal(SIGALRM, tap_hangs);
        alarm(TAP_PATIENCE);
    }
}


static int __attribute__((format(printf, 2, 3), unused))
ok(int cond, const char *fmt, ...)
{
    va_list  args;

    /* in one piece, whatever other threads have to say */
    flockfile(stdout);

    printf("%sok %d - ", cond ? "" : "not ", ++tap_count);

    va_start(args, fmt);
    vprintf(fmt, args);
    va_end(args);

    putchar('\n');

    /* a test that crashes next must not take this line with it */
    fflush(stdout);

    funlockfile(stdout);

    tap_failed += !cond;
    alarm(TAP_PATIENCE);

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
