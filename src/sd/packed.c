/*
 * Packed weights in a file: see packed.h.  The thread that loads the model.
 *
 *     head, SD_PACKED_ALIGN bytes | weight 0 | weight 1 ...
 *
 * Weights are in the order of the model's lists, each in the layout of the
 * device, padded with zeros to SD_PACKED_ALIGN bytes.
 */

#define _GNU_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "../io/sha256.h"
#include "packed.h"


#define SD_PACKED_MAGIC  "sd-packed 1\n"
#define SD_PACKED_ALIGN  256
#define SD_PACKED_SYNC   (64 << 20)     /* bytes; so that no call takes long */
#define SD_PACKED_LANES  8

#define sd_packed_round(n)                                                    \
    (((n) + SD_PACKED_ALIGN - 1) / SD_PACKED_ALIGN * SD_PACKED_ALIGN)


typedef struct {
    char       magic[16];
    char       key[72];
    uint64_t   size;            /* of the file */
    uint64_t   sum;             /* of all behind the head */
    uint64_t   check;           /* of the head, where this is 0 */
    char       rest[SD_PACKED_ALIGN - 112];
} sd_packed_head_t;


/* Fletcher's checksum over 64-bit words, in lanes that a vector can hold: it
 * finds what is broken, not what is forged */

typedef struct {
    uint64_t   a[SD_PACKED_LANES], b[SD_PACKED_LANES];
} sd_packed_sum_t;


static void
sd_packed_add(sd_packed_sum_t *s, const void *data, size_t n)
{
    int              i;
    const uint64_t  *p = data, *end = p + n / sizeof(uint64_t);

    for ( /* void */ ; p < end; p += SD_PACKED_LANES) {
        for (i = 0; i < SD_PACKED_LANES; i++) {
            s->a[i] += p[i];
            s->b[i] += s->a[i];
        }
    }
}


static uint64_t
sd_packed_sum(const sd_packed_sum_t *s)
{
    int       i;
    uint64_t  sum;

    for (i = 0, sum = 1; i < SD_PACKED_LANES; i++) {
        sum = (sum ^ s->a[i]) * 0x9e3779b97f4a7c15;
        sum = (sum ^ s->b[i] ^ sum >> 29) * 0xbf58476d1ce4e5b9;
    }

    return sum;
}


static sd_weight_list_t *
sd_packed_list(sd_model_t *m, int part)
{
    return part == SD_PART_TEXT_ENCODER ? &m->text_encoder.weights
           : part == SD_PART_UNET ? &m->unet.weights : &m->vae.weights;
}


/* all that the bytes depend on */

static void
sd_packed_head(sd_packed_head_t *h, sd_model_t *m, sd_device_t *dev)
{
    int                part;
    char               text[256];
    size_t             i;
    sd_buf_t           stamps = { 0 };
    sd_sha256_t        sha;
    sd_weight_t       *w;
    sd_weight_list_t  *list;

    memset(h, 0, sizeof(sd_packed_head_t));
    memcpy(h->magic, SD_PACKED_MAGIC, sizeof(SD_PACKED_MAGIC));

    h->size = sizeof(sd_packed_head_t);

    sd_sha256_init(&sha);

    snprintf(text, sizeof(text), SD_PACKED_MAGIC "%s %d %s\n",
             dev->ops->packing, dev->precision, m->fingerprint);
    sd_sha256_update(&sha, text, strlen(text));

    for (part = 0; part < SD_MODEL_PARTS; part++) {
        list = sd_packed_list(m, part);

        stamps.len = 0;
        sd_safetensors_stamps(m->parts[part].st, &stamps);
        sd_sha256_update(&sha, stamps.data, stamps.len);

        for (i = 0; i < list->n; i++) {
            w = list->w[i];

            h->size += sd_packed_round(sd_weight_size(dev, w));

            snprintf(text, sizeof(text), "%d %d %d %d %d %d %d %d %d %zu\n",
                     w->kind, w->k, w->c, w->r, (int) w->stride,
                     (int) w->upsample, (int) w->geglu, (int) w->has_bias,
                     w->hint, w->size);
            sd_sha256_update(&sha, text, strlen(text));
        }
    }

    sd_buf_free(&stamps);
    sd_sha256_hex(&sha, h->key);
}


