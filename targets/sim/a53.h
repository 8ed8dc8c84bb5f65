/* The timing model's data: parameters, decoded instructions, basic blocks and the state of a simulated core.
 *
 * Flow of a measured instruction: plugin.c hears of a block from QEMU -> decode.c turns its words into `Op`s by the rules of rules.c ->
 * pipeline.c issues them in order, asking memory.c for loads and stores and branch.c for branches -> report.c adds it up. */
#ifndef A53_H
#define A53_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "rules.h"

/* Counted up whenever the same program could answer with other cycles. */
#define MODEL_VERSION "v2"

/* ---- parameters (params.c), each an option of the plugin by the same name; cycles unless the name says otherwise ---- */
#define PARAMETERS(P)                                                                                     \
    P(mhz, 1200)               /* clock; DRAM times are converted by it */                                \
    P(l1d_kib, 32)             /* BCM2837, APQ8016 */                                                     \
    P(l1d_ways, 4)             /* Cortex-A53 TRM */                                                       \
    P(l1i_kib, 32)             /* BCM2837, APQ8016 */                                                     \
    P(l1i_ways, 2)             /* Cortex-A53 TRM */                                                       \
    P(l2_kib, 512)             /* BCM2837, APQ8016 */                                                     \
    P(l2_ways, 16)             /* Cortex-A53 TRM */                                                       \
    P(l2_latency, 16)          /* estimate: beyond the L1 latency */                                      \
    P(l2_line, 9)              /* estimate: between two lines delivered by L2 */                          \
    P(dram_latency_ns, 160)    /* Pi 3: between what sbc-bench's chases of 1, 2, 4 and 8 chains ask for */                                                             \
    P(dram_bandwidth_mb_s, 2200) /* Pi 3: published memcpy figures */                                     \
    P(dram_write_mb_s, 1700)   /* Pi 3: sbc-bench's memset; 0: one core writes as fast as it reads */       \
    P(dram_total_mb_s, 0)      /* of all cores together, 0: one core alone gets all */                    \
    P(dram_row_ns, 60)         /* LPDDR2 (JESD209-2), tRC: between two rows that a bank opens; several cores only */ \
    P(dram_banks, 8)           /* the same */                                                              \
    P(l2_port, 5)              /* estimate: between two lines that L2 delivers to different cores */       \
    P(snoop, 12)               /* estimate: a line changed in another core's L1 comes so much later than from L2 */ \
    P(quantum, 1000)           /* how far a core may run ahead of the slowest */                           \
    P(cpus, 4)                 /* CPUs that the guest is told of (BCM2837, APQ8016); 0: the host's */      \
    P(syscall, 600)            /* estimate: a system call */                                              \
    P(futex_wake, 2400)        /* estimate: one that wakes another thread */                               \
    P(wake_latency, 6000)      /* estimate: until a thread that was woken or made runs */                  \
    P(fill_buffers, 3)         /* Cortex-A53 TRM: outstanding L1 misses */                                \
    P(prefetch_lines, 4)       /* estimate: lines ahead of a stream */                                    \
    P(prefetch_train, 2)       /* estimate: equal strides that make a stream */                           \
    P(prefetch_streams, 4)     /* Cortex-A53 TRM, data prefetcher */                                      \
    P(prefetch_hints, 1)       /* 0: PRFM does nothing; 1: it fetches, and its misses train the prefetcher; 2: they do not */ \
    P(store_forward, 0)        /* unknown: a load of what one of the last stores wrote gets it so much later than from L1 */ \
    P(past_miss, 0)            /* unknown: so many instructions issue past a load that missed L1, then all wait; 0: no limit */ \
    P(l1_random, 0)            /* unknown: 1: L1 gives up any line of a set (TRM: pseudo-random), 0: the one unused for longest */ \
    P(l2_random, 0)            /* unknown: the same of L2 */                                               \
    P(tlb_random, 0)           /* unknown: the same of the TLBs */                                         \
    P(seed, 1)                 /* of those choices */                                                      \
    P(streaming_stores, 1)     /* Cortex-A53 TRM: full lines written in sequence are not read first */    \
    P(utlb_miss, 3)            /* estimate */                                                             \
    P(tlb_walk, 30)            /* estimate */                                                             \
    P(mispredict, 7)           /* Q: cbz, b.eq against expectation */                                     \
    P(taken_gap, 3)            /* I: between arrivals at targets of taken branches, b 3.03, bl-ret 6.05 */                                        \
    P(fma_load_gap, 4)         /* no vector load issues so many cycles after an fmla (OpenBLAS kernels) */ \
    P(unaligned_load, 1)       /* I: cycles it takes longer when it touches one 64-bit word more than it needs to */ \
    P(split_store, 1)          /* I: cycles it takes longer when it crosses a cache line */                \
    P(roi, 1)                  /* 0: everything is one region, from start to exit */                      \
    P(marks, 0)                /* 1: reports list the cycles between reads of cntvct_el0 */               \
    P(blocks, 0)               /* reports list so many of the hottest blocks */
