/* Caches, TLBs, prefetcher and DRAM, indexed by physical addresses that the model hands out page by page in the order of first touch:
 * cache sets then do not depend on where the loader happened to put things. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "a53.h"

#define NO_TAG UINT64_MAX

/* ---- sets of lines in order of use ---- */

static void cache_init(Cache *cache, uint64_t sets, int ways)
{
    cache->ways = ways;
    cache->set_mask = sets - 1;
    cache->lines = malloc(sets * ways * sizeof(Line));
}

static void cache_empty(Cache *cache)
{
    for (uint64_t i = 0; i < (cache->set_mask + 1) * cache->ways; i++) cache->lines[i] = (Line){.tag = NO_TAG};
}

static inline Line *set_of(const Cache *cache, uint64_t tag)
{
    return cache->lines + (tag & cache->set_mask) * cache->ways;
}

/* The line with this tag, moved to the front of its set; NULL on a miss. Pointers into a set hold until the set is used again. */
static inline Line *cache_find(const Cache *cache, uint64_t tag)
{
    Line *set = set_of(cache, tag);
    if (set[0].tag == tag) return set;
    for (int way = 1; way < cache->ways; way++)
        if (set[way].tag == tag) {
            const Line found = set[way];
            memmove(set + 1, set, way * sizeof *set);
            set[0] = found;
            return set;
        }
    return NULL;
}

/* The way whose line goes when another comes: the one unused for longest, or any, if all are taken. */
static inline int victim_way(Cache *cache, uint64_t tag)
{
    const int last = cache->ways - 1;
    if (__builtin_expect(!cache->random, 1) || set_of(cache, tag)[last].tag == NO_TAG) return last;
    cache->random ^= cache->random << 13, cache->random ^= cache->random >> 17, cache->random ^= cache->random << 5; /* xorshift32 */
    return (int)(cache->random % (unsigned)cache->ways);
}

/* Puts a line in front of its set in place of the one in `way`, which it returns. */
static inline Line cache_replace(const Cache *cache, int way, Line line)
{
    Line *set = set_of(cache, line.tag);
    const Line victim = set[way];
    memmove(set + 1, set, way * sizeof *set);
    set[0] = line;
    return victim;
}

static inline Line cache_insert(Cache *cache, Line line)
{
    return cache_replace(cache, victim_way(cache, line.tag), line);
}

/* ---- physical pages, in order of first touch ---- */

static struct {
    uint64_t *virtual_pages, *physical_pages, size, used;
} pages;
static pthread_mutex_t pages_lock = PTHREAD_MUTEX_INITIALIZER;

static uint64_t page_slot(const uint64_t *table, uint64_t size, uint64_t page)
{
    uint64_t slot = (page * 0x9e3779b97f4a7c15ull) >> 20 & (size - 1);
    while (table[slot] != NO_TAG && table[slot] != page) slot = (slot + 1) & (size - 1);
    return slot;
}

static void pages_grow(void)
{
    const uint64_t size = pages.size ? pages.size * 2 : 4096;
    uint64_t *virtual_pages = malloc(size * sizeof *virtual_pages), *physical_pages = malloc(size * sizeof *physical_pages);
    memset(virtual_pages, 0xff, size * sizeof *virtual_pages);
    for (uint64_t i = 0; i < pages.size; i++) {
        if (pages.virtual_pages[i] == NO_TAG) continue;
        const uint64_t slot = page_slot(virtual_pages, size, pages.virtual_pages[i]);
        virtual_pages[slot] = pages.virtual_pages[i];
        physical_pages[slot] = pages.physical_pages[i];
    }
    free(pages.virtual_pages);
    free(pages.physical_pages);
    pages.virtual_pages = virtual_pages, pages.physical_pages = physical_pages, pages.size = size;
}

/* Whether the page was ever touched; if not, it may not even be mapped. */
static bool page_is_known(uint64_t page)
{
    pthread_mutex_lock(&pages_lock);
    const bool known = pages.size && pages.virtual_pages[page_slot(pages.virtual_pages, pages.size, page)] == page;
    pthread_mutex_unlock(&pages_lock);
    return known;
}

static uint64_t physical_page(uint64_t page)
{
    pthread_mutex_lock(&pages_lock);
    if (pages.used * 2 >= pages.size) pages_grow();
    const uint64_t slot = page_slot(pages.virtual_pages, pages.size, page);
    if (pages.virtual_pages[slot] == NO_TAG) {
        pages.virtual_pages[slot] = page;
        pages.physical_pages[slot] = ++pages.used;
    }
    const uint64_t physical = pages.physical_pages[slot];
    pthread_mutex_unlock(&pages_lock);
    return physical;
}

uint64_t memory_translate(uint64_t address)
{
    return physical_page(address >> PAGE_SHIFT) << PAGE_SHIFT | (address & ((1 << PAGE_SHIFT) - 1));
}

/* ---- L2 and DRAM ---- */

