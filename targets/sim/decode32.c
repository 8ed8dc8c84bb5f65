/* From an A32 or T32 instruction to an `Op`. Capstone gives mnemonic and operands; what it says of reads and writes is wrong for many NEON
 * instructions, so that is found here, by the table in rules32.c. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <capstone/capstone.h>

#include "aarch32.h"

#define MARK 0xe320f0ffu /* dbg #15: brackets a micro-benchmark */

static csh a32, t32;
static uint8_t register_of[ARM_REG_ENDING]; /* Capstone's registers to ours: of a q or s register the (first) d register */
static char kind_of[ARM_REG_ENDING];        /* r, or first letter of the vector register's name: q d s */

static void open_decoder(cs_mode mode, csh *decoder)
{
    if (cs_open(CS_ARCH_ARM, mode | CS_MODE_V8, decoder) != CS_ERR_OK) {
        fprintf(stderr, "a53: this Capstone library cannot decode AArch32\n");
        exit(1);
    }
    cs_option(*decoder, CS_OPT_DETAIL, CS_OPT_ON);
}

void decode32_init(void)
{
    static const char *const special[] = {"sb", "sl", "fp", "ip", "sp", "lr", "pc"}; /* r9..r15 */
    open_decoder(CS_MODE_ARM, &a32);
    open_decoder(CS_MODE_THUMB, &t32);
    memset(register_of, REG_NONE, sizeof register_of);
    for (int reg = 1; reg < ARM_REG_ENDING; reg++) {
        const char *name = cs_reg_name(a32, reg);
        if (!name) continue;
        for (int i = 0; i < 7; i++)
            if (!strcmp(name, special[i])) register_of[reg] = (uint8_t)(9 + i), kind_of[reg] = 'r';
        if (name[1] < '0' || name[1] > '9') continue;
        const int number = atoi(name + 1);
        kind_of[reg] = name[0];
        switch (name[0]) {
        case 'r': register_of[reg] = (uint8_t)number; break;
        case 'd': register_of[reg] = (uint8_t)(REG_V0 + number); break;
        case 'q': register_of[reg] = (uint8_t)(REG_V0 + 2 * number); break;
        case 's': register_of[reg] = (uint8_t)(REG_V0 + number / 2); break;
        default: kind_of[reg] = 0;
        }
    }
}

static bool disassembled(uint32_t word, uint64_t pc, cs_insn **insn)
{
    return cs_disasm(pc & 1 ? t32 : a32, (const uint8_t *)&word, sizeof word, pc & ~1ull, 1, insn) == 1;
}

/* An instruction's operands, sorted. Data registers are those of a load or store. */
typedef struct {
    const char *name; /* without condition and type */
    const cs_insn *insn;
    const cs_arm *detail;
    int n, memory, first_data, n_data; /* `memory`: index of the memory operand, -1 without one */
    unsigned form;
    bool multiple; /* ldm, vstm, push: the first operand is the base, or there is none and it is sp */
    bool conditional;
} Parts;

static bool one_of(const char *word, const char *list)
{
    char padded[24];
    snprintf(padded, sizeof padded, " %s ", word);
    return strstr(list, padded) != NULL;
}

static bool is_register(const Parts *parts, int i)
{
    return i < parts->n && parts->detail->operands[i].type == ARM_OP_REG && register_of[parts->detail->operands[i].reg] != REG_NONE;
}

static char kind(const Parts *parts, int i)
{
    return is_register(parts, i) ? kind_of[parts->detail->operands[i].reg] : 0;
}

static bool is_vector(const Parts *parts, int i)
{
    return kind(parts, i) && kind(parts, i) != 'r';
}

