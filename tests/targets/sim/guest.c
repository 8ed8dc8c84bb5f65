/* A guest program for the simulator's tests: marks regions of known work. First argument: what to do. */
#include <pthread.h>
#include <signal.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { START = 0x41353301, STOP, READ, IDENTIFY, COLD, LIMIT, BLOCKS };

static float data[1 << 16] __attribute__((aligned(4096)));
static char buffer[1 << 20] = "A53ASK?";
static sigjmp_buf out_of_time;

static void mark(int what, unsigned long value)
{
    prctl(what, value, 0, 0, 0);
}

static void ask(int what, unsigned long size)
{
    strcpy(buffer, "A53ASK?");
    prctl(what, buffer, size, 0, 0);
    puts(buffer);
}

/* n dependent multiply-adds of 4 cycles each, and a subtraction and a branch for each. */
static void chain(long n)
{
    __asm__ volatile("0: fmla v0.4s, v1.4s, v2.4s\n subs %0, %0, #1\n b.ne 0b" : "+r"(n) : : "v0", "cc");
}

/* Reads `bytes` of data from the start, a line at a time. */
static void sweep(long bytes)
{
    const char *at = (const char *)data;
    __asm__ volatile("0: ldr x9, [%0], #64\n subs %1, %1, #64\n b.ne 0b" : "+r"(at), "+r"(bytes) : : "x9", "cc", "memory");
}

enum { LOAD, PLAIN, OFFSET, UNSCALED, INDEX, MOVED, LOADED, PRODUCT, UNMAPPED, CODE, NONE };
static const char *const ways[] = {"load", "plain", "offset", "unscaled", "index", "moved", "loaded", "product", "unmapped", "code", "none"};

/* Reads a line of each of 1000 pages, in an order that no prefetcher follows, and fetches the one eight turns ahead. */
static void read_ahead(const char *pages, int way)
{
    const char *at[1008];
    long words[1008]; /* the same as a number of words */
    for (unsigned i = 0; i < 1008; i++) words[i] = 512 * (i * 619 % 1000) + 8 * (i * 7 % 64);
    for (unsigned i = 0; i < 1008; i++) at[i] = pages + 4096 * (i * 619 % 1000) + 64 * (i * 7 % 64);
    for (int i = 0; i < 1000; i++) {
        const char *next = at[i + 8];
        switch (way) {
        case LOAD: __asm__ volatile("ldr xzr, [%0]" : : "r"(next)); break;
        case PLAIN: __asm__ volatile("prfm pldl1keep, [%0]" : : "r"(next)); break;
        case OFFSET: __asm__ volatile("prfm pldl1strm, [%0, #128]" : : "r"(next - 128)); break;
        case UNSCALED: __asm__ volatile("prfum pldl1keep, [%0, #-9]" : : "r"(next + 9)); break;
        case INDEX: __asm__ volatile("ldr x9, [%1]\n prfm pldl1keep, [%0, x9, lsl #3]\n cbz x9, 1f\n 1:" : : "r"(pages), "r"(&words[i + 8]) : "x9"); break;
        case MOVED: /* the register changes before and after: nowhere in the block does it hold this */
            __asm__ volatile("add x9, %0, #64\n prfm pldl1keep, [x9, #64]\n mov x9, #0" : : "r"(next - 128) : "x9");
            break;
        case LOADED: __asm__ volatile("ldr x9, [%0]\n prfm pldl1keep, [x9]\n sub x9, x9, #8" : : "r"(&at[i + 8]) : "x9"); break;
        case PRODUCT:
            __asm__ volatile("madd x9, %1, %2, %0\n prfm pldl1keep, [x9]\n mov x9, #0" : : "r"(next - 640), "r"(10l), "r"(64l) : "x9");
            break;
        case UNMAPPED: __asm__ volatile("prfm pldl1keep, [%0]" : : "r"(1l << 40)); break;
        case CODE: __asm__ volatile("prfm plil1keep, [%0]" : : "r"(next)); break;
        }
        __asm__ volatile("ldr x9, [%0]\n add x9, x9, x9\n .rept 60\n fadd v0.4s, v0.4s, v0.4s\n .endr" : : "r"(at[i]) : "x9", "v0");
    }
}

static void *threaded_chain(void *unused)
{
    chain(10000);
    return unused;
}

/* ---- a team of threads on one line of tickets, as in runtime.c ---- */
enum { TEAM = 4, ROUNDS = 30 };
static struct {
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    atomic_int round, done;
    int sleeps; /* workers sleep at once instead of spinning */
    void (*work)(int);
} team = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0, 0, NULL};
static char streams[TEAM][1 << 20] __attribute__((aligned(4096)));
static atomic_long counter;

static void compute(int unused)
{
    (void)unused;
    chain(20000);
}

static void stream(int member)
{
    const char *at = streams[member];
    long bytes = sizeof streams[0];
    __asm__ volatile("0: ldp q0, q1, [%0], #64\n subs %1, %1, #64\n b.ne 0b" : "+r"(at), "+r"(bytes) : : "v0", "v1", "cc", "memory");
}

static void count(int unused)
{
    (void)unused;
    for (int i = 0; i < 500; i++) counter++;
}

static void *member(void *number)
{
    for (int seen = 0; seen < ROUNDS;) {
        for (int spin = 0; !team.sleeps && team.round == seen && spin < 20000; spin++) __asm__ volatile("yield");
        pthread_mutex_lock(&team.mutex);
        while (team.round == seen) pthread_cond_wait(&team.wake, &team.mutex);
        pthread_mutex_unlock(&team.mutex);
        seen = team.round;
        team.work((int)(long)number);
        team.done++;
    }
    return NULL;
}

