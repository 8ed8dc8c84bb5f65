/* System calls of the 32-bit ARM ABI: what the model knows them by, the numbers of A64 Linux. */
#include "aarch32.h"

enum { VFORK = 190, CLONE_VM_AND_VFORK = 0x4100 };

/* A64 has the path second, after the folder it is relative to. */
static bool is_path_first(int64_t number)
{
    return number == 5 || number == 10 || number == 33 || number == 85 || number == 195;
}

int64_t syscall32(int64_t number, uint64_t *arguments, bool *narrow)
{
    static const struct {
        int16_t number, a64;
        bool narrow; /* its struct timespec has 32-bit fields */
    } calls[] = {
        {1, 93, false},     /* exit */
        {3, 63, false},     /* read */
        {5, 56, false},     /* open */
        {10, 35, false},    /* unlink */
        {33, 48, false},    /* access */
        {78, 169, true},    /* gettimeofday */
        {85, 78, false},    /* readlink */
        {114, 260, false},  /* wait4 */
        {120, 220, false},  /* clone */
        {142, 72, true},    /* _newselect */
        {145, 65, false},   /* readv */
        {162, 101, true},   /* nanosleep */
        {168, 73, false},   /* poll */
        {172, 167, false},  /* prctl */
        {177, 137, true},   /* rt_sigtimedwait */
        {180, 67, false},   /* pread64 */
        {190, 220, false},  /* vfork */
        {195, 79, false},   /* stat64 */
        {240, 98, true},    /* futex */
        {242, 123, false},  /* sched_getaffinity */
        {248, 94, false},   /* exit_group */
        {252, 22, false},   /* epoll_wait */
        {263, 113, true},   /* clock_gettime */
        {265, 115, true},   /* clock_nanosleep */
        {280, 95, false},   /* waitid */
        {283, 203, false},  /* connect */
        {285, 202, false},  /* accept */
        {289, 206, false},  /* send */
        {290, 206, false},  /* sendto */
        {291, 207, false},  /* recv */
        {292, 207, false},  /* recvfrom */
        {296, 211, false},  /* sendmsg */
        {297, 212, false},  /* recvmsg */
        {322, 56, false},   /* openat */
        {327, 79, false},   /* fstatat64 */
        {328, 35, false},   /* unlinkat */
        {332, 78, false},   /* readlinkat */
        {334, 48, false},   /* faccessat */
        {335, 72, true},    /* pselect6 */
        {336, 73, true},    /* ppoll */
        {346, 22, false},   /* epoll_pwait */
        {366, 242, false},  /* accept4 */
        {397, 291, false},  /* statx */
        {403, 113, false},  /* clock_gettime64 */
        {407, 115, false},  /* clock_nanosleep_time64 */
        {413, 72, false},   /* pselect6_time64 */
        {414, 73, false},   /* ppoll_time64 */
        {421, 137, false},  /* rt_sigtimedwait_time64 */
        {422, 98, false},   /* futex_time64 */
    };
    *narrow = false;
    if (arguments && is_path_first(number)) arguments[1] = arguments[0];
    if (arguments && number == VFORK) arguments[0] = CLONE_VM_AND_VFORK;
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
        if (calls[i].number == number) {
            *narrow = calls[i].narrow;
            return calls[i].a64;
        }
    return -2; /* not NO_CALL: the thread is in a call */
}