typedef struct {
#define P(name, value) int name;
    PARAMETERS(P)
#undef P
    uint64_t limit;     /* cycles after which a region is stopped; 0: never */
    char out[1024];     /* file to which reports are appended; "": none */
    int dram_latency;   /* cycles, from dram_latency_ns */
    int dram_line;      /* cycles for 64 bytes at dram_bandwidth_mb_s */
    int dram_write_line; /* the same at dram_write_mb_s */
    int dram_row;        /* sixteenths of a cycle, from dram_row_ns */
    int dram_total_line; /* sixteenths of a cycle for 64 bytes at dram_total_mb_s */
} Params;
extern Params params;

int params_set(const char *option); /* "name=value"; -1 after a message on stderr when it makes no sense */
void params_finish(void);           /* derives the fields that are not options */
uint32_t random_state(int wanted);  /* from the seed; 0 unless wanted */

enum { MAX_CORES = 256 };

/* The guest runs in AArch32 state (aarch32.h). Set once, before anything is decoded. */
extern bool aarch32;

/* ---- decoded instructions (decode.c; of AArch32 decode32.c) ---- */
enum { REG_SP = 31, REG_V0 = 32, REG_FLAGS = 64, REG_NONE = 65, N_REGS = 66 };
enum { MAX_SOURCES = 18, MAX_RESULTS = 17 }; /* 16 registers, a base, flags */

typedef struct {
    uint64_t touches_int, writes_int; /* sets of registers: x0..x30, sp, flags at bit 32 */
    uint32_t touches_vec, writes_vec; /* v0..v31; "touches": what must not be written in the same cycle */
    uint16_t rule, flags;             /* row of rules[], RULE_* */
    uint8_t mix, halves, first, unit, occ, busy;
    uint8_t is_mark;                  /* reads cntvct_el0 (AArch32: dbg #15): brackets a micro-benchmark, issues alone */
    uint8_t n_sources, n_results, n_loaded; /* the first n_loaded results come from memory */
    struct {
        uint8_t reg, needed; /* needed this many cycles after issue */
    } source[MAX_SOURCES];
    struct {
        uint8_t reg, lat;
    } result[MAX_RESULTS];
} Op;

void decode_init(void);
void decode(uint32_t word, uint64_t pc, Op *op);
/* Text of an instruction, for listings; only the mnemonic unless `operands`. */
void disassemble(uint32_t word, uint64_t pc, bool operands, char *text, size_t size);

/* Whether `word` sets an integer register to another one plus a constant; `*from` and `*add` then say which and what. */
bool decode_sum(uint32_t word, uint64_t pc, int to, int *from, int64_t *add);

