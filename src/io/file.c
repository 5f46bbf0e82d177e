/*
 * Small files whole: see file.h.  Any thread.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "file.h"


#define SD_JSON_MAX  (64 * 1024 * 1024)


int
sd_file_read(sd_buf_t *out, const char *path, size_t max, sd_error_t *err)
{
    int          fd;
    char        *p;
    size_t       have;
    ssize_t      n;
    struct stat  st;

    /* a pipe that nobody writes to must not block */

    fd = open(path, O_RDONLY|O_CLOEXEC|O_NONBLOCK);

    if (fd == -1) {
        return sd_error(err, 500, "file_error", path, "%s: %s", path,
                        strerror(errno));
    }

    if (fstat(fd, &st) == -1 || !S_ISREG(st.st_mode)) {
        close(fd);
        return sd_error(err, 500, "file_error", path, "%s: not a file", path);
    }

    if (st.st_size < 0 || (uint64_t) st.st_size > max) {
        close(fd);
        return sd_error(err, 500, "file_error", path,
                        "%s: larger than %zu bytes", path, max);
    }

    p = sd_buf_reserve(out, (size_t) st.st_size + 1);

    if (p == NULL) {
        close(fd);
        return sd_fail(err, "%s: no memory for %zu bytes", path,
                       (size_t) st.st_size);
    }

    for (have = 0; have < (size_t) st.st_size; have += n) {
        n = read(fd, p + have, st.st_size - have);

        if (n == -1 && errno == EINTR) {
            n = 0;
            continue;
        }

        if (n <= 0) {
            (void) sd_error(err, 500, "file_error", path, "%s: %s", path,
                            n ? strerror(errno) : "cut while being read");
            close(fd);
            return SD_ERROR;
        }
    }

    close(fd);

    p[have] = '\0';
    out->len += have;

    return SD_OK;
}


int
sd_file_write(const char *path, const void *data, size_t n, sd_error_t *err)
{
    int          fd, e;
    size_t       done;
    ssize_t      w;

    fd = open(path, O_WRONLY|O_CREAT|O_TRUNC|O_CLOEXEC, 0644);

    if (fd == -1) {
        return sd_error(err, 500, "file_error", path, "%s: %s", path,
                        strerror(errno));
    }

    for (done = 0; done < n; done += w) {
        w = write(fd, (const char *) data + done, n - done);

        if (w == -1 && errno == EINTR) {
            w = 0;
            continue;
        }

        if (w == -1) {
            e = errno;
            close(fd);
            return sd_error(err, 500, "file_error", path, "%s: %s", path,
                            strerror(e));
        }
    }

    if (close(fd) == -1) {
        return sd_error(err, 500, "file_error", path, "%s: %s", path,
                        strerror(errno));
    }

    return SD_OK;
}


int
sd_json_read(cJSON **json, const char *path, sd_error_t *err)
{
    int          line;
    const char  *p, *end;
    sd_buf_t     b = { 0 };

    *json = NULL;

    if (sd_file_read(&b, path, SD_JSON_MAX, err) != SD_OK) {
        sd_buf_free(&b);
        return SD_ERROR;
    }

    end = NULL;

    /* with the '\0', which it must end at */

    *json = cJSON_ParseWithLengthOpts(b.data, b.len + 1, &end, 1);

    if (*json == NULL) {
        line = 1;

        for (p = b.data; p < b.data + b.len && (end == NULL || p < end); p++) {
            line += *p == '\n';
        }

        sd_buf_free(&b);
        return sd_error(err, 500, "invalid_json", path,
                        "%s: not JSON, line %d", path, line);
    }

    sd_buf_free(&b);

    if (!cJSON_IsObject(*json)) {
        cJSON_Delete(*json);
        *json = NULL;
        return sd_error(err, 500, "invalid_json", path,
                        "%s: not a JSON object", path);
    }

    return SD_OK;
}
