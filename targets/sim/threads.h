/* Guest threads in simulated time. Each has a core of its own; one of them runs at a time: the one that is behind, until it is a quantum
 * ahead of the next. So what threads see of each other and of what they share is a matter of simulated cycles, never of the host. */
#ifndef A53_THREADS_H
#define A53_THREADS_H

#include "a53.h"

enum { NOBODY = ~0u, NO_CALL = -1 };

/* RUNNABLE: runs when its turn comes. ASLEEP: waits for a wake or until its deadline, in simulated time. AWAY: in a system call that takes
 * as long as the host takes. UNTIMED: lives, but the turns have not begun. */
typedef enum { ABSENT, UNTIMED, RUNNABLE, ASLEEP, AWAY } ThreadState;

typedef struct {
    ThreadState state;
    uint64_t futex, deadline; /* ASLEEP: until a wake of this address, or this cycle */
    uint64_t since;           /* order in which threads fell asleep */
    bool timed_out;
    int64_t call;             /* number of the system call it is in, or NO_CALL */
    uint64_t arguments[6];
    bool narrow;              /* the call's times are pairs of 32 bits */
    uint64_t clear_at_exit;   /* address that the kernel clears when the thread ends, or 0 */
    bool newborn;             /* made since the turns began, and has not run yet */
    bool expected;            /* woken in the host's kernel, not back yet */
    uint64_t poked;           /* address of a futex whose value was changed for the moment of a system call, or 0 */
    uint32_t value;           /* its value */
} Thread;

/* From the first region on. */
extern volatile bool turns_taken;
/* Whose turn it is, and the cycle at which it must give way. */
extern volatile unsigned turn;
extern volatile uint64_t turn_ends;

Thread *thread_of(unsigned cpu);
/* All of the following lock what they need themselves. */
void threads_born(unsigned cpu, uint64_t clear_at_exit);
void threads_begin(unsigned cpu); /* begins the turns, of which `cpu` has the first */
void threads_enter(unsigned cpu); /* waits for the turn of a thread that wants to run */
void threads_give_way(unsigned cpu);
/* Sleeps until a wake of the futex or until the cycle `deadline`; returns with the turn. */
void threads_sleep(unsigned cpu, uint64_t futex, uint64_t deadline);
/* Wakes at most `count` threads asleep on the futex, in the order in which they fell asleep; returns how many. */
unsigned threads_wake(unsigned cpu, uint64_t futex, uint32_t count);
void threads_leave(unsigned cpu);  /* goes to a system call of unknown length; enters again after it */
void threads_end(unsigned cpu);
void threads_release(void);        /* ends the turns: everybody runs as the host lets them */
void threads_forked(unsigned cpu); /* in the child: nobody else is there */
bool threads_alone(unsigned cpu);

/* ---- system calls (syscalls.c) ---- */
void syscalls_begin_time(unsigned cpu); /* the guest's clocks go on from here in simulated time */
/* `narrow`: the call's times are pairs of 32 bits. */
void syscall_before(unsigned cpu, int64_t number, const uint64_t *arguments, bool narrow);
void syscall_after(unsigned cpu, int64_t number, int64_t result);
/* Where the kernel clears a word when the thread ends that a clone with these arguments makes, or 0. */
uint64_t clone_clears(const uint64_t *arguments);

/* ---- the guest's memory (guest.c) ---- */
bool guest_read(uint64_t address, void *to, size_t size);
bool guest_write(uint64_t address, const void *from, size_t size);

#endif