/* ---- where prefetch instructions point (hints.c) ---- */
enum { MAX_HINTS = 64, MAX_TERMS = 12 };
typedef struct {
    int64_t offset; /* address = offset + terms */
    bool known;     /* false: it cannot be told */
    uint8_t level;  /* LEVEL_L1 or LEVEL_L2: where the line is wanted; LEVEL_NONE: nowhere */
    uint8_t n_terms;
    struct {
        uint8_t reg, factor, shift; /* (reg * factor) << shift; `factor` is a register too, or REG_NONE */
        bool at_end;                /* registers as they are at the block's end, not as they were at its begin */
    } terms[MAX_TERMS];
} Hint;

/* A basic block as QEMU translated it. */
typedef struct Block {
    uint64_t pc, physical; /* virtual address; where the model's memory has it (set when first executed) */
    uint32_t n, n_unknown;
    bool spins;     /* has a `yield`: waits for another core */
    bool publishes; /* has a store-exclusive or store-release: what other cores wait for */
    uint32_t *words;
    uint16_t *offsets; /* T32: of the n instructions and of the end, in bytes from the begin; NULL: all take 4 bytes */
    Op *ops; /* NULL until first executed in a region */
    uint32_t n_hints;
    Hint *hints; /* of its prefetch instructions, in order */
    char *symbol;
    uint64_t region, executions, cycles; /* counters, valid for the region of this number */
    uint64_t *op_cycles;                 /* NULL until listed blocks are asked for */
    struct Block *next_same_hash, *next_in_region;
} Block;

/* Where instruction `i` is, in bytes from the block's begin; of `n`: where the block ends. */
static inline uint64_t block_offset(const Block *block, uint32_t i)
{
    return block->offsets ? block->offsets[i] : 4 * (uint64_t)i;
}

/* The program counter of instruction `i`, as `decode` takes it. */
static inline uint64_t block_pc(const Block *block, uint32_t i)
{
    return block->pc + block_offset(block, i) + (block->offsets != NULL);
}

void hints_find(Block *block);
/* Puts the addresses of the block's prefetches together: at its begin (`at_end` false), then at its end. */
void hints_read(const Block *block, unsigned cpu, bool at_end, uint64_t *addresses);

/* ---- memory hierarchy (memory.c) ---- */
enum { LINE_SHIFT = 6, PAGE_SHIFT = 12, UTLB_ENTRIES = 10, TLB_SETS = 128, TLB_WAYS = 4, MAX_FILL_BUFFERS = 16, MAX_BANKS = 16, MAX_STREAMS = 16 };

typedef struct {
    uint64_t tag;     /* line or page number; NO_TAG: empty */
    uint64_t ready;   /* cycle in which its data arrive (caches); physical page (TLBs) */
    uint8_t dirty;
    uint8_t shared;   /* another L1 may have it: a store takes it from there */
    uint8_t from;     /* prefetched from this LEVEL_*, not yet used; 0: demanded or used */
    uint8_t trains;   /* its first use tells the prefetcher that it was right */
} Line;
typedef struct {
    Line *lines; /* sets of `ways` lines, each set in order of use, latest first */
    uint64_t set_mask;
    int ways;
    uint32_t random; /* state of the choice of a victim; 0: the line unused for longest goes */
} Cache;
typedef struct {
    uint64_t line, used;
    int64_t stride;
    int confidence;
} Stream;
typedef struct {
    uint64_t free; /* cycle from which it can take another miss */
    int level;     /* where its line comes from */
} FillBuffer;
/* What reports count. Hints are prefetch instructions: `unseen` when their address cannot be told, `dropped` on pages never touched.
 * Coherence: `snoops` are misses on a line changed in another L1, `upgrades` stores that took a line from other L1s; waits are cycles for
 * other cores' use of L2 and DRAM. */
#define COUNTERS(C)                                                                                                                     \
    C(l1d_accesses) C(l1d_misses) C(l2_accesses) C(l2_misses) C(prefetches) C(hints) C(hints_unseen) C(hints_dropped) C(dram_lines_read) \
    C(dram_lines_written) C(utlb_misses) C(tlb_misses) C(l1i_misses) C(snoops) C(upgrades) C(l2_waits) C(dram_waits)

