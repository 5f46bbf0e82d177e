/*
 * cuDNN's plans for the convolutions of Stable Diffusion 1.5 and 2.1, made
 * without a GPU, from the properties of an H100: that each shape has, at any
 * number of samples, a plan of the class that decides the bits, proposed by the
 * heuristics or of our own making, which neither copies a tensor nor splits the
 * depth.  Needs cuDNN, and no driver.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../../cuda/conv_graph.h"
#include "../tap.h"


static const struct {
    int  size, c, k, stride, residual;
} shapes[] = {
    { 64, 320, 320, 1, 0 }, { 64, 320, 320, 1, 1 }, { 64, 640, 320, 1, 0 },
    { 64, 960, 320, 1, 0 }, { 64, 320, 320, 2, 0 }, { 32, 320, 640, 1, 0 },
    { 32, 640, 640, 1, 1 }, { 32, 960, 640, 1, 0 }, { 32, 1280, 640, 1, 0 },
    { 32, 1920, 640, 1, 0 }, { 32, 640, 640, 2, 0 }, { 16, 640, 1280, 1, 0 },
    { 16, 1280, 1280, 1, 1 }, { 16, 1920, 1280, 1, 0 },
    { 16, 2560, 1280, 1, 0 }, { 16, 1280, 1280, 2, 0 }, { 8, 1280, 1280, 1, 1 },
    { 8, 2560, 1280, 1, 0 },

    /* the decoder's */

    { 64, 512, 512, 1, 1 }, { 128, 512, 512, 1, 1 }, { 256, 512, 256, 1, 0 },
    { 256, 256, 256, 1, 1 }, { 512, 256, 128, 1, 0 }, { 512, 128, 128, 1, 1 }
};


static sd_desc_t
device(const char *path)
{
    char       text[4096];
    FILE      *f;
    size_t     n;
    sd_desc_t  d;

    f = fopen(path, "re");

    if (f == NULL) {
        return NULL;
    }

    n = fread(text, 1, sizeof(text), f);
    fclose(f);

    while (n && text[n - 1] == '\n') {
        n--;
    }

    if (cudnnBackendCreateDescriptor(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, &d)
            != CUDNN_STATUS_SUCCESS
        || cudnnBackendSetAttribute(d,
               CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, n,
               text) != CUDNN_STATUS_SUCCESS
        || cudnnBackendFinalize(d) != CUDNN_STATUS_SUCCESS)
    {
        return NULL;
    }

    return d;
}


/* how many of these configurations are of the class and make a plan */

static int
plans(const sd_graph_t *g, sd_desc_t *configs, int n)
{
    int               i, good;
    sd_desc_t         exec;
    sd_conv_choice_t  choice;

    for (i = 0, good = 0; i < n; i++) {
        if (!sd_conv_read(configs[i], &choice) || !sd_conv_in_class(&choice)) {
            continue;
        }

        exec = sd_conv_exec(g, NULL, configs[i], SD_CONV_LITTLE);

        if (exec) {
            good++;
            cudnnBackendDestroyDescriptor(exec);
        }
    }

    return good;
}


int
main(int argc, char **argv)
{
    int            k, n, i, theirs, ours;
    sd_desc_t      graph, h100, configs[SD_CONV_CONFIGS + SD_CONV_OWN];
    sd_graph_t     g;
    sd_conv_key_t  key;

    static const int  samples[] = { 1, 2, 5, 16 };

    h100 = device(argc > 1 ? argv[1] : "t/unit/cuda/h100.json");

    if (!ok(h100 != NULL, "an H100, without one")) {
        return done();
    }

    for (i = 0; i < (int) (sizeof(shapes) / sizeof(shapes[0])); i++) {
        for (k = 0; k < 4; k++) {
            memset(&key, 0, sizeof(key));
            memset(&g, 0, sizeof(g));

            key.n = samples[k];
            key.h = key.w = shapes[i].size;
            key.c = shapes[i].c;
            key.k = shapes[i].k;
            key.r = 3;
            key.stride = shapes[i].stride;
            key.residual = shapes[i].residual;
            key.oh = key.ow = (key.h - 1) / key.stride + 1;

            g.device = h100;
            graph = sd_graph_build(&g, NULL, &key);
            n = sd_graph_configs(&g, graph, configs);
            theirs = plans(&g, configs, n);
            n = sd_graph_own(&g, graph, configs);
            ours = plans(&g, configs, n);

            if (!ok(theirs + ours > 0, "[%d, %d, %d, %d] to %d%s%s: plans",
                    key.n, key.h, key.w, key.c, key.k,
                    key.stride == 2 ? ", stride 2" : "",
                    key.residual ? ", residual" : ""))
            {
                printf("# %d theirs, %d ours, %s\n", theirs, ours,
                       cudnnGetErrorString(g.status));
            }

            /* what the heuristics propose is what is timed; ours fill in */

            ok(ours > 0, "... and one of our own making");

            sd_graph_free(&g);
        }
    }

    cudnnBackendDestroyDescriptor(h100);

    return done();
}