static void
sd_packed_name(char *path, size_t size, const sd_model_t *m, const char *dir,
    const sd_packed_head_t *h)
{
    snprintf(path, size, "%.*s/%s-%.16s.weights", (int) size - 128, dir,
             m->name, h->key);
}


int
sd_packed_path(char *path, size_t size, sd_model_t *m, sd_device_t *dev,
    const char *dir)
{
    sd_packed_head_t  h;

    if (dev->ops->packing == NULL || m->loaded) {
        return SD_ERROR;
    }

    sd_packed_head(&h, m, dev);
    sd_packed_name(path, size, m, dir, &h);

    return SD_OK;
}


static uint64_t
sd_packed_check(const sd_packed_head_t *h)
{
    sd_packed_sum_t   sum = { 0 };
    sd_packed_head_t  copy;

    copy = *h;
    copy.check = 0;

    sd_packed_add(&sum, &copy, sizeof(sd_packed_head_t));

    return sd_packed_sum(&sum);
}


/* reading; SD_AGAIN: there is no such file */

static int
sd_packed_verify(const sd_packed_head_t *want, const char *base,
    const atomic_int *cancel)
{
    size_t                   n, at;
    sd_packed_sum_t          sum = { 0 };
    const sd_packed_head_t  *h;

    h = (const sd_packed_head_t *) base;

    if (memcmp(h->magic, want->magic, sizeof(h->magic)) != 0
        || memcmp(h->key, want->key, sizeof(h->key)) != 0
        || h->size != want->size || h->check != sd_packed_check(h))
    {
        return SD_ERROR;
    }

    for (at = sizeof(sd_packed_head_t); at < h->size; at += n) {

        if (cancel && atomic_load(cancel)) {
            return SD_CANCELLED;
        }

        n = h->size - at < SD_PACKED_SYNC ? h->size - at : SD_PACKED_SYNC;
        sd_packed_add(&sum, base + at, n);
    }

    return sd_packed_sum(&sum) == h->sum ? SD_OK : SD_ERROR;
}


static int
sd_packed_map(sd_model_t *m, const sd_packed_head_t *want, const char *path,
    const atomic_int *cancel, sd_error_t *err)
{
    int           fd, rc;
    char         *base;
    struct stat   st;

    /* a link could lead anywhere, and a pipe must not block */

    fd = open(path, O_RDONLY|O_CLOEXEC|O_NOFOLLOW|O_NONBLOCK);

    if (fd == -1) {
        return errno == ENOENT ? SD_AGAIN
                               : sd_fail(err, "%s: %s", path, strerror(errno));
    }

    if (fstat(fd, &st) == -1 || !S_ISREG(st.st_mode)
        || (st.st_uid != geteuid() && st.st_uid != 0))
    {
        close(fd);
        return sd_fail(err, "%s: not a file of ours", path);
    }

    if ((uint64_t) st.st_size != want->size) {
        close(fd);
        return sd_fail(err, "%s: has %lld bytes, not %llu", path,
                       (long long) st.st_size,
                       (unsigned long long) want->size);
    }

    base = mmap(NULL, want->size, PROT_READ, MAP_SHARED, fd, 0);

    close(fd);

    if (base == MAP_FAILED) {
        return sd_fail(err, "%s: %s", path, strerror(errno));
    }

    (void) madvise(base, want->size, MADV_WILLNEED);

    rc = sd_packed_verify(want, base, cancel);

    if (rc != SD_OK) {
        munmap(base, want->size);
        return rc == SD_CANCELLED ? rc : sd_fail(err, "%s: is damaged", path);
    }

    m->mapped = base;
    m->mapped_bytes = want->size;

    return SD_OK;
}


/* the weights, from memory of their own or none, into the map */

