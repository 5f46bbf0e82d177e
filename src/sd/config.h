/*
 * A part's config.json, read strictly: a key's value has the type and the
 * bounds that diffusers gives it, and what we do not implement is refused with
 * its key and value.  Missing keys and null take diffusers' defaults; keys that
 * nobody asks for are ignored, as they are there.
 *
 * The first error sticks: readers return the default from then on, and whoever
 * reads a config looks at c->status once, at the end.  Host only, any thread.
 */

#ifndef SD_CONFIG_H
#define SD_CONFIG_H

#include <stddef.h>

#include "../io/error.h"


struct cJSON;


typedef struct {
    char           path[4096];
    struct cJSON  *json;
    int            status;
    sd_error_t    *err;
} sd_config_t;


/* dir/part/name; to be closed whatever it returns */
int sd_config_open(sd_config_t *c, const char *dir, const char *part,
    const char *name, sd_error_t *err);
void sd_config_close(sd_config_t *c);

int sd_config_int(sd_config_t *c, const char *key, int missing, int min,
    int max);
double sd_config_number(sd_config_t *c, const char *key, double missing,
    double min, double max);
int sd_config_bool(sd_config_t *c, const char *key, int missing);

/* a string of the list, which ends with NULL: its index */
int sd_config_choice(sd_config_t *c, const char *key, const char *missing,
    const char *const *list);

/* a number for all of n, or a list of n */
void sd_config_ints(sd_config_t *c, const char *key, int missing, int *out,
    int n, int min, int max);

/* the length of a list of at most max; it must be there */
int sd_config_length(sd_config_t *c, const char *key, int max);

/* a list of n strings of the list: their indices */
void sd_config_choices(sd_config_t *c, const char *key,
    const char *const *list, int *out, int n);

/*
 * features that we lack: each key must be missing, null, or as its value here,
 * which is JSON; the list ends with a key NULL
 */
typedef struct {
    const char  *key;
    const char  *value;
} sd_config_only_t;

void sd_config_only(sd_config_t *c, const sd_config_only_t *list);

/* for keys where null means something else than the default */
void sd_config_not_null(sd_config_t *c, const char *key);

/* the error "FILE: "key": VALUE is not implemented" */
void sd_config_refuse(sd_config_t *c, const char *key);
/* ... with a reason in place of "is not implemented" */
void sd_config_bad(sd_config_t *c, const char *key, const char *why);


#endif
