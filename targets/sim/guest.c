/* The guest's memory, which QEMU's user mode maps at the guest's own addresses, or as many bytes further up. */
#define _GNU_SOURCE
#include <sys/uio.h>
#include <unistd.h>

#include "threads.h"

bool guest_read(uint64_t address, void *to, size_t size)
{
    struct iovec local = {to, size}, remote = {(void *)(address + qemu_guest_base()), size};
    return process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == (ssize_t)size;
}

bool guest_write(uint64_t address, const void *from, size_t size)
{
    struct iovec local = {(void *)from, size}, remote = {(void *)(address + qemu_guest_base()), size};
    return process_vm_writev(getpid(), &local, 1, &remote, 1, 0) == (ssize_t)size;
}
