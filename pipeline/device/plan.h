/* The tables of an execution plan, as the compiler writes them and runtime.c reads them. */
#ifndef BITKILN_PLAN_H
#define BITKILN_PLAN_H

#include <stddef.h>
#include <stdint.h>

/* The calling convention of TVM's kernels (tvm/ffi/c_api.h, dlpack/dlpack.h), as far as they use it. */
typedef struct {
    void *data;
    struct {
        int32_t type, id;
    } device;
    int32_t ndim;
    struct {
        uint8_t code, bits;
        uint16_t lanes;
    } dtype;
    int64_t *shape;
    int64_t *strides;
    uint64_t byte_offset;
} bk_dltensor;

typedef struct {
    int32_t type_index;
    uint32_t padding;
    union {
        int64_t i64;
        void *pointer;
    } value;
} bk_any;

typedef int (*bk_kernel)(void *self, const bk_any *arguments, int32_t count, bk_any *result);

/* Where a tensor's bytes are; its offset counts from there. */
enum bk_place { BK_ARENA, BK_BOUNDARY, BK_CONSTANT };

typedef struct {
    const char *name;
    const char *dtype;
    uint8_t code, bits; /* of the DLPack data type */
    uint8_t place;
    int32_t ndim;
    const int64_t *shape;
    uint64_t nbytes;
    uint64_t offset;
} bk_tensor;

typedef struct {
    const char *name;
    const char *kind;
    bk_kernel kernel;
    int32_t arguments; /* how many, outputs included */
    int32_t outputs;   /* how many: the last of the arguments */
    const int32_t *tensors; /* of the arguments; then the extents of its parallel loops in the order of their launches, */
    int32_t launches;       /* so many of them as are known; negative where each round is a task of its own */
} bk_step;

/* What the first input and the outputs mean, field by field as the manifest has it (docs/bundle.md). */
enum bk_order { BK_ORDER_RGB, BK_ORDER_BGR, BK_ORDER_GREY };
enum bk_resize { BK_STRETCH, BK_SHORT_SIDE, BK_LETTERBOX };

typedef struct {
    int32_t height, width;
    uint8_t order, resize, planes; /* planes: NCHW */
    int32_t resize_to;
    float fill;
    float mean[3], scale[3];
} bk_preprocessing;

enum bk_coding {
    BK_CENTRE,
    BK_CORNERS,
    BK_CORNERS_YX,
    BK_CELL_SIDES,
    BK_CELL_EXP,
    BK_CELL_SQUARE,
    BK_CELL_LINEAR,
    BK_PRIOR,
    BK_PRIOR_YX
};
enum bk_activation { BK_NONE, BK_SIGMOID, BK_SOFTMAX };

/* `count` candidates. Number e of candidate i's box is element box_at + i * box_step + e * box_entry of output `boxes`, the
 * objectness and the score of class c likewise. Lengths are in pixels of the network's input. */
typedef struct {
    int32_t boxes, scores; /* positions among the outputs */
    int32_t count;
    uint8_t coding, activation;
    int64_t box_at, box_step, box_entry;
    int64_t object_at, object_step; /* at -1: no objectness; of output `scores` */
    int64_t score_at, score_step, score_entry;
    float unit_x, unit_y; /* what the box's numbers are multiplied by: 1, or the input's width and height */
    int32_t columns;      /* cells of a row */
    int32_t bins;         /* numbers for each side of a box */
    float cell_x, cell_y, stretch;
    float anchor_x, anchor_y;
    const float *priors; /* centre x, centre y, width, height of each */
    float variances[2];
} bk_candidates;

enum bk_task { BK_DETECT, BK_SEGMENT };

typedef struct {
    uint8_t task;
    int32_t classes, background;
    float threshold, overlap;
    const bk_candidates *candidates;
    int32_t candidates_count;
    int32_t output; /* to segment: position among the outputs, */
    int32_t rows, columns;
    int64_t step, entry; /* elements between pixels and between classes; entry 0: it holds class numbers */
} bk_head;

typedef struct {
    const bk_tensor *tensors;
    const bk_step *steps;   /* as one thread runs them, or any number where there is no other plan */
    const bk_step *several; /* as several threads do: the same steps with the kernels that are best for them */
    const int32_t *inputs, *outputs;
    int32_t tensor_count, step_count, input_count, output_count;
    uint64_t arena_bytes;    /* activations between steps */
    uint64_t boundary_bytes; /* inputs and outputs */
    const unsigned char *constants;
    const bk_preprocessing *preprocessing; /* NULL: the first input is no image */
    const bk_head *head;                   /* NULL: scores of classes, or nobody knows */
} bk_plan;

extern const bk_plan bk_network;

/* Kernel of a step that copies its one input to its output. */
int bk_copy(void *self, const bk_any *arguments, int32_t count, bk_any *result);

#endif
