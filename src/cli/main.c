/*
 * sd: the command and what its subcommands share.
 */

#define _GNU_SOURCE

#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"


/* measured: code and small things that come with the first picture, and what a
 * thread touches of its stack and scratch */
#define SD_CLI_CODE         (1280 * 1024)
#define SD_CLI_THREAD       (1536 * 1024)
#define SD_CLI_THREAD_BF16  (512 * 1024)


static const struct {
    const char  *name;
    int        (*run)(int argc, char **argv);
    const char  *what;
} sd_commands[] = {
    { "generate", sd_cli_generate, "paint pictures from a prompt" },
    { "check", sd_cli_check, "check a model, as nginx -t does" },
    { "bench", sd_cli_bench, "measure a model on this machine" },
    { "tune", sd_cli_tune, "choose a card's fastest kernels for a model" }
};

#define SD_COMMANDS  (sizeof(sd_commands) / sizeof(sd_commands[0]))


const char *
sd_cli_default_model(void)
{
    static char  path[PATH_MAX];

    /* from build/, from a build directory inside that, and installed */

    static const char *const  places[] = {
        "../model", "../../model", "../share/sd/model"
    };

    char     exe[PATH_MAX - 64], test[PATH_MAX];
    size_t   i;
    ssize_t  n;

    n = readlink("/proc/self/exe", exe, sizeof(exe) - 1);

    if (n == -1) {
        return "model";
    }

    exe[n] = '\0';
    *strrchr(exe, '/') = '\0';

    for (i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        snprintf(test, sizeof(test), "%s/%s/model_index.json", exe, places[i]);

        if (access(test, F_OK) == 0) {
            snprintf(path, sizeof(path), "%s/%s", exe, places[i]);
            return path;
        }
    }

    return "model";
}


int
sd_cli_number(const char *name, const char *arg, long long min, long long max,
    long long *value)
{
    char       *end;
    long long   v;

    errno = 0;
    v = strtoll(arg, &end, 10);

    if (errno || end == arg || *end || v < min || v > max) {
        fprintf(stderr, "sd: --%s takes a whole number from %lld to %lld, "
                "not \"%s\"\n", name, min, max, arg);
        return SD_ERROR;
    }

    *value = v;

    return SD_OK;
}


int
sd_cli_size(const char *arg, int *width, int *height)
{
    int  n;

    n = 0;

    if (sscanf(arg, "%5dx%5d%n", width, height, &n) == 2 && arg[n] == '\0') {
        return SD_OK;
    }

    fprintf(stderr, "sd: --size takes WIDTHxHEIGHT, as 512x512, not \"%s\"\n",
            arg);

    return SD_ERROR;
}


int
sd_cli_precision(const char *arg, sd_precision_t *precision)
{
    if (strcmp(arg, "exact") == 0 || strcmp(arg, "fp32") == 0) {
        *precision = SD_PRECISION_EXACT;
        return SD_OK;
    }

    if (strcmp(arg, "bf16") == 0) {
        *precision = SD_PRECISION_BF16;
        return SD_OK;
    }

    fprintf(stderr, "sd: --precision takes exact or bf16, not \"%s\"\n", arg);

    return SD_ERROR;
}


int
sd_cli_step(sd_batch_t *b, sd_picture_t *p, sd_error_t *err)
{
    int                rc, step;
    sd_picture_info_t  info;

    sd_picture_info(p, &info);
    step = info.step;

    do {
        rc = sd_batch_row(b, &p, 1, NULL, err);
        sd_picture_info(p, &info);
    } while (rc == SD_OK && info.step == step);

    return rc;
}


/* not getrusage(): its maximum is that of before exec(), too */

size_t
sd_cli_rss(void)
{
    FILE           *f;
    char            line[256];
    unsigned long   kb;

    kb = 0;
    f = fopen("/proc/self/status", "re");

    if (f == NULL) {
        return 0;
    }

    while (fgets(line, sizeof(line), f) != NULL) {
        if (sscanf(line, "VmHWM: %lu", &kb) == 1) {
            break;
        }
    }

    fclose(f);

    return (size_t) kb * 1024;
}


int
sd_cli_memory(sd_cli_memory_t *mem, sd_model_t *m, sd_device_t *dev,
    int threads, const sd_params_t *params, sd_error_t *err)
{
    size_t         step, prompt, decode, run;
    cpu_set_t      set;
    sd_picture_t  *p;

    if (threads == 0) {
        threads = sched_getaffinity(0, sizeof(set), &set) == 0
                  ? CPU_COUNT(&set) : 1;
    }

    mem->own = sd_cli_rss() + SD_CLI_CODE
               + threads * (dev->precision == SD_PRECISION_BF16
                            ? SD_CLI_THREAD_BF16 : SD_CLI_THREAD);

    if (sd_picture_create(&p, m, params, err) != SD_OK) {
        return SD_ERROR;
    }

    mem->picture = sd_picture_memory(p) + sd_picture_texts_memory(p);
    sd_picture_destroy(p);

    if (sd_model_plan(m, dev, params->width, params->height, &step, &prompt,
                      &decode, err) != SD_OK)
    {
        return SD_ERROR;
    }

    mem->arena = step > prompt ? step : prompt;
    mem->arena = decode > mem->arena ? decode : mem->arena;
    mem->weights = m->packed_bytes;
    mem->bytes = (size_t) params->width * params->height * 3;

    /* while loading, the largest tensor as fp32; then the pictures */

    run = mem->arena + mem->picture + mem->bytes;

    mem->peak = mem->own + mem->weights
                + (run > m->load_bytes ? run : m->load_bytes);

    return SD_OK;
}


static int
sd_cli_usage(FILE *out)
{
    size_t  i;

    fprintf(out, "Stable Diffusion, the command.\n\n");

    for (i = 0; i < SD_COMMANDS; i++) {
        fprintf(out, "    sd %-10s %s\n", sd_commands[i].name,
                sd_commands[i].what);
    }

    fprintf(out, "\n\"sd COMMAND --help\" tells the options.\n");

    return out == stdout ? 0 : 2;
}


int
main(int argc, char **argv)
{
    size_t  i;

    if (argc < 2) {
        return sd_cli_usage(stderr);
    }

    for (i = 0; i < SD_COMMANDS; i++) {
        if (strcmp(argv[1], sd_commands[i].name) == 0) {
            return sd_commands[i].run(argc - 1, argv + 1);
        }
    }

    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0
        || strcmp(argv[1], "help") == 0)
    {
        return sd_cli_usage(stdout);
    }

    fprintf(stderr, "sd: no command \"%s\"\n\n", argv[1]);

    return sd_cli_usage(stderr);
}