static void find_form(Parts *parts)
{
    const char *type = strchr(parts->insn->mnemonic, '.');
    if (type && strchr(type, 'f')) parts->form |= FORM_FLOAT;
    if (type && strstr(type, "f64")) parts->form |= FORM_E64;
    bool vectors = false, integers = false;
    for (int i = 0; i < parts->n; i++) {
        const cs_arm_op *operand = &parts->detail->operands[i];
        vectors |= is_vector(parts, i);
        integers |= kind(parts, i) == 'r';
        if (kind(parts, i) == 'q') parts->form |= FORM_Q;
        if (operand->type == ARM_OP_IMM && i == parts->n - 1) parts->form |= FORM_IMM;
        if (operand->type == ARM_OP_REG && operand->shift.type != ARM_SFT_INVALID) parts->form |= FORM_SHIFTED;
    }
    if (vectors) parts->form |= FORM_VEC;
    if (parts->memory < 0 && vectors && integers) parts->form |= is_vector(parts, 0) ? FORM_FROM_GPR : FORM_TO_GPR;
    if (parts->memory < 0) return;
    if (parts->n_data && parts->detail->operands[parts->first_data].neon_lane >= 0) parts->form |= FORM_LANE;
    else if (strstr(parts->insn->op_str, "[]")) parts->form |= FORM_ALL_LANES;
    if (kind(parts, parts->first_data) == 'd' && parts->n_data % 2 == 0 && parts->n_data) parts->form |= FORM_Q;
    if (parts->n_data >= 3) parts->form |= FORM_REGS_3_4;
}

static void take_apart(const cs_insn *insn, Parts *parts)
{
    const cs_arm *detail = &insn->detail->arm;
    *parts = (Parts){.insn = insn, .detail = detail, .n = detail->op_count, .memory = -1};
    parts->name = cs_insn_name(a32, insn->id);
    if (!parts->name) parts->name = "";
    parts->conditional = detail->cc != ARM_CC_AL && detail->cc != ARM_CC_INVALID;
    for (int i = 0; i < parts->n; i++)
        if (detail->operands[i].type == ARM_OP_MEM) parts->memory = i;
    parts->first_data = !strncmp(parts->name, "strex", 5) || !strncmp(parts->name, "stlex", 5); /* the status comes first */
    parts->n_data = parts->memory - parts->first_data;
    const bool on_stack = one_of(parts->name, " push pop vpush vpop ");
    parts->multiple = on_stack || one_of(parts->name, " ldm ldmda ldmdb ldmib stm stmda stmdb stmib vldm vldmia vldmdb vstm vstmia vstmdb ");
    if (parts->multiple) {
        parts->first_data = !on_stack;
        parts->n_data = parts->n - parts->first_data;
    }
    find_form(parts);
}

static void add_source(Op *op, int reg, int needed)
{
    for (int i = 0; i < op->n_sources; i++)
        if (op->source[i].reg == reg) {
            if (needed < op->source[i].needed) op->source[i].needed = (uint8_t)needed;
            return;
        }
    if (op->n_sources == MAX_SOURCES) return;
    op->source[op->n_sources].reg = (uint8_t)reg;
    op->source[op->n_sources++].needed = (uint8_t)needed;
}

static void add_result(Op *op, int reg, int lat)
{
    if (op->n_results == MAX_RESULTS) return;
    op->result[op->n_results].reg = (uint8_t)reg;
    op->result[op->n_results++].lat = (uint8_t)lat;
}

/* Registers that operand `i` lies in: none, one, or the two halves of a q register. */
static int width(const Parts *parts, int i)
{
    return is_register(parts, i) ? 1 + (kind(parts, i) == 'q') : 0;
}

static void read_operand(const Parts *parts, int i, int needed, Op *op)
{
    const cs_arm_op *operand = &parts->detail->operands[i];
    for (int half = 0; half < width(parts, i); half++) add_source(op, register_of[operand->reg] + half, needed);
    const bool by_register = operand->type == ARM_OP_REG && operand->shift.type >= ARM_SFT_ASR_REG;
    if (by_register && operand->shift.value < ARM_REG_ENDING && register_of[operand->shift.value] != REG_NONE)
        add_source(op, register_of[operand->shift.value], 0);
}

static void write_operand(const Parts *parts, int i, int lat, Op *op)
{
    for (int half = 0; half < width(parts, i); half++) add_result(op, register_of[parts->detail->operands[i].reg] + half, lat);
}

