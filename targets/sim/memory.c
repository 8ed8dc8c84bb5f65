/* What a core sees of memory: its L1 caches, line-fill buffers, TLBs and prefetcher. */
#include <stdlib.h>
#include <string.h>

#include "cache.h"

static void fill_l1d(Memory *memory, Line line, uint64_t cycle)
{
    const Line victim = cache_insert(&memory->l1d, line);
    shared_write_back(memory, &victim, cycle);
}

/* ---- prefetcher: follows constant strides of a few lines within a page ---- */

static void prefetch(Memory *memory, uint64_t line, uint64_t cycle)
{
    if (cache_find(&memory->l1d, line)) return;
    int level;
    const bool shared = shared_snoop(memory, line, false);
    const uint64_t done = shared_fetch(memory, line, cycle, false, &level);
    memory->count.prefetches++;
    fill_l1d(memory, (Line){.tag = line, .ready = done, .from = level, .trains = true, .shared = shared}, cycle);
}

/* The stream that `line` continues, else the one unused for longest, begun anew; NULL when there is nothing to learn. */
static Stream *stream_for(Memory *memory, uint64_t line)
{
    Stream *oldest = memory->streams;
    for (Stream *stream = memory->streams; stream < memory->streams + params.prefetch_streams; stream++) {
        const int64_t distance = (int64_t)(line - stream->line);
        if (stream->used && distance == 0) return NULL;
        if (stream->used && distance >= -8 && distance <= 8) return stream;
        if (stream->used < oldest->used) oldest = stream;
    }
    *oldest = (Stream){.line = line, .used = ++memory->stream_clock};
    return NULL;
}

static void train(Memory *memory, uint64_t line, uint64_t cycle)
{
    Stream *stream = stream_for(memory, line);
    if (!stream) return;
    const int64_t stride = (int64_t)(line - stream->line);
    stream->confidence = stride == stream->stride ? stream->confidence + 1 : 1;
    stream->stride = stride;
    stream->line = line;
    stream->used = ++memory->stream_clock;
    if (stream->confidence < params.prefetch_train) return;
    for (int i = 1; i <= params.prefetch_lines; i++) {
        const uint64_t ahead = line + stride * i;
        if (ahead >> (PAGE_SHIFT - LINE_SHIFT) != line >> (PAGE_SHIFT - LINE_SHIFT)) return;
        prefetch(memory, ahead, cycle);
    }
}

/* ---- what an instruction sees ---- */

/* Physical page of a virtual one; adds what the TLBs cost to `*cost`. */
static inline uint64_t translate(Memory *memory, uint64_t page, uint64_t *cost)
{
    const Line *entry = cache_find(&memory->utlb, page);
    if (entry) return entry->ready;
    memory->count.utlb_misses++;
    *cost += params.utlb_miss;
    entry = cache_find(&memory->tlb, page);
    uint64_t physical;
    if (entry)
        physical = entry->ready;
    else {
        memory->count.tlb_misses++;
        *cost += params.tlb_walk;
        physical = physical_page(page);
        cache_insert(&memory->tlb, (Line){.tag = page, .ready = physical});
    }
    cache_insert(&memory->utlb, (Line){.tag = page, .ready = physical});
    return physical;
}

static inline void wait(uint64_t *issue, uint64_t cycles, uint64_t *where)
{
    *issue += cycles;
    where[WHERE_L2] += cycles;
}

/* Waits for a free line-fill buffer and takes it. */
static FillBuffer *fill_buffer(Memory *memory, uint64_t *issue, uint64_t *where)
{
    FillBuffer *first = memory->fill_buffers;
    for (int i = 1; i < params.fill_buffers; i++)
        if (memory->fill_buffers[i].free < first->free) first = &memory->fill_buffers[i];
    if (first->free > *issue) {
        where[first->level == LEVEL_DRAM ? WHERE_DRAM : WHERE_L2] += first->free - *issue;
        *issue = first->free;
    }
    return first;
}

/* Whether a store that missed belongs to a run that fills whole lines in sequence. */
static bool streams_out(Memory *memory, uint64_t line)
{
    if (line == memory->stored_line + 1) memory->stored_run++;
    else if (line != memory->stored_line) memory->stored_run = 0;
    memory->stored_line = line;
    return params.streaming_stores && memory->stored_run > 3;
}

static uint64_t miss(Memory *memory, uint64_t line, bool store, uint64_t *issue, int *level, uint64_t *where)
{
    memory->count.l1d_misses++;
    FillBuffer *buffer = fill_buffer(memory, issue, where);
    const bool overwritten = store && streams_out(memory, line);
    const int elsewhere = shared_snoop(memory, line, store);
    uint64_t done = shared_fetch(memory, line, *issue, overwritten, level);
    if (elsewhere == CHANGED_ELSEWHERE) {
        done += params.snoop;
        memory->count.snoops++;
    }
    *buffer = (FillBuffer){done, *level};
    fill_l1d(memory, (Line){.tag = line, .ready = done, .dirty = store, .shared = elsewhere && !store}, *issue);
    if (store) return 0;
    train(memory, line, *issue);
    return done - *issue;
}

