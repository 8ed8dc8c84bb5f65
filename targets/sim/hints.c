/* Where prefetch instructions point. QEMU translates them to nothing and reports no access, so their addresses are put together from
 * registers at the begin and at the end of a block, which is when QEMU keeps all of them in memory. */
#include <stdlib.h>
#include <string.h>

#include "aarch32.h"

/* The fields of a prefetch instruction's word. */
enum { NO_REGISTER = -1 };
typedef struct {
    int base, index, shift;
    bool extends; /* the index is narrower than an address */
    int level;
    int64_t offset;
} Pointer;

static int64_t signed_field(uint32_t word, int low, int width)
{
    return (int64_t)((uint64_t)(word >> low) << (64 - width)) >> (64 - width);
}

static bool take_apart32(uint32_t word, uint64_t pc, Pointer *pointer)
{
    *pointer = (Pointer){.level = LEVEL_L1};
    const bool known = decode32_pointer(word, pc, &pointer->base, &pointer->index, &pointer->shift, &pointer->offset);
    if (pointer->index == REG_NONE) pointer->index = NO_REGISTER;
    return known;
}

static bool take_apart(uint32_t word, uint64_t pc, Pointer *pointer)
{
    static const uint8_t levels[] = {LEVEL_L1, LEVEL_L2, LEVEL_NONE, LEVEL_NONE}; /* pldl1, pldl2, pldl3: there is no L3 */
    if (aarch32) return take_apart32(word, pc, pointer);
    *pointer = (Pointer){.base = (word >> 5) & 31, .index = NO_REGISTER};
    pointer->level = (word >> 3 & 3) == 1 ? LEVEL_NONE : levels[word >> 1 & 3]; /* pli: of instructions */
    if ((word & 0xffc00000) == 0xf9800000) pointer->offset = (word >> 10 & 0xfff) * 8; /* prfm [xn, #imm] */
    else if ((word & 0xffe00c00) == 0xf8800000) pointer->offset = signed_field(word, 12, 9); /* prfum [xn, #imm] */
    else if ((word & 0xff000000) == 0xd8000000) { /* prfm label */
        pointer->base = NO_REGISTER;
        pointer->offset = (int64_t)pc + signed_field(word, 5, 19) * 4;
    } else if ((word & 0xffe00c00) == 0xf8a00800) { /* prfm [xn, xm, lsl #3] */
        pointer->index = (word >> 16) & 31;
        pointer->shift = (word >> 12 & 1) * 3;
        pointer->extends = (word >> 13 & 3) != 3;
    } else
        return false;
    return true;
}

static bool add_term(Hint *hint, int reg, int factor, int shift, bool at_end)
{
    if (hint->n_terms == MAX_TERMS) return false;
    hint->terms[hint->n_terms].reg = (uint8_t)reg;
    hint->terms[hint->n_terms].factor = (uint8_t)factor;
    hint->terms[hint->n_terms].shift = (uint8_t)shift;
    hint->terms[hint->n_terms++].at_end = at_end;
    return true;
}

static bool writes(const Block *block, uint32_t i, int reg)
{
    return block->ops[i].writes_int >> reg & 1;
}

/* Index + 1 of the last instruction before `at` that writes `reg`; 0: none. */
static uint32_t last_write(const Block *block, uint32_t at, int reg)
{
    while (at > 0 && !writes(block, at - 1, reg)) at--;
    return at;
}

static bool add_sum_to(const Block *block, uint32_t at, int reg, int shift, Hint *hint);

/* Adds what instruction `i` writes to `reg`, if it is a sum or a product of registers. */
static bool add_result_of(const Block *block, uint32_t i, int reg, int shift, Hint *hint)
{
    const uint32_t word = block->words[i];
    int from, n = word >> 5 & 31, m = word >> 16 & 31, a = word >> 10 & 31;
    int64_t add;
    if (decode_sum(word, block_pc(block, i), reg, &from, &add)) {
        hint->offset += (int64_t)((uint64_t)add << shift);
        return add_sum_to(block, i, from, shift, hint);
    }
    if (aarch32)
        return decode32_sum_of_two(word, block_pc(block, i), reg, &n, &m, &a) && add_sum_to(block, i, n, shift, hint) &&
               add_sum_to(block, i, m, shift + a, hint);
    if ((word & 0xffe00000) == 0x8b000000 && n != 31 && m != 31) /* add xd, xn, xm, lsl #a */
        return add_sum_to(block, i, n, shift, hint) && add_sum_to(block, i, m, shift + a, hint);
    if ((word & 0xffe08000) == 0x9b000000 && !last_write(block, i, n) && !last_write(block, i, m)) /* madd xd, xn, xm, xa */
        return add_term(hint, n, m, shift, false) && (a == 31 || add_sum_to(block, i, a, shift, hint));
    return false;
}

/* Adds register `reg` as it is before instruction `at`: told from the block's begin, else from its end. */
static bool add_sum_to(const Block *block, uint32_t at, int reg, int shift, Hint *hint)
{
    const uint32_t write = last_write(block, at, reg);
    if (!write) return add_term(hint, reg, REG_NONE, shift, false);
    const Hint before = *hint;
    if (add_result_of(block, write - 1, reg, shift, hint)) return true;
    *hint = before;
    for (uint32_t i = at; i < block->n; i++) {
        int from;
        int64_t add;
        if (!writes(block, i, reg)) continue;
        if (!decode_sum(block->words[i], block_pc(block, i), reg, &from, &add) || from != reg) return false;
        hint->offset -= (int64_t)((uint64_t)add << shift);
    }
    return add_term(hint, reg, REG_NONE, shift, true);
}

static Hint hint_of(const Block *block, uint32_t at)
{
    Hint hint = {0};
    Pointer pointer;
    if (!take_apart(block->words[at], block_pc(block, at), &pointer) || pointer.extends) return hint;
    hint.level = (uint8_t)pointer.level;
    hint.offset = pointer.offset;
    hint.known = (pointer.base == NO_REGISTER || add_sum_to(block, at, pointer.base, 0, &hint)) &&
                 (pointer.index == NO_REGISTER || pointer.index == REG_SP || add_sum_to(block, at, pointer.index, pointer.shift, &hint));
    return hint;
}

void hints_find(Block *block)
{
    Hint found[MAX_HINTS];
    for (uint32_t i = 0; i < block->n && block->n_hints < MAX_HINTS; i++)
        if (block->ops[i].flags & RULE_PREFETCH) found[block->n_hints++] = hint_of(block, i);
    if (!block->n_hints) return;
    block->hints = malloc(block->n_hints * sizeof *found);
    memcpy(block->hints, found, block->n_hints * sizeof *found);
}

void hints_read(const Block *block, unsigned cpu, bool at_end, uint64_t *addresses)
{
    for (uint32_t i = 0; i < block->n_hints; i++) {
        const Hint *hint = &block->hints[i];
        if (!at_end) addresses[i] = (uint64_t)hint->offset;
        for (int k = 0; k < hint->n_terms; k++) {
            if (hint->terms[k].at_end != at_end) continue;
            const uint64_t value = qemu_register(cpu, hint->terms[k].reg);
            const uint64_t factor = hint->terms[k].factor == REG_NONE ? 1 : qemu_register(cpu, hint->terms[k].factor);
            addresses[i] += (value * factor) << hint->terms[k].shift;
        }
        if (aarch32) addresses[i] = (uint32_t)addresses[i];
    }
}
