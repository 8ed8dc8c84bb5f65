/* The runtime inside every model.so: memory, threads, errors and the loop over an execution plan.
 *
 * Kernels come from TVM and ask three services of their surroundings (parallel launch, scratch memory, error text); they
 * reach them through the symbols at the end of "Services". Everything but the bk_* functions of bitkiln.h is hidden.
 */
#define _GNU_SOURCE
#include "runtime.h"

#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

/* --- Old systems ---------------------------------------------------------------------------------------------------
 * glibc 2.34 moved pthreads into libc.so.6 and 2.27/2.29 gave libm faster entry points, each under a new symbol
 * version. Asking for the first version of each lets one library run on any system from Debian 10 on. */
#if defined(__aarch64__)
#define FIRST_GLIBC "GLIBC_2.17"
#elif defined(__arm__)
#define FIRST_GLIBC "GLIBC_2.4"
#elif defined(__x86_64__) /* for tests on the host */
#define FIRST_GLIBC "GLIBC_2.2.5"
#endif

#define USE_FIRST_VERSION(name) __asm__(".symver " #name "," #name "@" FIRST_GLIBC)
USE_FIRST_VERSION(pthread_create);
USE_FIRST_VERSION(pthread_sigmask);
USE_FIRST_VERSION(pthread_join);
USE_FIRST_VERSION(pthread_once);
USE_FIRST_VERSION(pthread_key_create);
USE_FIRST_VERSION(pthread_key_delete);
USE_FIRST_VERSION(pthread_getspecific);
USE_FIRST_VERSION(pthread_setspecific);