/* The first use of a prefetched line lets the prefetcher go on. */
static inline void follow(Memory *memory, Line *hit, uint64_t cycle)
{
    if (!hit->from) return;
    const bool trains = hit->trains;
    hit->from = LEVEL_NONE;
    hit->trains = false;
    if (trains) train(memory, hit->tag, cycle);
}

/* Cortex-A53 TRM, 6.6.1: a PRFM that misses starts a fill and retires, without waiting for the data. */
void memory_hint(Memory *memory, uint64_t address, int level, uint64_t *issue, uint64_t *where)
{
    memory->count.hints++;
    if (!page_is_known(address >> PAGE_SHIFT)) { /* a page that faults is not fetched from */
        memory->count.hints_dropped++;
        return;
    }
    uint64_t cost = 0;
    const uint64_t page = translate(memory, address >> PAGE_SHIFT, &cost);
    wait(issue, cost, where);
    const uint64_t line = (page << PAGE_SHIFT | (address & ((1 << PAGE_SHIFT) - 1))) >> LINE_SHIFT;
    Line *hit = cache_find(&memory->l1d, line);
    if (hit) {
        if (params.prefetch_hints == 1) follow(memory, hit, *issue);
        return;
    }
    FillBuffer *buffer = fill_buffer(memory, issue, where);
    int from;
    const bool shared = shared_snoop(memory, line, false);
    const uint64_t done = shared_fetch(memory, line, *issue, false, &from);
    *buffer = (FillBuffer){done, from};
    if (level != LEVEL_L1) return;
    fill_l1d(memory, (Line){.tag = line, .ready = done, .from = from, .shared = shared}, *issue);
    if (params.prefetch_hints == 1) train(memory, line, *issue);
}

static inline uint64_t access_line(Memory *memory, uint64_t address, bool store, uint64_t *issue, int *level, uint64_t *where)
{
    uint64_t cost = 0;
    const uint64_t page = translate(memory, address >> PAGE_SHIFT, &cost);
    wait(issue, cost, where);
    const uint64_t line = (page << PAGE_SHIFT | (address & ((1 << PAGE_SHIFT) - 1))) >> LINE_SHIFT;
    memory->count.l1d_accesses++;
    *level = LEVEL_L1;
    Line *hit = cache_find(&memory->l1d, line);
    if (!hit) return miss(memory, line, store, issue, level, where);
    if (store && hit->shared) {
        if (shared_snoop(memory, line, true)) memory->count.upgrades++;
        hit->shared = 0;
    }
    hit->dirty |= store;
    uint64_t wait = 0;
    if (hit->ready > *issue + 1) {
        *level = hit->from == LEVEL_DRAM ? LEVEL_DRAM : LEVEL_L2;
        wait = store ? 0 : hit->ready - *issue;
    }
    follow(memory, hit, *issue);
    return wait;
}

uint64_t memory_access(Memory *memory, const Access *access, uint64_t *issue, int *level, uint64_t *where)
{
    const uint64_t first = access->address, last = first + access->size - 1;
    uint64_t wait = access_line(memory, first, access->is_store, issue, level, where);
    if (__builtin_expect(first >> LINE_SHIFT == last >> LINE_SHIFT, 1)) return wait;
    int second_level;
    const uint64_t second = access_line(memory, last, access->is_store, issue, &second_level, where);
    if (second > wait) *level = second_level, wait = second;
    return wait;
}

uint64_t memory_fetch_code(Memory *memory, uint64_t physical, uint64_t cycle)
{
    const uint64_t line = physical >> LINE_SHIFT;
    if (__builtin_expect(cache_find(&memory->l1i, line) != NULL, 1)) return cycle;
    int level;
    const uint64_t done = shared_fetch(memory, line, cycle, false, &level);
    memory->count.l1i_misses++;
    cache_insert(&memory->l1i, (Line){.tag = line});
    return done;
}

void memory_init(Memory *memory)
{
    cache_init(&memory->l1d, cache_sets(params.l1d_kib, params.l1d_ways), params.l1d_ways);
    cache_init(&memory->l1i, cache_sets(params.l1i_kib, params.l1i_ways), params.l1i_ways);
    cache_init(&memory->utlb, 1, UTLB_ENTRIES);
    cache_init(&memory->tlb, TLB_SETS, TLB_WAYS);
    shared_join(memory);
    memory_cold(memory);
}

void memory_cold(Memory *memory)
{
    cache_empty(&memory->l1d);
    cache_empty(&memory->l1i);
    cache_empty(&memory->utlb);
    cache_empty(&memory->tlb);
    memset(memory->streams, 0, sizeof memory->streams);
    memset(memory->fill_buffers, 0, sizeof memory->fill_buffers);
    memory->l1d.random = memory->l1i.random = random_state(params.l1_random);
    memory->utlb.random = memory->tlb.random = random_state(params.tlb_random);
    memory->l2_free = memory->dram_free = memory->write_free = 0;
    memory->stored_line = memory->stored_run = 0;
}