typedef struct {
    Cache l1d, l1i, utlb, tlb;
    FillBuffer fill_buffers[MAX_FILL_BUFFERS];
    uint64_t write_free;         /* cycle from which this core can write another full line */
    uint64_t l2_free, dram_free; /* cycles from which they can deliver another line to this core */
    Stream streams[MAX_STREAMS];
    uint64_t stream_clock, stored_line;
    int stored_run;
    struct {
#define C(name) uint64_t name;
        COUNTERS(C)
#undef C
    } count;
} Memory;

/* Where data came from, or what a wait was for. */
enum { LEVEL_NONE, LEVEL_L1, LEVEL_L2, LEVEL_DRAM };

/* ---- branch prediction (branch.c) ---- */
enum { HISTORY_ENTRIES = 4096, TARGET_ENTRIES = 256, RETURN_ENTRIES = 8 };
typedef struct {
    uint8_t counters[HISTORY_ENTRIES];
    uint32_t history;
    uint64_t targets[TARGET_ENTRIES], returns[RETURN_ENTRIES];
    unsigned top;
    uint64_t branches, mispredicts;
} Predictor;

/* ---- a core (pipeline.c) ---- */
enum { WHERE_ISSUE, WHERE_DEPENDENCY, WHERE_L1, WHERE_L2, WHERE_DRAM, WHERE_BRANCH, WHERE_FETCH, WHERE_SYSTEM, N_WHERE };
extern const char *const where_names[N_WHERE];

typedef struct {
    uint64_t address;
    uint16_t index; /* of the instruction in its block */
    uint8_t size, is_store;
} Access;
enum { MAX_ACCESSES = 16384, MAX_MARKS = 4096, STORE_BUFFER = 8, STORED_FOR = 16 };

typedef struct {
    uint64_t cycle;                       /* of the latest issue */
    uint64_t ready[N_REGS];               /* cycle from which each register can be used */
    uint64_t ready_late[N_REGS];          /* the same for an instruction that executes a stage later */
    uint8_t waits_for[N_REGS];            /* LEVEL_* that a wait for it is put down to */
    uint64_t written_int;                 /* registers written in this cycle */
    uint64_t forwarded_int;               /* those of them that a late instruction may use in the same cycle */
    uint32_t written_vec;
    uint8_t slots, halves, units;         /* used in this cycle */
    uint64_t unit_free[2];                /* UNIT_MUL, UNIT_DIV: next cycle they can start */
    uint64_t fma_issued[64];              /* cycle of the last fma issued in each cycle modulo 64 */
    struct {
        uint64_t until;
        int left;
    } passed[MAX_FILL_BUFFERS];           /* loads that missed: when their data come, and how many instructions may still issue before */
    int n_passed;
    struct {
        uint64_t word, cycle;
    } stores[STORE_BUFFER];               /* the latest stores: 8-byte words, and when they were issued */
    unsigned n_stores;
    uint64_t redirect, last_arrival;      /* next issue not before; target of the last taken branch arrived */
    uint8_t redirect_where;
    uint64_t where[N_WHERE];              /* cycles of this region by cause */
    uint64_t region_start;
    uint64_t spinning;                    /* cycles of this region in blocks that wait for another core */
    uint64_t mark;                        /* cycle of an open micro-benchmark mark, or 0 */
    uint64_t marks[MAX_MARKS];
    int n_marks;
    Memory memory;
    Predictor predictor;
    Block *pending;                       /* block executing now: run when its accesses are known, at the next block */
    uint64_t hints[MAX_HINTS];            /* addresses of the pending block's prefetches, as far as its begin tells */
    int n_accesses;
    Access accesses[MAX_ACCESSES];
} Core;

