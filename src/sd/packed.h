/*
 * A model's packed weights in a file, so that a start need not pack them again,
 * and all processes that use a model on this host share them: a reload's two
 * generations, above all.
 *
 * The file's name is the model's and the first digits of its key: a digest of
 * what the bytes depend on, which is the layout's version, the precision, the
 * model's fingerprint, its files' sizes and times, and the weights' shapes.  It
 * is written under another name, synced and renamed into place, and never
 * changed after that; so it is mapped, and who maps it keeps what he has even
 * if it is removed.  Before that its owner, its size and its sums are checked:
 * one that is damaged, short or foreign is made anew.  Files of other keys are
 * left alone.
 */

#ifndef SD_PACKED_H
#define SD_PACKED_H

#include "model.h"


typedef enum {
    SD_PACKED_NONE,             /* weights are in memory of their own */
    SD_PACKED_MADE,             /* packed, and kept in a file */
    SD_PACKED_FOUND             /* mapped, without being packed */
} sd_packed_how_t;


/*
 * sd_model_load() by way of a file in dir, where the device's weights may be in
 * one.  What is wrong with the file or the directory, if anything, is in *note,
 * whose status is 0 otherwise; the model is loaded all the same.
 */
int sd_packed_load(sd_model_t *m, sd_device_t *dev, const char *dir,
    const atomic_int *cancel, sd_packed_how_t *how, sd_error_t *note,
    sd_error_t *err);

/* the file's path; SD_ERROR where the device keeps none */
int sd_packed_path(char *path, size_t size, sd_model_t *m, sd_device_t *dev,
    const char *dir);


#endif
