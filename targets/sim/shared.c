/* What the cores share: L2, DRAM, and the lines that are in more than one L1. */
#include <stdlib.h>
#include <string.h>

#include "cache.h"

static Cache l2;
static Memory *memories[MAX_CORES]; /* of all cores there ever were */
static int n_memories;

/* ---- resources that one core at a time uses ---- */

/* Which slots of time are taken, a bit each, in a ring of words. Cores ask out of the order of time, by as much as one may be ahead of
 * another; with a single cycle "free from" those behind would wait for those ahead although the resource is idle. */
enum { CALENDAR_WORDS = 1 << 11 };
typedef struct {
    uint64_t words[CALENDAR_WORDS];
    uint64_t newest; /* the highest word in use */
} Calendar;

static Calendar l2_port, dram_bus;

static void open_word(Calendar *calendar, uint64_t word)
{
    if (word <= calendar->newest) return;
    const uint64_t unused = word - calendar->newest;
    for (uint64_t i = unused > CALENDAR_WORDS ? word - CALENDAR_WORDS + 1 : calendar->newest + 1; i <= word; i++)
        calendar->words[i % CALENDAR_WORDS] = 0;
    calendar->newest = word;
}

/* Takes the first free slot from `cycle` on, of slots that are `sixteenths` of a cycle long; returns the cycle in which it begins. */
static uint64_t reserve(Calendar *calendar, uint64_t cycle, uint64_t sixteenths)
{
    uint64_t slot = cycle * 16 / sixteenths, word = slot / 64;
    if (word + CALENDAR_WORDS <= calendar->newest) word = calendar->newest - CALENDAR_WORDS + 1, slot = word * 64; /* long ago: forgotten */
    for (;; slot = ++word * 64) {
        open_word(calendar, word);
        uint64_t *taken = &calendar->words[word % CALENDAR_WORDS];
        const uint64_t free = ~*taken & ~0ull << (slot % 64);
        if (!free) continue;
        const int bit = __builtin_ctzll(free);
        *taken |= 1ull << bit;
        return later((word * 64 + bit) * sixteenths / 16, cycle);
    }
}

/* When a core that could use L2's port from `cycle` on gets it. A core alone is limited by `l2_line` alone. */
static inline uint64_t reserve_l2(Memory *memory, uint64_t cycle)
{
    if (n_memories == 1) return cycle;
    const uint64_t start = reserve(&l2_port, cycle, params.l2_port * 16);
    memory->count.l2_waits += start - cycle;
    return start;
}

/* Each bank of DRAM has one row open, a page of 4 KiB; pages go to the banks in turn. */
static struct {
    uint64_t row;
    Calendar openings;
} banks[MAX_BANKS];

/* When several cores read and write, each in rows of its own, a bank closes one row to open another, and can do so only so often. What one
 * core alone loses by that is in the bandwidth and latency that were measured of it. */
static uint64_t reserve_dram(uint64_t line, uint64_t cycle)
{
    const uint64_t page = line >> (PAGE_SHIFT - LINE_SHIFT), bank = page % (uint64_t)params.dram_banks;
    if (params.dram_row && banks[bank].row != page) cycle = reserve(&banks[bank].openings, cycle, (uint64_t)params.dram_row);
    banks[bank].row = page;
    return reserve(&dram_bus, cycle, (uint64_t)params.dram_total_line);
}

/* Moves a line over the DRAM bus, not before `cycle`; returns when it begins. One core gets no more than `dram_line` says. */
static inline uint64_t use_dram(Memory *memory, uint64_t line, uint64_t cycle)
{
    const uint64_t mine = later(cycle, memory->dram_free), start = n_memories == 1 ? mine : reserve_dram(line, mine);
    memory->count.dram_waits += start - mine;
    memory->dram_free = start + params.dram_line;
    return start;
}

/* ---- lines ---- */

uint64_t shared_fetch(Memory *memory, uint64_t line, uint64_t cycle, bool overwritten, int *level)
{
    memory->count.l2_accesses++;
    const uint64_t start = reserve_l2(memory, later(cycle, memory->l2_free));
    memory->l2_free = start + params.l2_line;
    const Line *hit = cache_find(&l2, line);
    uint64_t done = start + params.l2_latency;
    if (hit) {
        *level = hit->ready > done ? LEVEL_DRAM : LEVEL_L2; /* still on its way */
        return later(done, hit->ready);
    }
    memory->count.l2_misses++;
    *level = LEVEL_DRAM;
    const int way = victim_way(&l2, line);
    if (!overwritten) {
        const Line *old = &set_of(&l2, line)[way];
        if (cache_must_write(old)) use_dram(memory, old->tag, start); /* makes room first */
        done = use_dram(memory, line, start) + params.dram_latency;
        memory->count.dram_lines_read++;
    }
    const Line victim = cache_replace(&l2, way, (Line){.tag = line, .ready = done});
    if (cache_must_write(&victim)) {
        memory->count.dram_lines_written++;
        if (overwritten) { /* L2 has room for the new line when the old one leaves: so stores go no faster than memory takes them */
            done = later(done, use_dram(memory, victim.tag, later(start, memory->write_free)));
            memory->write_free = done + params.dram_write_line;
        }
    }
    return done;
}

void shared_write_back(Memory *memory, const Line *victim, uint64_t cycle)
{
    if (!cache_must_write(victim)) return;
    Line *below = cache_find(&l2, victim->tag);
    if (below) below->dirty = 1;
    else {
        memory->count.dram_lines_written++;
        use_dram(memory, victim->tag, n_memories == 1 ? 0 : cycle);
    }
    memory->l2_free += params.l2_line / 2;
}

int shared_snoop(const Memory *memory, uint64_t line, bool store)
{
    int found = NOWHERE_ELSE;
    for (int i = 0; i < n_memories; i++) {
        Line *copy = memories[i] == memory ? NULL : cache_peek(&memories[i]->l1d, line);
        if (!copy) continue;
        if (found != CHANGED_ELSEWHERE) found = copy->dirty ? CHANGED_ELSEWHERE : ELSEWHERE;
        if (copy->dirty) {
            Line *below = cache_peek(&l2, line);
            if (below) below->dirty = 1;
            copy->dirty = 0;
        }
        copy->shared = 1;
        if (store) cache_drop(&memories[i]->l1d, copy);
    }
    return found;
}

/* ---- setting up ---- */

void shared_join(Memory *memory)
{
    if (!n_memories) {
        cache_init(&l2, cache_sets(params.l2_kib, params.l2_ways), params.l2_ways);
        shared_cold();
    }
    memories[n_memories++] = memory;
}

void shared_cold(void)
{
    if (!n_memories && !l2.lines) return;
    cache_empty(&l2);
    l2.random = random_state(params.l2_random);
    memset(&l2_port, 0, sizeof l2_port);
    memset(&dram_bus, 0, sizeof dram_bus);
    memset(banks, 0, sizeof banks);
}
