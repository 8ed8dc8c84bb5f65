/* The table of A32 and T32 instructions: what each reads and writes, and what it costs.
 *
 * Nobody has published such a table of the Cortex-A53. Its pipelines are the same in both states, so a row names the row of rules.c with the
 * same operation of the datapath, and has that row's cost and source, but for what stands in its own columns. Sources of its own:
 *   C  GCC's description of the core (gcc/config/arm/cortex-a53.md), contributed by ARM
 *   K  what hand-written A32 kernels for this core rely on (XNNPACK's and the ARM Compute Library's "cortex-a53"): a load of 64 bits, two
 *      words by ldr beside multiply-adds, and vmov d, r, r beside the next load
 *   =  the same operation as the A64 row, whose source holds
 *   E  an estimate */
#include "aarch32.h"

#include <string.h>

#define SATURATING_NARROW "vqmovn vqmovun vqshrn vqshrun vqrshrn vqrshrun"
#define MEDIA                                                                                                                     \
    "uadd8 uadd16 usub8 usub16 sadd8 sadd16 ssub8 ssub16 uqadd8 uqadd16 uqsub8 uqsub16 qadd qsub qadd8 qadd16 qsub8 qsub16 uhadd8 uhadd16" \
    " shadd8 shadd16 uasx usax sasx ssax"