/* Calls from kernels to `name` arrive at __wrap_name: the linker's --wrap=name. */
#define WRAP_MATH(type, name, parameters, arguments)                  \
    __asm__(".symver first_" #name "," #name "@" FIRST_GLIBC);        \
    extern type first_##name parameters;                              \
    type __wrap_##name parameters;                                    \
    type __wrap_##name parameters { return first_##name arguments; }
WRAP_MATH(float, expf, (float x), (x))
WRAP_MATH(float, exp2f, (float x), (x))
WRAP_MATH(float, logf, (float x), (x))
WRAP_MATH(float, log2f, (float x), (x))
WRAP_MATH(float, powf, (float x, float y), (x, y))
WRAP_MATH(double, exp, (double x), (x))
WRAP_MATH(double, exp2, (double x), (x))
WRAP_MATH(double, log, (double x), (x))
WRAP_MATH(double, log2, (double x), (x))
WRAP_MATH(double, pow, (double x, double y), (x, y))

#if defined(__arm__)
/* Unwind tables of TVM's objects name these routines of the C++ runtime; nothing here unwinds. */
void __aeabi_unwind_cpp_pr0(void);
void __aeabi_unwind_cpp_pr0(void) {}
void __aeabi_unwind_cpp_pr1(void);
void __aeabi_unwind_cpp_pr1(void) {}
#endif

#define ALIGNMENT 64 /* of tensors; a cache line */
#define PAGE 4096
#define MAX_THREADS 16
#define DEFAULT_THREADS 4
/* A worker that finds nothing to do looks this often before it sleeps: about 50 us on a Cortex-A53, longer than the
 * pause between two kernels of a network, far shorter than waking a sleeping thread is worth avoiding. */
#define SPINS 20000

enum { TYPE_DLTENSOR = 7, DEVICE_CPU = 1 };
enum { MARK_START = 0x41353301, MARK_STOP = 0x41353302 };

typedef struct {
    void *sync;
    int32_t tasks;
} parallel_group;

typedef int (*parallel_task)(int task, parallel_group *group, void *closure);

/* A block of scratch memory; the kernel's part begins ALIGNMENT bytes after it. */
typedef struct block {
    struct block *next;
    uint64_t nbytes;
} block;

/* `ticket` is a round's number (24 bits), its number of tasks (20) and its next task (20) in one word: whoever adds one to
 * it has taken a task of the round it names, however late. So a launch waits for its tasks, never for sleeping workers.
 * It and `done` have cache lines of their own: who waits reads the one, who works writes the other. */
typedef struct {
    _Alignas(ALIGNMENT) atomic_uint_least64_t ticket;
    _Alignas(ALIGNMENT) atomic_int done; /* tasks of the current round */
    _Alignas(ALIGNMENT) atomic_int failed;
    atomic_bool stop;
    parallel_task task;
    void *closure;
    pthread_t threads[MAX_THREADS - 1];
    int started;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
} pool;

struct bk_model {
    bk_model *next; /* in the list of all models */
    pthread_mutex_t mutex;
    pthread_mutex_t error_mutex;
    pthread_mutex_t scratch_mutex;
    int threads;
    unsigned char *arena;
    unsigned char *boundary;
    bk_dltensor *tensors;
    bk_any *arguments;  /* of all steps, one after the other */
    int32_t *first_argument;
    double *seconds;
    block *scratch; /* free blocks */
    atomic_uint_least64_t scratch_bytes;
    bk_frame frame;
    pool pool;
    bool in_parallel;
    bool uses_made;
    uint64_t made_bytes; /* that its plan reads */
    const bk_step *step; /* that runs */
    int launched;        /* its parallel loops so far */
    char error[512];
};

/* --- Errors ------------------------------------------------------------------------------------------------------- */

static char create_error[512];
static pthread_mutex_t create_mutex = PTHREAD_MUTEX_INITIALIZER;

/* The model whose kernel runs on this thread: TVM's services are not told. */
static pthread_key_t current_model;
static pthread_once_t prepare_once = PTHREAD_ONCE_INIT;
static bool current_model_made;
static void before_fork(void), after_fork(void), after_fork_in_child(void);

static void prepare_library(void)
{
    current_model_made = pthread_key_create(&current_model, NULL) == 0 &&
                         pthread_atfork(before_fork, after_fork, after_fork_in_child) == 0;
}

int bk_fail(bk_model *model, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    pthread_mutex_t *mutex = model ? &model->error_mutex : &create_mutex;
    pthread_mutex_lock(mutex);
    vsnprintf(model ? model->error : create_error, sizeof create_error, format, list);
    pthread_mutex_unlock(mutex);
    va_end(list);
    return -1;
}

void bk_lock(bk_model *model) { pthread_mutex_lock(&model->mutex); }

void bk_unlock(bk_model *model) { pthread_mutex_unlock(&model->mutex); }

bk_frame *bk_frame_of(bk_model *model) { return &model->frame; }

API const char *bk_last_error(const bk_model *model) { return model ? model->error : create_error; }

API int bk_abi_version(void) { return BK_ABI_VERSION; }

/* --- Threads ------------------------------------------------------------------------------------------------------ */

enum { TASK_BITS = 20, MAX_TASKS = 1 << TASK_BITS };

static unsigned round_of(uint64_t ticket) { return (unsigned)(ticket >> (2 * TASK_BITS)); }

static void do_tasks(pool *pool)
{
    for (;;) {
        uint64_t ticket = atomic_fetch_add_explicit(&pool->ticket, 1, memory_order_acquire);
        int task = (int)(ticket % MAX_TASKS), tasks = (int)((ticket >> TASK_BITS) % MAX_TASKS);
        if (task >= tasks) return;
        parallel_group group = {pool, tasks};
        if (pool->task(task, &group, pool->closure) != 0) atomic_store(&pool->failed, 1);
        atomic_fetch_add_explicit(&pool->done, 1, memory_order_release);
    }
}

static void relax_cpu(void)
{
#if defined(__aarch64__) || defined(__arm__)
    __asm__ volatile("yield" ::: "memory");
#endif
}

/* Waits for a round other than `seen`; gives its number. */
static unsigned await_round(pool *pool, unsigned seen)
{
    unsigned round = seen;
    for (int spin = 0; spin < SPINS && round == seen; spin++) {
        relax_cpu();
        round = round_of(atomic_load_explicit(&pool->ticket, memory_order_relaxed));
    }
    if (round != seen) return round;
    pthread_mutex_lock(&pool->mutex);
    while ((round = round_of(atomic_load_explicit(&pool->ticket, memory_order_relaxed))) == seen)
        pthread_cond_wait(&pool->wake, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
    return round;
}

static void *work(void *argument)
{
    bk_model *model = argument;
    pool *pool = &model->pool;
    pthread_setspecific(current_model, model);
    for (unsigned round = 0;;) {
        round = await_round(pool, round);
        if (atomic_load(&pool->stop)) return NULL;
        do_tasks(pool);
    }
}

/* Opens a round of `tasks` tasks and wakes who sleeps. */
static void next_round(pool *pool, int tasks)
{
    uint64_t round = (round_of(atomic_load_explicit(&pool->ticket, memory_order_relaxed)) + 1) % (1u << 24);
    pthread_mutex_lock(&pool->mutex);
    uint64_t ticket = (round << TASK_BITS | (uint64_t)tasks) << TASK_BITS;
    atomic_store_explicit(&pool->ticket, ticket, memory_order_release);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
}

/* Starts those threads that do not run yet. They leave all signals to the program's own threads. */
static int start_threads(bk_model *model)
{
    pool *pool = &model->pool;
    if (pool->started == model->threads - 1) return 0;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = 0;
    for (; pool->started < model->threads - 1; pool->started++)
        if ((code = pthread_create(&pool->threads[pool->started], NULL, work, model)) != 0) break;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code == 0) return 0;
    return bk_fail(model, "cannot start thread %d of %d: %s", pool->started + 2, model->threads, strerror(code));
}

static void stop_threads(bk_model *model)
{
    atomic_store(&model->pool.stop, true);
    next_round(&model->pool, 0);
    for (int i = 0; i < model->pool.started; i++) pthread_join(model->pool.threads[i], NULL);
}

static int serial_launch(parallel_task task, void *closure, int tasks)
{
    parallel_group group = {NULL, tasks};
    for (int i = 0; i < tasks; i++)
        if (task(i, &group, closure) != 0) return -1;
    return 0;
}

/* How many tasks a loop of `extent` rounds becomes, each a run of equally many: four to eight for each thread, so that a thread
 * that is held up keeps the others waiting for one of them only; of such numbers one that all threads finish soonest. */
static int share_out(int extent, int threads)
{
    if (extent >= 64 * threads) return 8 * threads;
    int least = (extent + 8 * threads - 1) / (8 * threads), best = least, soonest = INT_MAX;
    for (int run = least; run <= 2 * least; run++) {
        int tasks = (extent + run - 1) / run, rounds = (tasks + threads - 1) / threads * run;
        if (rounds < soonest) soonest = rounds, best = run;
    }
    return (extent + best - 1) / best;
}

/* Tasks of the running step's next parallel loop: as many as threads where its extent is not known. */
static int tasks_of_launch(bk_model *model)
{
    int launch = model->launched++;
    const bk_step *step = model->step;
    int extent = step && launch < step->launches ? step->tensors[step->arguments + launch] : 0;
    if (extent < 0) return -extent;
    return extent ? share_out(extent, model->threads) : model->threads;
}

/* Runs task(0) .. task(tasks - 1); with 0 tasks the kernel leaves the number to us. A launch inside a task runs on the spot. */
static int parallel_launch(parallel_task task, void *closure, int tasks)
{
    bk_model *model = pthread_getspecific(current_model);
    if (tasks == 0) tasks = model->threads == 1 || model->in_parallel ? 1 : tasks_of_launch(model);
    if (model->threads == 1 || tasks == 1 || tasks >= MAX_TASKS || model->in_parallel)
        return serial_launch(task, closure, tasks);
    pool *pool = &model->pool;
    pool->task = task;
    pool->closure = closure;
    atomic_store(&pool->failed, 0);
    atomic_store(&pool->done, 0);
    model->in_parallel = true;
    next_round(pool, tasks);
    do_tasks(pool);
    for (int spin = 0; atomic_load_explicit(&pool->done, memory_order_acquire) < tasks; spin++) {
        relax_cpu();
        if (spin > SPINS) sched_yield();
    }
    model->in_parallel = false;
    return atomic_load(&pool->failed) ? -1 : 0;
}

/* --- Scratch memory ----------------------------------------------------------------------------------------------- */

static void *allocate(uint64_t nbytes, size_t alignment)
{
    void *memory = NULL;
    if (nbytes > SIZE_MAX || posix_memalign(&memory, alignment, nbytes ? (size_t)nbytes : 1) != 0) return NULL;
    return memory;
}

/* Zeros on pages of their own, whatever the heap looks like. */
static void *allocate_zeros(size_t count, size_t nbytes)
{
    void *memory = allocate(count * nbytes, PAGE);
    return memory ? memset(memory, 0, count * nbytes) : NULL;
}

/* The smallest free block that holds `nbytes`, taken from the list, or NULL. */
static block *take_block(bk_model *model, uint64_t nbytes)
{
    block **best = NULL;
    for (block **at = &model->scratch; *at; at = &(*at)->next)
        if ((*at)->nbytes >= nbytes && (!best || (*at)->nbytes < (*best)->nbytes)) best = at;
    if (!best) return NULL;
    block *found = *best;
    *best = found->next;
    return found;
}

/* A new block, from the system itself: the heap's search for room touches whatever the program around us keeps there. */
static block *map_block(uint64_t nbytes)
{
    if (nbytes > SIZE_MAX - ALIGNMENT) return NULL;
    void *memory = mmap(NULL, (size_t)nbytes + ALIGNMENT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

static void *allocate_workspace(int device, int id, uint64_t nbytes, int code, int bits)
{
    (void)device, (void)id, (void)code, (void)bits;
    bk_model *model = pthread_getspecific(current_model);
    pthread_mutex_lock(&model->scratch_mutex);
    block *found = take_block(model, nbytes);
    pthread_mutex_unlock(&model->scratch_mutex);
    if (!found) {
        found = map_block(nbytes);
        if (!found) {
            bk_fail(model, "out of memory: %llu bytes of scratch", (unsigned long long)nbytes);
            return NULL;
        }
        found->nbytes = nbytes;
        atomic_fetch_add_explicit(&model->scratch_bytes, nbytes + ALIGNMENT, memory_order_relaxed);
    }
    return (unsigned char *)found + ALIGNMENT;
}

static int free_workspace(int device, int id, void *memory)
{
    (void)device, (void)id;
    bk_model *model = pthread_getspecific(current_model);
    block *freed = (block *)((unsigned char *)memory - ALIGNMENT);
    pthread_mutex_lock(&model->scratch_mutex);
    freed->next = model->scratch;
    model->scratch = freed;
    pthread_mutex_unlock(&model->scratch_mutex);
    return 0;
}

/* --- Services: the names under which TVM's kernels look for them --------------------------------------------------- */

int (*__TVMBackendParallelLaunch)(parallel_task, void *, int) = parallel_launch;
void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = allocate_workspace;
int (*__TVMBackendFreeWorkspace)(int, int, void *) = free_workspace;

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count);
void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count)
{
    char text[400] = "";
    size_t used = 0;
    for (int32_t i = 0; i < count && used < sizeof text - 1; i++) {
        if (!parts[i]) continue;
        int more = snprintf(text + used, sizeof text - used, "%s", parts[i]);
        used += more > 0 ? (size_t)more : 0;
    }
    for (char *at = text; *at; at++)
        if (*at == '\n') *at = ' ';
    bk_fail(pthread_getspecific(current_model), "%s: %s", kind, text);
}

int bk_copy(void *self, const bk_any *arguments, int32_t count, bk_any *result)
{
    (void)self, (void)count, (void)result;
    const bk_dltensor *from = arguments[0].value.pointer;
    const bk_dltensor *to = arguments[1].value.pointer;
    size_t nbytes = to->dtype.bits / 8u;
    for (int32_t i = 0; i < to->ndim; i++) nbytes *= (size_t)to->shape[i];
    memcpy(to->data, from->data, nbytes);
    return 0;
}

/* --- Weights that are packed here ------------------------------------------------------------------------------------
 * All models of the library share them. They are made when the first model is created that reads them, and given back with
 * the last one. The weights they are made of are pages of the file: those are given back at once. */

static pthread_mutex_t made_mutex = PTHREAD_MUTEX_INITIALIZER;
static unsigned char *made;
static int made_users;
static unsigned made_plans; /* whose weights are there */

static unsigned plan_of(const bk_model *model)
{
    return model->threads > 1 && bk_network.several != bk_network.steps ? 2 : 1;
}

static int pack_task(int task, parallel_group *group, void *closure)
{
    (void)group;
    bk_network.pack(closure, task, bk_network.constants, made);
    return 0;
}

static void advise_raw(int advice)
{
    madvise((void *)(uintptr_t)(bk_network.constants + bk_network.raw_from), (size_t)bk_network.raw_bytes, advice);
}

/* Those of the model's plan that are not there yet. */
static void pack_weights(bk_model *model)
{
    unsigned plan = plan_of(model);
    advise_raw(MADV_WILLNEED);
    pthread_setspecific(current_model, model);
    for (int32_t i = 0; i < bk_network.packing_count; i++) {
        const bk_packing *packing = &bk_network.packings[i];
        if (packing->plans & plan && !(packing->plans & made_plans))
            parallel_launch(pack_task, (void *)(uintptr_t)packing, packing->tasks);
    }
    pthread_setspecific(current_model, NULL);
    advise_raw(MADV_DONTNEED);
    made_plans |= plan;
}

static int make_weights(bk_model *model)
{
    if (!bk_network.packing_count) return 0;
    for (int32_t i = 0; i < bk_network.packing_count; i++)
        if (bk_network.packings[i].plans & plan_of(model)) model->made_bytes += bk_network.packings[i].nbytes;
    size_t nbytes = (size_t)bk_network.made_bytes;
    pthread_mutex_lock(&made_mutex);
    if (!made) {
        void *memory = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        made = memory == MAP_FAILED ? NULL : memory;
    }
    if (made) {
        model->uses_made = true;
        made_users++;
        if (!(made_plans & plan_of(model))) pack_weights(model);
    }
    pthread_mutex_unlock(&made_mutex);
    return model->uses_made ? 0 : bk_fail(model, "out of memory: the network needs %zu bytes for weights", nbytes);
}

static void leave_weights(bk_model *model)
{
    if (!model->uses_made) return;
    pthread_mutex_lock(&made_mutex);
    if (--made_users == 0) {
        munmap(made, (size_t)bk_network.made_bytes);
        made = NULL;
        made_plans = 0;
    }
    pthread_mutex_unlock(&made_mutex);
}

/* --- A model's life ----------------------------------------------------------------------------------------------- */

static void *tensor_data(const bk_model *model, const bk_tensor *tensor)
{
    switch (tensor->place) {
    case BK_ARENA: return model->arena + tensor->offset;
    case BK_BOUNDARY: return model->boundary + tensor->offset;
    case BK_MADE: return made + tensor->offset;
    default: return (void *)(uintptr_t)(bk_network.constants + tensor->offset); /* kernels only read it */
    }
}

static void bind_tensors(bk_model *model)
{
    for (int32_t i = 0; i < bk_network.tensor_count; i++) {
        const bk_tensor *tensor = &bk_network.tensors[i];
        model->tensors[i] = (bk_dltensor){
            .data = tensor_data(model, tensor),
            .device = {DEVICE_CPU, 0},
            .ndim = tensor->ndim,
            .dtype = {tensor->code, tensor->bits, 1},
            .shape = (int64_t *)(uintptr_t)tensor->shape,
        };
    }
}

/* The steps with the kernels for the model's number of threads; names and outputs are those of bk_network.steps. */
static const bk_step *steps_of(const bk_model *model)
{
    return model->threads > 1 ? bk_network.several : bk_network.steps;
}

static void bind_arguments(bk_model *model)
{
    int32_t at = 0;
    for (int32_t i = 0; i < bk_network.step_count; i++) {
        const bk_step *step = &steps_of(model)[i];
        model->first_argument[i] = at;
        for (int32_t k = 0; k < step->arguments; k++)
            model->arguments[at++] = (bk_any){TYPE_DLTENSOR, 0, {.pointer = &model->tensors[step->tensors[k]]}};
    }
}

static int allocate_model(bk_model *model)
{
    size_t arguments = 1;
    for (int32_t i = 0; i < bk_network.step_count; i++) arguments += (size_t)steps_of(model)[i].arguments;
    model->arena = allocate(bk_network.arena_bytes, PAGE);
    model->boundary = allocate(bk_network.boundary_bytes, PAGE);
    model->tensors = allocate_zeros((size_t)bk_network.tensor_count + 1, sizeof *model->tensors);
    model->arguments = allocate_zeros(arguments, sizeof *model->arguments);
    model->first_argument = allocate_zeros((size_t)bk_network.step_count + 1, sizeof *model->first_argument);
    model->seconds = allocate_zeros((size_t)bk_network.step_count + 1, sizeof *model->seconds);
    if (!model->arena || !model->boundary || !model->tensors || !model->arguments || !model->first_argument ||
        !model->seconds)
        return bk_fail(model, "out of memory: the network needs %llu bytes for activations",
                    (unsigned long long)(bk_network.arena_bytes + bk_network.boundary_bytes));
    memset(model->boundary, 0, (size_t)bk_network.boundary_bytes);
    return 0;
}

/* One for each processor that this thread may use. */
static int default_threads(void)
{
    cpu_set_t allowed;
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) processors = CPU_COUNT(&allowed);
    return processors < 1 ? 1 : processors > DEFAULT_THREADS ? DEFAULT_THREADS : (int)processors;
}

