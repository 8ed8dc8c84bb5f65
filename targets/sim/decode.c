/* From an A64 instruction word to an `Op`: Capstone gives mnemonic and operands, rules.c the timing; what is read and written is found here. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <capstone/capstone.h>

#include "aarch32.h"

#if CS_API_MAJOR >= 5
#define WRITES_BACK(insn) ((insn)->detail->writeback)
#define IS_D_LANE(operand) ((operand).vas == ARM64_VAS_1D)
#else
#define WRITES_BACK(insn) ((insn)->detail->arm64.writeback)
#define IS_D_LANE(operand) ((operand).vess == ARM64_VESS_D)
#endif

/* Data flow that the operand list does not show. Timing has no place here. */
enum { NO_RESULT = 1, SETS_FLAGS = 2, READS_FLAGS = 4, READS_RESULT = 8, ACCUMULATES_LAST = 16 };
static const struct {
    unsigned effects;
    const char *mnemonics;
} dataflow[] = {
    {NO_RESULT | SETS_FLAGS, " cmp cmn tst fcmp fcmpe "},
    {NO_RESULT | SETS_FLAGS | READS_FLAGS, " ccmp ccmn fccmp fccmpe "},
    {SETS_FLAGS, " adds subs ands bics negs "},
    {SETS_FLAGS | READS_FLAGS, " adcs sbcs ngcs "},
    {READS_FLAGS, " adc sbc ngc csel cset csetm csinc csinv csneg cinc cinv cneg fcsel "},
    {ACCUMULATES_LAST, " fmadd fmsub fnmadd fnmsub "},
    {READS_RESULT,
     " movk bfi bfc bfxil bfm fmla fmls mla mls bsl bit bif sli sri tbx ssra usra srsra ursra saba uaba sabal sabal2 uabal uabal2 sadalp uadalp"
     " smlal smlal2 umlal umlal2 smlsl smlsl2 umlsl umlsl2 sqdmlal sqdmlal2 sqdmlsl sqdmlsl2 addhn2 subhn2 raddhn2 rsubhn2 xtn2 shrn2 rshrn2"
     " sqxtn2 uqxtn2 sqxtun2 sqshrn2 uqshrn2 sqshrun2 sqrshrn2 uqrshrn2 sqrshrun2 fcvtn2 fcvtxn2 "},
};

static unsigned effects_of(const char *mnemonic)
{
    char word[40];
    snprintf(word, sizeof word, " %s ", mnemonic);
    for (size_t i = 0; i < sizeof dataflow / sizeof *dataflow; i++)
        if (strstr(dataflow[i].mnemonics, word)) return dataflow[i].effects;
    return 0;
}

static csh capstone;
static uint8_t register_of[ARM64_REG_ENDING]; /* Capstone's registers to ours */
static char kind_of[ARM64_REG_ENDING];        /* first letter of the register's name: x w v q d s h b */

void decode_init(void)
{
    if (aarch32) {
        decode32_init();
        return;
    }
    if (cs_open(CS_ARCH_ARM64, CS_MODE_ARM, &capstone) != CS_ERR_OK) {
        fprintf(stderr, "a53: this Capstone library cannot decode AArch64\n");
        exit(1);
    }
    cs_option(capstone, CS_OPT_DETAIL, CS_OPT_ON);
    memset(register_of, REG_NONE, sizeof register_of);
    for (int reg = 1; reg < ARM64_REG_ENDING; reg++) {
        const char *name = cs_reg_name(capstone, reg);
        if (!name) continue;
        kind_of[reg] = name[0];
        if (!strcmp(name, "fp") || !strcmp(name, "lr")) {
            register_of[reg] = name[0] == 'f' ? 29 : 30;
            kind_of[reg] = 'x';
        } else if (!strcmp(name, "sp") || !strcmp(name, "wsp"))
            register_of[reg] = REG_SP;
        else if (name[1] < '0' || name[1] > '9')
            continue;
        else if (name[0] == 'x' || name[0] == 'w')
            register_of[reg] = atoi(name + 1);
        else if (strchr("vqdshb", name[0]))
            register_of[reg] = REG_V0 + atoi(name + 1);
    }
}

