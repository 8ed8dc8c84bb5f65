/* How many cycles something took: on a simulated Cortex-A53 as it says itself, on a real one by its cycle counter where the kernel
 * lets programs read it, elsewhere by the time and a clock that is measured. */
#ifndef CLOCK_H
#define CLOCK_H

#include <linux/perf_event.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* docs/simulator.md, "Region protocol". */
enum { START = 0x41353301, STOP, READ, IDENTIFY };

static enum { BY_CLOCK, BY_COUNTER, BY_SIMULATOR } timing;
static const char *const TIMINGS[] = {"clock", "counter", "simulator"};
static char answer[1 << 16];

typedef struct {
    double cycles, ns;
} Took;

static int ask(int what)
{
    strcpy(answer, "A53ASK?");
    prctl(what, answer, sizeof answer, 0ul, 0ul);
    return answer[0] == '{';
}

/* The number after `name` in the simulator's answer. */
static double answered(const char *name)
{
    const char *found = strstr(answer, name);
    return found ? strtod(found + strlen(name), NULL) : 0;
}

static double now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return 1e9 * (double)now.tv_sec + (double)now.tv_nsec;
}

/* A chain of dependent additions takes a cycle for each: the core's clock in MHz, whatever a driver says. */
static double measured_mhz(void)
{
    enum { ROUNDS = 4000, ADDS = 500 };
    double best = 1e18;
    for (int i = 0; i < 5; i++) {
        uint64_t x = 0, rounds = ROUNDS;
        const double begin = now_ns();
        __asm__ volatile("0: .rept 500\n add %0, %0, #1\n .endr\n subs %1, %1, #1\n b.ne 0b" : "+r"(x), "+r"(rounds)::"cc");
        const double took = now_ns() - begin;
        if (took < best) best = took;
    }
    return best > 0 ? 1e3 * ROUNDS * ADDS / best : 0;
}

static inline uint64_t counter(void)
{
    uint64_t value;
    __asm__ volatile("isb\n mrs %0, pmccntr_el0\n isb" : "=r"(value)::"memory");
    return value;
}

static sigjmp_buf forbidden;

static void on_forbidden(int number)
{
    siglongjmp(forbidden, number);
}

/* Whether programs may read the cycle counter. Linux lets them while they have an event of it mapped, if the administrator has set
 * kernel.perf_user_access (Documentation/arch/arm64/perf.rst). */
static int counter_works(void)
{
    struct perf_event_attr event = {.type = PERF_TYPE_HARDWARE, .size = sizeof event, .config = PERF_COUNT_HW_CPU_CYCLES};
    event.exclude_kernel = 1;
    event.config1 = 3; /* 64 bits, read by the program */
    const int file = (int)syscall(SYS_perf_event_open, &event, 0, -1, -1, 0ul);
    if (file >= 0) mmap(NULL, (size_t)sysconf(_SC_PAGESIZE), PROT_READ, MAP_SHARED, file, 0);
    struct sigaction action = {.sa_handler = on_forbidden}, former;
    sigaction(SIGILL, &action, &former);
    volatile int works = 0;
    if (!sigsetjmp(forbidden, 1)) {
        const uint64_t begin = counter();
        uint64_t x = 0;
        __asm__ volatile(".rept 1000\n add %0, %0, #1\n .endr" : "+r"(x));
        const uint64_t took = counter() - begin;
        works = took > 900 && took < 100000;
    }
    sigaction(SIGILL, &former, NULL);
    return works;
}

static void choose_timing(void)
{
    timing = ask(IDENTIFY) ? BY_SIMULATOR : counter_works() ? BY_COUNTER : BY_CLOCK;
}

/* The clock now; the simulator's is that of its target. */
static double mhz_now(void)
{
    if (timing == BY_SIMULATOR && ask(IDENTIFY)) return answered("\"mhz\": ");
    return measured_mhz();
}

/* `work` with `argument`, once. */
static Took took(void (*work)(const void *), const void *argument, double mhz)
{
    if (timing == BY_SIMULATOR) {
        prctl(START, 0ul, 0ul, 0ul, 0ul);
        work(argument);
        prctl(STOP, 0ul, 0ul, 0ul, 0ul);
        ask(READ);
        const double cycles = answered("\"cycles\": ");
        return (Took){cycles, 1e3 * cycles / mhz};
    }
    const double begin = now_ns();
    const uint64_t first = timing == BY_COUNTER ? counter() : 0;
    work(argument);
    const uint64_t counted = timing == BY_COUNTER ? counter() - first : 0;
    const double ns = now_ns() - begin;
    return (Took){timing == BY_COUNTER ? (double)counted : ns * mhz / 1e3, ns};
}

#endif
