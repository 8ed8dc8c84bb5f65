/* The in-order dual-issue pipeline: issues a block's instructions one after the other by the rules of the table, in pairs where it may. */
#include <stdlib.h>
#include <string.h>

#include "a53.h"

const char *const where_names[N_WHERE] = {"issue", "dependency", "l1", "l2", "dram", "branch", "fetch", "system"};

Core *core_new(void)
{
    Core *core = calloc(1, sizeof *core);
    core->cycle = 64; /* 0 stands for "never" */
    memory_init(&core->memory);
    predictor_init(&core->predictor);
    return core;
}

void core_cold(Core *core)
{
    memory_cold(&core->memory);
    predictor_init(&core->predictor);
}

void core_start_region(Core *core, uint64_t cycle)
{
    memset(core->where, 0, sizeof core->where);
    memset(&core->memory.count, 0, sizeof core->memory.count);
    core->predictor.branches = core->predictor.mispredicts = 0;
    core->region_start = cycle;
    core->spinning = 0;
    core->mark = 0;
    core->n_marks = 0;
    core->n_passed = 0;
    core->pending = NULL;
    core->n_accesses = 0;
}

void core_sleep(Core *core, uint64_t cycle)
{
    if (cycle <= core->cycle) return;
    core->where[WHERE_SYSTEM] += cycle - core->cycle;
    core->cycle = cycle;
    core->slots = 2; /* nothing pairs with what was before */
}

static inline void fetch(Core *core, const Block *block)
{
    const uint64_t last = block->physical + block_offset(block, block->n) - 1;
    for (uint64_t at = block->physical; at >> LINE_SHIFT <= last >> LINE_SHIFT; at += 1 << LINE_SHIFT) {
        const uint64_t ready = memory_fetch_code(&core->memory, at, core->cycle);
        if (ready > core->redirect && ready > core->cycle) {
            core->redirect = ready;
            core->redirect_where = WHERE_FETCH;
        }
    }
}

/* Whether `op` may issue in the cycle of the instruction before it. */
static inline bool can_pair(const Core *core, const Op *op)
{
    if (core->slots >= 2 || op->first || core->halves + op->halves > HALVES_BOTH || core->units & op->unit) return false;
    const uint64_t forwarded = op->flags & RULE_LATE ? core->forwarded_int : 0;
    return !(op->touches_int & core->written_int & ~forwarded) && !(op->touches_vec & core->written_vec);
}

static inline void wait_until(Core *core, uint64_t *issue, uint64_t cycle, int where)
{
    if (cycle <= *issue) return;
    core->where[where] += cycle - *issue;
    *issue = cycle;
}

static inline void wait_for_operands(Core *core, const Op *op, uint64_t *issue)
{
    static const uint8_t where_of_level[] = {WHERE_DEPENDENCY, WHERE_L1, WHERE_L2, WHERE_DRAM};
    const uint64_t *ready = op->flags & RULE_LATE ? core->ready_late : core->ready;
    uint64_t latest = 0;
    int level = LEVEL_NONE;
    for (int i = 0; i < op->n_sources; i++) {
        const int reg = op->source[i].reg;
        const uint64_t cycle = ready[reg] - op->source[i].needed;
        if (ready[reg] > op->source[i].needed && cycle > latest) {
            latest = cycle;
            level = core->waits_for[reg];
        }
    }
    wait_until(core, issue, latest, where_of_level[level]);
}

/* An iterative unit (UNIT_MUL, UNIT_DIV) may be at work on an earlier instruction. */
static inline void wait_for_unit(Core *core, const Op *op, uint64_t *issue)
{
    uint64_t *free = &core->unit_free[op->unit == UNIT_DIV];
    wait_until(core, issue, *free, WHERE_ISSUE);
    *free = *issue + op->busy;
}

static inline void keep_gap_after_fma(Core *core, uint64_t *issue)
{
    const uint64_t gap = params.fma_load_gap;
    while (gap && core->fma_issued[(*issue - gap) & 63] == *issue - gap) {
        ++*issue;
        core->where[WHERE_ISSUE]++;
    }
}

/* Opens a new cycle with `op` as its first instruction. */
static inline void begin_cycle(Core *core, const Op *op)
{
    core->slots = 1;
    core->halves = op->halves;
    core->units = op->unit;
    core->written_int = op->writes_int;
    core->forwarded_int = 0;
    core->written_vec = op->writes_vec;
}

static inline void join_cycle(Core *core, const Op *op)
{
    core->slots++;
    core->halves += op->halves;
    core->units |= op->unit;
    core->written_int |= op->writes_int;
    core->written_vec |= op->writes_vec;
}

