/* The issue rules of the Cortex-A53: what one row of the table in rules.c says. */
#ifndef A53_RULES_H
#define A53_RULES_H

#include <stddef.h>
#include <stdint.h>

/* What a report counts an instruction as. */
enum {
    MIX_FP_MAC,
    MIX_FP,
    MIX_NEON_INT,
    MIX_NEON_MOVE,
    MIX_LOAD_VEC,
    MIX_LOAD_INT,
    MIX_STORE_VEC,
    MIX_STORE_INT,
    MIX_BRANCH,
    MIX_INT_ALU,
    MIX_INT_MULDIV,
    MIX_SYSTEM,
    MIX_UNKNOWN,
    N_MIX
};
extern const char *const mix_names[N_MIX];

/* Properties of an instruction's operands by which a row may restrict itself (decode.c finds them). */
enum {
    FORM_VEC = 1 << 0,      /* an operand is a vector or floating-point register */
    FORM_Q = 1 << 1,        /* an operand is 128 bits wide */
    FORM_X = 1 << 2,        /* the first integer data register is 64 bits wide */
    FORM_TO_GPR = 1 << 3,   /* vector operands, integer destination */
    FORM_FROM_GPR = 1 << 4, /* vector destination, an integer source */
    FORM_LANE = 1 << 5,     /* a single lane is written (ins, ld1 {v.s}[1]) */
    FORM_SHIFTED = 1 << 6,  /* a register operand is shifted or extended */
    FORM_IMM = 1 << 7,      /* the last operand is an immediate */
    FORM_E64 = 1 << 8,      /* elements of 64 bits: .1d, .2d, a d lane or a scalar d */
    FORM_E8_16 = 1 << 9,    /* a full register of 8- or 16-bit elements: .16b, .8h */
    FORM_REGS_3_4 = 1 << 10 /* three or four data registers */
};

/* Execution resources of which there is one: two instructions that need the same one cannot issue together. */
enum { UNIT_NONE = 0, UNIT_LS = 1 << 0, UNIT_MUL = 1 << 1, UNIT_BRANCH = 1 << 2, UNIT_SHIFT = 1 << 3, UNIT_DIV = 1 << 4 };

/* How many of the two 64-bit halves of the NEON datapath an instruction takes. */
enum { HALVES_NONE = 0, HALVES_ONE = 1, HALVES_BOTH = 2, HALVES_BY_WIDTH = 3 /* both when FORM_Q, else one */ };

enum {
    RULE_FMA = 1 << 0,         /* a fused multiply-add: no vector load may issue `fma_load_gap` cycles later */
    RULE_LOAD = 1 << 1,        /* writes its data registers from memory */
    RULE_STORE = 1 << 2,       /* reads its data registers: `lat` says in which cycle after issue */
    RULE_PREFETCH = 1 << 3,    /* touches memory, writes no register */
    RULE_AFTER_LAST = 1 << 4,  /* all registers come after the last cycle of occupancy: `lat` counts from there */
    RULE_CONDITIONAL = 1 << 5, /* branches: taken or not, predicted by history */
    RULE_CALL = 1 << 6,        /* pushes the return address */
    RULE_RETURN = 1 << 7,      /* predicted by the return stack */
    RULE_INDIRECT = 1 << 8,    /* predicted by the last target */
    RULE_LATE = 1 << 9,        /* may execute a stage later, so that it can issue with the one it depends on (pipeline.c) */
    RULE_UNKNOWN = 1 << 10,    /* instructions that no other row names */
    RULE_ALONE = 1 << 11       /* nothing issues in the same cycle */
};

typedef struct {
    const char *name;
    const char *mnemonics; /* separated by single spaces; "b.cond" stands for every b.eq, b.ne, ... */
    uint16_t need;         /* FORM_* bits that must all be present; the first row that fits is the one */
    uint8_t mix;
    uint8_t halves;
    uint8_t first;   /* 1: it must be the first of its issue pair, unless it takes one half only */
    uint8_t unit;    /* UNIT_* */
    uint8_t occ;     /* cycles in which it holds the issue stage (1: just its own) */
    uint8_t occ_reg; /* further such cycles for each data register after the first */
    uint8_t busy;    /* cycles until another instruction may use `unit`; other instructions go on */
    uint8_t lat;     /* cycles from issue to a result that the next instruction can use */
    uint8_t lat_reg; /* further cycles for each data register after the first */
    uint8_t acc;     /* the accumulator is needed so many cycles after issue: forwarding makes a chain lat - acc cycles long */
    uint16_t flags;  /* RULE_* */
    const char *source;
} Rule;

extern Rule rules[];
extern const int n_rules;

/* The first row that names `mnemonic` and whose needs `form` meets; the UNKNOWN row if there is none. */
const Rule *rule_for(const char *mnemonic, unsigned form);

/* The row called `name`, which there must be. */
const Rule *rule_named(const char *name);
/* Whether the space-separated `list` has the word `word` of `length` characters. */
int has_word(const char *list, const char *word, size_t length);

/* Overrides one number of a row: "FMLA.lat:9". Returns 0, or -1 when there is no such row or column. */
int rule_override(const char *text);

#endif
