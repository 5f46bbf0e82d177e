/*
 * Prompts that pictures share: see texts.h.
 */

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "texts.h"


struct sd_texts_s {
    pthread_mutex_t   lock;
    sd_text_t        *list;         /* the one used last is the first */
    int               n, most;
};


int
sd_texts_create(sd_texts_t **out, int most, sd_error_t *err)
{
    sd_texts_t  *t;

    t = calloc(1, sizeof(sd_texts_t));

    if (t == NULL) {
        return sd_no_memory(err, "no memory for prompts");
    }

    pthread_mutex_init(&t->lock, NULL);
    t->most = most;

    *out = t;

    return SD_OK;
}


static void
sd_text_free(sd_device_t *dev, sd_text_t *text)
{
    if (text) {
        dev->ops->free(dev, text->data, text->size);
        free(text);
    }
}


void
sd_texts_destroy(sd_texts_t *t, sd_device_t *dev)
{
    sd_text_t  *text;

    if (t == NULL) {
        return;
    }

    while ((text = t->list) != NULL) {
        t->list = text->next;
        sd_text_free(dev, text);
    }

    pthread_mutex_destroy(&t->lock);
    free(t);
}


static sd_text_t **
sd_texts_find(sd_texts_t *t, const int32_t *ids, int length)
{
    sd_text_t  **p;

    for (p = &t->list; *p; p = &(*p)->next) {
        if ((*p)->length == length
            && memcmp((*p)->ids, ids, length * sizeof(int32_t)) == 0)
        {
            break;
        }
    }

    return p;
}


static void
sd_texts_push(sd_texts_t *t, sd_text_t *text)
{
    text->next = t->list;
    t->list = text;
    text->shared = 1;
    t->n++;
}


static sd_text_t *
sd_texts_pull(sd_texts_t *t, sd_text_t **p)
{
    sd_text_t  *text = *p;

    *p = text->next;
    text->shared = 0;
    t->n--;

    return text;
}


/* the one whose last use is longest ago, or NULL where all are in use */

static sd_text_t *
sd_texts_evict(sd_texts_t *t)
{
    sd_text_t  **p, **last;

    last = NULL;

    for (p = &t->list; *p; p = &(*p)->next) {
        if ((*p)->refs == 0) {
            last = p;
        }
    }

    return last ? sd_texts_pull(t, last) : NULL;
}


sd_text_t *
sd_texts_get(sd_texts_t *t, sd_device_t *dev, const int32_t *ids, int length,
    size_t size, int *hit)
{
    sd_text_t  *text, **p;

    text = NULL;
    *hit = 0;

    if (t) {
        pthread_mutex_lock(&t->lock);

        p = sd_texts_find(t, ids, length);

        if (*p) {
            text = sd_texts_pull(t, p);
            sd_texts_push(t, text);
            text->refs++;
            *hit = 1;

        } else if (t->n >= t->most) {
            text = sd_texts_evict(t);
        }

        pthread_mutex_unlock(&t->lock);
    }

    if (*hit) {
        return text;
    }

    /* what was evicted is of the same size, as all of a model's are */

    if (text == NULL) {
        text = calloc(1, sizeof(sd_text_t) + length * sizeof(int32_t));

        if (text == NULL) {
            return NULL;
        }

        text->size = size;
        text->length = length;
        text->data = dev->ops->alloc(dev, size);

        if (text->data == NULL) {
            free(text);
            return NULL;
        }
    }

    text->refs = 1;
    memcpy(text->ids, ids, length * sizeof(int32_t));

    return text;
}


void
sd_texts_done(sd_texts_t *t, sd_text_t *text)
{
    if (t == NULL) {
        return;
    }

    pthread_mutex_lock(&t->lock);

    /* another one may have been quicker: then this one stays its picture's */

    if (*sd_texts_find(t, text->ids, text->length) == NULL) {
        sd_texts_push(t, text);
    }

    pthread_mutex_unlock(&t->lock);
}


void
sd_texts_put(sd_texts_t *t, sd_device_t *dev, sd_text_t *text)
{
    sd_text_t  **p;

    if (t == NULL) {
        sd_text_free(dev, text);
        return;
    }

    pthread_mutex_lock(&t->lock);

    if (--text->refs || (text->shared && t->n <= t->most)) {
        text = NULL;

    } else if (text->shared) {
        for (p = &t->list; *p != text; p = &(*p)->next) { /* void */ }

        (void) sd_texts_pull(t, p);
    }

    pthread_mutex_unlock(&t->lock);

    sd_text_free(dev, text);
}


size_t
sd_texts_memory(sd_texts_t *t)
{
    size_t      n;
    sd_text_t  *text;

    if (t == NULL) {
        return 0;
    }

    pthread_mutex_lock(&t->lock);

    for (text = t->list, n = 0; text; text = text->next) {
        n += text->size;
    }

    pthread_mutex_unlock(&t->lock);

    return n;
}
