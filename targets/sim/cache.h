/* Sets of lines in order of use. Inline: these are the inner loops of the memory hierarchy. */
#ifndef A53_CACHE_H
#define A53_CACHE_H

#include <stdlib.h>
#include <string.h>

#include "a53.h"

#define NO_TAG UINT64_MAX

static inline uint64_t later(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* How many sets a cache of this size has: a power of two. */
static inline uint64_t cache_sets(int kib, int ways)
{
    uint64_t wanted = (uint64_t)kib * 1024 / ((1 << LINE_SHIFT) * ways), power = 1;
    while (power * 2 <= wanted) power *= 2;
    return power;
}

static inline void cache_init(Cache *cache, uint64_t sets, int ways)
{
    cache->ways = ways;
    cache->set_mask = sets - 1;
    cache->lines = malloc(sets * ways * sizeof(Line));
}

static inline void cache_empty(Cache *cache)
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

/* The line with this tag, left where it is in the order of use; NULL if there is none. */
static inline Line *cache_peek(const Cache *cache, uint64_t tag)
{
    Line *set = set_of(cache, tag);
    for (int way = 0; way < cache->ways; way++)
        if (set[way].tag == tag) return &set[way];
    return NULL;
}

/* Empties the place of `line`, which becomes the next to be taken. */
static inline void cache_drop(const Cache *cache, Line *line)
{
    Line *last = set_of(cache, line->tag) + cache->ways - 1;
    memmove(line, line + 1, (char *)last - (char *)line);
    *last = (Line){.tag = NO_TAG};
}

/* Whether a line that falls out must be written to the level below. */
static inline bool cache_must_write(const Line *victim)
{
    return victim->tag != NO_TAG && victim->dirty;
}

#endif
