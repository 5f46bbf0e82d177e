/*
 * The residual block: see resnet.h.
 */

#include <string.h>

#include "resnet.h"


void
sd_resnet_weights(sd_resnet_t *r, sd_weights_t *l, int pixels)
{
    r->conv1.stride = r->conv2.stride = r->shortcut.stride = 1;
    r->conv1.hint = r->conv2.hint = r->shortcut.hint = pixels;

    sd_weights_norm(l, &r->norm1, "norm1", r->in);
    sd_weights_conv(l, &r->conv1, "conv1", r->out, r->in, 3);
    sd_weights_norm(l, &r->norm2, "norm2", r->out);
    sd_weights_conv(l, &r->conv2, "conv2", r->out, r->out, 3);

    r->has_shortcut = r->in != r->out;

    if (r->has_shortcut) {
        sd_weights_conv(l, &r->shortcut, "conv_shortcut", r->out, r->in, 1);
    }
}


sd_tensor_t
sd_resnet(sd_context_t *cx, const sd_resnet_t *r, sd_tensor_t *x,
    sd_tensor_t *x2, int keep, const sd_tables_t *time)
{
    sd_conv2d_t      conv = { 0 };
    sd_tensor_t      y, h, g, residual;
    sd_group_norm_t  norm = { 0 };

    norm.groups = r->groups;
    norm.eps = r->eps;
    norm.silu = 1;

    /* the shortcut goes first: behind norm1 nobody needs x any more */

    residual = *x;

    if (r->has_shortcut) {
        residual = sd_alloc(cx, x->n, x->h, x->w, r->out);

        conv.x = *x;
        conv.x2 = *x2;
        conv.w = &r->shortcut;
        sd_conv2d(cx, residual, &conv);
    }

    norm.x = *x;
    norm.x2 = *x2;
    norm.w = &r->norm1;

    if (r->has_shortcut && !keep && sd_empty(x2)) {
        g = *x;
        memset(x, 0, sizeof(sd_tensor_t));
    } else {
        g = sd_alloc(cx, x->n, x->h, x->w, r->in);
    }

    sd_group_norm(cx, g, &norm);

    sd_free(cx, x2);

    if (r->has_shortcut && !keep) {
        sd_free(cx, x);
    }

    h = sd_alloc(cx, g.n, g.h, g.w, r->out);

    memset(&conv, 0, sizeof(conv));
    conv.x = g;
    conv.w = &r->conv1;
    sd_conv2d(cx, h, &conv);

    sd_free(cx, &g);

    memset(&norm.x2, 0, sizeof(sd_tensor_t));
    norm.x = h;
    norm.w = &r->norm2;

    if (time) {
        norm.addend = *time;
        norm.addend_at = r->addend_at;
    }

    sd_group_norm(cx, h, &norm);

    y = r->has_shortcut || !keep ? residual
                                 : sd_alloc(cx, h.n, h.h, h.w, r->out);
    conv.x = h;
    conv.w = &r->conv2;
    conv.residual = residual;
    sd_conv2d(cx, y, &conv);

    sd_free(cx, &h);

    if (!keep) {
        memset(x, 0, sizeof(sd_tensor_t));
    }

    return y;
}