static void make_locks(bk_model *model)
{
    pthread_mutex_init(&model->mutex, NULL);
    pthread_mutex_init(&model->error_mutex, NULL);
    pthread_mutex_init(&model->scratch_mutex, NULL);
    pthread_mutex_init(&model->pool.mutex, NULL);
    pthread_cond_init(&model->pool.wake, NULL);
}

/* --- fork ---------------------------------------------------------------------------------------------------------
 * A child has a copy of every model, of the threads only the one that forked, and of the locks whatever state they were
 * in. So the child makes the locks anew, and its first run starts threads again. */

static pthread_mutex_t models_mutex = PTHREAD_MUTEX_INITIALIZER;
static bk_model *models;

static void before_fork(void)
{
    pthread_mutex_lock(&made_mutex);
    pthread_mutex_lock(&models_mutex);
    pthread_mutex_lock(&create_mutex);
}

static void after_fork(void)
{
    pthread_mutex_unlock(&create_mutex);
    pthread_mutex_unlock(&models_mutex);
    pthread_mutex_unlock(&made_mutex);
}

static void after_fork_in_child(void)
{
    for (bk_model *model = models; model; model = model->next) {
        make_locks(model);
        model->pool.started = 0;
        model->in_parallel = false;
        atomic_store(&model->pool.ticket, 0); /* a round that the parent's threads were in goes on in the parent alone */
    }
    after_fork();
}

