/*
 * The `sd` command: the engine's parts without nginx.  Each subcommand is one
 * file; all of them print, and return the process's exit code: 0, 1 for what
 * went wrong, 2 for arguments that make no sense.
 */

#ifndef SD_CLI_H
#define SD_CLI_H

#include "../sd/batch.h"


int sd_cli_generate(int argc, char **argv);
int sd_cli_check(int argc, char **argv);
int sd_cli_bench(int argc, char **argv);
int sd_cli_tune(int argc, char **argv);

/* the embedded model, found from where the executable is; static */
const char *sd_cli_default_model(void);

/* options that several subcommands have; SD_OK, or SD_ERROR once it said why */
int sd_cli_number(const char *name, const char *arg, long long min,
    long long max, long long *value);
int sd_cli_size(const char *arg, int *width, int *height);
int sd_cli_precision(const char *arg, sd_precision_t *precision);

/*
 * what a process that paints one picture at a time takes, in bytes; to be asked
 * for in one that has the model open but neither loaded nor used it yet
 */
typedef struct {
    size_t   own;               /* what that has, code, and each thread's */
    size_t   weights;
    size_t   arena;             /* the largest of prompt, step and decode */
    size_t   picture;           /* its own device memory */
    size_t   bytes;             /* pictures in host memory, before encoding */
    size_t   peak;
} sd_cli_memory_t;

/* threads: 0 for as many as there are processors for this process */
int sd_cli_memory(sd_cli_memory_t *mem, sd_model_t *m, sd_device_t *dev,
    int threads, const sd_params_t *params, sd_error_t *err);

/* a step of one picture, as a batch: on a card that is a recording */
int sd_cli_step(sd_batch_t *b, sd_picture_t *p, sd_error_t *err);

size_t sd_cli_rss(void);        /* the most that this process ever had */


#endif
