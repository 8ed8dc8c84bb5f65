/* Who runs when: see threads.h. */
#define _GNU_SOURCE
#include <linux/futex.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "threads.h"

enum { SYS_FUTEX = 98, FUTEX_COMMAND = 127 };
/* Waits for the host are counted, not timed: a limit that depends on the host's speed would make cycles depend on it. */
enum { POLL_US = 200, MAX_POLLS = 100000, SETTLE_US = 20000 };

volatile bool turns_taken;
volatile unsigned turn = NOBODY;
volatile uint64_t turn_ends = UINT64_MAX;

static Thread threads[MAX_CORES];
static pthread_cond_t turn_came[MAX_CORES] = {[0 ... MAX_CORES - 1] = PTHREAD_COND_INITIALIZER};
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned n_threads;      /* no higher number lives */
static uint64_t sleepers;       /* counts who falls asleep */
static uint64_t latest;         /* cycle of whoever had the turn last */
static uint64_t clearing;       /* a thread ended: the kernel is about to clear this word, or 0 */

Thread *thread_of(unsigned cpu)
{
    return &threads[cpu % MAX_CORES];
}

static Thread *known(unsigned cpu)
{
    Thread *thread = thread_of(cpu);
    if (cpu >= n_threads) {
        n_threads = cpu + 1;
        thread->call = NO_CALL;
    }
    return thread;
}

/* The cycle from which a thread could run; UINT64_MAX: not by itself. */
static uint64_t runs_from(unsigned cpu)
{
    const Thread *thread = &threads[cpu];
    const uint64_t now = core_of(cpu)->cycle;
    if (thread->state == RUNNABLE) return now;
    if (thread->state == ASLEEP && thread->deadline != UINT64_MAX) return thread->deadline > now ? thread->deadline : now;
    return UINT64_MAX;
}

static void wake(unsigned cpu, uint64_t cycle)
{
    core_sleep(core_of(cpu), cycle);
    threads[cpu].state = RUNNABLE;
    if (cycle + params.quantum < turn_ends) turn_ends = cycle + params.quantum;
}

/* Gives the turn to the thread that is behind, the first of them if there are more, or to nobody. */
static void pass_turn(void)
{
    unsigned next = NOBODY;
    uint64_t first = UINT64_MAX, second = UINT64_MAX;
    for (unsigned i = 0; i < n_threads; i++) {
        if (threads[i].state != RUNNABLE && threads[i].state != ASLEEP) continue;
        const uint64_t from = runs_from(i);
        if (from < first) second = first, first = from, next = i;
        else if (from < second) second = from;
    }
    turn_ends = second == UINT64_MAX ? UINT64_MAX : second + params.quantum;
    turn = next;
    if (next == NOBODY) return;
    if (threads[next].state == ASLEEP) {
        threads[next].timed_out = true;
        wake(next, first);
    }
    latest = first;
    threads[next].newborn = false;
    pthread_cond_signal(&turn_came[next]);
}

/* The word of a thread that ended is cleared by QEMU, after the system call that we saw: whoever waits for it must not look before. */
static void let_word_be_cleared(void)
{
    uint32_t word = 1;
    for (int i = 0; clearing && i < MAX_POLLS && guest_read(clearing, &word, sizeof word) && word; i++) usleep(POLL_US);
    clearing = 0;
}

static void await_turn(unsigned cpu)
{
    while (turn != cpu && turns_taken) pthread_cond_wait(&turn_came[cpu % MAX_CORES], &lock);
    if (clearing) let_word_be_cleared();
}

static void join(unsigned cpu)
{
    Thread *me = known(cpu);
    if (me->state != RUNNABLE) {
        if (core_of(cpu)->cycle < latest) core_sleep(core_of(cpu), latest);
        wake(cpu, core_of(cpu)->cycle);
        if (turn == NOBODY) pass_turn();
    }
    await_turn(cpu);
}

void threads_enter(unsigned cpu)
{
    pthread_mutex_lock(&lock);
    Thread *me = known(cpu);
    if (me->expected) { /* begins with whoever began the turns */
        me->expected = false;
        me->state = RUNNABLE;
    }
    const bool newborn = me->newborn;
    me->newborn = false;
    /* QEMU throws all translated code away when a program makes its first thread, once none runs: not while that thread waits in a block. */
    if (newborn) qemu_step_aside(cpu);
    join(cpu);
    pthread_mutex_unlock(&lock);
    if (newborn) qemu_begin_again(cpu);
}

void threads_give_way(unsigned cpu)
{
    pthread_mutex_lock(&lock);
    pass_turn();
    await_turn(cpu);
    pthread_mutex_unlock(&lock);
}

void threads_sleep(unsigned cpu, uint64_t futex, uint64_t deadline)
{
    pthread_mutex_lock(&lock);
    Thread *me = known(cpu);
    me->state = ASLEEP;
    me->futex = futex;
    me->deadline = deadline;
    me->timed_out = false;
    me->since = ++sleepers;
    pass_turn();
    await_turn(cpu);
    pthread_mutex_unlock(&lock);
}

static unsigned wake_asleep(uint64_t futex, uint32_t count, uint64_t cycle)
{
    unsigned woken = 0;
    for (; woken < count; woken++) {
        unsigned first = NOBODY;
        for (unsigned i = 0; i < n_threads; i++)
            if (threads[i].state == ASLEEP && threads[i].futex == futex && (first == NOBODY || threads[i].since < threads[first].since)) first = i;
        if (first == NOBODY) break;
        wake(first, cycle);
    }
    return woken;
}

