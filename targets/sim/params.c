/* The model's parameters and the plugin options that set them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "a53.h"

Params params = {
#define P(name, value) .name = value,
    PARAMETERS(P)
#undef P
};

static const struct {
    const char *name;
    int *value;
} options[] = {
#define P(name, value) {#name, &params.name},
    PARAMETERS(P)
#undef P
};

static int complain(const char *option, const char *what)
{
    fprintf(stderr, "a53: option %s: %s\n", option, what);
    return -1;
}

int params_set(const char *option)
{
    const char *equals = strchr(option, '=');
    if (!equals) return complain(option, "expected name=value");
    const char *value = equals + 1;
    const size_t length = equals - option;
    if (!strncmp(option, "out=", 4)) {
        if (strlen(value) >= sizeof params.out) return complain("out", "path too long");
        strcpy(params.out, value);
        return 0;
    }
    if (!strncmp(option, "rule=", 5)) return rule_override(value) ? complain(option, "no such row or column of the rule table") : 0;
    char *end;
    const long long number = strtoll(value, &end, 10);
    if (end == value || *end || number < 0) return complain(option, "expected a whole number");
    if (!strncmp(option, "limit=", 6)) {
        params.limit = number;
        return 0;
    }
    for (size_t i = 0; i < sizeof options / sizeof *options; i++)
        if (strlen(options[i].name) == length && !strncmp(options[i].name, option, length)) {
            *options[i].value = (int)number;
            return 0;
        }
    return complain(option, "unknown");
}

static void at_least(int *value, int least)
{
    if (*value < least) *value = least;
}

void params_finish(void)
{
    at_least(&params.mhz, 1);
    at_least(&params.dram_bandwidth_mb_s, 1);
    at_least(&params.fill_buffers, 1);
    at_least(&params.l2_port, 1);
    at_least(&params.dram_banks, 1);
    if (params.dram_banks > MAX_BANKS) params.dram_banks = MAX_BANKS;
    at_least(&params.quantum, 1);
    if (!params.dram_write_mb_s) params.dram_write_mb_s = params.dram_bandwidth_mb_s;
    if (!params.dram_total_mb_s) params.dram_total_mb_s = params.dram_bandwidth_mb_s;
    at_least(&params.prefetch_streams, 1);
    if (params.fill_buffers > MAX_FILL_BUFFERS) params.fill_buffers = MAX_FILL_BUFFERS;
    if (params.prefetch_streams > MAX_STREAMS) params.prefetch_streams = MAX_STREAMS;
    params.dram_latency = params.dram_latency_ns * params.mhz / 1000;
    params.dram_line = (int)(64.0 * params.mhz / params.dram_bandwidth_mb_s + 0.5);
    params.dram_write_line = (int)(64.0 * params.mhz / params.dram_write_mb_s + 0.5);
    params.dram_row = (int)(16 * params.dram_row_ns * (params.mhz / 1000.0) + 0.5);
    params.dram_total_line = (int)(16 * 64.0 * params.mhz / params.dram_total_mb_s + 0.5);
}

uint32_t random_state(int wanted)
{
    return wanted ? (uint32_t)params.seed * 2654435761u | 1 : 0; /* not 0, whatever the seed */
}
