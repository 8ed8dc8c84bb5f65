/* Packs weights as `bk_packing` says: what the compiler would have put into the file, bit for bit.
 *
 * A task is one panel of one chunk, at all positions. Some input channels at a time become a block, [position][k][channel], that
 * stays in the L1 cache, where the places of the positions in memory compete for few sets of it.
 */
#define _DEFAULT_SOURCE
#include "plan.h"

#include <string.h>
#include <sys/mman.h>

/* Output and input channels that are combined at once, and floats of a block: at least those of INPUTS input channels. */
enum { CHANNELS = 4, INPUTS = 4, PAIRS = CHANNELS * INPUTS / 2, BLOCK = 5120, PAGE = 4096 };

/* Two products or sums at once where the CPU has them; each is rounded as one alone. */
typedef double pair __attribute__((vector_size(16)));
typedef float rounded __attribute__((vector_size(8)));
typedef float quad __attribute__((vector_size(16)));

/* Of each output channel two pairs of input channels. */
typedef struct {
    pair pairs[PAIRS];
} lanes;

/* Where a task's panel is. */
typedef struct {
    int32_t channel, size, used;
    float *to;      /* at position 0 */
    size_t further; /* floats from a position to the next */
} panel;

static int32_t panels_of(const bk_chunk *chunk)
{
    int32_t count = 0;
    for (int32_t i = 0; i < chunk->panel_runs; i++) count += chunk->panels[i].count;
    return count;
}

/* Channels of a chunk's panels, filled up. */
static size_t width_of(const bk_chunk *chunk)
{
    size_t width = 0;
    for (int32_t i = 0; i < chunk->panel_runs; i++)
        width += (size_t)chunk->panels[i].count * (size_t)chunk->panels[i].size;
    return width;
}

static panel panel_of(const bk_packing *packing, int task, float *to)
{
    const bk_chunk *chunk = packing->chunks;
    size_t depth = (size_t)packing->depth, floats = depth * width_of(chunk) * (size_t)packing->positions;
    while (task >= chunk->run.count * panels_of(chunk)) {
        task -= chunk->run.count * panels_of(chunk);
        to += (size_t)chunk->run.count * floats;
        floats = depth * width_of(++chunk) * (size_t)packing->positions;
    }
    int32_t within = task / panels_of(chunk), left = task % panels_of(chunk);
    to += (size_t)within * floats;
    const bk_tiles *run = chunk->panels;
    for (; left >= run->count; run++) {
        left -= run->count;
        to += depth * (size_t)run->count * (size_t)run->size;
    }
    to += depth * (size_t)left * (size_t)run->size;
    int32_t channel = chunk->run.first + within * chunk->run.size + run->first + left * run->size;
    return (panel){channel, run->size, run->used, to, depth * width_of(chunk)};
}

/* Taps of CHANNELS neighbouring output channels in double precision. Of fewer than INPUTS input channels the last is there again. */
static inline void load(lanes *taps, const bk_packing *packing, const float *const *rows, int32_t k, int inputs)
{
    for (int32_t tap = 0; tap < packing->tap_count; tap++)
#pragma GCC unroll 4
        for (int channel = 0; channel < CHANNELS; channel++) {
            const float *from = rows[channel] + packing->taps[tap] + k;
            int second = inputs > 1, third = inputs > 2 ? 2 : second, fourth = inputs > 3 ? 3 : third;
            taps[tap].pairs[2 * channel] = (pair){from[0], from[second]};
            taps[tap].pairs[2 * channel + 1] = (pair){from[third], from[fourth]};
        }
}

static inline lanes sum_of(const lanes *taps, const bk_term *term, const bk_term *end, double zero)
{
    pair start = {zero, zero};
    lanes sum = {{start, start, start, start, start, start, start, start}};
    for (; term < end; term++) {
        const lanes *values = &taps[term->tap];
        pair factor = {term->factor, term->factor};
#pragma GCC unroll 8
        for (int i = 0; i < PAIRS; i++) sum.pairs[i] += factor * values->pairs[i];
    }
    return sum;
}