/* Cycles that an access holds the load-store unit longer for where it lies. */
static inline unsigned misplaced(const Access *access)
{
    const uint64_t first = access->address, last = first + access->size - 1;
    if (access->is_store) return first >> LINE_SHIFT != last >> LINE_SHIFT ? params.split_store : 0;
    return (last >> 3) - (first >> 3) > (access->size - 1u) >> 3 ? params.unaligned_load : 0;
}

/* What a load or store instruction learnt from its accesses. */
typedef struct {
    uint64_t wait; /* cycles after an L1 hit until the data come */
    int level;     /* from where */
    unsigned held; /* cycles the load-store unit is held longer */
} Transfer;

static inline void write_results(Core *core, const Op *op, const Transfer *transfer)
{
    /* I: a misplaced load takes a cycle longer to a vector register (ldr q 7.05 and 8.06), two to an integer one (3.01 and 5.02). */
    const unsigned late_by = transfer->held * (op->writes_vec ? 1 : 2);
    for (int i = 0; i < op->n_results; i++) {
        const int reg = op->result[i].reg;
        const unsigned lat = op->result[i].lat;
        uint64_t ready = core->cycle + lat;
        int from = LEVEL_NONE;
        if (i < op->n_loaded) {
            from = LEVEL_L1;
            ready += late_by;
            if (transfer->wait) {
                /* Data that come late pass by the L1 pipeline: what is left of the latency is the order of the registers. */
                const uint64_t late = core->cycle + transfer->wait + (lat > 3 ? lat - 3 : 1);
                from = transfer->level;
                if (late > ready) ready = late;
            }
        }
        core->ready[reg] = core->ready_late[reg] = ready;
        core->waits_for[reg] = from;
    }
}

/* Writes the result of a RULE_LATE instruction. Such an instruction executes early, as others do, when its operands are there; else a
 * stage later, which it is spared to wait for. Its result then comes a cycle later for all but other RULE_LATE instructions. */
static inline void write_late_results(Core *core, const Op *op)
{
    bool late = false;
    for (int i = 0; i < op->n_sources; i++) late |= core->ready[op->source[i].reg] > core->cycle;
    for (int i = 0; i < op->n_results; i++) {
        const int reg = op->result[i].reg;
        const uint64_t ready = core->cycle + op->result[i].lat;
        core->ready[reg] = reg == REG_FLAGS ? ready : ready + late;
        core->ready_late[reg] = reg == REG_FLAGS ? ready : ready + late - 1;
        core->waits_for[reg] = LEVEL_NONE;
        if (reg != REG_FLAGS && !late) core->forwarded_int |= 1ull << reg;
    }
}

static void mark(Core *core)
{
    core->slots = 2; /* the counter is read alone */
    if (!params.marks) return;
    if (core->mark && core->n_marks < MAX_MARKS) core->marks[core->n_marks++] = core->cycle - core->mark - 1;
    core->mark = core->mark ? 0 : core->cycle;
}

static void follow_branch(Core *core, const Op *op, const Block *block, uint32_t index, uint64_t target)
{
    bool taken;
    const uint64_t next = block->pc + block_offset(block, index + 1);
    if (predictor_missed(&core->predictor, op, block->physical + block_offset(block, index), next, target, &taken))
        core->redirect = core->cycle + 1 + params.mispredict;
    else if (taken) {
        const uint64_t earliest = core->last_arrival + params.taken_gap;
        core->redirect = earliest > core->cycle + 1 ? earliest : core->cycle + 1;
    } else
        return;
    core->last_arrival = core->redirect;
    core->redirect_where = WHERE_BRANCH;
}

/* How far an in-order core runs past a load that missed is not published: at most `past_miss` instructions. */
static void wait_for_misses(Core *core, uint64_t *issue)
{
    int kept = 0;
    for (int i = 0; i < core->n_passed; i++) {
        if (core->passed[i].until <= *issue) continue;
        if (core->passed[i].left == 0) {
            wait_until(core, issue, core->passed[i].until, WHERE_DRAM);
            continue;
        }
        core->passed[kept] = core->passed[i];
        core->passed[kept++].left--;
    }
    core->n_passed = kept;
}

static void remember_miss(Core *core, uint64_t until)
{
    if (core->n_passed < MAX_FILL_BUFFERS) {
        core->passed[core->n_passed].until = until;
        core->passed[core->n_passed++].left = params.past_miss;
    }
}

