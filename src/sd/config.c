/*
 * A part's config.json: see config.h.
 */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#include "../io/file.h"
#include "config.h"


int
sd_config_open(sd_config_t *c, const char *dir, const char *part,
    const char *name, sd_error_t *err)
{
    memset(c, 0, sizeof(sd_config_t));

    c->err = err;

    if ((size_t) snprintf(c->path, sizeof(c->path), "%s/%s%s%s", dir, part,
                          *part ? "/" : "", name) >= sizeof(c->path))
    {
        c->status = sd_fail(err, "%s: path too long", dir);
        return c->status;
    }

    c->status = sd_json_read(&c->json, c->path, err);

    return c->status;
}


void
sd_config_close(sd_config_t *c)
{
    cJSON_Delete(c->json);
    c->json = NULL;
}


/* NULL where it is missing, null, or where an error has been */

static cJSON *
sd_config_get(sd_config_t *c, const char *key)
{
    cJSON  *item;

    if (c->status != SD_OK) {
        return NULL;
    }

    item = cJSON_GetObjectItemCaseSensitive(c->json, key);

    return item && !cJSON_IsNull(item) ? item : NULL;
}


void
sd_config_bad(sd_config_t *c, const char *key, const char *why)
{
    char   *text;
    cJSON  *item;

    if (c->status != SD_OK) {
        return;
    }

    item = cJSON_GetObjectItemCaseSensitive(c->json, key);
    text = item ? cJSON_PrintUnformatted(item) : NULL;

    c->status = sd_error(c->err, 500, "unsupported_config", key,
                         "%s: \"%s\": %.100s %s", c->path, key,
                         text ? text : "missing,", why);
    cJSON_free(text);
}


void
sd_config_refuse(sd_config_t *c, const char *key)
{
    sd_config_bad(c, key, "is not implemented");
}


void
sd_config_not_null(sd_config_t *c, const char *key)
{
    if (cJSON_IsNull(cJSON_GetObjectItemCaseSensitive(c->json, key))) {
        sd_config_refuse(c, key);
    }
}


static int
sd_config_is_int(cJSON *item, int min, int max)
{
    return cJSON_IsNumber(item) && item->valuedouble >= min
           && item->valuedouble <= max
           && item->valuedouble == floor(item->valuedouble);
}


int
sd_config_int(sd_config_t *c, const char *key, int missing, int min, int max)
{
    char    why[80];
    cJSON  *item;

    item = sd_config_get(c, key);

    if (item == NULL) {
        return missing;
    }

    if (!sd_config_is_int(item, min, max)) {
        snprintf(why, sizeof(why), "is not a whole number from %d to %d", min,
                 max);
        sd_config_bad(c, key, why);
        return missing;
    }

    return item->valuedouble;
}


double
sd_config_number(sd_config_t *c, const char *key, double missing, double min,
    double max)
{
    char    why[80];
    cJSON  *item;

    item = sd_config_get(c, key);

    if (item == NULL) {
        return missing;
    }

    if (!cJSON_IsNumber(item)
        || !(item->valuedouble >= min && item->valuedouble <= max))
    {
        snprintf(why, sizeof(why), "is not a number from %g to %g", min, max);
        sd_config_bad(c, key, why);
        return missing;
    }

    return item->valuedouble;
}


int
sd_config_bool(sd_config_t *c, const char *key, int missing)
{
    cJSON  *item;

    item = sd_config_get(c, key);

    if (item == NULL) {
        return missing;
    }

    if (!cJSON_IsBool(item)) {
        sd_config_bad(c, key, "is not true or false");
        return missing;
    }

    return cJSON_IsTrue(item);
}


static int
sd_config_index(const char *value, const char *const *list)
{
    int  i;

    for (i = 0; value && list[i]; i++) {
        if (strcmp(value, list[i]) == 0) {
            return i;
        }
    }

    return -1;
}


int
sd_config_choice(sd_config_t *c, const char *key, const char *missing,
    const char *const *list)
{
    int     i;
    cJSON  *item;

    item = sd_config_get(c, key);

    if (item == NULL) {
        return sd_config_index(missing, list);
    }

    i = sd_config_index(cJSON_GetStringValue(item), list);

    if (i == -1) {
        sd_config_refuse(c, key);
        return 0;
    }

    return i;
}


void
sd_config_ints(sd_config_t *c, const char *key, int missing, int *out, int n,
    int min, int max)
{
    int     i, v;
    char    why[80];
    cJSON  *item, *e;

    item = sd_config_get(c, key);

    if (!cJSON_IsArray(item)) {
        v = sd_config_int(c, key, missing, min, max);

        for (i = 0; i < n; i++) {
            out[i] = v;
        }

        return;
    }

    i = 0;

    cJSON_ArrayForEach(e, item) {
        if (i == n || !sd_config_is_int(e, min, max)) {
            i = -1;
            break;
        }

        out[i++] = e->valuedouble;
    }

    if (i != n) {
        snprintf(why, sizeof(why), "is not a list of %d whole numbers from %d "
                 "to %d", n, min, max);
        sd_config_bad(c, key, why);

        for (i = 0; i < n; i++) {
            out[i] = missing;
        }
    }
}


int
sd_config_length(sd_config_t *c, const char *key, int max)
{
    int     n;
    char    why[80];
    cJSON  *item;

    item = sd_config_get(c, key);
    n = cJSON_IsArray(item) ? cJSON_GetArraySize(item) : 0;

    if (n < 1 || n > max) {
        snprintf(why, sizeof(why), "is not a list of 1 to %d members", max);
        sd_config_bad(c, key, why);
        return 0;
    }

    return n;
}


void
sd_config_choices(sd_config_t *c, const char *key, const char *const *list,
    int *out, int n)
{
    int     i, k;
    char    why[80];
    cJSON  *item, *e;

    memset(out, 0, n * sizeof(int));

    item = sd_config_get(c, key);

    if (!cJSON_IsArray(item) || cJSON_GetArraySize(item) != n) {
        snprintf(why, sizeof(why), "is not a list of %d members", n);
        sd_config_bad(c, key, why);
        return;
    }

    i = 0;

    cJSON_ArrayForEach(e, item) {
        k = sd_config_index(cJSON_GetStringValue(e), list);

        if (k == -1) {
            sd_config_refuse(c, key);
            return;
        }

        out[i++] = k;
    }
}


void
sd_config_only(sd_config_t *c, const sd_config_only_t *list)
{
    int     same;
    cJSON  *item, *want;

    for ( ; list->key && c->status == SD_OK; list++) {
        item = sd_config_get(c, list->key);

        if (item == NULL) {
            continue;
        }

        want = cJSON_Parse(list->value);
        same = cJSON_Compare(item, want, 1);
        cJSON_Delete(want);

        if (!same) {
            sd_config_refuse(c, list->key);
        }
    }
}
