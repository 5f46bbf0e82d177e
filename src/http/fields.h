/*
 * A request's fields.  The one table in fields.c holds each field's name,
 * alias, type, bounds, default and meaning; the parsers of JSON bodies and of
 * queries work from it, and so does the manual (sd_fields_markdown).
 *
 * Here a field is looked at alone: its type and its bounds.  What fields mean
 * together, and what a location allows, is request.c's.
 */

#ifndef SD_FIELDS_H
#define SD_FIELDS_H

#include <stddef.h>
#include <stdint.h>

#include "../engine/frame.h"
#include "../io/buf.h"
#include "../io/error.h"


#define SD_MAX_PROMPT    32768
#define SD_MAX_SEED      9007199254740991.0     /* 2^53 - 1: exact in JSON */
#define SD_MAX_WARNINGS  8
#define SD_MAX_IMAGES    64


/* indices into the table, and bits of "given" */

typedef enum {
    SD_FIELD_PROMPT,
    SD_FIELD_NEGATIVE_PROMPT,
    SD_FIELD_WIDTH,
    SD_FIELD_HEIGHT,
    SD_FIELD_STEPS,
    SD_FIELD_GUIDANCE,
    SD_FIELD_SEED,
    SD_FIELD_IMAGES,
    SD_FIELD_SAMPLER,
    SD_FIELD_FORMAT,
    SD_FIELD_OUTPUT_FORMAT,
    SD_FIELD_QUALITY,
    SD_FIELD_PREVIEW,
    SD_FIELD_PREVIEW_EVERY,
    SD_FIELD_PREVIEWS,
    SD_FIELD_LATENT,
    SD_FIELD_LATENTS,
    SD_FIELD_STARTING_STEP,
    SD_FIELD_TIMEOUT,
    SD_FIELDS
} sd_field_id_t;

typedef enum {
    SD_TYPE_STRING,             /* text.len characters within bounds */
    SD_TYPE_INTEGER,
    SD_TYPE_NUMBER,
    SD_TYPE_BASE64,
    SD_TYPE_LATENT              /* a string, or an integer above 0 */
} sd_field_type_t;

typedef struct {
    const char       *name;
    const char       *alias;    /* or NULL */
    sd_field_type_t   type;
    double            min, max; /* strings: bytes */
    const char       *fallback; /* default, for the manual */
    const char       *text;     /* for the manual */
} sd_field_t;

extern const sd_field_t  sd_fields[SD_FIELDS];


typedef struct {
    sd_buf_t   text;            /* decoded; base64: the bytes */
    double     number;
} sd_field_value_t;

typedef struct {
    uint32_t           given;   /* bit of each field that has a value */
    sd_field_value_t   value[SD_FIELDS];
    char               warnings[SD_MAX_WARNINGS][160];
    int                nwarnings;
} sd_field_values_t;

#define sd_given(v, id)  ((v)->given >> (id) & 1)


/*
 * each adds what it finds to v, which was zeroed at first; a field that comes
 * twice, by any name and from anywhere, is an error; null is as absent
 */
int sd_fields_json(sd_field_values_t *v, const void *body, size_t size,
    sd_error_t *err);
int sd_fields_query(sd_field_values_t *v, sd_str_t args, sd_error_t *err);
void sd_fields_free(sd_field_values_t *v);

/* the table as the README has it */
void sd_fields_markdown(sd_buf_t *out);


#endif
