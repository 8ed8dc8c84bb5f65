/* Reports as one line of JSON. */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "a53.h"

static void put_string(FILE *out, const char *text)
{
    fputc('"', out);
    for (; *text; text++) {
        if (*text == '"' || *text == '\\') fputc('\\', out);
        if ((unsigned char)*text >= ' ') fputc(*text, out);
    }
    fputc('"', out);
}

/* ---- totals ---- */

static void put_mix(FILE *out, const Region *region)
{
    uint64_t mix[N_MIX] = {0};
    for (const Block *block = region->blocks; block; block = block->next_in_region)
        for (uint32_t i = 0; i < block->n; i++) mix[block->ops[i].mix] += block->executions;
    fprintf(out, ", \"mix\": {");
    const char *comma = "";
    for (int i = 0; i < N_MIX; i++)
        if (mix[i]) {
            fprintf(out, "%s\"%s\": %" PRIu64, comma, mix_names[i], mix[i]);
            comma = ", ";
        }
    fprintf(out, "}");
}

static void put_unknown(FILE *out, const Region *region)
{
    enum { MAX_NAMES = 64 };
    char names[MAX_NAMES][32];
    uint64_t counts[MAX_NAMES] = {0}, others = 0;
    int n = 0;
    for (const Block *block = region->blocks; block; block = block->next_in_region)
        for (uint32_t i = 0; block->n_unknown && i < block->n; i++) {
            if (!(block->ops[i].flags & RULE_UNKNOWN)) continue;
            char name[32];
            disassemble(block->words[i], block_pc(block, i), false, name, sizeof name);
            int at = 0;
            while (at < n && strcmp(names[at], name)) at++;
            if (at == MAX_NAMES) {
                others += block->executions;
                continue;
            }
            if (at == n) strcpy(names[n++], name);
            counts[at] += block->executions;
        }
    fprintf(out, ", \"unknown\": {");
    for (int i = 0; i < n; i++) fprintf(out, "%s\"%s\": %" PRIu64, i ? ", " : "", names[i], counts[i]);
    if (others) fprintf(out, ", \"others\": %" PRIu64, others);
    fprintf(out, "}");
}

static void put_memory(FILE *out, const Memory *memory)
{
    const char *comma = "";
    fprintf(out, ", \"memory\": {");
#define C(name) fprintf(out, "%s\"" #name "\": %" PRIu64, comma, memory->count.name), comma = ", ";
    COUNTERS(C)
#undef C
    fprintf(out, "}");
}

/* ---- hottest blocks ---- */

/* The object file mapped at an address and the offset of the address in that file. */
static void put_object(FILE *out, uint64_t address)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[4352], path[4096];
    while (maps && fgets(line, sizeof line, maps)) {
        uint64_t start, end, offset;
        path[0] = 0;
        if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %*s %" SCNx64 " %*s %*s %4095[^\n]", &start, &end, &offset, path) < 3) continue;
        if (address < start || address >= end) continue;
        fprintf(out, ", \"object\": ");
        put_string(out, path + strspn(path, " "));
        fprintf(out, ", \"offset\": \"0x%" PRIx64 "\"", address - start + offset);
        break;
    }
    if (maps) fclose(maps);
}

static void put_block(FILE *out, const Block *block)
{
    fprintf(out, "{\"pc\": \"0x%" PRIx64 "\", \"symbol\": ", block->pc);
    put_string(out, block->symbol ? block->symbol : "");
    put_object(out, block->pc + qemu_guest_base());
    fprintf(out, ", \"executions\": %" PRIu64 ", \"cycles\": %" PRIu64 ", \"code\": [", block->executions, block->cycles);
    for (uint32_t i = 0; i < block->n; i++) {
        char text[128];
        disassemble(block->words[i], block_pc(block, i), true, text, sizeof text);
        fprintf(out, "%s[", i ? ", " : "");
        put_string(out, text);
        fprintf(out, ", %.2f]", (double)block->op_cycles[i] / block->executions);
    }
    fprintf(out, "]}");
}

static int hotter(const void *a, const void *b)
{
    const Block *x = *(Block *const *)a, *y = *(Block *const *)b;
    return x->cycles < y->cycles ? 1 : x->cycles > y->cycles ? -1 : 0;
}

