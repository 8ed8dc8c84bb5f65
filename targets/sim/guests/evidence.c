/* What a Cortex-A53 does, for `bitkiln boards measure`: the same program on real boards and on simulated ones.
 *
 *   evidence facts      sequences of instructions (made by microbench.py and linked to this)
 *   evidence memory     bandwidths and latencies
 *   evidence probes     what nobody has published: prefetching, replacement, what a load that misses keeps waiting
 *
 * Prints a line of JSON for each row; `cycles` are of one unit of work. The first line says what told the time. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>

#include "clock.h"
#include "kernels.h"

enum { PAGE = 4096, MiB = 1 << 20, LONGEST_LIST = 1 << 14, MOST_THREADS = 4 };

typedef uint64_t Sequence(uint64_t times);
/* A row each: a loop of `times`; the difference between two reads of the cycle counter around the last; the same marked for the
 * simulator. */
extern Sequence *const sequences[][3];
extern const int n_sequences;
/* Where sequences load and store; they rely on zeros there. */
extern char buffer[1 << 16];
enum { LOOP, SHOT, MARKED };

/* ---- measuring ---- */

/* The fastest of some runs at a clock that holds still, as cycles and nanoseconds; `mhz` 0 where the clock did not. */
static Took fastest(void (*work)(const void *), const void *argument, double *mhz)
{
    Took best = {0, 0};
    *mhz = mhz_now();
    took(work, argument, *mhz); /* Warms caches; the simulator's only within a region. */
    if (timing == BY_SIMULATOR) return took(work, argument, *mhz);
    for (int attempt = 0; attempt < 5; attempt++) {
        const double before = attempt ? mhz_now() : *mhz;
        best.ns = 1e18;
        for (int i = 0; i < 5; i++) {
            const Took found = took(work, argument, before);
            if (found.ns < best.ns) best = found;
        }
        const double after = mhz_now();
        *mhz = (before + after) / 2;
        if (after < 1.02 * before && before < 1.02 * after) return best;
    }
    *mhz = 0;
    return best;
}

static void row(const char *name, void (*work)(const void *), const void *argument, double units)
{
    double mhz;
    const Took best = fastest(work, argument, &mhz);
    printf("{\"row\": \"%s\", \"cycles\": %.4f, \"ns\": %.4f, \"mhz\": %.1f, \"steady\": %s}\n", name, best.cycles / units, best.ns / units,
           mhz, mhz > 0 ? "true" : "false");
    fflush(stdout);
}

/* ---- sequences ---- */

typedef struct {
    Sequence *run;
    uint64_t times;
} Loop;

