/* Guests in AArch32 state: what their instructions read and write (decode32.c), and what each costs (rules32.c).
 *
 * A program counter says which instruction set its instruction is of, as in branches: bit 0 is set for T32. Registers are those of a53.h:
 * r0..r15 are 0..15, d0..d31 are the vector registers, s and q registers the d registers they lie in. */
#ifndef A53_AARCH32_H
#define A53_AARCH32_H

#include "a53.h"

enum { REG_SP32 = 13, REG_LR = 14, REG_PC = 15 };

/* Further FORM_* bits by which rows of rules32.c restrict themselves. */
enum {
    FORM_FLOAT = 1 << 11,    /* the type names floats: .f32, .s32.f32 */
    FORM_ALL_LANES = 1 << 12 /* vld1 {d0[]} */
};

/* What an instruction reads and writes: of each row its operands' roles. Without any bit the first operand is the result, the others are
 * sources. */
enum {
    E_NO_RESULT = 1 << 0,
    E_SETS_FLAGS = 1 << 1,  /* always, not with an s alone */
    E_READS_FLAGS = 1 << 2,
    E_READS_RESULT = 1 << 3,
    E_TWO_RESULTS = 1 << 4, /* umull: the first two operands */
    E_EXCHANGES = 1 << 5,   /* vzip: both operands are read and written */
    E_MOVES = 1 << 6,       /* vmov: as many results as operands of the first one's kind */
    E_ALONE = 1 << 7        /* nothing issues in the same cycle */
};

typedef struct {
    const char *name;
    const char *mnemonics; /* without condition and type, separated by single spaces */
    uint16_t need;         /* FORM_* bits that must all be present; the first row that fits is the one */
    const char *as;        /* the row of rules.c that it costs as, but for the columns that follow */
    uint16_t effects;      /* E_* */
    uint8_t lat;           /* cycles to the result; 0: that row's */
    uint8_t occ;           /* cycles in which it holds the issue stage; 0: that row's */
    uint8_t occ_group;     /* further such cycles for each group of `group` data registers (d registers or words) after the first */
    uint8_t group;         /* 0: 1 */
    const char *source;
} Rule32;

/* The first row that names `mnemonic` and whose needs `form` meets; NULL if there is none. */
const Rule32 *rule32_for(const char *mnemonic, unsigned form);

void decode32_init(void);
void decode32(uint32_t word, uint64_t pc, Op *op);
void disassemble32(uint32_t word, uint64_t pc, bool operands, char *text, size_t size);
/* As decode_sum. */
bool decode32_sum(uint32_t word, uint64_t pc, int to, int *from, int64_t *add);
/* Whether `word` is `add to, n, m, lsl #shift`. */
bool decode32_sum_of_two(uint32_t word, uint64_t pc, int to, int *n, int *m, int *shift);
/* The address of a prefetch of data: base + (index << shift) + offset; no register: REG_NONE. */
bool decode32_pointer(uint32_t word, uint64_t pc, int *base, int *index, int *shift, int64_t *offset);
/* Blocks with a `yield`, and those with a store that other cores wait for. */
bool is_yield32(uint32_t word, uint64_t pc);
bool is_publishing32(uint32_t word, uint64_t pc);

/* The A64 number of the system call with this number of the 32-bit ABI, which is what the rest of the model knows calls by; negative: one
 * that it need not know. `*narrow`: its times are pairs of 32 bits, not of 64. `arguments`, unless NULL, become those of the A64 call. */
int64_t syscall32(int64_t number, uint64_t *arguments, bool *narrow);

#endif