static bool is_vector_register(int reg)
{
    return reg >= REG_V0 && reg < REG_FLAGS;
}

static bool is_wide(arm64_vas arrangement)
{
    return arrangement == ARM64_VAS_16B || arrangement == ARM64_VAS_8H || arrangement == ARM64_VAS_4S || arrangement == ARM64_VAS_2D ||
           arrangement == ARM64_VAS_1Q;
}

/* An instruction's operands, sorted. */
typedef struct {
    const char *mnemonic;
    const cs_arm64_op *operands;
    int n, memory; /* number of operands; index of the memory operand or -1 */
    int reg[8];    /* our register of each operand, REG_NONE if it is none */
    int first_data, n_data; /* of a load or store: the data registers */
    unsigned form;
} Parts;

static void find_form(Parts *parts)
{
    const bool memory = parts->memory >= 0;
    const int n_named = memory ? parts->memory : parts->n;
    for (int i = 0; i < n_named; i++) {
        const cs_arm64_op *operand = &parts->operands[i];
        if (operand->type == ARM64_OP_IMM && i == parts->n - 1) parts->form |= FORM_IMM;
        if (operand->type != ARM64_OP_REG) continue;
        const char kind = kind_of[operand->reg];
        if (is_vector_register(parts->reg[i])) {
            parts->form |= FORM_VEC;
            if (is_wide(operand->vas) || kind == 'q') parts->form |= FORM_Q;
            if (operand->vector_index >= 0 && (memory || i == 0)) parts->form |= FORM_LANE;
        } else if (operand->shift.type != ARM64_SFT_INVALID && operand->shift.value)
            parts->form |= FORM_SHIFTED;
        if (operand->ext != ARM64_EXT_INVALID) parts->form |= FORM_SHIFTED;
    }
    if (parts->n == 0 || parts->operands[0].type != ARM64_OP_REG) return;
    const cs_arm64_op *first = &parts->operands[0];
    const bool first_is_vector = is_vector_register(parts->reg[0]);
    if (first_is_vector) {
        if (IS_D_LANE(*first) || first->vas == ARM64_VAS_2D || first->vas == ARM64_VAS_1D || kind_of[first->reg] == 'd') parts->form |= FORM_E64;
        if (first->vas == ARM64_VAS_16B || first->vas == ARM64_VAS_8H) parts->form |= FORM_E8_16;
        for (int i = 1; i < n_named; i++)
            if (parts->operands[i].type == ARM64_OP_REG && !is_vector_register(parts->reg[i])) parts->form |= FORM_FROM_GPR;
    } else if (parts->form & FORM_VEC)
        parts->form |= FORM_TO_GPR;
    if (kind_of[parts->operands[parts->first_data].reg] == 'x') parts->form |= FORM_X;
    if (memory && parts->n_data >= 3) parts->form |= FORM_REGS_3_4;
}

/* stxr w0, x1, [x2]: the first operand is the status, not data. */
static bool has_status(const char *mnemonic)
{
    return !strncmp(mnemonic, "stxr", 4) || !strncmp(mnemonic, "stlxr", 5) || !strncmp(mnemonic, "stxp", 4) || !strncmp(mnemonic, "stlxp", 5);
}

static void take_apart(const cs_insn *insn, Parts *parts)
{
    const cs_arm64 *detail = &insn->detail->arm64;
    *parts = (Parts){.mnemonic = insn->mnemonic, .operands = detail->operands, .n = detail->op_count, .memory = -1};
    for (int i = 0; i < parts->n; i++) {
        parts->reg[i] = detail->operands[i].type == ARM64_OP_REG ? register_of[detail->operands[i].reg] : REG_NONE;
        if (detail->operands[i].type == ARM64_OP_MEM) parts->memory = i;
    }
    if (parts->memory >= 0) {
        parts->first_data = has_status(insn->mnemonic);
        parts->n_data = parts->memory - parts->first_data;
    }
    find_form(parts);
    /* mov d0, v1.d[1] is another name of dup */
    const bool scalar_result = parts->n && parts->operands[0].type == ARM64_OP_REG && strchr("dshb", kind_of[parts->operands[0].reg]);
    if (!strcmp(insn->mnemonic, "mov") && (parts->form & FORM_VEC) && scalar_result && kind_of[parts->operands[0].reg]) parts->mnemonic = "dup";
}

