/*
 * Packed weights in a file: made once, found again with the same bytes, shared,
 * and made anew when anything about it is wrong.  Runs in the source's root
 * directory, on copies of a model of t/golden.
 */

#define _GNU_SOURCE

#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../src/io/file.h"
#include "../../src/io/sha256.h"
#include "../../src/ops/cpu/cpu.h"
#include "../../src/sd/packed.h"
#include "tap.h"


#define SOURCE  "t/golden/models/corners"

/*
 * of SOURCE's file, behind its head.  If it has changed, then so has the layout
 * of packed weights, and with it must SD_CPU_PACKING: files that were written
 * before are not to be taken for new ones.
 */
#define LAYOUT  "5e9a5e09cf8d2878"

static char          dir[] = "/tmp/sd-packed-XXXXXX";
static char          model[64], cache[64], path[PATH_MAX];
static char          plain[65];         /* the weights' digest */
static sd_device_t  *dev;


static int __attribute__((format(printf, 1, 2)))
shell(const char *fmt, ...)
{
    char     cmd[PATH_MAX + 256];
    va_list  args;

    va_start(args, fmt);
    vsnprintf(cmd, sizeof(cmd), fmt, args);
    va_end(args);

    return system(cmd);
}


/* a digest of all weights; "" where they were not loaded */

static void
digest(sd_model_t *m, char hex[65])
{
    int                      part;
    size_t                   i;
    sd_sha256_t              sha;
    const sd_weight_list_t  *list;

    sd_sha256_init(&sha);

    for (part = 0; part < SD_MODEL_PARTS; part++) {
        list = part == 0 ? &m->text_encoder.weights
               : part == 1 ? &m->unet.weights : &m->vae.weights;

        for (i = 0; i < list->n; i++) {
            sd_sha256_update(&sha, list->w[i]->data, list->w[i]->size);
        }
    }

    sd_sha256_hex(&sha, hex);
}


/* loads, and says how; the digest is that of a model without a file */

static sd_packed_how_t
load(sd_error_t *note, const char *name)
{
    int                rc;
    char               hex[65];
    sd_error_t         err = { 0 };
    sd_model_t        *m;
    sd_packed_how_t    how = SD_PACKED_NONE;

    if (sd_model_open(&m, model, dev, &err) != SD_OK) {
        ok(0, "%s: %s", name, err.message);
        return how;
    }

    (void) sd_packed_path(path, sizeof(path), m, dev, cache);

    rc = sd_packed_load(m, dev, plain[0] ? cache : NULL, NULL, &how, note,
                        &err);

    ok(rc == SD_OK && m->loaded, "%s: loaded", name);
    digest(m, hex);

    if (plain[0] == '\0') {
        memcpy(plain, hex, sizeof(hex));
    }

    is_str(hex, plain, "the same weights");
    ok((m->mapped != NULL) == (how != SD_PACKED_NONE), "mapped, or not");

    sd_model_close(m);

    return how;
}


static int
has(const char *what)
{
    struct stat  st;

    return lstat(what, &st) == 0;
}


static void
test_found(void)
{
    char         new[PATH_MAX + 8], hex[65];
    sd_buf_t     b = { 0 };
    sd_error_t   note, err;
    sd_sha256_t  sha;
    struct stat  st, again;

    is_int(load(&note, "no file"), SD_PACKED_NONE, "no file is asked for");
    ok(!has(path), "and none is made");

    is_int(load(&note, "the first"), SD_PACKED_MADE, "made");
    ok(note.status == 0, "nothing is said");

    snprintf(new, sizeof(new), "%s.new", path);
    ok(!has(new), "renamed into place");
    ok(stat(path, &st) == 0 && (st.st_mode & 0777) == 0600,
       "nobody else's to read");

    is_int(load(&note, "the second"), SD_PACKED_FOUND, "found");
    ok(note.status == 0, "nothing is said");
    ok(stat(path, &again) == 0 && again.st_ino == st.st_ino
       && again.st_mtim.tv_nsec == st.st_mtim.tv_nsec, "never rewritten");

    (void) sd_file_read(&b, path, 1 << 30, &err);
    sd_sha256_init(&sha);
    sd_sha256_update(&sha, b.data + 256, b.len - 256);
    sd_sha256_hex(&sha, hex);
    hex[16] = '\0';

    is_str(hex, LAYOUT, "the layout is that of " SD_CPU_PACKING);
    sd_buf_free(&b);
}