static void list_model(bk_model *model)
{
    pthread_mutex_lock(&models_mutex);
    model->next = models;
    models = model;
    pthread_mutex_unlock(&models_mutex);
}

static void unlist_model(bk_model *model)
{
    pthread_mutex_lock(&models_mutex);
    for (bk_model **at = &models; *at; at = &(*at)->next)
        if (*at == model) {
            *at = model->next;
            break;
        }
    pthread_mutex_unlock(&models_mutex);
}

/* A process has 1024 keys: a library that is unloaded gives its own back. Where models are left the process ends, perhaps
 * while another thread runs one. */
__attribute__((destructor)) static void delete_current_model(void)
{
    if (current_model_made && !models) pthread_key_delete(current_model);
}

/* --- Creating and destroying -------------------------------------------------------------------------------------- */

API bk_model *bk_create(int threads)
{
    if (threads < 0 || threads > MAX_THREADS) {
        bk_fail(NULL, "%d threads: give 1 to %d, or 0 for one per processor", threads, MAX_THREADS);
        return NULL;
    }
    pthread_once(&prepare_once, prepare_library);
    bk_model *model = current_model_made ? allocate_zeros(1, sizeof *model) : NULL;
    if (!model) {
        bk_fail(NULL, current_model_made ? "out of memory" : "out of thread-specific keys");
        return NULL;
    }
    make_locks(model);
    list_model(model);
    model->threads = threads ? threads : default_threads();
    if (allocate_model(model) != 0 || start_threads(model) != 0 || make_weights(model) != 0) {
        bk_fail(NULL, "%s", model->error);
        bk_destroy(model);
        return NULL;
    }
    bind_tensors(model);
    bind_arguments(model);
    return model;
}

