/* Branch prediction: two-bit counters indexed by address and history, a return stack, the last target of indirect branches. */
#include <string.h>

#include "a53.h"

void predictor_init(Predictor *predictor)
{
    memset(predictor, 0, sizeof *predictor);
    memset(predictor->counters, 1, sizeof predictor->counters); /* weakly not taken */
}

static bool missed_direction(Predictor *predictor, uint64_t address, bool taken)
{
    uint8_t *counter = &predictor->counters[((address >> 2) ^ (predictor->history << 3)) % HISTORY_ENTRIES];
    const bool predicted = *counter >= 2;
    if (taken && *counter < 3) ++*counter;
    if (!taken && *counter > 0) --*counter;
    predictor->history = (predictor->history << 1 | taken) & 0xff;
    return predicted != taken;
}

bool predictor_missed(Predictor *predictor, const Op *op, uint64_t address, uint64_t next, uint64_t target, bool *taken)
{
    predictor->branches++;
    *taken = true;
    bool missed = false;
    if (op->flags & RULE_CONDITIONAL) {
        *taken = target && target != next;
        missed = missed_direction(predictor, address, *taken);
    }
    if (!*taken) {
        predictor->mispredicts += missed;
        return missed;
    }
    if (op->flags & RULE_CALL) predictor->returns[predictor->top++ % RETURN_ENTRIES] = next;
    if (op->flags & RULE_RETURN) missed = target && predictor->returns[--predictor->top % RETURN_ENTRIES] != target;
    if (op->flags & RULE_INDIRECT) {
        uint64_t *last = &predictor->targets[(address >> 2) % TARGET_ENTRIES];
        missed = *last != target;
        *last = target;
    }
    predictor->mispredicts += missed;
    return missed;
}