static void
test_shared(void)
{
    int               n = 0;
    char             *p, line[PATH_MAX + 256], hex[65];
    FILE             *f;
    sd_error_t        err, note;
    sd_model_t       *one, *two;
    sd_packed_how_t   how;

    (void) sd_model_open(&one, model, dev, &err);
    (void) sd_model_open(&two, model, dev, &err);
    (void) sd_packed_load(one, dev, cache, NULL, &how, &note, &err);
    (void) sd_packed_load(two, dev, cache, NULL, &how, &note, &err);

    f = fopen("/proc/self/maps", "r");

    while (f && fgets(line, sizeof(line), f)) {
        p = strstr(line, path);
        n += p && strstr(line, " r--s ");
    }

    fclose(f);

    is_int(n, 2, "two models map it, read-only and shared");
    is_int(shell("rm %s", path), 0, "removed under them");
    sd_model_close(one);
    digest(two, hex);
    is_str(hex, plain, "they keep it");
    sd_model_close(two);
}


static void
test_wrong(void)
{
    int          i;
    sd_error_t   note;

    static const struct {
        const char  *name, *command;
        int          root;
    } tests[] = {
        { "short", "truncate -s -1 $F", 0 },
        { "long", "echo >> $F", 0 },
        { "empty", ": > $F", 0 },
        { "another magic", "printf x | dd of=$F conv=notrunc", 0 },
        { "another key", "printf x | dd of=$F bs=1 seek=20 conv=notrunc", 0 },
        { "another sum", "printf x | dd of=$F bs=1 seek=97 conv=notrunc", 0 },
        { "a head that is not whole",
          "printf x | dd of=$F bs=1 seek=200 conv=notrunc", 0 },
        { "a weight's byte",
          "printf '\\377\\376' | dd of=$F bs=1 seek=70000 conv=notrunc", 0 },
        { "a page of zeros",
          "dd if=/dev/zero of=$F bs=4096 seek=20 count=1 conv=notrunc", 0 },
        { "its last byte", "size=$(stat -c %s $F); printf '\\377' "
          "| dd of=$F bs=1 seek=$((size - 1)) conv=notrunc", 0 },
        { "a link", "mv $F $F.not && ln -s $F.not $F", 0 },
        { "a pipe", "rm $F && mkfifo $F", 0 },
        { "somebody else's", "chown 12345 $F", 1 },
    };

    for (i = 0; i < (int) (sizeof(tests) / sizeof(tests[0])); i++) {

        if (tests[i].root && geteuid() != 0) {
            continue;
        }

        (void) load(&note, "before");
        setenv("F", path, 1);

        ok(shell("(%s) 2>/dev/null", tests[i].command) == 0, "%s: as meant",
           tests[i].name);

        is_int(load(&note, tests[i].name), SD_PACKED_MADE, "is made anew");
        ok(strstr(note.message, path) != NULL, "and said: %s", note.message);
        is_int(load(&note, "after"), SD_PACKED_FOUND, "is fit");
        ok(note.status == 0, "and nothing is said");
    }
}


static void
test_cannot(void)
{
    char            new[PATH_MAX + 8], kept[64];
    sd_error_t      note;
    struct rlimit   limit, old;

    (void) shell("rm %s/*", cache);

    /* a file may not be so large: as a disk that is full */

    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    limit = old;
    limit.rlim_cur = 100000;
    setrlimit(RLIMIT_FSIZE, &limit);

    is_int(load(&note, "no space"), SD_PACKED_NONE, "goes on without");
    ok(strstr(note.message, path) != NULL, "and says: %s", note.message);
    setrlimit(RLIMIT_FSIZE, &old);

    snprintf(new, sizeof(new), "%s.new", path);
    ok(!has(path) && !has(new), "nothing is left");

    strcpy(kept, cache);
    snprintf(cache, sizeof(cache), "%s/none", dir);

    is_int(load(&note, "no directory"), SD_PACKED_NONE, "goes on without");
    ok(strstr(note.message, "No such file") != NULL, "and says: %s",
       note.message);
    strcpy(cache, kept);

    /* what was left by somebody who was killed */

    (void) load(&note, "before");
    is_int(shell("rm %s && yes | head -c 100000 > %s", path, new), 0, "a rest");
    is_int(load(&note, "a rest"), SD_PACKED_MADE, "is written over");
    ok(note.status == 0 && has(path) && !has(new), "and renamed");
    is_int(load(&note, "after"), SD_PACKED_FOUND, "is fit");
}


