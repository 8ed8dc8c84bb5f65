/* What image.c and heads.c use of runtime.c. */
#ifndef BITKILN_RUNTIME_H
#define BITKILN_RUNTIME_H

#include "bitkiln.h"
#include "plan.h"

#define API __attribute__((visibility("default")))

/* How the network's input lies on the image last prepared: x of the image = (x of the input + left) * step_x, likewise y.
 * Without an image it is the input itself. */
typedef struct {
    int width, height;
    float left, top, step_x, step_y;
} bk_frame;

/* Keeps an error for bk_last_error (of bk_create for NULL); gives -1. */
__attribute__((format(printf, 2, 3))) int bk_fail(bk_model *model, const char *format, ...);

void bk_lock(bk_model *model);
void bk_unlock(bk_model *model);
bk_frame *bk_frame_of(bk_model *model);

#endif