Core *core_new(void);
void core_cold(Core *core);         /* empties caches, TLBs, prefetcher, predictors */
void core_start_region(Core *core, uint64_t cycle); /* counters to zero; the region begins at `cycle` */
/* Lets the core do nothing until `cycle`: asleep, or at work for the kernel. */
void core_sleep(Core *core, uint64_t cycle);
Core *core_of(unsigned cpu); /* made at its first use */
/* Replays `block` with the accesses collected in `core`; `next_pc` is where control went, 0 when unknown. */
void core_run(Core *core, Block *block, uint64_t next_pc, bool list_blocks);

/* ---- what cores share (shared.c) ---- */
void shared_join(Memory *memory); /* a core's memory takes part */
void shared_cold(void);
/* Brings a line from L2 or DRAM; returns the cycle in which it arrives. `overwritten`: all of it will be stored to, so it is not read. */
uint64_t shared_fetch(Memory *memory, uint64_t line, uint64_t cycle, bool overwritten, int *level);
/* Writes a line that fell out of L1 to L2, if it was changed. */
void shared_write_back(Memory *memory, const Line *victim, uint64_t cycle);
/* Whether other cores' L1 have the line; a store takes it from them. */
enum { NOWHERE_ELSE, ELSEWHERE, CHANGED_ELSEWHERE };
int shared_snoop(const Memory *memory, uint64_t line, bool store);

/* ---- physical pages (pages.c) ---- */
uint64_t physical_page(uint64_t page);
/* Whether the page was ever touched; if not, it may not even be mapped. */
bool page_is_known(uint64_t page);

void memory_init(Memory *memory);
void memory_cold(Memory *memory);
/* Physical address of a virtual one, without TLB cost. */
uint64_t memory_translate(uint64_t address);
/* One access by an instruction that could issue in cycle `*issue`. Moves `*issue` when the core must wait, putting the wait down in `where`.
 * Returns how many cycles after an L1 hit the data come, and in `*level` from where. */
uint64_t memory_access(Memory *memory, const Access *access, uint64_t *issue, int *level, uint64_t *where);
/* A prefetch instruction that could issue in cycle `*issue`, which moves while there is no fill buffer free. */
void memory_hint(Memory *memory, uint64_t address, int level, uint64_t *issue, uint64_t *where);
/* Fetches the code line of a physical address; returns the cycle from which it can issue. */
uint64_t memory_fetch_code(Memory *memory, uint64_t physical, uint64_t cycle);

/* ---- what QEMU does not offer to plugins (qemu.c) ---- */
bool qemu_init(void);            /* false where this QEMU has not got it */
void qemu_forget(unsigned cpu);  /* another vCPU may have this number now */
uint64_t qemu_register(unsigned cpu, int number); /* x0..x30, 31 is sp; AArch32: r0..r15; right at the beginning of a block */
bool qemu_is_t32(void);          /* whether what this thread translates is T32 code */
uint64_t qemu_guest_base(void);  /* where in the host's memory the guest's begins */
/* The calling vCPU, at the beginning of a block, no longer counts as running, so that QEMU may do what it does when none runs. */
void qemu_step_aside(unsigned cpu);
/* After that: enters the block that `pc` points to, which in a new thread is the one it was in; does not return. */
_Noreturn void qemu_begin_again(unsigned cpu);

void predictor_init(Predictor *predictor);
/* Whether the branch `op` at physical `address` (virtual fall-through `next`) that went to `target` was mispredicted; `*taken`: whether it was taken. */
bool predictor_missed(Predictor *predictor, const Op *op, uint64_t address, uint64_t next, uint64_t target, bool *taken);

/* ---- reports (report.c) ---- */
typedef struct {
    uint64_t number; /* counts regions; blocks carry it */
    int64_t id;      /* from STOP */
    bool stopped;    /* by the limit */
    Core *const *cores;
    unsigned owner; /* the thread that began it: its cycles are the region's */
    Block *blocks;  /* executed in the region */
} Region;
/* JSON, one line without the newline; the caller frees it. */
char *report_region(const Region *region);
char *report_identity(void);
char *report_error(const char *message, size_t size);

#endif
