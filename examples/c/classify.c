/* Classifies one input with a compiled network, in C.
 *
 *     ./classify BUNDLE [INPUT.raw]
 *
 * INPUT.raw holds the bytes of the network's first input as the manifest describes it (without a file: zeros).
 * Prints the five best classes of the first output, then the time of each step.
 */
#include <bitkiln.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int die(const char *what, const char *why)
{
    fprintf(stderr, "classify: %s: %s\n", what, why);
    return 2;
}

/* Reads exactly `nbytes` of a file straight into the network's input buffer. */
static int read_input(const char *path, void *buffer, size_t nbytes)
{
    FILE *file = fopen(path, "rb");
    if (!file) return die(path, "cannot be opened");
    size_t got = fread(buffer, 1, nbytes, file);
    int more = fgetc(file) != EOF;
    fclose(file);
    return got == nbytes && !more ? 0 : die(path, "has not the size of the network's input");
}

/* Line `wanted` of the bundle's labels in `line`, or its number. */
static void label_of(const char *bundle, size_t wanted, char *line, size_t size)
{
    char path[4096], text[256];
    snprintf(path, sizeof path, "%s/labels.txt", bundle);
    snprintf(line, size, "class %zu", wanted);
    FILE *file = fopen(path, "r");
    size_t at = 0;
    while (file && fgets(text, sizeof text, file))
        if (at++ == wanted) {
            text[strcspn(text, "\n")] = 0;
            snprintf(line, size, "%s", text);
        }
    if (file) fclose(file);
}

static void print_best(const float *scores, size_t count, const char *bundle)
{
    char *taken = calloc(count, 1);
    for (int rank = 0; taken && rank < 5 && (size_t)rank < count; rank++) {
        size_t best = count;
        for (size_t i = 0; i < count; i++)
            if (!taken[i] && (best == count || scores[i] > scores[best])) best = i;
        taken[best] = 1;
        char label[256];
        label_of(bundle, best, label, sizeof label);
        printf("%12.5f  %s\n", scores[best], label);
    }
    free(taken);
}

int main(int argc, char **argv)
{
    if (argc < 2) return die("usage", "classify BUNDLE [INPUT.raw]");
    bk_model *model = bk_open(argv[1], 0);
    if (!model) return die("bk_open", bk_last_error(NULL));

    bk_tensor_info input, output;
    bk_input_info(model, 0, &input);
    bk_output_info(model, 0, &output);
    if (strcmp(output.dtype, "float32") != 0) return die(output.name, "is no float32 tensor");
    if (argc > 2 && read_input(argv[2], bk_input_data(model, 0), input.nbytes) != 0) return 2;

    if (bk_run(model) != 0) return die("bk_run", bk_last_error(model));
    print_best(bk_output_data(model, 0), output.nbytes / sizeof(float), argv[1]);
    for (int i = 0; i < bk_step_count(model); i++)
        printf("%9.3f ms  %s (%s)\n", 1e3 * bk_step_seconds(model, i), bk_step_name(model, i), bk_step_kind(model, i));
    bk_destroy(model);
    return 0;
}
