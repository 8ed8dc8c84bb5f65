/* A network of one step, y[i] = 2 * x[i] + FACTOR, in the tables of plan.h; or one that misbehaves. */
#include "plan.h"

enum { COUNT = 1024 };

static int kernel(void *self, const bk_any *arguments, int32_t count, bk_any *result)
{
    (void)self, (void)count, (void)result;
    const float *x = ((const bk_dltensor *)arguments[0].value.pointer)->data;
    float *y = ((const bk_dltensor *)arguments[1].value.pointer)->data;
#ifdef CRASH
    *(volatile int *)8 = 1;
#endif
#ifdef HANG
    for (volatile int i = 0;; i++) {}
#endif
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < COUNT; i++) y[i] = x[i] * 2 + FACTOR;
        __asm__ volatile("" ::: "memory");
    }
    return 0;
}

static const int64_t shape[] = {COUNT};
static const bk_tensor tensors[] = {
    {"x", "float32", 2, 32, BK_BOUNDARY, 1, shape, 4 * COUNT, 0},
    {"y", "float32", 2, 32, BK_BOUNDARY, 1, shape, 4 * COUNT, 4 * COUNT},
};
static const int32_t inputs[] = {0}, outputs[] = {1}, both[] = {0, 1};
static const bk_step steps[] = {{"double", "test", kernel, 2, 1, both}};
static const unsigned char constants[1];

const bk_plan bk_network = {
    .tensors = tensors,
    .steps = steps,
    .several = steps,
    .inputs = inputs,
    .outputs = outputs,
    .tensor_count = 2,
    .step_count = 1,
    .input_count = 1,
    .output_count = 1,
    .arena_bytes = 64,
    .boundary_bytes = 8 * COUNT,
    .constants = constants,
};