static void put_blocks(FILE *out, const Region *region)
{
    size_t n = 0;
    for (const Block *block = region->blocks; block; block = block->next_in_region) n += block->op_cycles != NULL;
    const Block **blocks = malloc((n + 1) * sizeof *blocks);
    n = 0;
    for (const Block *block = region->blocks; block; block = block->next_in_region)
        if (block->op_cycles) blocks[n++] = block;
    qsort(blocks, n, sizeof *blocks, hotter);
    fprintf(out, ", \"blocks\": [");
    for (size_t i = 0; i < n && i < (size_t)params.blocks; i++) {
        if (i) fprintf(out, ", ");
        put_block(out, blocks[i]);
    }
    fprintf(out, "]");
    free(blocks);
}

static void put_marks(FILE *out, const Core *core)
{
    fprintf(out, ", \"marks\": [");
    for (int i = 0; i < core->n_marks; i++) fprintf(out, "%s%" PRIu64, i ? ", " : "", core->marks[i]);
    fprintf(out, "]");
}

/* ---- whole reports ---- */

static bool took_part(const Core *core)
{
    return core && core->predictor.branches + core->memory.count.l1d_accesses + core->where[WHERE_ISSUE] > 0;
}

static int count_cores(const Region *region)
{
    int n = 0;
    for (int i = 0; i < MAX_CORES; i++) n += took_part(region->cores[i]);
    return n;
}

/* Of each core that took part: cycles awake, those of them in which it waited for another, and its misses. */
static void put_threads(FILE *out, const Region *region)
{
    const char *comma = "";
    fprintf(out, ", \"threads\": [");
    for (int i = 0; i < MAX_CORES; i++) {
        const Core *core = region->cores[i];
        if (!took_part(core)) continue;
        uint64_t awake = 0;
        for (int cause = 0; cause < N_WHERE; cause++) awake += cause == WHERE_SYSTEM ? 0 : core->where[cause];
        fprintf(out, "%s{\"cpu\": %d, \"cycles\": %" PRIu64 ", \"spinning\": %" PRIu64, comma, i, awake, core->spinning);
        put_memory(out, &core->memory);
        fprintf(out, "}");
        comma = ", ";
    }
    fprintf(out, "]");
}

static Memory total_memory(const Region *region)
{
    Memory total = {0};
    for (int i = 0; i < MAX_CORES; i++) {
        const Core *core = region->cores[i];
        if (!core) continue;
#define C(name) total.count.name += core->memory.count.name;
        COUNTERS(C)
#undef C
    }
    return total;
}

char *report_region(const Region *region)
{
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    uint64_t instructions = 0, unknown = 0;
    for (const Block *block = region->blocks; block; block = block->next_in_region) {
        instructions += block->executions * block->n;
        unknown += block->executions * block->n_unknown;
    }
    const Core *core = region->cores[region->owner];
    const int n_cores = count_cores(region);
    const Memory memory = total_memory(region);
    fprintf(out,
            "{\"region\": %" PRId64 ", \"model\": \"" MODEL_VERSION "\", \"mhz\": %d, \"cycles\": %" PRIu64 ", \"instructions\": %" PRIu64
            ", \"complete\": %s, \"stopped\": %s, \"limit\": %" PRIu64 ", \"cores\": %d",
            region->id, params.mhz, core->cycle - core->region_start, instructions, unknown ? "false" : "true",
            region->stopped ? "true" : "false", params.limit, n_cores);
    put_mix(out, region);
    fprintf(out, ", \"where\": {");
    for (int i = 0; i < N_WHERE; i++) fprintf(out, "%s\"%s\": %" PRIu64, i ? ", " : "", where_names[i], core->where[i]);
    fprintf(out, "}");
    put_memory(out, &memory);
    if (n_cores > 1) put_threads(out, region);
    fprintf(out, ", \"branches\": %" PRIu64 ", \"mispredicts\": %" PRIu64, core->predictor.branches, core->predictor.mispredicts);
    put_unknown(out, region);
    if (params.marks) put_marks(out, core);
    if (params.blocks) put_blocks(out, region);
    fprintf(out, "}");
    fclose(out);
    return text;
}

char *report_identity(void)
{
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    fprintf(out, "{\"model\": \"" MODEL_VERSION "\"");
#define P(name, value) fprintf(out, ", \"" #name "\": %d", params.name);
    PARAMETERS(P)
#undef P
    fprintf(out, ", \"limit\": %" PRIu64 "}", params.limit);
    fclose(out);
    return text;
}

char *report_error(const char *message, size_t size)
{
    char *text = NULL;
    if (asprintf(&text, "{\"error\": \"%s\", \"size\": %zu}", message, size) < 0) return NULL;
    return text;
}