static uint64_t later(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* Brings a line from L2 or DRAM; returns the cycle in which it arrives. `overwritten`: all of it will be stored to, so it is not read. */
static uint64_t fetch_line(Memory *memory, uint64_t line, uint64_t cycle, bool overwritten, int *level)
{
    memory->count.l2_accesses++;
    const uint64_t start = later(cycle, memory->l2_free);
    memory->l2_free = start + params.l2_line;
    const Line *hit = cache_find(&memory->l2, line);
    uint64_t done = start + params.l2_latency;
    if (hit) {
        *level = hit->ready > done ? LEVEL_DRAM : LEVEL_L2; /* still on its way */
        return later(done, hit->ready);
    }
    memory->count.l2_misses++;
    *level = LEVEL_DRAM;
    const int way = victim_way(&memory->l2, line);
    if (!overwritten) {
        const Line *victim = &set_of(&memory->l2, line)[way];
        if (victim->tag != NO_TAG && victim->dirty) memory->dram_free = later(start, memory->dram_free) + params.dram_line;
        const uint64_t begin = later(start, memory->dram_free);
        memory->dram_free = begin + params.dram_line;
        memory->count.dram_lines_read++;
        done = begin + params.dram_latency;
    }
    const Line victim = cache_replace(&memory->l2, way, (Line){.tag = line, .ready = done});
    if (victim.tag != NO_TAG && victim.dirty) {
        memory->count.dram_lines_written++;
        if (overwritten) memory->dram_free = later(start, memory->dram_free) + params.dram_line;
    }
    return done;
}

static void write_back(Memory *memory, const Line *victim)
{
    if (victim->tag == NO_TAG || !victim->dirty) return;
    Line *below = cache_find(&memory->l2, victim->tag);
    if (below) below->dirty = 1;
    else {
        memory->count.dram_lines_written++;
        memory->dram_free += params.dram_line;
    }
    memory->l2_free += params.l2_line / 2;
}

static void fill_l1d(Memory *memory, Line line)
{
    const Line victim = cache_insert(&memory->l1d, line);
    write_back(memory, &victim);
}

/* ---- prefetcher: follows constant strides of a few lines within a page ---- */

static void prefetch(Memory *memory, uint64_t line, uint64_t cycle)
{
    if (cache_find(&memory->l1d, line)) return;
    int level;
    const uint64_t done = fetch_line(memory, line, cycle, false, &level);
    memory->count.prefetches++;
    fill_l1d(memory, (Line){.tag = line, .ready = done, .from = level, .trains = true});
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
    const uint64_t done = fetch_line(memory, line, *issue, overwritten, level);
    *buffer = (FillBuffer){done, *level};
    fill_l1d(memory, (Line){.tag = line, .ready = done, .dirty = store});
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
    const uint64_t done = fetch_line(memory, line, *issue, false, &from);
    *buffer = (FillBuffer){done, from};
    if (level != LEVEL_L1) return;
    fill_l1d(memory, (Line){.tag = line, .ready = done, .from = from});
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
    const uint64_t done = fetch_line(memory, line, cycle, false, &level);
    memory->count.l1i_misses++;
    cache_insert(&memory->l1i, (Line){.tag = line});
    return done;
}

static uint32_t random_state(int wanted)
{
    return wanted ? (uint32_t)params.seed * 2654435761u | 1 : 0; /* not 0, whatever the seed */
}

static uint64_t sets(int kib, int ways)
{
    uint64_t wanted = (uint64_t)kib * 1024 / ((1 << LINE_SHIFT) * ways), power = 1;
    while (power * 2 <= wanted) power *= 2;
    return power;
}

void memory_init(Memory *memory)
{
    cache_init(&memory->l1d, sets(params.l1d_kib, params.l1d_ways), params.l1d_ways);
    cache_init(&memory->l1i, sets(params.l1i_kib, params.l1i_ways), params.l1i_ways);
    cache_init(&memory->l2, sets(params.l2_kib, params.l2_ways), params.l2_ways);
    cache_init(&memory->utlb, 1, UTLB_ENTRIES);
    cache_init(&memory->tlb, TLB_SETS, TLB_WAYS);
    memory_cold(memory);
}

void memory_cold(Memory *memory)
{
    cache_empty(&memory->l1d);
    cache_empty(&memory->l1i);
    cache_empty(&memory->l2);
    cache_empty(&memory->utlb);
    cache_empty(&memory->tlb);
    memset(memory->streams, 0, sizeof memory->streams);
    memset(memory->fill_buffers, 0, sizeof memory->fill_buffers);
    memory->l1d.random = memory->l1i.random = random_state(params.l1_random);
    memory->l2.random = random_state(params.l2_random);
    memory->utlb.random = memory->tlb.random = random_state(params.tlb_random);
    memory->l2_free = memory->dram_free = 0;
    memory->stored_line = memory->stored_run = 0;
}