API void bk_destroy(bk_model *model)
{
    if (!model) return;
    unlist_model(model);
    stop_threads(model);
    leave_weights(model);
    while (model->scratch) {
        block *next = model->scratch->next;
        munmap(model->scratch, (size_t)model->scratch->nbytes + ALIGNMENT);
        model->scratch = next;
    }
    free(model->arena);
    free(model->boundary);
    free(model->tensors);
    free(model->arguments);
    free(model->first_argument);
    free(model->seconds);
    pthread_cond_destroy(&model->pool.wake);
    pthread_mutex_destroy(&model->pool.mutex);
    pthread_mutex_destroy(&model->scratch_mutex);
    pthread_mutex_destroy(&model->error_mutex);
    pthread_mutex_destroy(&model->mutex);
    free(model);
}

API uint64_t bk_memory_bytes(const bk_model *model)
{
    if (!model) return 0;
    return bk_network.arena_bytes + bk_network.boundary_bytes + model->made_bytes +
           atomic_load_explicit(&model->scratch_bytes, memory_order_relaxed);
}

API int bk_thread_count(const bk_model *model) { return model ? model->threads : -1; }

/* --- Tensors ------------------------------------------------------------------------------------------------------ */

static const bk_tensor *input_at(int index)
{
    return index >= 0 && index < bk_network.input_count ? &bk_network.tensors[bk_network.inputs[index]] : NULL;
}