static void team_round(void)
{
    team.done = 0;
    pthread_mutex_lock(&team.mutex);
    team.round++;
    pthread_cond_broadcast(&team.wake);
    pthread_mutex_unlock(&team.mutex);
    team.work(0);
    while (team.done < TEAM - 1) __asm__ volatile("yield");
}

static void run_team(const char *what, int sleeps)
{
    pthread_t threads[TEAM];
    team.work = !strcmp(what, "stream") ? stream : !strcmp(what, "count") ? count : compute;
    team.sleeps = sleeps;
    for (long i = 1; i < TEAM; i++) pthread_create(&threads[i], NULL, member, (void *)i);
    mark(START, 0);
    team_round();
    for (int i = 1; i < ROUNDS; i++) {
        mark(START, 0);
        team_round();
        if (i == ROUNDS - 1) mark(STOP, TEAM);
    }
    if (!strcmp(what, "fork")) {
        const pid_t child = fork();
        if (child == 0) {
            mark(START, 0);
            chain(1000);
            mark(STOP, 1);
            _exit(0);
        }
        waitpid(child, NULL, 0);
    }
    if (strcmp(what, "leave")) /* else the others are still there */
        for (int i = 1; i < TEAM; i++) pthread_join(threads[i], NULL);
    printf("%ld\n", (long)counter);
}

static void leave(int unused)
{
    (void)unused;
    siglongjmp(out_of_time, 1);
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    if (!strcmp(what, "regions")) {
        for (int i = 0; i < 5; i++) {
            mark(START, 0);
            chain(1000 * (i + 1));
            mark(STOP, 10 + i);
        }
        ask(READ, sizeof buffer);
    } else if (!strcmp(what, "paths")) {
        struct stat unused;
        stat("/a53roi/start", &unused);
        chain(1000);
        access("/a53roi/stop42", F_OK);
    } else if (!strcmp(what, "identify")) {
        ask(IDENTIFY, sizeof buffer);
        ask(READ, sizeof buffer);
        mark(START, 0);
        mark(STOP, 0);
        ask(READ, 100);
        prctl(READ, 16, 4096, 0, 0);
    } else if (!strcmp(what, "cold")) {
        for (int i = 0; i < 4; i++) {
            if (i == 3) mark(COLD, 0);
            mark(START, 0);
            sweep(16384);
            mark(STOP, i);
        }
    } else if (!strcmp(what, "ahead")) {
        char *pages = aligned_alloc(4096, 4096 * 1000);
        memset(pages, 1, 4096 * 1000);
        int way = 0;
        while (strcmp(ways[way], argv[2])) way++;
        for (int i = 0; i < 2; i++) {
            mark(COLD, 0);
            mark(START, 0);
            read_ahead(pages, way);
            mark(STOP, i);
        }
        free(pages);
    } else if (!strcmp(what, "limit")) {
        mark(LIMIT, 50000);
        mark(START, 0);
        chain(1000);
        mark(STOP, 1);
        mark(START, 0);
        chain(100000000);
        mark(STOP, 2);
    } else if (!strcmp(what, "survive")) {
        signal(SIGXCPU, leave);
        mark(LIMIT, 50000);
        if (sigsetjmp(out_of_time, 1) == 0) {
            mark(START, 0);
            chain(100000000);
            mark(STOP, 2);
        }
        ask(READ, sizeof buffer);
    } else if (!strcmp(what, "unknown")) {
        mark(START, 0);
        __asm__ volatile("aesmc v0.16b, v0.16b\n aesmc v0.16b, v0.16b\n sha256su0 v1.4s, v2.4s" : : : "v0", "v1");
        mark(STOP, 0);
    } else if (!strcmp(what, "blocks")) {
        mark(BLOCKS, 2);
        mark(START, 0);
        chain(50000);
        sweep(65536);
        mark(STOP, 0);
        mark(BLOCKS, 0);
        mark(START, 0);
        chain(1000);
        mark(STOP, 1);
    } else if (!strcmp(what, "threads")) {
        pthread_t thread;
        mark(START, 0);
        pthread_create(&thread, NULL, threaded_chain, NULL);
        chain(20000);
        pthread_join(thread, NULL);
        mark(STOP, 0);
    } else if (!strcmp(what, "stored")) { /* a chain through memory: each load waits for the store before it */
        mark(START, 0);
        __asm__ volatile("mov x9, #1000\n 0: str x10, [%0]\n ldr x10, [%0]\n subs x9, x9, #1\n b.ne 0b" : : "r"(data) : "x9", "x10", "memory", "cc");
        mark(STOP, 0);
    } else if (!strcmp(what, "team")) {
        run_team(argv[2], argc > 3);
    } else if (!strcmp(what, "sleep")) {
        struct timespec before, after, asked = {0, 5000000};
        mark(START, 0);
        clock_gettime(CLOCK_MONOTONIC, &before);
        nanosleep(&asked, NULL);
        clock_gettime(CLOCK_MONOTONIC, &after);
        mark(STOP, 0);
        printf("%ld\n", (after.tv_sec - before.tv_sec) * 1000000000l + after.tv_nsec - before.tv_nsec);
    } else if (!strcmp(what, "work")) { /* on pages that differ from run to run; the place in a page is the program's, as in runtime.c */
        float *heap = malloc(300000), *stack = __builtin_alloca_with_align(20000, 8 * 4096);
        memset(stack, 0, 20000);
        for (int i = 0; i < 3; i++) {
            mark(START, 0);
            for (int k = 0; k < 70000; k++) heap[k] = heap[k] * 0.5f + data[k % 65536] + stack[k % 4000];
            chain(1000);
            mark(STOP, i);
        }
        printf("%p %p\n", (void *)heap, (void *)stack);
        free(heap);
    }
    return 0;
}