unsigned threads_wake(unsigned cpu, uint64_t futex, uint32_t count)
{
    pthread_mutex_lock(&lock);
    const unsigned woken = wake_asleep(futex, count, core_of(cpu)->cycle + params.wake_latency);
    pthread_mutex_unlock(&lock);
    return woken;
}

void threads_leave(unsigned cpu)
{
    pthread_mutex_lock(&lock);
    known(cpu)->state = AWAY;
    pass_turn();
    pthread_mutex_unlock(&lock);
}

void threads_end(unsigned cpu)
{
    pthread_mutex_lock(&lock);
    Thread *me = known(cpu);
    me->state = ABSENT;
    if (turns_taken) {
        clearing = me->clear_at_exit;
        if (clearing) wake_asleep(clearing, UINT32_MAX, core_of(cpu)->cycle + params.wake_latency);
        pass_turn();
    }
    pthread_mutex_unlock(&lock);
}

void threads_born(unsigned cpu, uint64_t clear_at_exit)
{
    pthread_mutex_lock(&lock);
    Thread *child = known(cpu);
    *child = (Thread){.state = UNTIMED, .call = NO_CALL, .clear_at_exit = clear_at_exit};
    if (turns_taken && turn != NOBODY) {
        child->newborn = true;
        const Core *parent = core_of(turn);
        const uint64_t born = parent->cycle + params.wake_latency;
        Core *core = core_of(cpu);
        core->region_start = parent->region_start;
        core_sleep(core, born > core->cycle ? born : core->cycle);
        wake(cpu, core->cycle);
    }
    pthread_mutex_unlock(&lock);
}

/* ---- the beginning ---- */

static bool waits_for_futex(const Thread *thread)
{
    const int command = thread->arguments[1] & FUTEX_COMMAND;
    return thread->call == SYS_FUTEX && (command == FUTEX_WAIT || command == FUTEX_WAIT_BITSET);
}

static bool all_others(unsigned cpu, bool (*are)(const Thread *))
{
    for (unsigned i = 0; i < n_threads; i++)
        if (i != cpu && threads[i].state != ABSENT && !are(&threads[i])) return false;
    return true;
}

static bool is_in_a_call(const Thread *thread)
{
    return thread->call != NO_CALL;
}

static bool has_arrived(const Thread *thread)
{
    return !thread->expected;
}

static void poll_until_all_others(unsigned cpu, bool (*are)(const Thread *))
{
    for (int i = 0; i < MAX_POLLS && !all_others(cpu, are); i++) {
        pthread_mutex_unlock(&lock);
        usleep(POLL_US);
        pthread_mutex_lock(&lock);
    }
}

/* Takes threads that sleep in the host's kernel out of there. Every use of a futex copes with a wake for nothing: they look again, and if
 * they fall asleep once more they do so in simulated time. */
static void fetch_from_kernel(unsigned cpu)
{
    for (unsigned i = 0; i < n_threads; i++) {
        if (i == cpu || threads[i].state == ABSENT) continue;
        threads[i].state = AWAY;
        if (!waits_for_futex(&threads[i])) continue;
        Core *core = core_of(i);
        if (core->cycle < core_of(cpu)->cycle) core->cycle = core_of(cpu)->cycle;
        threads[i].expected = true;
    }
    for (unsigned i = 0; i < n_threads; i++) {
        if (!threads[i].expected) continue;
        void *address = (void *)(threads[i].arguments[0] + qemu_guest_base());
        syscall(SYS_futex, address, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
        syscall(SYS_futex, address, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
    }
}

void threads_begin(unsigned cpu)
{
    pthread_mutex_lock(&lock);
    known(cpu);
    if (!threads_alone(cpu)) {
        /* Workers that spin before they sleep are at a place that depends on the host: let them fall asleep. */
        poll_until_all_others(cpu, is_in_a_call);
        pthread_mutex_unlock(&lock);
        usleep(SETTLE_US);
        pthread_mutex_lock(&lock);
    }
    thread_of(cpu)->state = RUNNABLE;
    latest = core_of(cpu)->cycle;
    turn = cpu;
    turn_ends = UINT64_MAX;
    turns_taken = true;
    fetch_from_kernel(cpu);
    poll_until_all_others(cpu, has_arrived);
    pass_turn(); /* the others begin in the same cycle: sets the end of the turn, which goes to the lowest number */
    await_turn(cpu);
    pthread_mutex_unlock(&lock);
    syscalls_begin_time(cpu);
}

void threads_release(void)
{
    pthread_mutex_lock(&lock);
    turns_taken = false;
    for (unsigned i = 0; i < n_threads; i++) {
        if (threads[i].state != ABSENT) threads[i].state = UNTIMED;
        pthread_cond_signal(&turn_came[i]);
    }
    pthread_mutex_unlock(&lock);
}

void threads_forked(unsigned cpu)
{
    pthread_mutex_init(&lock, NULL); /* somebody who is not here may have held it */
    for (unsigned i = 0; i < n_threads; i++)
        if (i != cpu) threads[i] = (Thread){.call = NO_CALL};
}

bool threads_alone(unsigned cpu)
{
    for (unsigned i = 0; i < n_threads; i++)
        if (i != cpu && threads[i].state != ABSENT) return false;
    return true;
}