static const bk_tensor *output_at(int index)
{
    return index >= 0 && index < bk_network.output_count ? &bk_network.tensors[bk_network.outputs[index]] : NULL;
}

static const bk_tensor *step_output_at(int step, int index)
{
    if (step < 0 || step >= bk_network.step_count) return NULL;
    const bk_step *of = &bk_network.steps[step];
    if (index < 0 || index >= of->outputs) return NULL;
    return &bk_network.tensors[of->tensors[of->arguments - of->outputs + index]];
}

static int describe(const bk_tensor *tensor, bk_tensor_info *info)
{
    if (!tensor) return -1;
    *info = (bk_tensor_info){tensor->name, tensor->dtype, tensor->ndim, tensor->shape, (size_t)tensor->nbytes};
    return 0;
}

API int bk_input_count(const bk_model *model) { return (void)model, bk_network.input_count; }

API int bk_output_count(const bk_model *model) { return (void)model, bk_network.output_count; }

API int bk_input_info(const bk_model *model, int index, bk_tensor_info *info)
{
    return (void)model, describe(input_at(index), info);
}

API int bk_output_info(const bk_model *model, int index, bk_tensor_info *info)
{
    return (void)model, describe(output_at(index), info);
}

API void *bk_input_data(bk_model *model, int index)
{
    const bk_tensor *tensor = model ? input_at(index) : NULL;
    return tensor ? tensor_data(model, tensor) : NULL;
}

