/* The table of issue rules: one row per instruction class.
 *
 * Sources, named in each row:
 *   I  insn_bench_aarch64 (github ocxtal), results/raspberry-pi-3_cortex-a53.md: latency and throughput of each instruction on a Pi 3
 *   Q  qsdr (github daniestevez), cycle-counter tests of short sequences on a Cortex-A53: pairing, load widths, forwarding
 *   E  an estimate: nobody we know of has published a measurement
 * "lat/thr" quotes I: cycles of latency, instructions a cycle. The columns are explained in rules.h.
 * Facts that belong to no instruction class (mispredicts, the gap between fmla and a vector load, caches) are parameters: params.c. */
#include "rules.h"

#include <stdlib.h>
#include <string.h>

const char *const mix_names[N_MIX] = {"fp_mac",   "fp",        "neon_int", "neon_move", "load_vec",   "load_int", "store_vec",
                                      "store_int", "branch", "int_alu",  "int_muldiv", "system", "unknown"};

#define SHIFT_BITFIELD "sxtb sxth sxtw uxtb uxth uxtw bfc bfi bfxil bfm sbfm ubfm ubfx sbfx ubfiz sbfiz extr rbit rev rev16 rev32"
#define NARROW_SAT "sqxtn uqxtn sqxtun sqshrn uqshrn sqshrun sqrshrn uqrshrn sqrshrun"
#define NARROW_SAT2 "sqxtn2 uqxtn2 sqxtun2 sqshrn2 uqshrn2 sqshrun2 sqrshrn2 uqrshrn2 sqrshrun2"
#define FCVT_TO_INT "fcvtas fcvtau fcvtms fcvtmu fcvtns fcvtnu fcvtps fcvtpu fcvtzs fcvtzu"