/* Whether the result keeps a part of what was in the register: a lane, an s register, two operands of which the first is a source too. */
static bool keeps_part(const Parts *parts)
{
    const bool moves_in = parts->form & FORM_FROM_GPR && !strcmp(parts->name, "vmov");
    if (moves_in && (parts->detail->operands[0].vector_index >= 0 || kind(parts, 0) == 's')) return true;
    return parts->n == 2 && !(parts->form & FORM_SHIFTED) &&
           one_of(parts->name, " add addw sub subw rsb and orr orn eor bic adc sbc lsl lsr asr ror mul vorr vbic ");
}

static int count_results(const Parts *parts, unsigned effects)
{
    if (effects & E_NO_RESULT) return 0;
    if (effects & (E_TWO_RESULTS | E_EXCHANGES)) return 2;
    if (!(effects & E_MOVES)) return 1;
    int n = 1;
    while (n < parts->n && kind(parts, n) == kind(parts, 0)) n++;
    return n;
}

static void register_operands(const Parts *parts, const Rule32 *rule, const Rule *cost, Op *op)
{
    const int lat = (rule->lat ? rule->lat : cost->lat) + (cost->flags & RULE_AFTER_LAST ? op->occ - 1 : 0);
    /* mrc p15, 0, r0, ...: the result is the first register, and the coprocessor's registers are none of ours. */
    const bool coprocessor = parts->n && (parts->detail->operands[0].type == ARM_OP_PIMM || parts->detail->operands[0].type == ARM_OP_CIMM);
    const int n_results = coprocessor && !(rule->effects & E_NO_RESULT) ? parts->n : count_results(parts, rule->effects);
    const bool keeps = rule->effects & (E_READS_RESULT | E_EXCHANGES) || parts->conditional || keeps_part(parts);
    for (int i = 0; i < parts->n; i++) {
        if (i >= n_results) {
            read_operand(parts, i, 0, op);
            continue;
        }
        write_operand(parts, i, lat, op);
        if (keeps) read_operand(parts, i, rule->effects & E_EXCHANGES ? 0 : cost->acc, op);
    }
    const bool s_suffix = parts->detail->update_flags && strlen(parts->insn->mnemonic) > strlen(parts->name);
    if (rule->effects & E_SETS_FLAGS || s_suffix) add_result(op, REG_FLAGS, lat);
    if (rule->effects & E_READS_FLAGS || parts->conditional) add_source(op, REG_FLAGS, 0);
}

static void address_operands(const Parts *parts, Op *op)
{
    if (parts->multiple) {
        const int base = parts->first_data ? register_of[parts->detail->operands[0].reg] : REG_SP32;
        add_source(op, base, 0);
        if (!parts->first_data || parts->detail->writeback) add_result(op, base, 1);
        return;
    }
    const arm_op_mem *memory = &parts->detail->operands[parts->memory].mem;
    const int base = register_of[memory->base];
    if (base != REG_NONE) add_source(op, base, 0);
    if (memory->index && register_of[memory->index] != REG_NONE) add_source(op, register_of[memory->index], 0);
    const bool post_indexed = parts->memory + 1 < parts->n;
    for (int i = parts->memory + 1; i < parts->n; i++) read_operand(parts, i, 0, op);
    if (base != REG_NONE && (parts->detail->writeback || post_indexed)) add_result(op, base, 1);
}

static void memory_operands(const Parts *parts, const Rule32 *rule, const Rule *cost, Op *op)
{
    const int first = (rule->lat ? rule->lat : cost->lat) + (cost->flags & RULE_AFTER_LAST ? op->occ - 1 : 0);
    const int group = rule->group ? rule->group : 1;
    for (int i = 0; i < parts->n_data; i++) {
        const int operand = parts->first_data + i, when = first + rule->occ_group * (i / group);
        if (cost->flags & RULE_STORE) read_operand(parts, operand, when, op);
        if (!(cost->flags & RULE_LOAD)) continue;
        write_operand(parts, operand, when, op);
        if (parts->form & FORM_LANE || parts->conditional) read_operand(parts, operand, cost->acc, op);
    }
    op->n_loaded = op->n_results;
    if (!parts->multiple && parts->first_data) write_operand(parts, 0, cost->lat, op); /* status of a store-exclusive */
    address_operands(parts, op);
    if (parts->conditional) add_source(op, REG_FLAGS, 0);
}

