/*
 * sd check: what `nginx -t` checks of a model, with a table of what it is and
 * what it will take.
 */

#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "cli.h"


static const char  sd_check_usage[] =
"sd check [options] [DIR]\n"
"\n"
"Checks a model in diffusers' directory layout, without reading its weights:\n"
"configurations, names and shapes of all tensors, and memory.  DIR is the\n"
"embedded model by default.\n"
"\n"
"    --size WxH          of pictures, for the memory; the model's own\n"
"    --steps N           20\n"
"    --threads N         as many as this process may use\n"
"    --device NAME       cpu or cuda\n"
"    --precision NAME    exact or bf16\n"
"\n"
"The exit code is 0 where the model is fine and 1 where it is not.\n";


static double
sd_mb(uint64_t bytes)
{
    return bytes / 1048576.0;
}


static void
sd_check_print(const sd_model_t *m, const sd_cli_memory_t *mem,
    const sd_params_t *params, const size_t *arena)
{
    int                     i;
    size_t                  beside;
    const sd_model_part_t  *p;

    printf("model        %s\n", m->path);
    printf("fingerprint  %s\n", m->fingerprint);
    printf("scheduler    %s (sampler %s)\n", m->scheduler.class_name,
           sd_sampler_default(&m->scheduler)->name);
    printf("size         %dx%d by default\n\n", m->default_width,
           m->default_height);

    printf("%-14s %13s %12s %12s\n", "part", "parameters", "file MiB",
           "packed MiB");

    for (i = 0; i < SD_MODEL_PARTS; i++) {
        p = &m->parts[i];
        printf("%-14s %13llu %12.1f %12.1f\n", p->name,
               (unsigned long long) p->parameters, sd_mb(p->file_bytes),
               sd_mb(p->packed_bytes));
    }

    printf("%-14s %13llu %12.1f %12.1f\n\n", "",
           (unsigned long long) m->parameters, sd_mb(m->file_bytes),
           sd_mb(m->packed_bytes));

    printf("memory for one picture of %dx%d at a time, %d steps, in MiB\n",
           params->width, params->height, params->steps);
    printf("    %-30s %10.1f\n", "process", sd_mb(mem->own));
    printf("    %-30s %10.1f\n", "weights", sd_mb(mem->weights));
    printf("    %-30s %10.1f\n", "picture", sd_mb(mem->picture + mem->bytes));
    printf("    %-30s %10.1f\n", "arena", sd_mb(mem->arena));
    printf("        %-26s %10.1f\n", "prompt", sd_mb(arena[0]));
    printf("        %-26s %10.1f\n", "step", sd_mb(arena[1]));
    printf("        %-26s %10.1f\n", "decode", sd_mb(arena[2]));
    printf("    %-30s %10.1f\n", "while loading", sd_mb(m->load_bytes));
    printf("    %-30s %10.1f\n", "peak", sd_mb(mem->peak));

    /* it steps and decodes beside each other */

    beside = arena[0] > arena[2] ? arena[0] : arena[2];
    beside = arena[1] < beside ? arena[1] : beside;

    printf("\nmore in nginx, in MiB\n");
    printf("    %-30s %10.1f\n", "a second arena", sd_mb(beside));
    printf("    %-30s %10.1f\n", "each further picture",
           sd_mb(mem->picture + mem->bytes));
}


int
sd_cli_check(int argc, char **argv)
{
    static const struct option  options[] = {
        { "size", required_argument, NULL, 's' },
        { "steps", required_argument, NULL, 'n' },
        { "threads", required_argument, NULL, 't' },
        { "precision", required_argument, NULL, 'p' },
        { "device", required_argument, NULL, 'd' },
        { "help", no_argument, NULL, 'h' },
        { NULL, 0, NULL, 0 }
    };

    int               c, rc, threads;
    size_t            arena[3];
    long long         n;
    sd_error_t        err;
    sd_model_t       *m;
    sd_params_t       params = { 0 };
    const char       *device;
    sd_device_t      *dev;
    sd_precision_t    precision;
    sd_cli_memory_t   mem;

    threads = 0;
    device = "cpu";
    precision = SD_PRECISION_EXACT;
    params.steps = 20;

    while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1) {
        rc = SD_OK;

        switch (c) {

        case 's':
            rc = sd_cli_size(optarg, &params.width, &params.height);
            break;

        case 'n':
            rc = sd_cli_number("steps", optarg, 1, 10000, &n);
            params.steps = n;
            break;

        case 't':
            rc = sd_cli_number("threads", optarg, 1, 1024, &n);
            threads = n;
            break;

        case 'p':
            rc = sd_cli_precision(optarg, &precision);
            break;

        case 'd':
            device = optarg;
            break;

        case 'h':
            fputs(sd_check_usage, stdout);
            return 0;

        default:
            rc = SD_ERROR;
        }

        if (rc != SD_OK) {
            fputs(sd_check_usage, stderr);
            return 2;
        }
    }

    if (argc - optind > 1) {
        fputs(sd_check_usage, stderr);
        return 2;
    }

    if (sd_device_plan(&dev, device, precision, &err) != SD_OK) {
        fprintf(stderr, "sd check: %s\n", err.message);
        return 1;
    }

    rc = sd_model_open(&m, optind < argc ? argv[optind]
                                         : sd_cli_default_model(), dev, &err);

    if (rc == SD_OK) {
        params.prompt = params.negative_prompt = "";
        params.guidance = 7.5;
        params.starting_step = -1;

        if (params.width == 0) {
            params.width = m->default_width;
            params.height = m->default_height;
        }

        rc = sd_cli_memory(&mem, m, dev, threads, &params, &err);
    }

    if (rc == SD_OK) {
        rc = sd_model_plan(m, dev, params.width, params.height, &arena[1],
                           &arena[0], &arena[2], &err);
    }

    if (rc == SD_OK) {
        sd_check_print(m, &mem, &params, arena);
        printf("\nthe model is fine\n");
    } else {
        fprintf(stderr, "sd check: %s\n", err.message);
    }

    sd_model_close(m);
    sd_device_close(dev);

    return rc == SD_OK ? 0 : 1;
}