/* clang-format off */
Rule rules[] = {
/*  name            mnemonics, need, mix,                                        halves, first, unit, occ,occ_reg,busy, lat,lat_reg,acc, flags, source */

/* ---- floating point ---- */
{ "FMLA",          "fmla fmls", 0, MIX_FP_MAC,                                   HALVES_BY_WIDTH, 1, 0,   1,0,0,   8,0,4, RULE_FMA,
  "I: 8.04/0.99 (q), 4.02 accumulator to accumulator" },
{ "FMADD",         "fmadd fmsub fnmadd fnmsub", 0, MIX_FP_MAC,                   HALVES_ONE, 0, 0,        1,0,0,   8,0,4, RULE_FMA,
  "I: 8.04/1.99, 4.02 accumulator to accumulator" },
{ "FRECPS",        "frecps frsqrts", 0, MIX_FP_MAC,                              HALVES_BY_WIDTH, 1, 0,   1,0,0,   8,0,0, RULE_FMA,
  "I: 8.04/0.99 (q), 1.99 (scalar)" },
{ "FDIV_D",        "fdiv", FORM_E64, MIX_FP,                                     HALVES_BY_WIDTH, 1, UNIT_DIV, 1,0,19, 22,0,0, 0,
  "E: as FSQRT_D; unmeasured" },
{ "FDIV_S",        "fdiv", 0, MIX_FP,                                            HALVES_BY_WIDTH, 1, UNIT_DIV, 1,0,10, 13,0,0, 0,
  "E: one cycle more than FSQRT_S; unmeasured" },
{ "FSQRT_D",       "fsqrt", FORM_E64, MIX_FP,                                    HALVES_BY_WIDTH, 1, UNIT_DIV, 1,0,20, 22,0,0, 0,
  "I: 22.10/0.05" },
{ "FSQRT_S",       "fsqrt", 0, MIX_FP,                                           HALVES_BY_WIDTH, 1, UNIT_DIV, 1,0,9,  12,0,0, 0,
  "I: 12.05/0.11" },
{ "FCMP",          "fcmp fcmpe fccmp fccmpe", 0, MIX_FP,                         HALVES_ONE, 0, 0,        1,0,0,   1,0,0, 0,
  "I: 1.01/0.99, to the flags" },
{ "FCSEL",         "fcsel", 0, MIX_FP,                                           HALVES_BOTH, 0, 0,       1,0,0,   2,0,0, 0,
  "I: 2.01/0.99" },
{ "FP_COMPARE",    "fcmeq fcmge fcmgt fcmle fcmlt facge facgt facle faclt", 0, MIX_FP, HALVES_BY_WIDTH, 1, 0, 1,0,0, 2,0,0, 0,
  "I: 2.01/0.99 (q), 1.99 (scalar)" },
{ "FCVT_LONG",     "fcvtl fcvtl2 fcvtn fcvtn2 fcvtxn fcvtxn2", 0, MIX_FP,        HALVES_BOTH, 1, 0,       1,0,0,   4,0,0, 0,
  "I: 4.02/0.99" },
{ "FCVT_TO_GPR",   FCVT_TO_INT, FORM_TO_GPR, MIX_FP,                             HALVES_ONE, 0, 0,        1,0,0,   3,0,0, 0,
  "I: 2.99/1.99" },
{ "FP",            "fadd fsub fmul fnmul fmulx fabs fneg fabd fmax fmin fmaxnm fminnm fmaxp fminp fmaxnmp fminnmp fmaxv fminv fmaxnmv fminnmv "
                   "faddp frecpe frsqrte frecpx frinta frinti frintm frintn frintp frintx frintz scvtf ucvtf fcvt " FCVT_TO_INT, 0, MIX_FP,
                                                                                 HALVES_BY_WIDTH, 1, 0,   1,0,0,   4,0,0, 0,
  "I: 4.02/0.99 (q), 1.99 (scalar); Q: fadd, fmul chains and runs" },
{ "FMOV",          "fmov", 0, MIX_NEON_MOVE,                                     HALVES_BY_WIDTH, 1, 0,   1,0,0,   2,0,0, 0,
  "E: I's 2.01 for a round trip through an integer register is less than its mov's 5.02" },

/* ---- NEON: moves between register files and lanes ---- */
{ "INS_GPR",       "mov ins", FORM_VEC | FORM_LANE | FORM_FROM_GPR, MIX_NEON_MOVE, HALVES_ONE, 0, 0,      1,0,0,   2,0,2, 0,
  "Q: latency 2, two a cycle to different registers, pairs with ldr d" },
{ "INS_LANE",      "mov ins", FORM_VEC | FORM_LANE, MIX_NEON_MOVE,               HALVES_BOTH, 1, 0,       1,0,0,   2,0,2, 0,
  "E: as INS_GPR, but reads a whole register" },
{ "UMOV",          "mov umov smov", FORM_VEC | FORM_TO_GPR, MIX_NEON_MOVE,       HALVES_ONE, 0, 0,        1,0,0,   3,0,0, 0,
  "I: 5.02 for a round trip, of which ins takes 2; Q: does not pair with a q operation" },
{ "DUP_GPR",       "dup", FORM_FROM_GPR, MIX_NEON_MOVE,                          HALVES_ONE, 0, 0,        1,0,0,   2,0,0, 0,
  "I: 2.51/1.99" },
{ "DUP_LANE",      "dup", 0, MIX_NEON_MOVE,                                      HALVES_BY_WIDTH, 1, 0,   1,0,0,   2,0,0, 0,
  "I: 2.01/0.99 (q)" },
{ "MOVI",          "movi mvni", 0, MIX_NEON_MOVE,                                HALVES_BY_WIDTH, 1, 0,   1,0,0,   1,0,0, 0,
  "I: 0.99 a cycle (q); latency E: as the other logic" },

/* ---- NEON: integer and logic ---- */
{ "LOGIC",         "and orr eor orn bic mvn not mov", FORM_VEC, MIX_NEON_INT,    HALVES_BY_WIDTH, 1, 0,   1,0,0,   1,0,0, 0,
  "I: 1.01/0.99 (q)" },
{ "SELECT",        "bsl bit bif sli sri", 0, MIX_NEON_INT,                       HALVES_BY_WIDTH, 1, 0,   1,0,0,   2,0,0, 0,
  "I: 2.01/0.99 (q)" },
{ "NEON_2",        "add sub neg cnt clz cmeq cmge cmgt cmhi cmhs cmle cmlt ext zip1 zip2 uzp1 uzp2 trn1 trn2 rev16 rev32 rev64 rbit "
                   "smax smin umax umin smaxp sminp umaxp uminp shl sshl ushl sshr ushr sshll sshll2 ushll ushll2 sxtl sxtl2 uxtl uxtl2 shll shll2 "
                   "shadd uhadd srhadd urhadd shsub uhsub", FORM_VEC, MIX_NEON_INT,
                                                                                 HALVES_BY_WIDTH, 1, 0,   1,0,0,   2,0,0, 0,
  "I: 2.01/0.99 (q)" },
{ "NEON_3",        "abs cls cmtst addp addv sqadd uqadd sqsub uqsub suqadd usqadd sqneg saddl saddl2 uaddl uaddl2 ssubl ssubl2 usubl usubl2 "
                   "saddlp uaddlp saddlv uaddlv saddw saddw2 uaddw uaddw2 ssubw ssubw2 usubw usubw2 addhn subhn addhn2 subhn2 sabd uabd "
                   "sabdl sabdl2 uabdl uabdl2 srshl urshl srshr urshr ssra usra pmul pmull pmull2", FORM_VEC, MIX_NEON_INT,
                                                                                 HALVES_BY_WIDTH, 1, 0,   1,0,0,   3,0,0, 0,
  "I: 3.01/0.99 (q)" },
{ "NEON_4",        "sqabs sqshl uqshl sqshlu sqrshl uqrshl smaxv sminv umaxv uminv urecpe ursqrte", FORM_VEC, MIX_NEON_INT,
                                                                                 HALVES_BY_WIDTH, 1, 0,   1,0,0,   4,0,0, 0,
  "I: 4.02/0.99 (q)" },
{ "NEON_MUL",      "mul smull smull2 umull umull2 sqdmull sqdmull2 sqdmulh sqrdmulh", FORM_VEC, MIX_NEON_INT,
                                                                                 HALVES_BY_WIDTH, 1, 0,   1,0,0,   4,0,0, 0,
  "I: 4.02/0.99 (q)" },
{ "NEON_MLA",      "mla mls smlal smlal2 umlal umlal2 smlsl smlsl2 umlsl umlsl2", FORM_VEC, MIX_NEON_INT,
                                                                                 HALVES_BY_WIDTH, 1, 0,   1,0,0,   4,0,3, 0,
  "I: 4.02/0.99 (q), 1.03 accumulator to accumulator" },
{ "SQDMLAL",       "sqdmlal sqdmlal2 sqdmlsl sqdmlsl2", 0, MIX_NEON_INT,         HALVES_BY_WIDTH, 1, 0,   1,0,0,   4,0,0, 0,
  "I: 4.02/0.99 (q), also accumulator to accumulator" },
{ "ABA",           "saba uaba sabal sabal2 uabal uabal2", 0, MIX_NEON_INT,       HALVES_BY_WIDTH, 1, 0,   2,0,0,   4,0,2, 0,
  "I: 4.02/0.50, 2.02 accumulator to accumulator" },
{ "ADALP",         "sadalp uadalp", 0, MIX_NEON_INT,                             HALVES_BY_WIDTH, 1, 0,   2,0,0,   4,0,2, 0,
  "I: 4.02/0.50; accumulator forwarding E: as ABA" },
{ "ROUND_HALF",    "raddhn raddhn2 rsubhn rsubhn2 srsra ursra", 0, MIX_NEON_INT, HALVES_BY_WIDTH, 1, 0,   2,0,0,   4,0,0, 0,
  "I: 4.02/0.50" },
{ "NARROW",        "xtn xtn2 shrn shrn2", 0, MIX_NEON_INT,                       HALVES_ONE, 0, 0,        1,0,0,   2,0,0, 0,
  "I: 2.01/1.99" },
{ "NARROW_ROUND",  "rshrn rshrn2", 0, MIX_NEON_INT,                              HALVES_ONE, 0, 0,        1,0,0,   3,0,0, 0,
  "I: 3.01/1.99" },
{ "NARROW_SAT",    NARROW_SAT " " NARROW_SAT2, 0, MIX_NEON_INT,                  HALVES_ONE, 0, 0,        1,0,0,   4,0,0, 0,
  "I: 4.02/1.99" },
{ "TBL",           "tbl", 0, MIX_NEON_INT,                                       HALVES_BY_WIDTH, 1, 0,   1,1,0,   2,0,0, RULE_AFTER_LAST,
  "I: 2.01/0.99, 3.01/0.50, 4.02/0.33, 5.02/0.25 with 1 to 4 table registers" },
{ "TBX",           "tbx", 0, MIX_NEON_INT,                                       HALVES_BY_WIDTH, 1, 0,   2,1,0,   2,0,0, RULE_AFTER_LAST,
  "I: 3.01/0.50, 4.02/0.33, 5.02/0.25, 6.03/0.20 with 1 to 4 table registers" },

/* ---- vector loads ---- */
{ "LDR_Q",         "ldr ldur ldp ldnp", FORM_VEC | FORM_Q, MIX_LOAD_VEC,         HALVES_BOTH, 0, UNIT_LS, 2,2,0,   4,2,0, RULE_LOAD,
  "Q: ldr q takes 2 cycles, ldp q 4, nothing issues meanwhile; first register after 4, second after 6" },
{ "LDR_D",         "ldr ldur ldp ldnp", FORM_VEC, MIX_LOAD_VEC,                  HALVES_ONE, 0, UNIT_LS,  1,1,0,   3,1,0, RULE_LOAD,
  "Q: ldr d takes 1 cycle, ldp d 2; pairs with d operations and ins, not with q operations" },
{ "LD_REP_E64",    "ld1r ld2r ld3r ld4r", FORM_E64, MIX_LOAD_VEC,                HALVES_BY_WIDTH, 0, UNIT_LS, 1,1,0, 3,0,0, RULE_LOAD | RULE_AFTER_LAST,
  "I: ld1r.d 0.99, ld2r.d 0.50, ld3r.d 0.33, ld4r.d 0.25 a cycle, each a cycle of latency more" },
{ "LD_REP_34",     "ld3r ld4r", 0, MIX_LOAD_VEC,                                 HALVES_BY_WIDTH, 0, UNIT_LS, 2,0,0, 3,0,0, RULE_LOAD | RULE_AFTER_LAST,
  "I: 0.50 a cycle, one cycle of latency more than ld1r" },
{ "LD_REP",        "ld1r ld2r", 0, MIX_LOAD_VEC,                                 HALVES_BY_WIDTH, 0, UNIT_LS, 1,0,0, 3,0,0, RULE_LOAD | RULE_AFTER_LAST,
  "I: 0.99 a cycle, one cycle of latency less than ldr q" },
{ "LD_LANE_E64",   "ld1 ld2 ld3 ld4", FORM_LANE | FORM_E64, MIX_LOAD_VEC,        HALVES_BOTH, 0, UNIT_LS, 1,1,0,   3,0,2, RULE_LOAD | RULE_AFTER_LAST,
  "I: ld1.d 0.99, ld2.d 0.50, ld3.d 0.33, ld4.d 0.25 a cycle; Q: ld1 {v.d}[0] does not pair with ins" },
{ "LD_LANE_34",    "ld3 ld4", FORM_LANE, MIX_LOAD_VEC,                           HALVES_BOTH, 0, UNIT_LS, 2,0,0,   3,0,2, RULE_LOAD | RULE_AFTER_LAST,
  "I: 0.50 a cycle, one cycle of latency more than ld1" },
{ "LD_LANE",       "ld1 ld2", FORM_LANE, MIX_LOAD_VEC,                           HALVES_BOTH, 0, UNIT_LS, 1,0,0,   3,0,2, RULE_LOAD | RULE_AFTER_LAST,
  "I: 0.99 a cycle, one cycle of latency less than ldr q" },
{ "LD34_E8_16",    "ld3 ld4", FORM_E8_16, MIX_LOAD_VEC,                          HALVES_BOTH, 0, UNIT_LS, 3,2,0,   4,2,0, RULE_LOAD,
  "I: ld3.b 0.14, ld4.b 0.11 a cycle: one cycle more than ld1 of as many registers" },
{ "LD1_Q",         "ld1 ld2 ld3 ld4", FORM_Q, MIX_LOAD_VEC,                      HALVES_BOTH, 0, UNIT_LS, 2,2,0,   4,2,0, RULE_LOAD,
  "Q: ld1 of n registers takes 2n cycles; register i after 4 + 2i" },
{ "LD1_D",         "ld1 ld2 ld3 ld4", 0, MIX_LOAD_VEC,                           HALVES_ONE, 0, UNIT_LS,  1,1,0,   3,1,0, RULE_LOAD,
  "E: as ldp d" },

/* ---- vector stores ---- */
{ "STR_Q",         "str stur stp stnp", FORM_VEC | FORM_Q, MIX_STORE_VEC,        HALVES_BOTH, 0, UNIT_LS, 1,1,0,   0,1,0, RULE_STORE,
  "Q: str q takes 1 cycle, stp q 2; I: 1.00, 0.50 a cycle" },
{ "STP_D",         "stp stnp", FORM_VEC, MIX_STORE_VEC,                          HALVES_BOTH, 0, UNIT_LS, 1,0,0,   0,0,0, RULE_STORE,
  "E: 128 bits a cycle, as str q" },
{ "STR_D",         "str stur", FORM_VEC, MIX_STORE_VEC,                          HALVES_ONE, 0, UNIT_LS,  1,0,0,   0,0,0, RULE_STORE,
  "Q: str d takes 1 cycle and pairs with a d operation" },
{ "ST_LANE_34",    "st3 st4", FORM_LANE, MIX_STORE_VEC,                          HALVES_BOTH, 0, UNIT_LS, 2,0,0,   0,0,0, RULE_STORE,
  "I: 0.50 a cycle" },
{ "ST_LANE",       "st1 st2", FORM_LANE, MIX_STORE_VEC,                          HALVES_BOTH, 0, UNIT_LS, 1,0,0,   0,0,0, RULE_STORE,
  "I: 0.99 a cycle" },
{ "ST34_E64",      "st3 st4", FORM_Q | FORM_E64, MIX_STORE_VEC,                  HALVES_BOTH, 0, UNIT_LS, 1,1,0,   0,1,0, RULE_STORE,
  "I: st3.d 0.33, st4.d 0.25 a cycle" },
{ "ST4_Q",         "st4", FORM_Q, MIX_STORE_VEC,                                 HALVES_BOTH, 0, UNIT_LS, 5,0,0,   0,1,0, RULE_STORE,
  "I: 0.20 a cycle" },
{ "ST3_Q",         "st3", FORM_Q, MIX_STORE_VEC,                                 HALVES_BOTH, 0, UNIT_LS, 4,0,0,   0,1,0, RULE_STORE,
  "I: 0.25 a cycle" },
{ "ST1_Q",         "st1 st2", FORM_Q, MIX_STORE_VEC,                             HALVES_BOTH, 0, UNIT_LS, 1,1,0,   0,1,0, RULE_STORE,
  "Q: st1 of n registers takes n cycles; I: st2 0.50 a cycle" },
{ "ST4_D",         "st4", 0, MIX_STORE_VEC,                                      HALVES_ONE, 0, UNIT_LS,  3,0,0,   0,0,0, RULE_STORE,
  "E: half of ST4_Q, rounded up" },
{ "ST13_D",        "st1 st3", FORM_REGS_3_4, MIX_STORE_VEC,                      HALVES_ONE, 0, UNIT_LS,  2,0,0,   0,0,0, RULE_STORE,
  "E: 128 bits a cycle" },
{ "ST12_D",        "st1 st2", 0, MIX_STORE_VEC,                                  HALVES_ONE, 0, UNIT_LS,  1,0,0,   0,0,0, RULE_STORE,
  "E: 128 bits a cycle" },

/* ---- integer loads and stores ---- */
{ "LDP_X",         "ldp ldnp", FORM_X, MIX_LOAD_INT,                             HALVES_NONE, 0, UNIT_LS, 1,1,0,   3,1,0, RULE_LOAD,
  "I: 3.01 first, 4.02 second, 0.50 a cycle" },
{ "LDP_W",         "ldp ldnp ldpsw", 0, MIX_LOAD_INT,                            HALVES_NONE, 0, UNIT_LS, 1,1,0,   4,0,0, RULE_LOAD,
  "I: 4.02 both; its 0.33 a cycle is taken for an effect of that test: 0.50 as LDP_X" },
{ "LDR",           "ldr ldur ldtr", 0, MIX_LOAD_INT,                             HALVES_NONE, 0, UNIT_LS, 1,0,0,   3,0,0, RULE_LOAD,
  "I: 3.01/1.00; Q: pairs after a q operation, not before" },
{ "LDR_NARROW",    "ldrb ldurb ldrh ldurh ldrsb ldursb ldrsh ldursh ldrsw ldursw", 0, MIX_LOAD_INT, HALVES_NONE, 0, UNIT_LS, 1,0,0, 4,0,0, RULE_LOAD,
  "I: 4.02/1.00" },
{ "LOAD_EXCLUSIVE", "ldxr ldxrb ldxrh ldxp ldaxr ldaxrb ldaxrh ldaxp ldar ldarb ldarh", 0, MIX_LOAD_INT, HALVES_NONE, 0, UNIT_LS, 3,0,0, 3,0,0, RULE_LOAD,
  "E" },
{ "STORE_EXCLUSIVE", "stxr stxrb stxrh stxp stlxr stlxrb stlxrh stlxp", 0, MIX_STORE_INT, HALVES_NONE, 0, UNIT_LS, 3,0,0, 1,0,0, RULE_STORE,
  "E" },
{ "STR",           "str stur strb sturb strh sturh stp stnp sttr stlr stlrb stlrh", 0, MIX_STORE_INT, HALVES_NONE, 0, UNIT_LS, 1,0,0, 1,0,0, RULE_STORE,
  "I: 1.00 a cycle, stp too; Q: pairs after a q operation" },
{ "PREFETCH",      "prfm prfum", 0, MIX_LOAD_INT,                                HALVES_NONE, 0, UNIT_LS, 1,0,0,   0,0,0, RULE_PREFETCH,
  "Q: saxpy loops with prfm" },

/* ---- branches ---- */
{ "B_COND",        "b.cond cbz cbnz tbz tbnz", 0, MIX_BRANCH,                    HALVES_NONE, 0, UNIT_BRANCH, 1,0,0, 0,0,0, RULE_CONDITIONAL,
  "Q: pairs with the compare before it; I: 0.99 a cycle not taken" },
{ "B",             "b", 0, MIX_BRANCH,                                           HALVES_NONE, 0, UNIT_BRANCH, 1,0,0, 0,0,0, 0,
  "Q: pairs as second" },
{ "BL",            "bl", 0, MIX_BRANCH,                                          HALVES_NONE, 0, UNIT_BRANCH, 1,0,0, 1,0,0, RULE_CALL,
  "E: as b" },
{ "BLR",           "blr", 0, MIX_BRANCH,                                         HALVES_NONE, 0, UNIT_BRANCH, 1,0,0, 1,0,0, RULE_CALL | RULE_INDIRECT,
  "E: as b" },
{ "BR",            "br", 0, MIX_BRANCH,                                          HALVES_NONE, 0, UNIT_BRANCH, 1,0,0, 0,0,0, RULE_INDIRECT,
  "E: as b" },
{ "RET",           "ret", 0, MIX_BRANCH,                                         HALVES_NONE, 0, UNIT_BRANCH, 1,0,0, 0,0,0, RULE_RETURN,
  "E: as b" },

/* ---- integer ---- */
{ "ALU_SHIFTED",   "add adds sub subs neg negs cmp cmn and ands orr orn eor eon bic bics mvn tst mov", FORM_SHIFTED, MIX_INT_ALU, HALVES_NONE, 0, 0, 1,0,0, 2,0,0, 0,
  "I: 2.01/1.99" },
{ "ALU",           "add adds sub subs neg negs cmp cmn and ands orr orn eor eon bic bics mvn tst mov movz movn movk adr adrp adc adcs sbc sbcs ngc ngcs "
                   "ccmp ccmn csel cset csetm csinc csinv csneg cinc cinv cneg clz cls", 0, MIX_INT_ALU, HALVES_NONE, 0, 0, 1,0,0, 1,0,0, RULE_LATE,
  "I: 1.00/1.99; Q: runs and chains of add, of which the first two share a cycle" },
{ "BITFIELD",      "lsl lsr asr ror", FORM_IMM, MIX_INT_ALU,                     HALVES_NONE, 0, 0,       1,0,0,   2,0,0, 0,
  "I: 2.01/1.99" },
{ "BITFIELD_2",    SHIFT_BITFIELD " crc32b crc32h crc32w crc32x crc32cb crc32ch crc32cw crc32cx", 0, MIX_INT_ALU, HALVES_NONE, 0, 0, 1,0,0, 2,0,0, 0,
  "I: 2.01/1.99" },
{ "SHIFT_BY_REG",  "lsl lsr asr ror lslv lsrv asrv rorv", 0, MIX_INT_ALU,        HALVES_NONE, 0, UNIT_SHIFT, 1,0,0, 1,0,0, 0,
  "I: 1.00/1.00" },
{ "MUL_X",         "mul madd msub mneg", FORM_X, MIX_INT_MULDIV,                 HALVES_NONE, 0, UNIT_MUL, 1,0,2,  4,0,0, 0,
  "I: mul, msub 4.02/0.50 (madd and mneg, the same two instructions, 5.02/0.33)" },
{ "MUL",           "mul madd msub mneg smull umull smaddl umaddl smsubl umsubl smnegl umnegl", 0, MIX_INT_MULDIV, HALVES_NONE, 0, UNIT_MUL, 1,0,0, 3,0,0, 0,
  "I: smull, smaddl and kin 3.01/1.00" },
{ "MULH",          "smulh umulh", 0, MIX_INT_MULDIV,                             HALVES_NONE, 0, UNIT_MUL, 1,0,4,  6,0,0, 0,
  "I: 6.03/0.25" },
{ "DIV_X",         "sdiv udiv", FORM_X, MIX_INT_MULDIV,                          HALVES_NONE, 0, UNIT_MUL, 1,0,10, 12,0,0, 0,
  "E: depends on the operands; I has 3.01/0.33 for trivial ones" },
{ "DIV_W",         "sdiv udiv", 0, MIX_INT_MULDIV,                               HALVES_NONE, 0, UNIT_MUL, 1,0,6,  8,0,0, 0,
  "E: depends on the operands; I has 3.01/0.33 for trivial ones" },

/* ---- system ---- */
{ "HINT",          "nop hint yield bti paciasp autiasp pacibsp autibsp clrex svc", 0, MIX_SYSTEM, HALVES_NONE, 0, 0, 1,0,0, 0,0,0, 0,
  "I: nop 1.99 a cycle; Q: runs of nop" },
{ "SYSREG",        "mrs msr", 0, MIX_SYSTEM,                                     HALVES_NONE, 0, 0,       1,0,0,   1,0,0, 0,
  "E" },
{ "BARRIER",       "dmb dsb isb dc ic at sys", 0, MIX_SYSTEM,                    HALVES_NONE, 1, 0,       4,0,0,   0,0,0, 0,
  "E" },

/* ---- anything else: counted by name in the report ---- */
{ "UNKNOWN",       "", 0, MIX_UNKNOWN,                                           HALVES_NONE, 0, 0,       1,0,0,   3,0,0, RULE_UNKNOWN,
  "E: a guess, and the report says so" },
};
/* clang-format on */
const int n_rules = sizeof rules / sizeof *rules;

