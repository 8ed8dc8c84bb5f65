/* System calls in simulated time: what waits, what wakes, and what the clocks say. */
#define _GNU_SOURCE
#include <linux/futex.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "threads.h"

/* Numbers of A64 Linux system calls. */
enum {
    SYS_EPOLL_PWAIT = 22,
    SYS_READ = 63,
    SYS_READV = 65,
    SYS_PREAD64 = 67,
    SYS_PSELECT6 = 72,
    SYS_PPOLL = 73,
    SYS_EXIT = 93,
    SYS_EXIT_GROUP = 94,
    SYS_WAITID = 95,
    SYS_FUTEX = 98,
    SYS_NANOSLEEP = 101,
    SYS_CLOCK_GETTIME = 113,
    SYS_CLOCK_NANOSLEEP = 115,
    SYS_SCHED_GETAFFINITY = 123,
    SYS_RT_SIGTIMEDWAIT = 137,
    SYS_GETTIMEOFDAY = 169,
    SYS_ACCEPT = 202,
    SYS_CONNECT = 203,
    SYS_SENDTO = 206,
    SYS_RECVFROM = 207,
    SYS_SENDMSG = 211,
    SYS_RECVMSG = 212,
    SYS_CLONE = 220,
    SYS_ACCEPT4 = 242,
    SYS_WAIT4 = 260
};
enum { CLONE_VM_BIT = 0x100, CLONE_VFORK_BIT = 0x4000, CLONE_CHILD_CLEARTID_BIT = 0x200000 };
enum { N_CLOCKS = 12, ABSOLUTE_TIME = 1 };

/* Simulated time goes on from the host's clocks at the cycle in which the turns began. */
static struct timespec clocks[N_CLOCKS];
static uint64_t first_cycle;

void syscalls_begin_time(unsigned cpu)
{
    for (int i = 0; i < N_CLOCKS; i++) clock_gettime(i, &clocks[i]);
    first_cycle = core_of(cpu)->cycle;
}

static uint64_t cycles_of(const struct timespec *time)
{
    return ((uint64_t)time->tv_sec * 1000000000 + (uint64_t)time->tv_nsec) * (uint64_t)params.mhz / 1000;
}

/* The cycle in which a clock shows `time`. */
static uint64_t cycle_at(int clock, const struct timespec *time)
{
    const struct timespec *base = &clocks[clock];
    struct timespec left = {time->tv_sec - base->tv_sec, time->tv_nsec - base->tv_nsec};
    if (left.tv_nsec < 0) left.tv_sec--, left.tv_nsec += 1000000000;
    return left.tv_sec < 0 ? first_cycle : first_cycle + cycles_of(&left);
}

static struct timespec time_at(int clock, uint64_t cycle)
{
    const uint64_t ns = (cycle - first_cycle) * 1000 / (uint64_t)params.mhz + (uint64_t)clocks[clock].tv_nsec;
    return (struct timespec){clocks[clock].tv_sec + (time_t)(ns / 1000000000), (long)(ns % 1000000000)};
}

/* The guest's struct timespec, or timeval, of the call that `me` is in. */
static bool read_time(const Thread *me, uint64_t address, struct timespec *time)
{
    int32_t narrow[2];
    if (!me->narrow) return guest_read(address, time, sizeof *time);
    if (!guest_read(address, narrow, sizeof narrow)) return false;
    *time = (struct timespec){narrow[0], narrow[1]};
    return true;
}

static void write_time(const Thread *me, uint64_t address, int64_t seconds, int64_t parts)
{
    const int64_t wide[2] = {seconds, parts};
    const int32_t narrow[2] = {(int32_t)seconds, (int32_t)parts};
    if (me->narrow) guest_write(address, narrow, sizeof narrow);
    else guest_write(address, wide, sizeof wide);
}

/* ---- futexes ---- */

static uint64_t deadline_of(unsigned cpu, const uint64_t *arguments)
{
    struct timespec time;
    if (!arguments[3] || !read_time(thread_of(cpu), arguments[3], &time)) return UINT64_MAX;
    const bool absolute = (arguments[1] & FUTEX_CMD_MASK) == FUTEX_WAIT_BITSET;
    if (absolute) return cycle_at(arguments[1] & FUTEX_CLOCK_REALTIME ? CLOCK_REALTIME : CLOCK_MONOTONIC, &time);
    return core_of(cpu)->cycle + cycles_of(&time);
}

/* Waits in simulated time. Whoever then comes to the host's kernel must not sleep there: it finds another value than it expects, for the
 * moment of the call, and answers "try again", which every user of a futex takes for a wake. Of a timeout the kernel tells itself. */
static void wait_on(unsigned cpu, Thread *me, const uint64_t *arguments)
{
    uint32_t value;
    const uint64_t address = arguments[0];
    if (!guest_read(address, &value, sizeof value) || value != (uint32_t)arguments[2]) return; /* the kernel answers at once */
    threads_sleep(cpu, address, deadline_of(cpu, arguments));
    if (me->timed_out || !guest_read(address, &value, sizeof value) || value != (uint32_t)arguments[2]) return;
    const uint32_t other = value + 1;
    me->poked = address;
    me->value = value;
    guest_write(address, &other, sizeof other);
}

