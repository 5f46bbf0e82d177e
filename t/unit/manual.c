/*
 * README.md has the table of request fields as src/http/fields.c has it.  With
 * the argument "print" this prints the table, to be put there.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../src/http/fields.h"
#include "tap.h"


int
main(int argc, char **argv)
{
    char     *readme, *start, *end;
    FILE     *f;
    size_t    n;
    sd_buf_t  table;

    memset(&table, 0, sizeof(sd_buf_t));
    sd_fields_markdown(&table);

    if (argc > 1 && strcmp(argv[1], "print") == 0) {
        fwrite(table.data, 1, table.len, stdout);
        return 0;
    }

    f = fopen("README.md", "r");
    readme = calloc(1, 1 << 20);

    if (!ok(f && readme, "README.md opens")) {
        return done();
    }

    n = fread(readme, 1, (1 << 20) - 1, f);
    fclose(f);

    start = n ? strstr(readme, "<!-- fields: ") : NULL;
    start = start ? strchr(start, '\n') : NULL;
    end = start ? strstr(start, "<!-- end -->") : NULL;

    ok(end && (size_t) (end - start - 1) == table.len
       && memcmp(start + 1, table.data, table.len) == 0,
       "the fields in README.md are those of src/http/fields.c");

    free(readme);
    sd_buf_free(&table);

    return done();
}