static void collect_sets(Op *op)
{
    for (int i = 0; i < op->n_results; i++) {
        const int reg = op->result[i].reg;
        if (reg >= REG_V0 && reg < REG_FLAGS) op->writes_vec |= 1u << (reg - REG_V0);
        else op->writes_int |= 1ull << (reg == REG_FLAGS ? 32 : reg);
    }
    op->touches_int = op->writes_int, op->touches_vec = op->writes_vec;
    for (int i = 0; i < op->n_sources; i++) {
        const int reg = op->source[i].reg;
        if (reg >= REG_V0 && reg < REG_FLAGS) op->touches_vec |= 1u << (reg - REG_V0);
        else op->touches_int |= 1ull << (reg == REG_FLAGS ? 32 : reg);
    }
}

/* A result in pc is a branch: from the stack or from lr a return. */
static void branch_by_result(const Parts *parts, Op *op)
{
    bool branches = one_of(parts->name, " tbb tbh ");
    for (int i = 0; i < op->n_results; i++) {
        if (op->result[i].reg != REG_PC) continue;
        branches = true;
        if (i < op->n_loaded) op->n_loaded--;
        memmove(&op->result[i], &op->result[i + 1], (size_t)(op->n_results - i - 1) * sizeof op->result[0]);
        op->n_results--;
    }
    if (!branches) return;
    const bool from_stack = parts->multiple || (parts->memory >= 0 && register_of[parts->detail->operands[parts->memory].mem.base] == REG_SP32);
    const bool from_lr = parts->n == 2 && !strcmp(parts->name, "mov") && is_register(parts, 1) && register_of[parts->detail->operands[1].reg] == REG_LR;
    op->unit |= UNIT_BRANCH;
    op->flags = (uint16_t)((op->flags & ~RULE_LATE) | (from_stack || from_lr ? RULE_RETURN : RULE_INDIRECT));
}

/* The row of rules.c for a branch of this form. */
static const Rule *branch_cost(const Parts *parts, const Rule *cost)
{
    const bool to_address = !is_register(parts, 0);
    if (!strcmp(parts->name, "b") && parts->conditional) return rule_named("B_COND");
    if (!strcmp(parts->name, "blx") && to_address) return rule_named("BL");
    if (!strcmp(parts->name, "bx") && !to_address && register_of[parts->detail->operands[0].reg] == REG_LR) return rule_named("RET");
    return cost;
}

static int groups(const Parts *parts, const Rule32 *rule)
{
    const int group = rule->group ? rule->group : 1;
    const int n = kind(parts, parts->first_data) == 's' ? (parts->n_data + 1) / 2 : parts->n_data;
    return n > group ? (n + group - 1) / group : 1;
}

static void apply(const Parts *parts, const Rule32 *rule, Op *op)
{
    const Rule *cost = branch_cost(parts, rule_named(rule->as));
    const int wide = parts->form & FORM_Q ? HALVES_BOTH : HALVES_ONE;
    op->rule = (uint16_t)(cost - rules);
    op->flags = cost->flags | (rule->effects & E_ALONE ? RULE_ALONE : 0);
    op->mix = cost->mix;
    op->halves = (uint8_t)(cost->halves == HALVES_BY_WIDTH ? wide : cost->halves);
    op->first = (cost->first && op->halves != HALVES_ONE) || rule->effects & E_ALONE;
    op->unit = cost->unit;
    op->busy = cost->busy;
    op->occ = (uint8_t)((rule->occ ? rule->occ : cost->occ) + rule->occ_group * (groups(parts, rule) - 1));
    if (parts->memory >= 0 || parts->multiple) memory_operands(parts, rule, cost, op);
    else register_operands(parts, rule, cost, op);
    if (cost->flags & RULE_CALL) add_result(op, REG_LR, cost->lat);
    branch_by_result(parts, op);
    if (op->unit & UNIT_BRANCH && parts->conditional) op->flags |= RULE_CONDITIONAL;
    collect_sets(op);
}

