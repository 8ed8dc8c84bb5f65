/* What memory benchmarks do: filling, copying, and following chains of pointers. */
#ifndef KERNELS_H
#define KERNELS_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

enum { LINE = 64, MAX_CHAINS = 8, STEPS = 20000 };

static uint64_t next_random(void)
{
    static uint64_t state = 88172645463325252u; /* xorshift64 */
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state;
}

static void fill(char *to, const char *end)
{
    __asm__ volatile("movi v0.4s, #1\n0: stp q0, q0, [%0]\n stp q0, q0, [%0, #32]\n add %0, %0, #64\n cmp %0, %1\n b.lo 0b"
                     : "+r"(to)
                     : "r"(end)
                     : "v0", "memory", "cc");
}

/* With the source's lines fetched five ahead, as libc's and tinymembench's do. */
static void copy(char *to, const char *from, const char *end)
{
    __asm__ volatile("0: prfm pldl1keep, [%1, #320]\n ldp q0, q1, [%1]\n ldp q2, q3, [%1, #32]\n add %1, %1, #64\n"
                     "stp q0, q1, [%0]\n stp q2, q3, [%0, #32]\n add %0, %0, #64\n cmp %1, %2\n b.lo 0b"
                     : "+r"(to), "+r"(from)
                     : "r"(end)
                     : "v0", "v1", "v2", "v3", "memory", "cc");
}

/* One cycle through all lines of `memory` in random order (Sattolo's shuffle). */
static void **chain(char *memory, size_t bytes)
{
    const size_t n = bytes / LINE;
    uint32_t *order = malloc(n * sizeof *order);
    for (size_t i = 0; i < n; i++) order[i] = (uint32_t)i;
    for (size_t i = n - 1; i > 0; i--) {
        const size_t other = next_random() % i;
        const uint32_t line = order[i];
        order[i] = order[other], order[other] = line;
    }
    for (size_t i = 0; i < n; i++) *(void **)(memory + LINE * i) = memory + LINE * (size_t)order[i];
    free(order);
    return (void **)memory;
}

/* `at` has n pointers. The loop over them is unrolled: which registers hold them is known. */
#define STEP(i) at##i = *at##i;
#define FOLLOW(n, LOADS)                                                                                                             \
    case n:                                                                                                                          \
        for (int step = 0; step < STEPS; step++) {                                                                                   \
            LOADS __asm__ volatile("" : "+r"(at0), "+r"(at1), "+r"(at2), "+r"(at3), "+r"(at4), "+r"(at5), "+r"(at6), "+r"(at7));      \
        }                                                                                                                            \
        break;
static void follow(void ***at, int n)
{
    void **at0 = at[0], **at1 = at[1], **at2 = at[2], **at3 = at[3], **at4 = at[4], **at5 = at[5], **at6 = at[6], **at7 = at[7];
    switch (n) {
        FOLLOW(1, STEP(0))
        FOLLOW(2, STEP(0) STEP(1))
        FOLLOW(4, STEP(0) STEP(1) STEP(2) STEP(3))
        FOLLOW(8, STEP(0) STEP(1) STEP(2) STEP(3) STEP(4) STEP(5) STEP(6) STEP(7))
    }
}

#endif
