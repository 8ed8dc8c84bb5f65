/* Guest programs of test_aarch32.py. */
#define _GNU_SOURCE
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

enum { START = 0x41353301, STOP, READ, LINES = 2048, LINE = 64 };

static char bytes[2][1 << 16], report[1 << 14] = "A53ASK?";
static char lines[LINES * LINE * 8] __attribute__((aligned(4096)));
static volatile float sink;

/* Copies, fills, compares, sorts and computes as compiled networks and their runtime ask of libc and libm. */
static void libc(void)
{
    memset(bytes[0], 3, sizeof bytes[0]);
    memcpy(bytes[1], bytes[0], sizeof bytes[1]);
    memmove(bytes[1] + 5, bytes[1], 1000);
    sink = (float)(memcmp(bytes[0], bytes[1], 4096) + (int)strlen(bytes[0] + 65000));
    for (int i = 1; i < 50; i++) sink += expf(0.1f * i) + logf((float)i) + tanhf(0.1f * i) + powf((float)i, 0.3f);
    char text[64];
    snprintf(text, sizeof text, "%d %s", 42, "words");
    void *room = malloc(1000);
    sink += (float)(room != NULL) + (float)strlen(text);
    free(room);
}

/* Walks over lines that no prefetcher foresees, fetched eight turns ahead. */
static void ahead(int fetch)
{
    static uint32_t order[LINES];
    uint32_t state = 1, sum = 0;
    for (int i = 0; i < LINES; i++) order[i] = (state = state * 1664525 + 1013904223) % (LINES * 8);
    prctl(START, 0, 0, 0, 0);
    for (int i = 0; i < LINES - 8; i++) {
        const char *far = lines + LINE * (fetch ? order[i + 8] : order[i]);
        __asm__ volatile("pld [%0, #4]" : : "r"(far + LINE - 64));
        uint32_t value;
        __asm__ volatile("ldr %0, [%1]\n mov r12, #20\n 0: subs r12, r12, #1\n bne 0b" : "=&r"(value) : "r"(lines + LINE * order[i]) : "r12", "cc");
        __asm__ volatile("" : : "r"(far)); /* its register keeps the address for as long as the block runs */
        sum += value;
    }
    prctl(STOP, 0, 0, 0, 0);
    sink = (float)sum;
}

static pthread_barrier_t barrier;

static void *worker(void *unused)
{
    pthread_barrier_wait(&barrier);
    pthread_barrier_wait(&barrier);
    return unused;
}

/* Wakes two threads and sleeps 2 ms. */
static void threads(void)
{
    pthread_t others[2];
    struct timespec before, after, pause = {0, 2000000};
    pthread_barrier_init(&barrier, NULL, 3);
    for (int i = 0; i < 2; i++) pthread_create(&others[i], NULL, worker, NULL);
    prctl(START, 0, 0, 0, 0);
    clock_gettime(CLOCK_MONOTONIC, &before);
    nanosleep(&pause, NULL);
    clock_gettime(CLOCK_MONOTONIC, &after);
    pthread_barrier_wait(&barrier);
    pthread_barrier_wait(&barrier);
    prctl(STOP, 0, 0, 0, 0);
    for (int i = 0; i < 2; i++) pthread_join(others[i], NULL);
    printf("%lld\n", (after.tv_sec - before.tv_sec) * 1000000000ll + after.tv_nsec - before.tv_nsec);
}

int main(int argc, char **argv)
{
    if (argc > 2 && !strcmp(argv[1], "ahead")) ahead(atoi(argv[2]));
    else if (argc > 1 && !strcmp(argv[1], "threads")) threads();
    else {
        libc();
        prctl(START, 0, 0, 0, 0);
        libc();
        prctl(STOP, 0, 0, 0, 0);
        prctl(READ, report, sizeof report, 0, 0);
        puts(report);
    }
    return 0;
}
