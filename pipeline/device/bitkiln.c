/* bk_open and, for the models it gives, the functions of bitkiln.h: each leads to that of the model's own library.
 *
 * Compile this file into the program (C or C++; older systems want -ldl) and link with no model.so. Each library then stays in a
 * place of its own, where its names meet no other's, and a program has as many networks as it likes.
 */
#include "bitkiln.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Of each function: result, name, parameters, arguments of the library's own, and what it gives without a model. */
#define FUNCTIONS(F)                                                                                             \
    F(int, bk_thread_count, (const bk_model *model), (own), -1)                                                  \
    F(uint64_t, bk_memory_bytes, (const bk_model *model), (own), 0)                                              \
    F(int, bk_input_count, (const bk_model *model), (own), -1)                                                   \
    F(int, bk_output_count, (const bk_model *model), (own), -1)                                                  \
    F(int, bk_input_info, (const bk_model *model, int index, bk_tensor_info *info), (own, index, info), -1)      \
    F(int, bk_output_info, (const bk_model *model, int index, bk_tensor_info *info), (own, index, info), -1)     \
    F(int, bk_set_input, (bk_model *model, int index, const void *data, size_t nbytes),                          \
      (own, index, data, nbytes), -1)                                                                            \
    F(int, bk_get_output, (bk_model *model, int index, void *data, size_t nbytes), (own, index, data, nbytes), -1) \
    F(void *, bk_input_data, (bk_model *model, int index), (own, index), NULL)                                   \
    F(const void *, bk_output_data, (const bk_model *model, int index), (own, index), NULL)                      \
    F(int, bk_run, (bk_model *model), (own), -1)                                                                 \
    F(int, bk_prepare, (bk_model *model, const bk_image *image), (own, image), -1)                               \
    F(const char *, bk_task_name, (const bk_model *model), (own), "")                                            \
    F(int, bk_detect, (bk_model *model, float threshold, float overlap, bk_box *boxes, int capacity),            \
      (own, threshold, overlap, boxes, capacity), -1)                                                            \
    F(int, bk_segment, (bk_model *model, uint16_t *mask, int width, int height), (own, mask, width, height), -1) \
    F(int, bk_step_count, (const bk_model *model), (own), -1)                                                    \
    F(const char *, bk_step_name, (const bk_model *model, int step), (own, step), NULL)                          \
    F(const char *, bk_step_kind, (const bk_model *model, int step), (own, step), NULL)                          \
    F(double, bk_step_seconds, (const bk_model *model, int step), (own, step), -1)                               \
    F(int, bk_run_step, (bk_model *model, int step), (own, step), -1)                                            \
    F(int, bk_step_output_count, (const bk_model *model, int step), (own, step), -1)                             \
    F(int, bk_step_output_info, (const bk_model *model, int step, int index, bk_tensor_info *info),              \
      (own, step, index, info), -1)                                                                              \
    F(const void *, bk_step_output_data, (const bk_model *model, int step, int index), (own, step, index), NULL) \
    F(int, bk_run_marked, (bk_model *model, int per_step), (own, per_step), -1)

#define POINTER(result, name, parameters, arguments, none) result(*name) parameters;

/* What a bk_model from bk_open is: a library, a model of it, and the library's functions. */
typedef struct {
    void *library;
    bk_model *model;
    int (*bk_abi_version)(void);
    bk_model *(*bk_create)(int);
    void (*bk_destroy)(bk_model *);
    const char *(*bk_last_error)(const bk_model *);
    FUNCTIONS(POINTER)
} opened;

static __thread char open_error[1024];

static opened *of(const bk_model *model) { return (opened *)(void *)model; }

#define DISPATCH(result, name, parameters, arguments, none)     \
    result name parameters                                      \
    {                                                           \
        bk_model *own = model ? of(model)->model : NULL;        \
        return own ? of(model)->name arguments : none;          \
    }
FUNCTIONS(DISPATCH)

const char *bk_last_error(const bk_model *model) { return model ? of(model)->bk_last_error(of(model)->model) : open_error; }

int bk_abi_version(void) { return BK_ABI_VERSION; }

void bk_destroy(bk_model *model)
{
    if (!model) return;
    of(model)->bk_destroy(of(model)->model);
    dlclose(of(model)->library);
    free(model);
}

static int find(void *library, const char *path, const char *name, void *function)
{
    *(void **)function = dlsym(library, name);
    if (*(void **)function) return 0;
    snprintf(open_error, sizeof open_error, "%s has no %s: use the bitkiln.c of its bundle", path, name);
    return -1;
}

static int find_all(opened *in, const char *path)
{
#define FIND(result, name, parameters, arguments, none) \
    if (find(in->library, path, #name, &in->name) != 0) return -1;
    FIND(int, bk_abi_version, , , )
    if (in->bk_abi_version() != BK_ABI_VERSION) {
        snprintf(open_error, sizeof open_error, "%s has interface version %d, not %d: use the bitkiln.c of its bundle",
                 path, in->bk_abi_version(), BK_ABI_VERSION);
        return -1;
    }
    FIND(bk_model *, bk_create, , , )
    FIND(void, bk_destroy, , , )
    FIND(const char *, bk_last_error, , , )
    FUNCTIONS(FIND)
    return 0;
}

static int create(opened *in, const char *path, int threads)
{
    if (find_all(in, path) != 0) return -1;
    in->model = in->bk_create(threads);
    if (in->model) return 0;
    snprintf(open_error, sizeof open_error, "%s: %s", path, in->bk_last_error(NULL));
    return -1;
}

bk_model *bk_open(const char *path, int threads)
{
    struct stat found;
    char file[4096];
    int folder = stat(path, &found) == 0 && S_ISDIR(found.st_mode);
    /* A name without a slash would be looked for among the system's libraries. */
    int length = snprintf(file, sizeof file, "%s%s%s", strchr(path, '/') ? "" : "./", path, folder ? "/model.so" : "");
    opened *in = (opened *)calloc(1, sizeof *in);
    if (!in || length >= (int)sizeof file) {
        snprintf(open_error, sizeof open_error, in ? "%.200s...: too long a path" : "%.200s: out of memory", path);
        free(in);
        return NULL;
    }
    in->library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (!in->library) snprintf(open_error, sizeof open_error, "%s", dlerror());
    if (in->library && create(in, file, threads) == 0) return (bk_model *)(void *)in;
    if (in->library) dlclose(in->library);
    free(in);
    return NULL;
}