static void futex(unsigned cpu, Thread *me, const uint64_t *arguments)
{
    unsigned woken = 0;
    switch (arguments[1] & FUTEX_CMD_MASK) {
    case FUTEX_WAIT:
    case FUTEX_WAIT_BITSET: wait_on(cpu, me, arguments); return;
    case FUTEX_WAKE:
    case FUTEX_WAKE_BITSET: woken = threads_wake(cpu, arguments[0], (uint32_t)arguments[2]); break;
    case FUTEX_REQUEUE: /* those that would be moved may as well wake: they look again */
    case FUTEX_CMP_REQUEUE: woken = threads_wake(cpu, arguments[0], UINT32_MAX); break;
    case FUTEX_WAKE_OP: woken = threads_wake(cpu, arguments[0], UINT32_MAX) + threads_wake(cpu, arguments[4], UINT32_MAX); break;
    }
    if (woken) core_sleep(core_of(cpu), core_of(cpu)->cycle + params.futex_wake);
}

/* ---- other calls ---- */

static void sleep_for(unsigned cpu, int clock, bool absolute, uint64_t request)
{
    struct timespec time;
    if (!read_time(thread_of(cpu), request, &time)) return;
    threads_sleep(cpu, 0, absolute && clock < N_CLOCKS ? cycle_at(clock, &time) : core_of(cpu)->cycle + cycles_of(&time));
}

static bool takes_as_long_as_it_takes(int64_t number)
{
    switch (number) {
    case SYS_EPOLL_PWAIT:
    case SYS_READ:
    case SYS_READV:
    case SYS_PREAD64:
    case SYS_PSELECT6:
    case SYS_PPOLL:
    case SYS_WAITID:
    case SYS_RT_SIGTIMEDWAIT:
    case SYS_ACCEPT:
    case SYS_CONNECT:
    case SYS_SENDTO:
    case SYS_RECVFROM:
    case SYS_SENDMSG:
    case SYS_RECVMSG:
    case SYS_ACCEPT4:
    case SYS_WAIT4: return true;
    default: return false;
    }
}

static bool forks(const uint64_t *arguments)
{
    return !(arguments[0] & CLONE_VM_BIT) || arguments[0] & CLONE_VFORK_BIT;
}

uint64_t clone_clears(const uint64_t *arguments)
{
    return arguments[0] & CLONE_CHILD_CLEARTID_BIT ? arguments[4] : 0;
}

static void in_turn(unsigned cpu, Thread *me, int64_t number, const uint64_t *arguments)
{
    core_sleep(core_of(cpu), core_of(cpu)->cycle + params.syscall);
    switch (number) {
    case SYS_FUTEX: futex(cpu, me, arguments); break;
    case SYS_NANOSLEEP: sleep_for(cpu, CLOCK_MONOTONIC, false, arguments[0]); break;
    case SYS_CLOCK_NANOSLEEP: sleep_for(cpu, (int)arguments[0], arguments[1] & ABSOLUTE_TIME, arguments[2]); break;
    case SYS_EXIT_GROUP: /* QEMU's own way out waits for vCPUs that wait for their turn */
        if (!threads_alone(cpu)) _exit((int)arguments[0]);
        break;
    case SYS_CLONE: /* so does its fork */
        if (forks(arguments) && !threads_alone(cpu)) threads_release();
        break;
    default:
        if (takes_as_long_as_it_takes(number) && !threads_alone(cpu)) threads_leave(cpu);
    }
}

void syscall_before(unsigned cpu, int64_t number, const uint64_t *arguments, bool narrow)
{
    Thread *me = thread_of(cpu);
    if (me->state == ABSENT) threads_born(cpu, 0); /* the first thread */
    memcpy(me->arguments, arguments, sizeof me->arguments);
    me->narrow = narrow;
    me->poked = 0;
    me->call = number;
    if (number == SYS_EXIT) threads_end(cpu);
    else if (turns_taken) in_turn(cpu, me, number, arguments);
}

static void tell_time(unsigned cpu, int64_t number, const uint64_t *arguments)
{
    const uint64_t now = core_of(cpu)->cycle;
    if (number == SYS_CLOCK_GETTIME && arguments[0] < N_CLOCKS) {
        const struct timespec time = time_at((int)arguments[0], now);
        write_time(thread_of(cpu), arguments[1], time.tv_sec, time.tv_nsec);
    } else if (number == SYS_GETTIMEOFDAY && arguments[0]) {
        const struct timespec time = time_at(CLOCK_REALTIME, now);
        write_time(thread_of(cpu), arguments[0], time.tv_sec, time.tv_nsec / 1000);
    }
}

/* A simulated board has as many CPUs as it has. */
static void tell_cpus(const uint64_t *arguments, int64_t size)
{
    uint64_t mask = params.cpus < 64 ? (1ull << params.cpus) - 1 : ~0ull;
    for (int64_t at = 0; at + 4 <= size; at += 4, mask >>= 32) guest_write(arguments[2] + (uint64_t)at, &mask, 4);
}

void syscall_after(unsigned cpu, int64_t number, int64_t result)
{
    Thread *me = thread_of(cpu);
    if (number == SYS_CLONE && result == 0 && forks(me->arguments)) threads_forked(cpu);
    me->call = NO_CALL;
    if (number == SYS_SCHED_GETAFFINITY && result > 0 && params.cpus) tell_cpus(me->arguments, result);
    if (!turns_taken) return;
    if (turn != cpu) threads_enter(cpu);
    if (me->poked) guest_write(me->poked, &me->value, sizeof me->value);
    me->poked = 0;
    if (result == 0) tell_time(cpu, number, me->arguments);
}