static void apply_unknown(Op *op)
{
    const Rule *cost = rule_named("UNKNOWN");
    *op = (Op){.rule = (uint16_t)(cost - rules), .flags = cost->flags, .mix = cost->mix, .occ = cost->occ};
}

/* The T32 instructions after an `it` are conditional, and set no flags: how many are left, and where the next is. */
static __thread int it_left;
static __thread uint64_t it_next;

static bool in_it_block(const Parts *parts, uint64_t pc)
{
    const bool inside = it_left > 0 && pc == it_next;
    if (!inside) it_left = 0;
    else it_left--;
    if (!strcmp(parts->name, "it")) it_left = (int)strlen(parts->insn->mnemonic) - 1; /* it, ite, itet */
    it_next = pc + parts->insn->size;
    return inside;
}

void decode32(uint32_t word, uint64_t pc, Op *op)
{
    memset(op, 0, sizeof *op);
    cs_insn *insn;
    if (!disassembled(word, pc, &insn)) {
        apply_unknown(op);
        return;
    }
    Parts parts;
    take_apart(insn, &parts);
    if (pc & 1 && in_it_block(&parts, pc)) parts.conditional = true;
    const Rule32 *rule = rule32_for(parts.name, parts.form);
    if (rule) apply(&parts, rule, op);
    else apply_unknown(op);
    if (!(pc & 1) && word == MARK) op->is_mark = op->first = 1;
    cs_free(insn, 1);
}

void disassemble32(uint32_t word, uint64_t pc, bool operands, char *text, size_t size)
{
    cs_insn *insn;
    if (!disassembled(word, pc, &insn)) {
        snprintf(text, size, ".inst 0x%08x", word);
        return;
    }
    snprintf(text, size, operands ? "%s %s" : "%s", insn->mnemonic, insn->op_str);
    cs_free(insn, 1);
}

/* ---- for prefetches, whose addresses QEMU does not tell ---- */

/* By how much a load or store moves its base register, if that is a constant. */
static bool moves_base_by(const Parts *parts, int64_t *add)
{
    const int bytes = kind(parts, parts->first_data) == 'r' || kind(parts, parts->first_data) == 's' ? 4 : 8;
    if (parts->multiple) {
        const bool down = strstr(parts->name, "db") || strstr(parts->name, "da") || strstr(parts->name, "push");
        *add = (down ? -bytes : bytes) * parts->n_data;
        return true;
    }
    const cs_arm_op *memory = &parts->detail->operands[parts->memory], *post = parts->memory + 1 < parts->n ? memory + 1 : NULL;
    if (one_of(parts->name, " vld1 vld2 vld3 vld4 vst1 vst2 vst3 vst4 ")) {
        const int elements = strcmp(parts->name + 3, "1") || parts->form & FORM_LANE ? parts->n_data : 1;
        *add = parts->form & (FORM_LANE | FORM_ALL_LANES) ? elements * parts->detail->vector_size / 8 : 8 * parts->n_data;
        return !post;
    }
    *add = post ? (post->subtracted ? -(int64_t)post->imm : post->imm) : memory->mem.disp;
    return !post || post->type == ARM_OP_IMM;
}

static int base_of(const Parts *parts)
{
    if (!parts->multiple) return register_of[parts->detail->operands[parts->memory].mem.base];
    return parts->first_data ? register_of[parts->detail->operands[0].reg] : REG_SP32;
}

/* Whether operand `i` is our register `reg`. */
static bool is_reg(const Parts *parts, int i, int reg)
{
    return is_register(parts, i) && register_of[parts->detail->operands[i].reg] == reg;
}