static void add_source(Op *op, int reg, int needed)
{
    if (reg == REG_NONE) return;
    for (int i = 0; i < op->n_sources; i++)
        if (op->source[i].reg == reg) {
            if (needed < op->source[i].needed) op->source[i].needed = needed;
            return;
        }
    if (op->n_sources == MAX_SOURCES) return;
    op->source[op->n_sources].reg = reg;
    op->source[op->n_sources++].needed = needed;
}

static void add_result(Op *op, int reg, int lat)
{
    if (reg == REG_NONE || op->n_results == MAX_RESULTS) return;
    op->result[op->n_results].reg = reg;
    op->result[op->n_results++].lat = lat;
}

static void memory_operands(const cs_insn *insn, const Parts *parts, const Rule *rule, Op *op)
{
    /* A literal load has no memory operand: all its registers are data. */
    const int n_data = parts->memory >= 0 ? parts->n_data : 1;
    const int last_cycle = rule->flags & RULE_AFTER_LAST ? op->occ - 1 : 0;
    for (int i = 0; i < n_data; i++) {
        const int reg = parts->reg[parts->first_data + i], when = rule->lat + last_cycle + rule->lat_reg * i;
        if (rule->flags & RULE_STORE) add_source(op, reg, when);
        if (rule->flags & RULE_LOAD) {
            add_result(op, reg, when);
            if (parts->form & FORM_LANE) add_source(op, reg, rule->acc);
        }
    }
    op->n_loaded = op->n_results;
    if (parts->first_data) add_result(op, parts->reg[0], rule->lat); /* status of a store-exclusive */
    if (parts->memory < 0) return;
    const arm64_op_mem *memory = &parts->operands[parts->memory].mem;
    const int base = memory->base ? register_of[memory->base] : REG_NONE;
    add_source(op, base, 0);
    if (memory->index) add_source(op, register_of[memory->index], 0);
    bool post_indexed = false;
    for (int i = parts->memory + 1; i < parts->n; i++) {
        post_indexed = true;
        add_source(op, parts->reg[i], 0);
    }
    if (WRITES_BACK(insn) || post_indexed) add_result(op, base, 1);
}

static void register_operands(const Parts *parts, const Rule *rule, Op *op)
{
    const unsigned effects = effects_of(parts->mnemonic);
    const int last_cycle = rule->flags & RULE_AFTER_LAST ? op->occ - 1 : 0;
    for (int i = 0; i < parts->n; i++) {
        const int reg = parts->reg[i];
        if (i == 0 && !(effects & NO_RESULT)) {
            add_result(op, reg, rule->lat + last_cycle);
            if (effects & READS_RESULT || parts->form & FORM_LANE) add_source(op, reg, rule->acc);
        } else
            add_source(op, reg, effects & ACCUMULATES_LAST && i == 3 ? rule->acc : 0);
    }
    if (effects & SETS_FLAGS) add_result(op, REG_FLAGS, rule->lat);
    if (effects & READS_FLAGS) add_source(op, REG_FLAGS, 0);
}

static void collect_sets(Op *op)
{
    for (int i = 0; i < op->n_results; i++) {
        const int reg = op->result[i].reg;
        if (is_vector_register(reg)) op->writes_vec |= 1u << (reg - REG_V0);
        else op->writes_int |= 1ull << (reg == REG_FLAGS ? 32 : reg);
    }
    op->touches_int = op->writes_int, op->touches_vec = op->writes_vec;
    for (int i = 0; i < op->n_sources; i++) {
        const int reg = op->source[i].reg;
        if (is_vector_register(reg)) op->touches_vec |= 1u << (reg - REG_V0);
        else op->touches_int |= 1ull << (reg == REG_FLAGS ? 32 : reg);
    }
}

/* How many registers `occ_reg` counts: the data of a load or store, the table of a tbl. */
static int counted_registers(const Parts *parts)
{
    if (parts->memory >= 0) return parts->n_data;
    return parts->mnemonic[0] == 't' && parts->mnemonic[1] == 'b' ? parts->n - 2 : 1;
}

