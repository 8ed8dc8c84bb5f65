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
enum bk_place { BK_ARENA, BK_BOUNDARY, BK_CONSTANT, BK_MADE };

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

/* `count` equal tiles of `size` channels, one after the other from channel `first` on; `used` of each are real. */
typedef struct {
    int32_t first, count, size, used;
} bk_tiles;

/* Output channels that lie together, and how each of them is cut in panels. */
typedef struct {
    bk_tiles run;
    const bk_tiles *panels;
    int32_t panel_runs;
} bk_chunk;

typedef struct {
    double factor;
    int32_t tap;
} bk_term;

enum { BK_MOST_TAPS = 16 };

/* Weights that are packed when the library is opened: float32 [chunk][position][panel][k][channel] of flat float32. Tap t of output
 * channel o and input channel k is element taps[t] + o * pitch + k. Position p is the sum, from `zero` on, in double precision and
 * in their order, of the terms before ends[p]. */
typedef struct {
    uint64_t source;  /* bytes from bk_constants on */
    uint64_t to;      /* bytes from the place BK_MADE on */
    uint64_t nbytes;
    int64_t pitch;
    int32_t depth;
    int32_t tap_count;
    const int32_t *taps;
    int32_t positions;
    const bk_term *terms;
    const int32_t *ends;
    double zero;
    const bk_chunk *chunks;
    int32_t chunk_runs;
    int32_t tasks; /* panels of all chunks: each may be packed on a thread of its own */
    uint8_t plans; /* that read it: bit 0 `steps`, bit 1 `several` */
} bk_packing;

/* Packs one panel. `made` is where the place BK_MADE begins. */
void bk_pack(const bk_packing *packing, int task, const unsigned char *constants, unsigned char *made);

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
    const bk_packing *packings;
    int32_t packing_count;
    void (*pack)(const bk_packing *, int, const unsigned char *, unsigned char *); /* bk_pack, where there is something to pack */
    uint64_t made_bytes;           /* of the place BK_MADE */
    uint64_t raw_from, raw_bytes; /* the constants that are read by packings alone: whole pages */
} bk_plan;

extern const bk_plan bk_network;

/* Kernel of a step that copies its one input to its output. */
int bk_copy(void *self, const bk_any *arguments, int32_t count, bk_any *result);

#endif
