/*
 * One of a model's JSON files, the first byte says which; the others are those
 * of a small model.  What is opened can be planned, and sampled by whatever
 * sampler takes its schedule.  Runs in the repository's root.
 */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../../src/io/file.h"
#include "../../src/sd/picture_impl.h"


#define MODEL  "t/golden/models/sd15"


static const char *const  files[] = {
    "model_index.json", "scheduler/scheduler_config.json",
    "text_encoder/config.json", "unet/config.json", "vae/config.json",
    "latent_rgb.json"
};

#define NFILES  (sizeof(files) / sizeof(files[0]))


static char         dir[64];
static sd_device_t  *device;


static void
clean(void)
{
    char  command[128];

    snprintf(command, sizeof(command), "rm -r %s", dir);

    if (system(command) != 0) {
        fprintf(stderr, "%s stays\n", dir);
    }
}


/* a directory of links to the small model's files */

static void
prepare(void)
{
    char        from[512], to[512], top[256];
    size_t      i;
    sd_error_t  err;

    static const char *const  names[] = {
        "model_index.json", "tokenizer", "scheduler/scheduler_config.json",
        "text_encoder/config.json", "text_encoder/model.fp16.safetensors",
        "unet/config.json", "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/config.json", "vae/diffusion_pytorch_model.fp16.safetensors"
    };

    static const char *const  parts[] = {
        "scheduler", "text_encoder", "unet", "vae"
    };

    snprintf(dir, sizeof(dir), "/dev/shm/sd-fuzz-XXXXXX");

    if (mkdtemp(dir) == NULL || getcwd(top, sizeof(top)) == NULL
        || sd_device_plan(&device, "cpu", SD_PRECISION_EXACT, &err) != SD_OK)
    {
        __builtin_trap();
    }

    atexit(clean);

    for (i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        snprintf(to, sizeof(to), "%s/%s", dir, parts[i]);

        if (mkdir(to, 0700) == -1) {
            __builtin_trap();
        }
    }

    for (i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        snprintf(from, sizeof(from), "%s/" MODEL "/%s", top, names[i]);
        snprintf(to, sizeof(to), "%s/%s", dir, names[i]);

        if (symlink(from, to) == -1) {
            __builtin_trap();
        }
    }
}


/* rows that a picture would be made by are numbers */

static void
sample(sd_model_t *m, const char *name)
{
    int                i, j, k;
    sd_error_t         err;
    sd_params_t        params = { 0 };
    sd_picture_t      *p;
    sd_sampler_row_t  *row;

    params.prompt = "a red house";
    params.negative_prompt = "";
    params.width = 64;
    params.height = 64;
    params.steps = 3;
    params.guidance = 7.5;
    params.starting_step = -1;
    params.sampler = sd_sampler_find(name);

    if (sd_picture_create(&p, m, &params, &err) != SD_OK) {
        return;
    }

    for (i = 0; i < p->nrows; i++) {
        row = &p->rows[i];

        if (!isfinite(row->timestep) || !isfinite(row->scale_in)) {
            __builtin_trap();
        }

        for (j = 0; j < 1 + SD_KEPT; j++) {
            for (k = 0; k < 3 + SD_KEPT + 2; k++) {
                if (!isfinite(row->m[j][k])) {
                    __builtin_trap();
                }
            }
        }
    }

    sd_picture_destroy(p);
}


int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char        to[512], kept[520];
    size_t      which, step, prompt, decode;
    sd_error_t  err;
    sd_model_t  *m;

    if (size == 0) {
        return 0;
    }

    if (device == NULL) {
        prepare();
    }

    which = data[0] % NFILES;

    snprintf(to, sizeof(to), "%s/%s", dir, files[which]);
    snprintf(kept, sizeof(kept), "%s.kept", to);

    (void) rename(to, kept);

    if (sd_file_write(to, data + 1, size - 1, &err) != SD_OK) {
        __builtin_trap();
    }

    if (sd_model_open(&m, dir, device, &err) == SD_OK) {

        if (sd_model_plan(m, device, 64, 64, &step, &prompt, &decode, &err)
            != SD_OK && err.status != 400)
        {
            __builtin_trap();
        }

        sample(m, "ddim");
        sample(m, "euler");
        sample(m, "euler_a");

        sd_model_close(m);

    } else if (err.message[0] == '\0') {
        __builtin_trap();
    }

    unlink(to);
    (void) rename(kept, to);

    return 0;
}