/* All of `sum`, rounded: input channels `size` floats apart. */
static inline void store(const lanes *sum, float *to, int size)
{
    rounded floats[PAIRS];
#pragma GCC unroll 8
    for (int i = 0; i < PAIRS; i++) floats[i] = __builtin_convertvector(sum->pairs[i], rounded);
#pragma GCC unroll 4
    for (int input = 0; input < INPUTS; input++) {
        int i = input / 2, lane = input % 2;
        quad channels = {floats[i][lane], floats[2 + i][lane], floats[4 + i][lane], floats[6 + i][lane]};
        memcpy(to + input * size, &channels, sizeof channels);
    }
}

/* `inputs` input channels from k on of the first `used` of CHANNELS output channels, at all positions, `further` floats apart. */
static inline void pack_tile(const bk_packing *packing, const float *const *rows, int used, int32_t k, int inputs, float *to,
                             size_t further, int size)
{
    lanes taps[BK_MOST_TAPS];
    load(taps, packing, rows, k, inputs);
    const bk_term *term = packing->terms;
    for (int32_t position = 0; position < packing->positions; position++, to += further) {
        const bk_term *end = packing->terms + packing->ends[position];
        lanes sum = sum_of(taps, term, end, packing->zero);
        if (used == CHANNELS && inputs == INPUTS) store(&sum, to, size);
        else
            for (int channel = 0; channel < used; channel++)
                for (int input = 0; input < inputs; input++)
                    to[input * size + channel] = (float)sum.pairs[2 * channel + input / 2][input % 2];
        term = end;
    }
}

/* `inputs` input channels of the panel, at all positions, into `block`. */
static void pack_block(const bk_packing *packing, const panel *into, const float *weights, float *block, int inputs)
{
    size_t further = (size_t)inputs * (size_t)into->size;
    for (int at = 0; at < into->used; at += CHANNELS) {
        int used = into->used - at < CHANNELS ? into->used - at : CHANNELS;
        const float *rows[CHANNELS];
        for (int i = 0; i < CHANNELS; i++) rows[i] = weights + (at + (i < used ? i : 0)) * packing->pitch;
        float *to = block + at;
        int k = 0;
        if (used == CHANNELS)
            for (; k + INPUTS <= inputs; k += INPUTS, to += INPUTS * into->size)
                pack_tile(packing, rows, CHANNELS, k, INPUTS, to, further, into->size);
        for (int left; (left = inputs - k) > 0; k += INPUTS, to += INPUTS * into->size)
            pack_tile(packing, rows, used, k, left < INPUTS ? left : INPUTS, to, further, into->size);
    }
}

/* Lets go of the whole pages of the file between two addresses: memory is not to hold weights in both forms. */
static void give_back(const float *from, const float *to)
{
    uintptr_t first = ((uintptr_t)from + PAGE - 1) / PAGE * PAGE, end = (uintptr_t)to / PAGE * PAGE;
    if (first < end) madvise((void *)first, end - first, MADV_DONTNEED);
}

void bk_pack(const bk_packing *packing, int task, const unsigned char *constants, unsigned char *made)
{
    panel into = panel_of(packing, task, (float *)(void *)(made + packing->to));
    const float *weights = (const float *)(const void *)(constants + packing->source) + into.channel * packing->pitch;
    int most = BLOCK / (packing->positions * into.size * INPUTS) * INPUTS;
    float block[BLOCK];
    for (int32_t k = 0; k < packing->depth; k += most) {
        int inputs = packing->depth - k < most ? packing->depth - k : most;
        size_t floats = (size_t)inputs * (size_t)into.size;
        memset(block, 0, (size_t)packing->positions * floats * sizeof *block); /* a panel's channels beyond `used` */
        pack_block(packing, &into, weights + k, block, inputs);
        for (int32_t position = 0; position < packing->positions; position++)
            memcpy(into.to + (size_t)position * into.further + (size_t)k * (size_t)into.size,
                   block + (size_t)position * floats, floats * sizeof *block);
    }
    give_back(weights, weights + into.used * packing->pitch);
}