API const void *bk_output_data(const bk_model *model, int index)
{
    const bk_tensor *tensor = model ? output_at(index) : NULL;
    return tensor ? tensor_data(model, tensor) : NULL;
}

static int check_copy(bk_model *model, const char *what, const bk_tensor *tensor, int index, const void *data, size_t nbytes)
{
    if (!model) return bk_fail(NULL, "no model was given");
    if (!data && nbytes) return bk_fail(model, "%s %d: the data's address is NULL", what, index);
    if (!tensor) return bk_fail(model, "there is no %s %d", what, index);
    if (nbytes != tensor->nbytes)
        return bk_fail(model, "%s %d (%s) has %llu bytes, not %llu", what, index, tensor->name,
                    (unsigned long long)tensor->nbytes, (unsigned long long)nbytes);
    return 0;
}

API int bk_set_input(bk_model *model, int index, const void *data, size_t nbytes)
{
    if (check_copy(model, "input", input_at(index), index, data, nbytes) != 0) return -1;
    pthread_mutex_lock(&model->mutex);
    memcpy(tensor_data(model, input_at(index)), data, nbytes);
    if (index == 0) model->frame.width = 0; /* no image is known */
    pthread_mutex_unlock(&model->mutex);
    return 0;
}

API int bk_get_output(bk_model *model, int index, void *data, size_t nbytes)
{
    if (check_copy(model, "output", output_at(index), index, data, nbytes) != 0) return -1;
    pthread_mutex_lock(&model->mutex);
    memcpy(data, tensor_data(model, output_at(index)), nbytes);
    pthread_mutex_unlock(&model->mutex);
    return 0;
}