static void run_loop(const void *argument)
{
    const Loop *loop = argument;
    loop->run(loop->times);
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Cycles of one execution between two reads of the counter; negative where nobody may read it. */
static double shot(int index)
{
    enum { WARM = 30, TIMES = 15 };
    if (timing == BY_CLOCK) return -1;
    if (timing == BY_COUNTER) {
        double found[TIMES];
        for (int i = 0; i < TIMES; i++) found[i] = (double)(uint32_t)sequences[index][SHOT](WARM);
        qsort(found, TIMES, sizeof *found, compare);
        return found[TIMES / 2];
    }
    prctl(START, 0ul, 0ul, 0ul, 0ul);
    sequences[index][MARKED](WARM);
    prctl(STOP, 0ul, 0ul, 0ul, 0ul);
    ask(READ);
    const char *marks = strstr(answer, "\"marks\": ["), *end = marks ? strchr(marks, ']') : NULL;
    if (!end) return -1;
    while (end > marks && end[-1] != ' ' && end[-1] != '[' && end[-1] != ',') end--;
    return strtod(end, NULL);
}

static void facts(void)
{
    for (int i = 0; i < n_sequences; i++) {
        const Loop loop = {sequences[i][LOOP], timing == BY_SIMULATOR ? 200 : 10000};
        double mhz;
        memset(buffer, 0, sizeof buffer);
        const Took best = fastest(run_loop, &loop, &mhz);
        printf("{\"fact\": %d, \"loop\": %.4f, \"shot\": %.1f, \"mhz\": %.1f, \"steady\": %s}\n", i, best.cycles / (double)loop.times, shot(i), mhz,
               mhz > 0 ? "true" : "false");
        fflush(stdout);
    }
}

/* ---- memory ---- */

typedef struct {
    char *memory, *other;
    size_t bytes, stride;
    void **at[MAX_CHAINS];
    int n, threads, turns;
    const uint32_t *list;
} Work;

static void run_fill(const void *argument)
{
    const Work *work = argument;
    fill(work->memory, work->memory + work->bytes);
}

static void run_copy(const void *argument)
{
    const Work *work = argument;
    copy(work->other, work->memory, work->memory + work->bytes);
}

static void run_follow(const void *argument)
{
    const Work *work = argument;
    void **at[MAX_CHAINS];
    memcpy(at, work->at, sizeof at);
    follow(at, work->n);
}

/* A word of every line that is `stride` bytes from the last. */
static void run_read(const void *argument)
{
    const Work *work = argument;
    const char *at = work->memory, *end = at + work->bytes;
    __asm__ volatile("0: ldr x9, [%0]\n add %0, %0, %2\n cmp %0, %1\n b.lo 0b" : "+r"(at) : "r"(end), "r"(work->stride) : "x9", "memory", "cc");
}

static void run_read_down(const void *argument)
{
    const Work *work = argument;
    const char *begin = work->memory, *at = begin + work->bytes - LINE;
    __asm__ volatile("0: ldr x9, [%0]\n sub %0, %0, %2\n cmp %0, %1\n b.hs 0b" : "+r"(at) : "r"(begin), "r"(work->stride) : "x9", "memory", "cc");
}

static void *read_share(void *argument)
{
    for (int turn = 0; turn < ((const Work *)argument)->turns; turn++) run_read(argument);
    return NULL;
}

/* As `run_read` by several threads, each in its own part of the memory. */
static void run_team(const void *argument)
{
    const Work *work = argument;
    Work share[MOST_THREADS];
    pthread_t thread[MOST_THREADS];
    for (int i = 0; i < work->threads; i++) {
        share[i] = *work;
        share[i].memory = work->memory + work->bytes * (size_t)i;
        if (i) pthread_create(&thread[i], NULL, read_share, &share[i]);
    }
    read_share(&share[0]);
    for (int i = 1; i < work->threads; i++) pthread_join(thread[i], NULL);
}

/* ---- probes: a list of lines in random order, whose addresses are known long before ---- */

#define RANDOM_LOADS(NAME, BEFORE, AFTER)                                                                                            \
    static void NAME(const void *argument)                                                                                           \
    {                                                                                                                                \
        const Work *work = argument;                                                                                                 \
        const uint32_t *at = work->list, *end = at + work->n;                                                                        \
        __asm__ volatile("0: ldr w10, [%0], #4\n" BEFORE "ldr x9, [%2, x10]\n" AFTER "cmp %0, %1\n b.lo 0b"                          \
                         : "+r"(at)                                                                                                  \
                         : "r"(end), "r"(work->memory)                                                                               \
                         : "x9", "x10", "x11", "memory", "cc");                                                                      \
    }
#define NOPS(n) ".rept " #n "\n nop\n .endr\n"
RANDOM_LOADS(run_random, "", "")
RANDOM_LOADS(run_random_8, "", NOPS(8))
RANDOM_LOADS(run_random_32, "", NOPS(32))
RANDOM_LOADS(run_random_128, "", NOPS(128))
RANDOM_LOADS(run_hinted, "ldr w11, [%0, #28]\n add x11, x11, %2\n prfm pldl1keep, [x11]\n", "and x9, x9, x9\n" NOPS(128))
RANDOM_LOADS(run_unhinted, "ldr w11, [%0, #28]\n add x11, x11, %2\n", "and x9, x9, x9\n" NOPS(128))
/* Three prefetches in a row, time for what they start, then the lines behind those that were asked for. */
#define TRAINED(FIRST) FIRST ".rept 600\n add x11, x11, #1\n .endr\n ldr x9, [x10, #256]\n ldr x9, [x10, #320]\n"
RANDOM_LOADS(run_trained, "add x10, x10, %2\n" TRAINED("prfm pldl1keep, [x10]\n prfm pldl1keep, [x10, #64]\n prfm pldl1keep, [x10, #128]\n")
                          "mov x10, #0\n", "")
RANDOM_LOADS(run_untrained, "add x10, x10, %2\n" TRAINED("nop\n nop\n nop\n") "mov x10, #0\n", "")
/* What was just stored comes back. */
static void run_forwarded(const void *argument)
{
    const Work *work = argument;
    uint64_t turns = (uint64_t)work->n;
    __asm__ volatile("0: .rept 8\n str x9, [%1]\n ldr x9, [%1]\n .endr\n subs %0, %0, #1\n b.ne 0b"
                     : "+r"(turns)
                     : "r"(work->memory)
                     : "x9", "memory", "cc");
}

/* `n` different multiples of `unit` below `bytes`, in random order. */
static void shuffled(uint32_t *list, int n, size_t bytes, size_t unit)
{
    const uint32_t all = (uint32_t)(bytes / unit);
    uint32_t *order = malloc(all * sizeof *order);
    for (uint32_t i = 0; i < all; i++) order[i] = i;
    for (uint32_t i = all - 1; i > 0; i--) {
        const uint32_t other = (uint32_t)(next_random() % (i + 1)), line = order[i];
        order[i] = order[other], order[other] = line;
    }
    for (int i = 0; i < n; i++) list[i] = order[(uint32_t)i % all] * (uint32_t)unit;
    free(order);
}

static void chase(const char *name, size_t bytes, int chains, char *memory)
{
    Work work = {.memory = memory, .n = chains};
    for (int i = 0; i < chains; i++) work.at[i] = chain(memory + bytes / (size_t)chains * (size_t)i, bytes / (size_t)chains);
    row(name, run_follow, &work, STEPS);
}

static void memory_rows(char *memory, char *other)
{
    Work work = {.memory = memory, .other = other, .bytes = 8 * MiB, .stride = LINE};
    row("fill 8 MiB, a line", run_fill, &work, 8 * MiB / LINE);
    row("copy 8 MiB, a line", run_copy, &work, 8 * MiB / LINE);
    row("read 8 MiB, a line", run_read, &work, 8 * MiB / LINE);
    chase("chase in L1, 16 KiB", 16 << 10, 1, memory);
    chase("chase in L2, 128 KiB", 128 << 10, 1, memory);
    static const char *const names[] = {"chase of 1 in 2 MiB", "chase of 2 in 2 MiB", "chase of 4 in 2 MiB", "chase of 8 in 2 MiB"};
    for (int i = 0; i < 4; i++) chase(names[i], 2 * MiB, 1 << i, memory);
    chase("chase of 1 in 8 MiB", 8 * MiB, 1, memory);
}

static void probe_rows(char *memory, int threads)
{
    static uint32_t list[LONGEST_LIST + 8];
    static const struct {
        const char *name;
        size_t stride;
    } strides[] = {{"read 4 MiB, every 2nd line", 2 * LINE}, {"read 4 MiB, every 4th line", 4 * LINE}, {"read 4 MiB, every 16th line", 16 * LINE}};
    Work work = {.memory = memory, .bytes = 4 * MiB, .stride = LINE, .list = list, .n = LONGEST_LIST};
    row("read 4 MiB downwards, a line", run_read_down, &work, 4 * MiB / LINE);
    for (size_t i = 0; i < sizeof strides / sizeof *strides; i++) {
        work.stride = strides[i].stride;
        row(strides[i].name, run_read, &work, (double)(4 * MiB) / (double)work.stride);
    }
    shuffled(list, LONGEST_LIST + 8, 8 * MiB, LINE);
    row("a load that misses", run_random, &work, LONGEST_LIST);
    row("a load that misses and 8 nops", run_random_8, &work, LONGEST_LIST);
    row("a load that misses and 32 nops", run_random_32, &work, LONGEST_LIST);
    row("a load that misses and 128 nops", run_random_128, &work, LONGEST_LIST);
    row("a load that misses, its use and 128 nops", run_unhinted, &work, LONGEST_LIST);
    row("the same with prfm 7 ahead", run_hinted, &work, LONGEST_LIST);
    work.n = 2000;
    shuffled(list, work.n, 16 * MiB, PAGE);
    row("lines behind three that prfm named", run_trained, &work, work.n);
    row("the same lines without", run_untrained, &work, work.n);
    chase("chase in 40 KiB, a quarter more than L1", 40 << 10, 1, memory);
    chase("chase in 640 KiB, a quarter more than L2", 640 << 10, 1, memory);
    work.n = 1000;
    row("a load of what was just stored", run_forwarded, &work, 8 * work.n);
    if (threads < 4) return;
    work = (Work){.memory = memory, .bytes = 4 * MiB, .stride = LINE, .threads = 4, .turns = 1};
    row("4 threads read 4 MiB each, a line of each", run_team, &work, 4 * MiB / LINE);
    work.bytes = 64 << 10, work.turns = 64;
    row("4 threads read 64 KiB each, a line of each", run_team, &work, 64 * (64 << 10) / LINE);
}

static int cpus(void)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
}

int main(int argc, char **argv)
{
    if (argc != 2) return 2;
    choose_timing();
    printf("{\"timing\": \"%s\", \"mhz\": %.1f}\n", TIMINGS[timing], mhz_now());
    char *memory = aligned_alloc(PAGE, 16 * MiB + PAGE), *other = aligned_alloc(PAGE, 8 * MiB);
    if (!memory || !other) return 3;
    memset(memory, 1, 16 * MiB + PAGE);
    memset(other, 1, 8 * MiB);
    if (!strcmp(argv[1], "facts")) facts();
    else if (!strcmp(argv[1], "memory")) memory_rows(memory, other);
    else if (!strcmp(argv[1], "probes")) probe_rows(memory, cpus());
    else return 2;
    return 0;
}
