/* Runs a compiled network: run_library LIBRARY INPUTS OUTPUT THREADS [marked].
 * INPUTS holds the bytes of all inputs one after the other, OUTPUT receives those of all outputs. "marked" runs it
 * twice more, as regions for the simulator: the second is warm. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#include "bitkiln.h"

#define FIND(name) __typeof__(&name) p_##name = (__typeof__(&name))dlsym(library, #name)

static void die(const char *why)
{
    fprintf(stderr, "%s\n", why);
    exit(1);
}

int main(int argc, char **argv)
{
    if (argc != 5 && argc != 6) die("usage: run_library LIBRARY INPUTS OUTPUT THREADS [marked]");
    void *library = dlopen(argv[1], RTLD_NOW);
    if (!library) die(dlerror());
    FIND(bk_create);
    FIND(bk_last_error);
    FIND(bk_input_count);
    FIND(bk_input_info);
    FIND(bk_input_data);
    FIND(bk_run);
    FIND(bk_run_marked);
    FIND(bk_output_count);
    FIND(bk_output_info);
    FIND(bk_output_data);
    bk_model *model = p_bk_create(atoi(argv[4]));
    if (!model) die(p_bk_last_error(NULL));
    bk_tensor_info info;
    FILE *file = fopen(argv[2], "rb");
    if (!file) die("no inputs");
    for (int i = 0; i < p_bk_input_count(model); i++) {
        p_bk_input_info(model, i, &info);
        if (fread(p_bk_input_data(model, i), 1, info.nbytes, file) != info.nbytes) die("too few bytes of inputs");
    }
    fclose(file);
    if (p_bk_run(model) != 0) die(p_bk_last_error(model));
    for (int i = 0; argc == 6 && i < 2; i++)
        if (p_bk_run_marked(model, 0) != 0) die(p_bk_last_error(model));
    file = fopen(argv[3], "wb");
    for (int i = 0; file && i < p_bk_output_count(model); i++) {
        p_bk_output_info(model, i, &info);
        if (fwrite(p_bk_output_data(model, i), 1, info.nbytes, file) != info.nbytes) die("no output");
    }
    if (!file || fclose(file) != 0) die("no output");
    return 0;
}
