/* Memory benchmarks on the simulated board, for scripts/validate_sim: what tinymembench and ramlat do, each in a region of its own.
 *
 *   memory_guest fill BYTES            stores full lines in sequence
 *   memory_guest copy BYTES            loads and stores full lines in sequence
 *   memory_guest chase BYTES CHAINS    follows 1 to 8 random chains of pointers at once, each through its share of the memory
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

enum { START = 0x41353301, STOP, LINE = 64, MAX_CHAINS = 8, STEPS = 20000 };

static void mark(int what)
{
    prctl(what, 0ul, 0ul, 0ul, 0ul);
}

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

int main(int argc, char **argv)
{
    if (argc < 3) return 2;
    const size_t bytes = strtoull(argv[2], NULL, 10);
    const int n = argc > 3 ? atoi(argv[3]) : 1;
    char *memory = aligned_alloc(4096, bytes), *other = aligned_alloc(4096, bytes);
    void **at[MAX_CHAINS] = {0};
    memset(memory, 1, bytes);
    memset(other, 1, bytes);
    for (int i = 0; i < n; i++) at[i] = chain(memory + bytes / (size_t)n * (size_t)i, bytes / (size_t)n);
    for (int warm = 0; warm < 2; warm++) {
        mark(START);
        if (!strcmp(argv[1], "fill")) fill(memory, memory + bytes);
        else if (!strcmp(argv[1], "copy")) copy(other, memory, memory + bytes);
        else follow(at, n);
        if (warm) mark(STOP);
    }
    printf("%d steps\n", STEPS);
    return 0;
}