enum { L1_PIPELINE = 2 }; /* of an integer load's 3 cycles, those that data which come late pass by: see write_results */

/* How long a load waits for what lies in the store buffer: words that were stored lately come `store_forward` cycles after an L1 hit. */
static uint64_t forwarded(Core *core, const Access *access, uint64_t cycle)
{
    const uint64_t first = access->address >> 3, last = (access->address + access->size - 1) >> 3;
    if (access->is_store) {
        for (uint64_t word = first; word <= last; word++, core->n_stores++) {
            core->stores[core->n_stores % STORE_BUFFER].word = word;
            core->stores[core->n_stores % STORE_BUFFER].cycle = cycle;
        }
        return 0;
    }
    for (int i = 0; i < STORE_BUFFER; i++)
        if (core->stores[i].word >= first && core->stores[i].word <= last && core->stores[i].cycle + STORED_FOR > cycle)
            return params.store_forward + L1_PIPELINE;
    return 0;
}

static inline void prefetch(Core *core, const Block *block, uint32_t number, uint64_t *issue)
{
    if (!params.prefetch_hints) return;
    const Hint *hint = number < block->n_hints ? &block->hints[number] : NULL;
    if (!hint || !hint->known) core->memory.count.hints_unseen++;
    else if (hint->level != LEVEL_NONE) memory_hint(&core->memory, core->hints[number], hint->level, issue, core->where);
}

static inline void issue(Core *core, const Block *block, uint32_t index, const Access **access, const Access *end, uint32_t *hint)
{
    const Op *op = &block->ops[index];
    const bool pair = can_pair(core, op);
    uint64_t at = core->cycle;
    if (!pair) wait_until(core, &at, core->cycle + 1, WHERE_ISSUE);
    wait_until(core, &at, core->redirect, core->redirect_where);
    wait_for_operands(core, op, &at);
    if (__builtin_expect(core->n_passed, 0)) wait_for_misses(core, &at);
    if (op->busy) wait_for_unit(core, op, &at);
    Transfer transfer = {.level = LEVEL_L1};
    if (op->unit & UNIT_LS) {
        if (op->flags & RULE_LOAD && op->writes_vec) keep_gap_after_fma(core, &at);
        if (op->flags & RULE_PREFETCH) prefetch(core, block, (*hint)++, &at);
        for (; *access < end && (*access)->index == index; ++*access) {
            int level;
            uint64_t wait = memory_access(&core->memory, *access, &at, &level, core->where);
            if (__builtin_expect(params.store_forward, 0)) wait += forwarded(core, *access, at);
            if (wait > transfer.wait) transfer.wait = wait, transfer.level = level;
            if (transfer.held == 0) transfer.held = misplaced(*access);
        }
    }
    if (pair && at == core->cycle) join_cycle(core, op);
    else begin_cycle(core, op);
    core->cycle = at;
    if (params.past_miss && transfer.wait && op->flags & RULE_LOAD) remember_miss(core, at + transfer.wait);
    if (op->flags & RULE_FMA) core->fma_issued[at & 63] = at;
    if (op->flags & RULE_LATE) write_late_results(core, op);
    else write_results(core, op, &transfer);
    const unsigned held = op->occ + transfer.held - 1;
    if (held) {
        core->where[WHERE_ISSUE] += held;
        core->cycle += held;
        begin_cycle(core, op); /* in its last cycle another instruction may pair */
    }
    if (op->flags & RULE_ALONE) core->slots = 2;
    if (op->is_mark) mark(core);
}

static inline void run(Core *core, Block *block, uint64_t next_pc, bool list_blocks)
{
    const Access *access = core->accesses, *end = access + core->n_accesses;
    uint32_t hint = 0;
    fetch(core, block);
    for (uint32_t i = 0; i < block->n; i++) {
        const Op *op = &block->ops[i];
        const uint64_t before = core->cycle;
        issue(core, block, i, &access, end, &hint);
        if (op->unit & UNIT_BRANCH) follow_branch(core, op, block, i, next_pc);
        if (list_blocks) block->op_cycles[i] += core->cycle - before;
    }
    core->n_accesses = 0;
}

void core_run(Core *core, Block *block, uint64_t next_pc, bool list_blocks)
{
    const uint64_t before = core->cycle;
    block->executions++;
    if (list_blocks) {
        if (!block->op_cycles) block->op_cycles = calloc(block->n, sizeof *block->op_cycles);
        run(core, block, next_pc, true);
        block->cycles += core->cycle - before;
    } else
        run(core, block, next_pc, false);
    if (block->spins) core->spinning += core->cycle - before;
}
