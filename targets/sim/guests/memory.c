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

#include "kernels.h"

enum { START = 0x41353301, STOP };

static void mark(int what)
{
    prctl(what, 0ul, 0ul, 0ul, 0ul);
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