static void
sd_packed_use(sd_model_t *m, sd_device_t *dev)
{
    int                part;
    char              *p;
    size_t             i;
    sd_weight_t       *w;
    sd_weight_list_t  *list;

    p = (char *) m->mapped + sizeof(sd_packed_head_t);

    for (part = 0; part < SD_MODEL_PARTS; part++) {
        list = sd_packed_list(m, part);

        for (i = 0; i < list->n; i++) {
            w = list->w[i];

            sd_weight_free(dev, w);
            w->data = p;
            w->mapped = 1;
            p += sd_packed_round(w->size);
        }
    }
}


/* writing */

static int
sd_packed_pwrite(int fd, const void *data, size_t n, off_t at)
{
    ssize_t  w;

    for ( /* void */ ; n; n -= w, at += w, data = (const char *) data + w) {
        w = pwrite(fd, data, n < 1 << 30 ? n : 1 << 30, at);

        if (w == -1 && errno == EINTR) {
            w = 0;
        }

        if (w == -1) {
            return SD_ERROR;
        }
    }

    return SD_OK;
}


/* SD_ERROR: errno tells */

static int
sd_packed_write(sd_model_t *m, sd_packed_head_t *h, int fd,
    const atomic_int *cancel)
{
    int                part;
    char               pad[SD_PACKED_ALIGN];
    off_t              at, synced;
    size_t             i, whole, rest;
    sd_weight_t       *w;
    sd_packed_sum_t    sum = { 0 };
    sd_weight_list_t  *list;

    at = sizeof(sd_packed_head_t);
    synced = 0;

    /* a disk that is full says so at once, where it can */

    if (ftruncate(fd, 0) == -1
        || (fallocate(fd, 0, 0, h->size) == -1 && errno == ENOSPC))
    {
        return SD_ERROR;
    }

    for (part = 0; part < SD_MODEL_PARTS; part++) {
        list = sd_packed_list(m, part);

        for (i = 0; i < list->n; i++) {
            w = list->w[i];

            whole = w->size / SD_PACKED_ALIGN * SD_PACKED_ALIGN;
            rest = w->size - whole;

            memset(pad, 0, sizeof(pad));
            memcpy(pad, (char *) w->data + whole, rest);

            sd_packed_add(&sum, w->data, whole);

            if (rest) {
                sd_packed_add(&sum, pad, sizeof(pad));
            }

            if (sd_packed_pwrite(fd, w->data, whole, at) != SD_OK
                || sd_packed_pwrite(fd, pad, rest ? sizeof(pad) : 0,
                                    at + whole)
                   != SD_OK)
            {
                return SD_ERROR;
            }

            at += sd_packed_round(w->size);

            if (at - synced >= SD_PACKED_SYNC) {

                if (cancel && atomic_load(cancel)) {
                    return SD_CANCELLED;
                }

                if (fdatasync(fd) == -1) {
                    return SD_ERROR;
                }

                synced = at;
            }
        }
    }

    h->sum = sd_packed_sum(&sum);
    h->check = sd_packed_check(h);

    return sd_packed_pwrite(fd, h, sizeof(sd_packed_head_t), 0) == SD_OK
           && fsync(fd) == 0 ? SD_OK : SD_ERROR;
}


/*
 * One process packs and writes at a time, which a lock on the new file sees to;
 * others wait, and find it then.  The lock goes with the process, and what was
 * left by one that was killed is written anew.
 */

static int
sd_packed_lock(const char *name, const atomic_int *cancel, int *fd,
    sd_error_t *err)
{
    struct stat      st, now;
    struct timespec  nap = { 0, 20000000 };

    for ( ;; ) {
        *fd = open(name, O_RDWR|O_CREAT|O_CLOEXEC|O_NOFOLLOW|O_NONBLOCK, 0600);

        if (*fd == -1) {
            return sd_fail(err, "%s: %s", name, strerror(errno));
        }

        while (flock(*fd, LOCK_EX|LOCK_NB) == -1) {

            if (errno != EWOULDBLOCK && errno != EINTR) {
                sd_fail(err, "%s: %s", name, strerror(errno));
                close(*fd);
                return SD_ERROR;
            }

            if (cancel && atomic_load(cancel)) {
                close(*fd);
                return SD_CANCELLED;
            }

            nanosleep(&nap, NULL);
        }

        /* one that has been renamed meanwhile is not to be written to */

        if (fstat(*fd, &st) == 0 && stat(name, &now) == 0
            && st.st_ino == now.st_ino && st.st_dev == now.st_dev)
        {
            return SD_OK;
        }

        close(*fd);
    }
}