int has_word(const char *list, const char *word, size_t length)
{
    for (const char *at = list; (at = strstr(at, word)) != NULL; at += length) {
        const int starts = at == list || at[-1] == ' ';
        const int ends = at[length] == ' ' || at[length] == 0;
        if (starts && ends) return 1;
    }
    return 0;
}

const Rule *rule_for(const char *mnemonic, unsigned form)
{
    if (mnemonic[0] == 'b' && mnemonic[1] == '.') mnemonic = "b.cond";
    const size_t length = strlen(mnemonic);
    const Rule *last = &rules[n_rules - 1];
    for (const Rule *rule = rules; rule < last; rule++)
        if ((form & rule->need) == rule->need && has_word(rule->mnemonics, mnemonic, length)) return rule;
    return last;
}

const Rule *rule_named(const char *name)
{
    int row = 0;
    while (row < n_rules - 1 && strcmp(rules[row].name, name)) row++;
    return &rules[row];
}

int rule_override(const char *text)
{
    static const struct {
        const char *name;
        size_t offset;
    } columns[] = {{"halves", offsetof(Rule, halves)}, {"first", offsetof(Rule, first)},     {"unit", offsetof(Rule, unit)},
                   {"occ", offsetof(Rule, occ)},       {"occ_reg", offsetof(Rule, occ_reg)}, {"busy", offsetof(Rule, busy)},
                   {"lat", offsetof(Rule, lat)},       {"lat_reg", offsetof(Rule, lat_reg)}, {"acc", offsetof(Rule, acc)}};
    const char *dot = strchr(text, '.'), *colon = dot ? strchr(dot, ':') : NULL;
    if (!colon) return -1;
    for (int r = 0; r < n_rules; r++) {
        if (strlen(rules[r].name) != (size_t)(dot - text) || strncmp(rules[r].name, text, dot - text)) continue;
        for (size_t c = 0; c < sizeof columns / sizeof *columns; c++) {
            if (strlen(columns[c].name) != (size_t)(colon - dot - 1) || strncmp(columns[c].name, dot + 1, colon - dot - 1)) continue;
            *((uint8_t *)&rules[r] + columns[c].offset) = (uint8_t)atoi(colon + 1);
            return 0;
        }
    }
    return -1;
}