/* --- Running ------------------------------------------------------------------------------------------------------ */

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static int call_step(bk_model *model, int32_t index)
{
    const bk_step *step = &steps_of(model)[index];
    bk_any result = {0, 0, {0}};
    model->step = step, model->launched = 0;
    if (step->kernel(NULL, &model->arguments[model->first_argument[index]], step->arguments, &result) == 0) return 0;
    char cause[sizeof model->error];
    memcpy(cause, model->error, sizeof cause);
    return bk_fail(model, "step %d (%s) failed: %.400s", (int)index, step->name, cause);
}

static int timed_step(bk_model *model, int index)
{
    double start = now();
    int code = call_step(model, index);
    model->seconds[index] = now() - start;
    return code;
}

/* Calls `work` with the stack at one place of a page, whoever calls: how frames share cache sets with tensors, and which pages are
 * touched first, would otherwise depend on the caller's depth and on the size of the environment (Mytkowicz et al., "Producing Wrong
 * Data Without Doing Anything Obviously Wrong!", 2009). */
__attribute__((noinline)) static int at_page(int (*work)(bk_model *, int), bk_model *model, int argument)
{
    const volatile void *down_to_page = __builtin_alloca((uintptr_t)__builtin_frame_address(0) % PAGE);
    __asm__ volatile("" : : "r"(down_to_page));
    return work(model, argument);
}

/* Runs kernels: `work` with the model locked and its threads there. */
static int with_kernels(int (*work)(bk_model *, int), bk_model *model, int argument)
{
    if (!model) return bk_fail(NULL, "no model was given");
    pthread_mutex_lock(&model->mutex);
    pthread_setspecific(current_model, model);
    model->error[0] = 0;
    int code = start_threads(model) == 0 ? at_page(work, model, argument) : -1;
    pthread_setspecific(current_model, NULL);
    pthread_mutex_unlock(&model->mutex);
    return code;
}

static int run_all(bk_model *model, int unused)
{
    (void)unused;
    int code = 0;
    for (int32_t i = 0; i < bk_network.step_count && code == 0; i++) code = timed_step(model, i);
    return code;
}

static int run_marked(bk_model *model, int per_step)
{
    int code = 0;
    if (!per_step) prctl(MARK_START, 0, 0, 0, 0);
    for (int32_t i = 0; i < bk_network.step_count && code == 0; i++) {
        if (per_step) prctl(MARK_START, 0, 0, 0, 0);
        code = call_step(model, i);
        if (per_step) prctl(MARK_STOP, i, 0, 0, 0);
    }
    if (!per_step) prctl(MARK_STOP, 0, 0, 0, 0);
    return code;
}

API int bk_run(bk_model *model)
{
    return with_kernels(run_all, model, 0);
}

API int bk_run_step(bk_model *model, int step)
{
    if (step < 0 || step >= bk_network.step_count) return bk_fail(model, "there is no step %d", step);
    return with_kernels(timed_step, model, step);
}

API int bk_run_marked(bk_model *model, int per_step)
{
    return with_kernels(run_marked, model, per_step);
}

static const bk_step *step_at(int step)
{
    return step >= 0 && step < bk_network.step_count ? &bk_network.steps[step] : NULL;
}

API int bk_step_count(const bk_model *model) { return (void)model, bk_network.step_count; }

API const char *bk_step_name(const bk_model *model, int step)
{
    return (void)model, step_at(step) ? step_at(step)->name : NULL;
}

API const char *bk_step_kind(const bk_model *model, int step)
{
    return (void)model, step_at(step) ? step_at(step)->kind : NULL;
}

API double bk_step_seconds(const bk_model *model, int step)
{
    return model && step_at(step) ? model->seconds[step] : -1;
}

API int bk_step_output_count(const bk_model *model, int step)
{
    return (void)model, step_at(step) ? step_at(step)->outputs : -1;
}

API int bk_step_output_info(const bk_model *model, int step, int index, bk_tensor_info *info)
{
    return (void)model, describe(step_output_at(step, index), info);
}

API const void *bk_step_output_data(const bk_model *model, int step, int index)
{
    const bk_tensor *tensor = model ? step_output_at(step, index) : NULL;
    return tensor ? tensor_data(model, tensor) : NULL;
}