static int
sd_packed_save(sd_model_t *m, sd_packed_head_t *h, const char *path,
    const char *name, int fd, const atomic_int *cancel, sd_error_t *err)
{
    int   rc, d;
    char  dir[PATH_MAX];

    rc = sd_packed_write(m, h, fd, cancel);

    if (rc == SD_OK && rename(name, path) == -1) {
        rc = SD_ERROR;
    }

    if (rc != SD_OK) {
        if (rc == SD_ERROR) {
            sd_fail(err, "%s: %s", name, strerror(errno));
        }

        unlink(name);
        return rc;
    }

    /* so that the name outlives a power cut, too: if not, it is made anew */

    snprintf(dir, sizeof(dir), "%s", path);
    *strrchr(dir, '/') = '\0';

    d = open(dir, O_RDONLY|O_DIRECTORY|O_CLOEXEC);

    if (d != -1) {
        (void) fsync(d);
        close(d);
    }

    return SD_OK;
}


static int
sd_packed_make(sd_model_t *m, sd_device_t *dev, sd_packed_head_t *h,
    const char *path, const atomic_int *cancel, sd_packed_how_t *how,
    sd_error_t *note, sd_error_t *err)
{
    int         fd, rc;
    char        name[PATH_MAX + 8];
    sd_error_t  trouble;

    snprintf(name, sizeof(name), "%s.new", path);

    rc = sd_packed_lock(name, cancel, &fd, &trouble);

    if (rc == SD_ERROR) {
        *note = trouble;
        return sd_model_load(m, dev, NULL, NULL, cancel, err);
    }

    if (rc != SD_OK) {
        return rc;
    }

    /* whoever had the lock may have made it */

    rc = sd_packed_map(m, h, path, cancel, &trouble);

    if (rc == SD_OK) {
        unlink(name);
        *how = SD_PACKED_FOUND;
        sd_model_loaded(m, dev);

    } else if (rc != SD_CANCELLED) {
        rc = sd_model_load(m, dev, NULL, NULL, cancel, err);

        if (rc != SD_OK) {
            unlink(name);
            close(fd);
            return rc;
        }

        rc = sd_packed_save(m, h, path, name, fd, cancel, &trouble);

        if (rc == SD_OK) {
            rc = sd_packed_map(m, h, path, cancel, &trouble);
            *how = SD_PACKED_MADE;
        }
    }

    close(fd);

    if (rc == SD_OK) {
        sd_packed_use(m, dev);

    } else if (rc != SD_CANCELLED) {
        *how = SD_PACKED_NONE;
        *note = trouble;
        rc = SD_OK;
    }

    return rc;
}


int
sd_packed_load(sd_model_t *m, sd_device_t *dev, const char *dir,
    const atomic_int *cancel, sd_packed_how_t *how, sd_error_t *note,
    sd_error_t *err)
{
    int               rc;
    char              path[PATH_MAX];
    sd_packed_head_t  head;

    *how = SD_PACKED_NONE;
    memset(note, 0, sizeof(sd_error_t));

    if (dir == NULL || dev->ops->packing == NULL) {
        return sd_model_load(m, dev, NULL, NULL, cancel, err);
    }

    /* the files as they are now, before anything of them is read */

    sd_packed_head(&head, m, dev);
    sd_packed_name(path, sizeof(path), m, dir, &head);

    rc = sd_packed_map(m, &head, path, cancel, note);

    if (rc == SD_CANCELLED) {
        return rc;
    }

    if (rc != SD_OK) {
        return sd_packed_make(m, dev, &head, path, cancel, how, note, err);
    }

    sd_packed_use(m, dev);
    sd_model_loaded(m, dev);
    *how = SD_PACKED_FOUND;

    return SD_OK;
}