static void apply_rule(const cs_insn *insn, const Parts *parts, const Rule *rule, Op *op)
{
    const int wide = parts->form & FORM_Q ? HALVES_BOTH : HALVES_ONE;
    op->rule = (uint16_t)(rule - rules);
    op->flags = rule->flags;
    op->mix = rule->mix;
    op->halves = rule->halves == HALVES_BY_WIDTH ? wide : rule->halves;
    op->first = rule->first && op->halves != HALVES_ONE;
    op->unit = rule->unit;
    op->busy = rule->busy;
    op->occ = rule->occ + rule->occ_reg * (counted_registers(parts) - 1);
    if (rule->unit & UNIT_LS) memory_operands(insn, parts, rule, op);
    else if (!(rule->unit & UNIT_BRANCH)) register_operands(parts, rule, op);
    else if (rule->flags & RULE_CALL) add_result(op, 30, rule->lat);
    collect_sets(op);
}

void decode(uint32_t word, uint64_t pc, Op *op)
{
    if (aarch32) {
        decode32(word, pc, op);
        return;
    }
    memset(op, 0, sizeof *op);
    cs_insn *insn;
    Parts parts = {.mnemonic = "", .memory = -1};
    if (cs_disasm(capstone, (const uint8_t *)&word, sizeof word, pc, 1, &insn) != 1) {
        apply_rule(NULL, &parts, &rules[n_rules - 1], op);
        return;
    }
    take_apart(insn, &parts);
    apply_rule(insn, &parts, rule_for(parts.mnemonic, parts.form), op);
    if ((word & 0xffffffe0) == 0xd53be040) op->is_mark = op->first = 1; /* mrs xN, cntvct_el0 */
    cs_free(insn, 1);
}

bool decode_sum(uint32_t word, uint64_t pc, int to, int *from, int64_t *add)
{
    if (aarch32) return decode32_sum(word, pc, to, from, add);
    cs_insn *insn;
    if (cs_disasm(capstone, (const uint8_t *)&word, sizeof word, pc, 1, &insn) != 1) return false;
    Parts parts;
    take_apart(insn, &parts);
    bool is_sum = false;
    if (parts.memory >= 0) { /* the base register after a load or store that writes it back */
        const arm64_op_mem *memory = &parts.operands[parts.memory].mem;
        const cs_arm64_op *post = parts.memory + 1 < parts.n ? &parts.operands[parts.memory + 1] : NULL;
        *from = register_of[memory->base];
        *add = post ? post->imm : memory->disp;
        is_sum = *from == to && (!post || post->type == ARM64_OP_IMM);
        for (int i = 0; i < parts.n_data; i++) is_sum &= parts.reg[parts.first_data + i] != to;
    } else if (parts.n >= 2 && parts.reg[0] == to && parts.reg[1] != REG_NONE && kind_of[parts.operands[0].reg] != 'w') {
        const cs_arm64_op *last = &parts.operands[parts.n - 1];
        const int sign = !strncmp(parts.mnemonic, "add", 3) ? 1 : !strncmp(parts.mnemonic, "sub", 3) ? -1 : 0;
        *from = parts.reg[1];
        *add = 0;
        is_sum = !strcmp(parts.mnemonic, "mov") && parts.n == 2 && !(parts.form & FORM_VEC);
        if (sign && parts.n == 3 && last->type == ARM64_OP_IMM) {
            *add = sign * (last->imm << (last->shift.type == ARM64_SFT_LSL ? last->shift.value : 0));
            is_sum = true;
        }
    }
    cs_free(insn, 1);
    return is_sum;
}

void disassemble(uint32_t word, uint64_t pc, bool operands, char *text, size_t size)
{
    if (aarch32) {
        disassemble32(word, pc, operands, text, size);
        return;
    }
    cs_insn *insn;
    if (cs_disasm(capstone, (const uint8_t *)&word, sizeof word, pc, 1, &insn) != 1) {
        snprintf(text, size, ".inst 0x%08x", word);
        return;
    }
    if (operands) snprintf(text, size, "%s %s", insn->mnemonic, insn->op_str);
    else snprintf(text, size, "%s", insn->mnemonic);
    cs_free(insn, 1);
}
