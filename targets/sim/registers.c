/* The guest's registers. The plugin interface of QEMU 7 and 8 does not give them; the functions that serve QEMU's own debugger stub do, and
 * QEMU exports them to its modules. */
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
static void *cpus[MAX_CORES];

bool registers_init(void)
{
    *(void **)&qemu_cpu = dlsym(RTLD_DEFAULT, "qemu_get_cpu");
    *(void **)&read_into = dlsym(RTLD_DEFAULT, "aarch64_cpu_gdb_read_register");
    *(void **)&make = dlsym(RTLD_DEFAULT, "g_byte_array_new");
    *(void **)&set_size = dlsym(RTLD_DEFAULT, "g_byte_array_set_size");
    return qemu_cpu && read_into && make && set_size;
}

void registers_forget(unsigned cpu)
{
    cpus[cpu % MAX_CORES] = NULL;
}

uint64_t registers_read(unsigned cpu, int number)
{
    static __thread ByteArray *bytes;
    if (!bytes) bytes = make();
    void **found = &cpus[cpu % MAX_CORES];
    if (!*found) *found = qemu_cpu((int)cpu);
    uint64_t value = 0;
    set_size(bytes, 0);
    if (*found && read_into(*found, bytes, number) == sizeof value) memcpy(&value, bytes->data, sizeof value);
    return value;
}