/* clang-format off */
static const Rule32 rules32[] = {
/*  name           mnemonics, need,                                              as, effects, lat, occ, occ_group, group, source */

/* ---- floating point ---- */
{ "VMLA_F",        "vmla vmls vfma vfms vnmla vnmls vfnma vfnms", FORM_FLOAT,    "FMLA", E_READS_RESULT, 0,0,0,0,
  "=; C: 8 cycles for a VMLA as for a VFMA, the sum is added when the product is there" },
{ "VRECPS",        "vrecps vrsqrts", FORM_FLOAT,                                 "FRECPS", 0, 0,0,0,0, "=" },
{ "VDIV_D",        "vdiv", FORM_E64,                                             "FDIV_D", 0, 0,0,0,0, "=" },
{ "VDIV",          "vdiv", 0,                                                    "FDIV_S", 0, 0,0,0,0, "=" },
{ "VSQRT_D",       "vsqrt", FORM_E64,                                            "FSQRT_D", 0, 0,0,0,0, "=" },
{ "VSQRT",         "vsqrt", 0,                                                   "FSQRT_S", 0, 0,0,0,0, "=" },
{ "VCMP",          "vcmp vcmpe", 0,                                              "FCMP", E_NO_RESULT | E_SETS_FLAGS, 0,0,0,0, "=; to FPSCR" },
{ "VMRS",          "vmrs", 0,                                                    "SYSREG", E_READS_FLAGS | E_SETS_FLAGS, 4,0,0,0,
  "C: f_flag, 4 cycles" },
{ "VMSR",          "vmsr", 0,                                                    "SYSREG", E_NO_RESULT | E_SETS_FLAGS, 0,0,0,0, "E" },
{ "VSEL",          "vselge vselgt vseleq vselvs", 0,                             "FCSEL", E_READS_FLAGS, 0,0,0,0, "=" },
{ "VC_F",          "vceq vcge vcgt vcle vclt vacge vacgt vacle vaclt", FORM_FLOAT, "FP_COMPARE", 0, 0,0,0,0, "=" },
{ "VFP",           "vadd vsub vmul vnmul vabs vneg vabd vmax vmin vmaxnm vminnm vpadd vpmax vpmin vrecpe vrsqrte vcvt vcvtr vcvtb vcvtt vcvta "
                   "vcvtm vcvtn vcvtp vrinta vrintm vrintn vrintp vrintx vrintz vrintr", FORM_FLOAT, "FP", 0, 0,0,0,0, "=" },

/* ---- moves between register files and lanes ---- */
{ "VMOV_TO_GPR",   "vmov", FORM_TO_GPR,                                          "UMOV", E_MOVES, 0,0,0,0, "=" },
{ "VMOV_FROM_GPR", "vmov", FORM_FROM_GPR,                                        "INS_GPR", E_MOVES, 0,0,0,0, "=; K: d, r, r pairs with vldr d" },
{ "VMOV_IMM",      "vmov vmvn", FORM_IMM,                                        "MOVI", 0, 0,0,0,0, "=" },
{ "VMOV_F",        "vmov", FORM_FLOAT,                                           "FMOV", 0, 0,0,0,0, "=" },
{ "VDUP_GPR",      "vdup", FORM_FROM_GPR,                                        "DUP_GPR", 0, 0,0,0,0, "=" },
{ "VDUP_LANE",     "vdup", 0,                                                    "DUP_LANE", 0, 0,0,0,0, "=" },

/* ---- NEON: integer and logic ---- */
{ "VLOGIC",        "vand vorr veor vbic vorn vmvn vmov", 0,                      "LOGIC", 0, 0,0,0,0, "=" },
{ "VSELECT",       "vbsl vbit vbif vsli vsri", 0,                                "SELECT", E_READS_RESULT, 0,0,0,0, "=" },
{ "VEXCHANGE_Q",   "vzip vuzp vtrn vswp", FORM_Q,                                "NEON_2", E_EXCHANGES, 3,2,0,0, "E: two results of 128 bits, as zip1 and zip2" },
{ "VEXCHANGE",     "vzip vuzp vtrn vswp", 0,                                     "INS_LANE", E_EXCHANGES, 0,0,0,0, "E: two results of 64 bits" },
{ "V2",            "vadd vsub vneg vcnt vclz vceq vcge vcgt vcle vclt vext vrev16 vrev32 vrev64 vmax vmin vpmax vpmin vshl vshr vshll vmovl "
                   "vhadd vrhadd vhsub", 0,                                      "NEON_2", 0, 0,0,0,0, "=" },
{ "V3",            "vabs vcls vtst vpadd vpaddl vqadd vqsub vqneg vaddl vsubl vaddw vsubw vaddhn vsubhn vabd vabdl vrshl vrshr", 0,
                                                                                 "NEON_3", 0, 0,0,0,0, "=" },
{ "VSRA",          "vsra", 0,                                                    "NEON_3", E_READS_RESULT, 0,0,0,0, "=" },
{ "V4",            "vqabs vqshl vqshlu vqrshl vrecpe vrsqrte", 0,                "NEON_4", 0, 0,0,0,0, "=" },
{ "VMUL",          "vmul vmull vqdmull vqdmulh vqrdmulh", 0,                     "NEON_MUL", 0, 0,0,0,0, "=" },
{ "VMLA",          "vmla vmls vmlal vmlsl", 0,                                   "NEON_MLA", E_READS_RESULT, 0,0,0,0, "=" },
{ "VQDMLAL",       "vqdmlal vqdmlsl", 0,                                         "SQDMLAL", E_READS_RESULT, 0,0,0,0, "=" },
{ "VABA",          "vaba vabal", 0,                                              "ABA", E_READS_RESULT, 0,0,0,0, "=" },
{ "VPADAL",        "vpadal", 0,                                                  "ADALP", E_READS_RESULT, 0,0,0,0, "=" },
{ "VRSRA",         "vrsra", 0,                                                   "ROUND_HALF", E_READS_RESULT, 0,0,0,0, "=" },
{ "VROUND_HALF",   "vraddhn vrsubhn", 0,                                         "ROUND_HALF", 0, 0,0,0,0, "=" },
{ "VNARROW",       "vmovn vshrn", 0,                                             "NARROW", 0, 0,0,0,0, "=" },
{ "VNARROW_ROUND", "vrshrn", 0,                                                  "NARROW_ROUND", 0, 0,0,0,0, "=" },
{ "VNARROW_SAT",   SATURATING_NARROW, 0,                                         "NARROW_SAT", 0, 0,0,0,0, "=" },
{ "VTBL",          "vtbl", 0,                                                    "TBL", 0, 0,0,0,0, "E: of one 128-bit table register, whatever the length" },
{ "VTBX",          "vtbx", 0,                                                    "TBX", E_READS_RESULT, 0,0,0,0, "E: as VTBL" },

/* ---- vector loads ---- */
{ "VLDR",          "vldr", 0,                                                    "LDR_D", 0, 0,0,0,0, "=; K: pairs with vmov d, r, r" },
{ "VLDM",          "vldmia vldmdb vldm vpop", 0,                                 "LDR_D", 0, 0,0,1,1, "E: 64 bits a cycle, as ldp d" },
{ "VLD12_ALL_Q",   "vld1", FORM_ALL_LANES | FORM_Q,                              "LD_REP", 0, 0,0,0,0, "=" },
{ "VLD1_ALL",      "vld1", FORM_ALL_LANES,                                       "LD_REP", 0, 0,0,0,0, "=" },
{ "VLD234_ALL",    "vld2 vld3 vld4", FORM_ALL_LANES,                             "LD_REP_34", 0, 0,0,0,0, "E: 2 cycles, alone in the datapath" },
{ "VLD34_LANE",    "vld3 vld4", FORM_LANE,                                       "LD_LANE_34", 0, 0,0,0,0, "=" },
{ "VLD_LANE",      "vld1 vld2", FORM_LANE,                                       "LD_LANE", 0, 0,0,0,0, "=" },
{ "VLD1_Q",        "vld1 vld2 vld3 vld4", FORM_Q,                                "LD1_Q", 0, 0,2,2,2, "=; two d registers are loaded as one q register" },
{ "VLD1",          "vld1 vld2 vld3 vld4", 0,                                     "LD1_D", 0, 0,0,1,1, "=" },

/* ---- vector stores ---- */
{ "VSTR",          "vstr", 0,                                                    "STR_D", 0, 0,0,0,0, "=" },
{ "VSTM",          "vstmia vstmdb vstm vpush", 0,                                "STR_Q", 0, 0,0,1,2, "E: 128 bits a cycle, as stp d" },
{ "VST34_LANE",    "vst3 vst4", FORM_LANE,                                       "ST_LANE_34", 0, 0,0,0,0, "=" },
{ "VST_LANE",      "vst1 vst2", FORM_LANE,                                       "ST_LANE", 0, 0,0,0,0, "=" },
{ "VST4",          "vst4", 0,                                                    "ST4_D", 0, 0,0,0,0, "=" },
{ "VST3",          "vst3", 0,                                                    "ST13_D", 0, 0,0,0,0, "=" },
{ "VST1_Q",        "vst1 vst2", FORM_Q,                                          "ST1_Q", 0, 0,0,1,2, "=; two d registers are stored as one q register" },
{ "VST1",          "vst1 vst2", 0,                                               "ST12_D", 0, 0,0,0,0, "=" },

/* ---- integer loads and stores ---- */
{ "LDRD",          "ldrd", 0,                                                    "LDP_W", E_ALONE, 3,1,0,0, "C: load2, single issue, 3 cycles" },
{ "LDM",           "ldm ldmda ldmdb ldmib pop", 0,                               "LDP_W", E_ALONE, 3,1,1,2, "C: load3 and load4 take 2 cycles, single issue; more registers E" },
{ "LDR32",         "ldr ldrt", 0,                                                "LDR", 0, 0,0,0,0, "=" },
{ "LDR32_NARROW",  "ldrb ldrbt ldrh ldrht ldrsb ldrsbt ldrsh ldrsht", 0,         "LDR_NARROW", 0, 0,0,0,0, "=" },
{ "LDREX",         "ldrex ldrexb ldrexh ldrexd ldaex ldaexb ldaexh ldaexd lda ldab ldah", 0, "LOAD_EXCLUSIVE", 0, 0,0,0,0, "=" },
{ "STREX",         "strex strexb strexh strexd stlex stlexb stlexh stlexd", 0,   "STORE_EXCLUSIVE", 0, 0,0,0,0, "=" },
{ "STRD",          "strd", 0,                                                    "STR", E_ALONE, 0,1,0,0, "C: store2, single issue" },
{ "STM",           "stm stmda stmdb stmib push", 0,                              "STR", E_ALONE, 0,1,1,2, "C: store3 and store4 take 2 cycles, single issue; more registers E" },
{ "STR32",         "str strt strb strbt strh strht stl stlb stlh", 0,            "STR", 0, 0,0,0,0, "=" },
{ "PLD",           "pld pldw pli", 0,                                            "PREFETCH", 0, 0,0,0,0, "=" },
{ "TABLE_BRANCH",  "tbb tbh", 0,                                                 "LDR_NARROW", E_ALONE, 0,0,0,0, "E: a load, then a branch" },

/* ---- branches (a condition makes a "b" a B_COND: decode32.c) ---- */
{ "B32_COND",      "cbz cbnz", 0,                                                "B_COND", E_NO_RESULT, 0,0,0,0, "=" },
{ "B32",           "b", 0,                                                       "B", E_NO_RESULT, 0,0,0,0, "=" },
{ "BL32",          "bl", 0,                                                      "BL", E_NO_RESULT, 0,0,0,0, "=" },
{ "BLX",           "blx", 0,                                                     "BLR", E_NO_RESULT, 0,0,0,0, "=" },
{ "BX",            "bx", 0,                                                      "BR", E_NO_RESULT, 0,0,0,0, "=; to lr it is a return" },

/* ---- integer ---- */
{ "COMPARE_SHIFTED", "cmp cmn tst teq", FORM_SHIFTED,                            "ALU_SHIFTED", E_NO_RESULT | E_SETS_FLAGS, 0,0,0,0, "=" },
{ "COMPARE",       "cmp cmn tst teq", 0,                                         "ALU", E_NO_RESULT | E_SETS_FLAGS, 0,0,0,0, "=" },
{ "SHIFT_IMM",     "lsl lsr asr ror rrx", FORM_SHIFTED,                          "BITFIELD", 0, 0,0,0,0, "=" },
{ "SHIFT_IMM_T32", "lsl lsr asr ror rrx", FORM_IMM,                              "BITFIELD", 0, 0,0,0,0, "=" },
{ "SHIFT_REG",     "lsl lsr asr ror", 0,                                         "SHIFT_BY_REG", 0, 0,0,0,0, "=" },
{ "CARRY_SHIFTED", "adc sbc rsc", FORM_SHIFTED,                                  "ALU_SHIFTED", E_READS_FLAGS, 0,0,0,0, "=" },
{ "CARRY",         "adc sbc rsc", 0,                                             "ALU", E_READS_FLAGS, 0,0,0,0, "=" },
{ "ALU32_SHIFTED", "add addw sub subw rsb and orr orn eor bic mvn mov", FORM_SHIFTED, "ALU_SHIFTED", 0, 0,0,0,0, "=" },
{ "ALU32",         "add addw sub subw rsb and orr orn eor bic mvn mov movw adr clz", 0, "ALU", 0, 0,0,0,0, "=" },
{ "MOVT",          "movt", 0,                                                    "ALU", E_READS_RESULT, 0,0,0,0, "=" },
{ "BITFIELD32",    "sxtb sxth sxtb16 uxtb uxth uxtb16 ubfx sbfx rbit rev rev16 revsh crc32b crc32h crc32w crc32cb crc32ch crc32cw", 0,
                                                                                 "BITFIELD_2", 0, 0,0,0,0, "=" },
{ "INSERT32",      "bfi bfc", 0,                                                 "BITFIELD_2", E_READS_RESULT, 0,0,0,0, "=" },
{ "EXTEND_ADD",    "sxtab sxtah sxtab16 uxtab uxtah uxtab16 pkhbt pkhtb", 0,     "ALU_SHIFTED", 0, 0,0,0,0, "E: as add with an extended operand" },
{ "SATURATE",      "ssat usat ssat16 usat16", 0,                                 "BITFIELD_2", 0, 0,0,0,0, "E" },
{ "MEDIA",         MEDIA, 0,                                                     "ALU_SHIFTED", E_SETS_FLAGS, 0,0,0,0, "E; GE is taken for part of the flags" },
{ "SEL",           "sel", 0,                                                     "ALU", E_READS_FLAGS, 0,0,0,0, "E" },
{ "MUL_LONG",      "umull smull", 0,                                             "MUL", E_TWO_RESULTS, 0,0,0,0, "=" },
{ "MLA_LONG",      "umlal smlal umaal smlalbb smlalbt smlaltb smlaltt smlald", 0, "MUL", E_TWO_RESULTS | E_READS_RESULT, 0,0,0,0, "=" },
{ "MUL32",         "mul mla mls smulbb smulbt smultb smultt smulwb smulwt smlabb smlabt smlatb smlatt smlawb smlawt smmul smmulr smmla smuad smlad "
                   "smusd smlsd usad8 usada8", 0,                                "MUL", 0, 0,0,0,0, "=; those of halfwords E" },
{ "DIV32",         "sdiv udiv", 0,                                               "DIV_W", 0, 0,0,0,0, "=; C: 8 and 9" },

/* ---- system ---- */
{ "HINT32",        "nop hint yield dbg svc clrex it setend udf", 0,              "HINT", E_NO_RESULT, 0,0,0,0, "=; it E: a place of its own" },
{ "READ_CP15",     "mrc mrrc mrs", 0,                                            "SYSREG", 0, 0,0,0,0, "E" },
{ "WRITE_CP15",    "mcr mcrr msr", 0,                                            "SYSREG", E_NO_RESULT | E_SETS_FLAGS, 0,0,0,0, "E" },
{ "BARRIER32",     "dmb dsb isb", 0,                                             "BARRIER", E_NO_RESULT, 0,0,0,0, "=" },
};
/* clang-format on */

const Rule32 *rule32_for(const char *mnemonic, unsigned form)
{
    const size_t length = strlen(mnemonic);
    if (!length) return NULL;
    for (size_t i = 0; i < sizeof rules32 / sizeof *rules32; i++)
        if ((form & rules32[i].need) == rules32[i].need && has_word(rules32[i].mnemonics, mnemonic, length)) return &rules32[i];
    return NULL;
}
