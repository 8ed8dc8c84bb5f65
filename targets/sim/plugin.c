/* The plugin proper: hears of blocks, memory accesses and system calls from QEMU, keeps the regions, and answers the guest (docs/simulator.md). */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "aarch32.h"
#include "qemu_plugin_abi.h"
#include "threads.h"

PLUGIN_EXPORT int qemu_plugin_version = 1;
bool aarch32;

/* Numbers of A64 Linux system calls. */
enum { SYS_UNLINKAT = 35, SYS_FACCESSAT = 48, SYS_OPENAT = 56, SYS_READLINKAT = 78, SYS_NEWFSTATAT = 79, SYS_EXIT_GROUP = 94, SYS_PRCTL = 167, SYS_STATX = 291 };
/* Options of prctl, see docs/simulator.md. */
enum {
    MARK_START = 0x41353301,
    MARK_STOP,
    MARK_READ,
    MARK_IDENTIFY,
    MARK_COLD,
    MARK_LIMIT,
    MARK_BLOCKS
};
static const char question[8] = "A53ASK?";

static Core *cores[MAX_CORES];
static Region region = {.cores = cores};
static volatile bool measuring;
static bool instrumented;
static char *last_report;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of everything above and of the blocks' lists */

/* ---- blocks ---- */

#define YIELD 0xd503203fu /* the word of a `yield` */

/* stxr, stlxr, stxp, stlxp, stlr and their kin. */
static bool is_publishing(uint32_t word, uint64_t pc)
{
    if (aarch32) return is_publishing32(word, pc);
    return (word & 0x3f400000) == 0x08000000;
}

enum { N_BUCKETS = 1 << 16 };
static Block *buckets[N_BUCKETS];

/* The block of these words at this address: QEMU may translate the same code again. `offsets`: of T32 code, else NULL. */
static Block *block_for(uint64_t pc, const uint32_t *words, const uint16_t *offsets, uint32_t n, const char *symbol)
{
    Block **bucket = &buckets[(pc >> 2) % N_BUCKETS];
    for (Block *block = *bucket; block; block = block->next_same_hash)
        if (block->pc == pc && block->n == n && !block->offsets == !offsets && !memcmp(block->words, words, n * sizeof *words)) return block;
    Block *block = calloc(1, sizeof *block);
    block->pc = pc;
    block->n = n;
    block->words = malloc(n * sizeof *words);
    memcpy(block->words, words, n * sizeof *words);
    if (offsets) {
        block->offsets = malloc((n + 1) * sizeof *offsets);
        memcpy(block->offsets, offsets, (n + 1) * sizeof *offsets);
    }
    block->symbol = symbol ? strdup(symbol) : NULL;
    block->next_same_hash = *bucket;
    *bucket = block;
    return block;
}

/* First execution of a block in this region: decode it if need be, clear its counters, list it. */
static void enter_region(Block *block)
{
    pthread_mutex_lock(&lock);
    if (!block->ops) {
        Op *ops = malloc(block->n * sizeof *ops);
        for (uint32_t i = 0; i < block->n; i++) {
            const uint32_t word = block->words[i];
            const uint64_t pc = block_pc(block, i);
            decode(word, pc, &ops[i]);
            block->n_unknown += (ops[i].flags & RULE_UNKNOWN) != 0;
            block->spins |= aarch32 ? is_yield32(word, pc) : word == YIELD;
            block->publishes |= is_publishing(word, pc);
        }
        block->physical = memory_translate(block->pc);
        block->ops = ops;
        if (params.prefetch_hints) hints_find(block);
    }
    if (block->region != region.number) {
        block->region = region.number;
        block->executions = block->cycles = 0;
        if (block->op_cycles) memset(block->op_cycles, 0, block->n * sizeof *block->op_cycles);
        block->next_in_region = region.blocks;
        region.blocks = block;
    }
    pthread_mutex_unlock(&lock);
}

/* ---- regions ---- */