static bool is_sum(const Parts *parts, int to, int *from, int64_t *add)
{
    if (parts->conditional) return false;
    if (parts->multiple || parts->memory >= 0) {
        for (int i = 0; i < parts->n_data; i++)
            if (is_reg(parts, parts->first_data + i, to)) return false;
        *from = to;
        return base_of(parts) == to && moves_base_by(parts, add);
    }
    if (parts->n < 2 || !is_reg(parts, 0, to) || parts->form & FORM_SHIFTED) return false;
    const cs_arm_op *last = &parts->detail->operands[parts->n - 1];
    if (!strcmp(parts->name, "mov") && is_register(parts, 1)) {
        *from = register_of[last->reg];
        *add = 0;
        return true;
    }
    const int sign = !strncmp(parts->name, "add", 3) ? 1 : !strncmp(parts->name, "sub", 3) ? -1 : 0;
    if (!sign || last->type != ARM_OP_IMM || (parts->n == 3 && !is_register(parts, 1))) return false;
    *from = parts->n == 3 ? register_of[parts->detail->operands[1].reg] : to;
    *add = sign * (int64_t)last->imm;
    return *from != REG_PC;
}

bool decode32_sum(uint32_t word, uint64_t pc, int to, int *from, int64_t *add)
{
    cs_insn *insn;
    if (!disassembled(word, pc, &insn)) return false;
    Parts parts;
    take_apart(insn, &parts);
    const bool found = is_sum(&parts, to, from, add);
    cs_free(insn, 1);
    return found;
}

bool decode32_sum_of_two(uint32_t word, uint64_t pc, int to, int *n, int *m, int *shift)
{
    cs_insn *insn;
    if (!disassembled(word, pc, &insn)) return false;
    Parts parts;
    take_apart(insn, &parts);
    bool found = !parts.conditional && !strcmp(parts.name, "add") && parts.n == 3 && is_reg(&parts, 0, to) && is_register(&parts, 1) &&
                 is_register(&parts, 2);
    if (found) {
        const cs_arm_op *last = &parts.detail->operands[2];
        *n = register_of[parts.detail->operands[1].reg];
        *m = register_of[last->reg];
        *shift = last->shift.type == ARM_SFT_INVALID ? 0 : (int)last->shift.value;
        found = (last->shift.type == ARM_SFT_INVALID || last->shift.type == ARM_SFT_LSL) && *n != REG_PC && *m != REG_PC;
    }
    cs_free(insn, 1);
    return found;
}

bool decode32_pointer(uint32_t word, uint64_t pc, int *base, int *index, int *shift, int64_t *offset)
{
    cs_insn *insn;
    if (!disassembled(word, pc, &insn)) return false;
    Parts parts;
    take_apart(insn, &parts);
    bool found = one_of(parts.name, " pld pldw ") && parts.memory >= 0;
    if (found) {
        const cs_arm_op *operand = &parts.detail->operands[parts.memory];
        *base = register_of[operand->mem.base];
        *index = operand->mem.index ? register_of[operand->mem.index] : REG_NONE;
        *shift = operand->shift.type == ARM_SFT_LSL ? (int)operand->shift.value : 0;
        *offset = operand->mem.disp;
        found = *base != REG_PC && operand->mem.scale >= 0 && (operand->shift.type == ARM_SFT_INVALID || operand->shift.type == ARM_SFT_LSL);
    }
    cs_free(insn, 1);
    return found;
}

bool is_yield32(uint32_t word, uint64_t pc)
{
    return pc & 1 ? (word & 0xffff) == 0xbf10 : word == 0xe320f001;
}

bool is_publishing32(uint32_t word, uint64_t pc)
{
    if (!(pc & 1)) return (word & 0x0f900ff0) == 0x01800f90 || (word & 0x0f900cf0) == 0x01800c90; /* strex, stlex, stl and their kin */
    const uint16_t high = word & 0xffff, low = word >> 16;
    return (high & 0xfff0) == 0xe840 || ((high & 0xfff0) == 0xe8c0 && (low & 0x00f0) >= 0x0040); /* strex; strexb and on, stl */
}
