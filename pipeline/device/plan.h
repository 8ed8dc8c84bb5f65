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
    const int32_t *tensors;
} bk_step;

typedef struct {
    const bk_tensor *tensors;
    const bk_step *steps;
    const int32_t *inputs, *outputs;
    int32_t tensor_count, step_count, input_count, output_count;
    uint64_t arena_bytes;    /* activations between steps */
    uint64_t boundary_bytes; /* inputs and outputs */
    const unsigned char *constants;
} bk_plan;

extern const bk_plan bk_network;

/* Kernel of a step that copies its one input to its output. */
int bk_copy(void *self, const bk_any *arguments, int32_t count, bk_any *result);

#endif
