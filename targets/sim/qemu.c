/* What the plugin interface of QEMU 7 and 8 lacks: the guest's registers, which QEMU's own debugger stub reads, and a way out of translated
 * code. QEMU exports all its functions to its modules. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "a53.h"

typedef struct {
    uint8_t *data;
    unsigned length;
} ByteArray; /* GLib's GByteArray */

static void *(*qemu_cpu)(int index);
static int (*read_into)(void *cpu, ByteArray *bytes, int number);
static ByteArray *(*set_size)(ByteArray *bytes, unsigned length);
static ByteArray *(*make)(void);
static void (*exec_end)(void *cpu), (*exec_start)(void *cpu), (*loop_exit)(void *cpu);
static void *cpus[MAX_CORES];
static const uintptr_t *guest_base;

bool qemu_init(void)
{
    *(void **)&qemu_cpu = dlsym(RTLD_DEFAULT, "qemu_get_cpu");
    *(void **)&read_into = dlsym(RTLD_DEFAULT, aarch32 ? "arm_cpu_gdb_read_register" : "aarch64_cpu_gdb_read_register");
    *(void **)&make = dlsym(RTLD_DEFAULT, "g_byte_array_new");
    *(void **)&set_size = dlsym(RTLD_DEFAULT, "g_byte_array_set_size");
    *(void **)&exec_end = dlsym(RTLD_DEFAULT, "cpu_exec_end");
    *(void **)&exec_start = dlsym(RTLD_DEFAULT, "cpu_exec_start");
    *(void **)&loop_exit = dlsym(RTLD_DEFAULT, "cpu_loop_exit");
    guest_base = dlsym(RTLD_DEFAULT, "guest_base");
    return guest_base && qemu_cpu && read_into && make && set_size && exec_end && exec_start && loop_exit;
}

static void *state_of(unsigned cpu)
{
    void **found = &cpus[cpu % MAX_CORES];
    if (!*found) *found = qemu_cpu((int)cpu);
    return *found;
}

void qemu_forget(unsigned cpu)
{
    cpus[cpu % MAX_CORES] = NULL;
}

static uint64_t register_in(void *state, int number)
{
    static __thread ByteArray *bytes;
    if (!bytes) bytes = make();
    const int size = aarch32 ? 4 : 8;
    uint64_t value = 0;
    set_size(bytes, 0);
    if (state && read_into(state, bytes, number) == size) memcpy(&value, bytes->data, (size_t)size);
    return value;
}

uint64_t qemu_register(unsigned cpu, int number)
{
    return register_in(state_of(cpu), number);
}

bool qemu_is_t32(void)
{
    enum { CPSR = 25, T = 1 << 5 }; /* as the debugger stub numbers it */
    if (!aarch32) return false;
    void **current = dlsym(RTLD_DEFAULT, "current_cpu"); /* the calling thread's own */
    return current && register_in(*current, CPSR) & T;
}

uint64_t qemu_guest_base(void)
{
    return *guest_base;
}

void qemu_step_aside(unsigned cpu)
{
    exec_end(state_of(cpu));
}

void qemu_begin_again(unsigned cpu)
{
    exec_start(state_of(cpu));
    loop_exit(state_of(cpu));
    __builtin_unreachable();
}