static void run_pending(Core *core, unsigned cpu, uint64_t next_pc)
{
    Block *block = core->pending;
    core->pending = NULL;
    if (!block) return;
    if (block->n_hints) hints_read(block, cpu, true, core->hints);
    core_run(core, block, next_pc, params.blocks > 0);
}

static void append_report(const char *text)
{
    const int file = open(params.out, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    struct iovec parts[2] = {{(void *)text, strlen(text)}, {"\n", 1}};
    if (file < 0 || writev(file, parts, 2) < 0) perror("a53: cannot write the report");
    if (file >= 0) close(file);
}

Core *core_of(unsigned cpu)
{
    Core **core = &cores[cpu % MAX_CORES];
    if (!*core) {
        *core = core_new();
        core_start_region(*core, (*core)->cycle);
    }
    return *core;
}

static void start_region(unsigned cpu)
{
    const uint64_t now = core_of(cpu)->cycle;
    for (int i = 0; i < MAX_CORES; i++)
        if (cores[i]) core_start_region(cores[i], now);
    region.number++;
    region.owner = cpu;
    region.blocks = NULL;
    region.stopped = false;
    measuring = true;
}

/* What the other cores are in the middle of is not counted. */
static void end_region(int64_t id)
{
    if (!measuring) return;
    run_pending(core_of(region.owner), region.owner, 0);
    measuring = false;
    region.id = id;
    free(last_report);
    last_report = report_region(&region);
    if (params.out[0]) append_report(last_report);
}

static void stop_at_limit(void)
{
    pthread_mutex_lock(&lock);
    region.stopped = true;
    end_region(region.id);
    pthread_mutex_unlock(&lock);
    pthread_kill(pthread_self(), SIGXCPU);
}

/* ---- what QEMU tells ---- */

/* Blocks outside regions take their turns too: an instruction a cycle. */
static void pass_outside(Core *core, const Block *block)
{
    core->cycle += block->n;
    core->pending = NULL;
}

static void measure(Core *core, unsigned cpu, Block *block)
{
    run_pending(core, cpu, block->pc);
    if (params.limit && cpu == region.owner && core->cycle - core->region_start > params.limit) {
        stop_at_limit();
        return;
    }
    if (block->region != region.number) enter_region(block);
    if (block->n_hints) hints_read(block, cpu, false, core->hints);
    core->pending = block;
    core->n_accesses = 0;
}

static void on_block(unsigned cpu, void *data)
{
    if (!turns_taken) return;
    if (turn != cpu) threads_enter(cpu);
    Core *core = core_of(cpu);
    const Block *block = data;
    if (measuring) measure(core, cpu, data);
    else pass_outside(core, block);
    /* What others wait for must not come before its time: first they all get this far. */
    if (core->cycle > turn_ends - (block->publishes ? params.quantum : 0)) threads_give_way(cpu);
}

static void on_access(unsigned cpu, qemu_plugin_meminfo_t info, uint64_t address, void *data)
{
    if (!measuring) return;
    Core *core = cores[cpu % MAX_CORES];
    if (!core || core->n_accesses >= MAX_ACCESSES) return;
    const uint16_t index = (uint16_t)(uintptr_t)data;
    const uint8_t size = 1 << qemu_plugin_mem_size_shift(info);
    Access *access = &core->accesses[core->n_accesses];
    /* QEMU reports one wide access in pieces: put them together. */
    if (core->n_accesses && access[-1].index == index && access[-1].address + access[-1].size == address && access[-1].size + size <= 64) {
        access[-1].size += size;
        return;
    }
    *access = (Access){.address = address, .index = index, .size = size, .is_store = qemu_plugin_mem_is_store(info)};
    core->n_accesses++;
}

/* Bits 27..25 of an A64 word are x1x0 in loads and stores alone. */
static bool is_load_or_store(uint32_t word)
{
    return aarch32 || (word & 0x0a000000) == 0x08000000; /* AArch32: QEMU finds them itself */
}

/* QEMU does not tell: at the end of a page it looks at the next instruction too, and counts it to this one. */
static unsigned size_of_t32(const uint8_t *code)
{
    uint16_t half;
    memcpy(&half, code, sizeof half);
    return half >= 0xe800 ? 4 : 2;
}

static void on_translation(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    (void)id;
    const size_t n = qemu_plugin_tb_n_insns(tb);
    uint32_t words[n];
    uint16_t offsets[n + 1];
    const bool is_t32 = qemu_is_t32();
    offsets[0] = 0;
    for (size_t i = 0; i < n; i++) {
        const uint8_t *code = qemu_plugin_insn_data(qemu_plugin_tb_get_insn(tb, i));
        const unsigned size = is_t32 ? size_of_t32(code) : sizeof *words;
        words[i] = 0;
        memcpy(&words[i], code, size);
        offsets[i + 1] = (uint16_t)(offsets[i] + size);
    }
    const uint16_t *of_t32 = is_t32 ? offsets : NULL;
    pthread_mutex_lock(&lock);
    Block *block = block_for(qemu_plugin_tb_vaddr(tb), words, of_t32, n, qemu_plugin_insn_symbol(qemu_plugin_tb_get_insn(tb, 0)));
    pthread_mutex_unlock(&lock);
    qemu_plugin_register_vcpu_tb_exec_cb(tb, on_block, QEMU_PLUGIN_CB_NO_REGS, block);
    for (size_t i = 0; i < n; i++)
        if (is_load_or_store(words[i]))
            qemu_plugin_register_vcpu_mem_cb(qemu_plugin_tb_get_insn(tb, i), on_access, QEMU_PLUGIN_CB_NO_REGS, QEMU_PLUGIN_MEM_RW,
                                             (void *)(uintptr_t)i);
}

/* ---- what the guest asks ---- */

static void tell(uint64_t buffer, const char *text, size_t size)
{
    if (!guest_write(buffer, text, size)) perror("a53: cannot answer into the guest's buffer");
}

/* Writes `text` over the question in the guest's buffer; does nothing when there is no question at that address. */
static void answer(uint64_t buffer, uint64_t size, const char *text)
{
    char asked[sizeof question];
    if (size < 64 || !guest_read(buffer, asked, sizeof asked) || memcmp(asked, question, sizeof question)) return;
    const size_t needed = text ? strlen(text) + 1 : 0;
    if (text && needed <= size) {
        tell(buffer, text, needed);
        return;
    }
    char *error = report_error(text ? "buffer too small" : "no region ended yet", needed);
    tell(buffer, error, strlen(error) + 1);
    free(error);
}

/* Paths /a53roi/start and /a53roi/stopN are START and STOP; returns the option of prctl they stand for, or 0. */
static uint64_t path_mark(uint64_t path, uint64_t *argument)
{
    char text[32] = "";
    /* A path may end right before an unmapped page: read what is there. */
    struct iovec local = {text, sizeof text - 1}, remote = {(void *)(path + qemu_guest_base()), sizeof text - 1};
    if (!path || process_vm_readv(getpid(), &local, 1, &remote, 1, 0) < 13) return 0;
    if (!strcmp(text, "/a53roi/start")) return MARK_START;
    if (strncmp(text, "/a53roi/stop", 12)) return 0;
    *argument = strtoull(text + 12, NULL, 10);
    return MARK_STOP;
}

static void install(qemu_plugin_id_t id);

static void obey(qemu_plugin_id_t id, unsigned cpu, uint64_t option, uint64_t argument, uint64_t size)
{
    switch (option) {
    case MARK_START:
        start_region(cpu);
        if (!instrumented) {
            instrumented = true;
            qemu_plugin_reset(id, install);
        }
        break;
    case MARK_STOP: end_region((int64_t)argument); break;
    case MARK_READ: answer(argument, size, last_report); break;
    case MARK_IDENTIFY: {
        char *identity = report_identity();
        answer(argument, size, identity);
        free(identity);
        break;
    }
    case MARK_COLD:
        for (int i = 0; i < MAX_CORES; i++)
            if (cores[i]) core_cold(cores[i]);
        shared_cold();
        break;
    case MARK_LIMIT: params.limit = argument; break;
    case MARK_BLOCKS: params.blocks = (int)argument; break;
    }
}

/* The option of prctl that a system call stands for, or 0. */
static uint64_t mark_of(int64_t number, uint64_t first, uint64_t *second)
{
    switch (number) {
    case SYS_PRCTL: return first;
    case SYS_UNLINKAT:
    case SYS_FACCESSAT:
    case SYS_OPENAT:
    case SYS_READLINKAT:
    case SYS_NEWFSTATAT:
    case SYS_STATX: return path_mark(*second, second);
    default: return 0;
    }
}

/* The arguments of the system call that this host thread is in, for on_vcpu. */
static __thread const uint64_t *calling;

static void on_syscall(qemu_plugin_id_t id, unsigned cpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4, uint64_t a5,
                       uint64_t a6, uint64_t a7, uint64_t a8)
{
    (void)a7, (void)a8;
    static __thread uint64_t arguments[6];
    bool narrow = false;
    memcpy(arguments, (const uint64_t[]){a1, a2, a3, a4, a5, a6}, sizeof arguments);
    if (aarch32) number = syscall32(number, arguments, &narrow);
    calling = arguments;
    if (turns_taken && turn != cpu) threads_enter(cpu);
    uint64_t argument = arguments[1];
    const uint64_t mark = mark_of(number, arguments[0], &argument);
    if (mark < MARK_START || mark > MARK_BLOCKS) {
        if (turns_taken && measuring) run_pending(core_of(cpu), cpu, 0);
        if (number == SYS_EXIT_GROUP && !params.roi) end_region(0);
        syscall_before(cpu, number, arguments, narrow);
        return;
    }
    if (mark == MARK_START && !turns_taken) threads_begin(cpu);
    pthread_mutex_lock(&lock);
    obey(id, cpu, mark, argument, a3);
    pthread_mutex_unlock(&lock);
}

static void on_syscall_done(qemu_plugin_id_t id, unsigned cpu, int64_t number, int64_t result)
{
    (void)id;
    bool narrow;
    syscall_after(cpu, aarch32 ? syscall32(number, NULL, &narrow) : number, result);
}

/* Called by the host thread of the parent. */
static void on_vcpu(qemu_plugin_id_t id, unsigned cpu)
{
    (void)id;
    qemu_forget(cpu);
    threads_born(cpu, calling ? clone_clears(calling) : 0);
}

static void on_exit_of_guest(qemu_plugin_id_t id, void *data)
{
    (void)id, (void)data;
    pthread_mutex_lock(&lock);
    if (!params.roi) end_region(0);
    pthread_mutex_unlock(&lock);
}

/* Called by QEMU after a reset too; blocks are instrumented from the first region on, so that start-up runs at full speed. */
static void install(qemu_plugin_id_t id)
{
    if (instrumented) qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    qemu_plugin_register_vcpu_syscall_cb(id, on_syscall);
    qemu_plugin_register_vcpu_syscall_ret_cb(id, on_syscall_done);
    qemu_plugin_register_vcpu_init_cb(id, on_vcpu);
    qemu_plugin_register_atexit_cb(id, on_exit_of_guest, NULL);
}

PLUGIN_EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
    aarch32 = !strcmp(info->target_name, "arm");
    if (info->system_emulation || (!aarch32 && strcmp(info->target_name, "aarch64"))) {
        fprintf(stderr, "a53: this plugin is for qemu-aarch64 and qemu-arm\n");
        return -1;
    }
    for (int i = 0; i < argc; i++)
        if (params_set(argv[i])) return -1;
    params_finish();
    decode_init();
    if (!qemu_init()) {
        fprintf(stderr, "a53: this QEMU hides what the model needs (its registers and its loop); use Debian 12's qemu-user\n");
        return -1;
    }
    if (!params.roi) {
        instrumented = true;
        threads_begin(0);
        start_region(0);
    }
    install(id);
    return 0;
}