static void
test_keys(void)
{
    char         before[PATH_MAX];
    sd_error_t   note, err;
    sd_model_t  *m;
    sd_device_t *plan;

    (void) load(&note, "before");
    strcpy(before, path);

    is_int(shell("touch -d @1000000000 %s/vae/*.safetensors", model), 0,
           "the model's files are others");
    is_int(load(&note, "other files"), SD_PACKED_MADE, "another file");
    ok(strcmp(path, before) != 0 && has(before), "beside the first");

    (void) sd_device_plan(&plan, "cpu", SD_PRECISION_BF16, &err);
    (void) sd_model_open(&m, model, plan, &err);
    (void) sd_packed_path(before, sizeof(before), m, plan, cache);
    ok(strcmp(path, before) != 0, "another precision, another file");
    sd_model_close(m);
    sd_device_close(plan);

    (void) sd_device_plan(&plan, "cuda", SD_PRECISION_EXACT, &err);
    (void) sd_model_open(&m, model, plan, &err);
    is_int(sd_packed_path(before, sizeof(before), m, plan, cache), SD_ERROR,
           "a card's weights are in no file");
    sd_model_close(m);
    sd_device_close(plan);
}


static void
test_cancel(void)
{
    int               i;
    atomic_int        cancel = 1;
    sd_error_t        err, note;
    sd_model_t       *m;
    sd_packed_how_t   how;

    for (i = 0; i < 2; i++) {
        (void) sd_model_open(&m, model, dev, &err);
        is_int(sd_packed_load(m, dev, cache, &cancel, &how, &note, &err),
               SD_CANCELLED, i ? "cancelled while packing"
                               : "cancelled while checking");
        sd_model_close(m);
        (void) shell("rm -f %s", path);
    }

    is_int(shell("ls %s | grep new", cache) != 0, 1, "nothing is left");
}


/* several at once: one packs, the others wait and find it */

static void
test_at_once(void)
{
    int               i, status, made = 0, found = 0;
    sd_error_t        err, note;
    sd_model_t       *m;
    sd_device_t      *d;
    sd_packed_how_t   how;

    (void) shell("rm %s/*", cache);

    for (i = 0; i < 6; i++) {
        if (fork() == 0) {
            if (sd_device_open(&d, "cpu", 1, SD_PRECISION_EXACT, NULL, &err)
                != SD_OK
                || sd_model_open(&m, model, d, &err) != SD_OK
                || sd_packed_load(m, d, cache, NULL, &how, &note, &err)
                   != SD_OK
                || note.status)
            {
                _exit(100);
            }

            sd_model_close(m);
            sd_device_close(d);
            _exit(how);
        }
    }

    while (wait(&status) > 0) {
        made += WEXITSTATUS(status) == SD_PACKED_MADE;
        found += WEXITSTATUS(status) == SD_PACKED_FOUND;
    }

    is_int(made, 1, "of six at once, one packs");
    is_int(found, 5, "and the others find it");
    is_int(shell("ls %s | grep new", cache) != 0, 1, "nothing is left");
}


int
main(void)
{
    sd_error_t  err = { 0 };

    if (mkdtemp(dir) == NULL
        || sd_device_open(&dev, "cpu", 2, SD_PRECISION_EXACT, NULL, &err)
           != SD_OK)
    {
        ok(0, "a device: %s", err.message);
        return done();
    }

    snprintf(model, sizeof(model), "%s/model", dir);
    snprintf(cache, sizeof(cache), "%s/cache", dir);

    if (shell("cp -rL " SOURCE " %s && mkdir %s", model, cache) != 0) {
        ok(0, "a copy of " SOURCE);
    }

    test_found();
    test_shared();
    test_wrong();
    test_cannot();
    test_keys();
    test_cancel();
    test_at_once();

    sd_device_close(dev);
    (void) shell("rm -rf %s", dir);

    return done();
}
