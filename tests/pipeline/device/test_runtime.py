"""The runtime inside model.so, built for this machine with kernels written in C: threads, scratch memory, errors."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from bitkiln.pipeline.compile.link import DEVICE, plan_source
from bitkiln.pipeline.compile.plan import PlannedCall, make_plan, new_view
from bitkiln.pipeline.device import runner

KERNELS = r"""
#include "plan.h"
#include <string.h>
#include <time.h>
typedef struct { void *sync; int32_t tasks; } group;
typedef int (*task)(int, group *, void *);
extern __attribute__((visibility("hidden"))) int (*__TVMBackendParallelLaunch)(task, void *, int);
extern void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int);
extern __attribute__((visibility("hidden"))) int (*__TVMBackendFreeWorkspace)(int, int, void *);
void TVMFFIErrorSetRaisedFromCStrParts(const char *, const char **, int32_t);
static bk_dltensor *tensor(const bk_any *a) { return a->value.pointer; }

/* out[i] = 2 * x[i] + the number of tasks, in parallel, through scratch memory. */
static int twice_part(int id, group *env, void *closure) {
    bk_dltensor **t = closure;
    int64_t n = t[0]->shape[0], from = n * id / env->tasks, to = n * (id + 1) / env->tasks;
    float *scratch = __TVMBackendAllocWorkspace(1, 0, 4 * n, 2, 32);
    if (!scratch || (uintptr_t)scratch % 64) return -1;
    for (int64_t i = from; i < to; i++) scratch[i] = 2 * ((float *)t[0]->data)[i];
    for (int64_t i = from; i < to; i++) ((float *)t[1]->data)[i] = scratch[i] + 1;
    return __TVMBackendFreeWorkspace(1, 0, scratch);
}
int __tvm_ffi_twice(void *self, const bk_any *a, int32_t n, bk_any *r) {
    bk_dltensor *t[2] = {tensor(a), tensor(a + 1)};
    return __TVMBackendParallelLaunch(twice_part, t, 0);
}
static int nested_part(int id, group *env, void *closure) {
    return __TVMBackendParallelLaunch(twice_part, closure, 0);
}
int __tvm_ffi_nested(void *self, const bk_any *a, int32_t n, bk_any *r) {
    bk_dltensor *t[2] = {tensor(a), tensor(a + 1)};
    return __TVMBackendParallelLaunch(nested_part, t, 1);
}
/* Every task waits for all others: ends only if each has a thread of its own. */
static int met;
static int meet_part(int id, group *env, void *closure) {
    __atomic_add_fetch(&met, 1, __ATOMIC_SEQ_CST);
    for (time_t start = time(NULL); time(NULL) < start + 20;)
        if (__atomic_load_n(&met, __ATOMIC_SEQ_CST) == env->tasks) return 0;
    return -1;
}
int __tvm_ffi_meet(void *self, const bk_any *a, int32_t n, bk_any *r) {
    met = 0;
    return __TVMBackendParallelLaunch(meet_part, NULL, 0);
}
/* The first task waits for all others: they do not wait for it. The answer is how many there were. */
static int held_part(int id, group *env, void *closure) {
    bk_dltensor **t = closure;
    ((float *)t[1]->data)[id] = env->tasks;
    for (time_t start = time(NULL); id == 0 && __atomic_load_n(&met, __ATOMIC_SEQ_CST) < env->tasks - 1;)
        if (time(NULL) > start + 20) return -1;
    __atomic_add_fetch(&met, 1, __ATOMIC_SEQ_CST);
    return 0;
}
int __tvm_ffi_held(void *self, const bk_any *a, int32_t n, bk_any *r) {
    bk_dltensor *t[2] = {tensor(a), tensor(a + 1)};
    met = 0;
    return __TVMBackendParallelLaunch(held_part, t, 0);
}
static int failing_part(int id, group *env, void *closure) {
    if (id != env->tasks - 1) return 0;
    const char *parts[] = {"x is ", NULL, "wrong\n here"};
    TVMFFIErrorSetRaisedFromCStrParts("ValueError", parts, 3);
    return -1;
}
int __tvm_ffi_failing(void *self, const bk_any *a, int32_t n, bk_any *r) {
    if (((float *)tensor(a)->data)[0] < 100) { memcpy(tensor(a + 1)->data, tensor(a)->data, 4); return 0; }
    return __TVMBackendParallelLaunch(failing_part, NULL, 7);
}
"""


def build(
    folder: Path, chain: list[str], flags: tuple[str, ...] = (), extents: dict[str, tuple[int, ...]] | None = None
) -> Path:
    """A library whose network applies the kernels of ``chain``, with parallel loops of ``extents``, to x float32[1000]."""
    views = [new_view("x", (1000,), "float32", boundary=True)]
    calls = []
    for index, kernel in enumerate(chain):
        views.append(new_view(f"s{index}", (1000,), "float32"))
        calls.append(PlannedCall(f"s{index}", kernel, kernel, (views[-2],), (views[-1],)))
    plan = make_plan(calls, [views[0]], [views[-1]])
    (folder / "plan.c").write_text(plan_source(plan, extents) + "const unsigned char bk_constants[1];\n")
    (folder / "kernels.c").write_text(KERNELS)
    out = folder / "model.so"
    command = ["gcc", "-std=gnu11", "-O1", "-g", "-fPIC", "-shared", "-fvisibility=hidden", f"-I{DEVICE}", *flags]
    command += [DEVICE / "runtime.c", folder / "plan.c", folder / "kernels.c", "-o", out, "-lm", "-lpthread"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=120)
    return out


@pytest.fixture(scope="module")
def library(host, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("runtime"), ["twice", "nested", "failing"])


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 16])
def test_any_number_of_threads_gives_the_same_answer(library: Path, threads: int) -> None:
    x = np.arange(1000, dtype="float32") / 100
    with runner.Model(str(library), threads) as model:
        assert model.threads == threads
        for _ in range(200):
            model.set_input(0, x)
            model.run()
            steps = dict(model.trace())
        np.testing.assert_array_equal(steps["s0"][0], 2 * x + 1)
        np.testing.assert_array_equal(steps["s1"][0], 4 * x + 3)
        assert model.output()[0] == 3.0
        assert all(seconds > 0 for seconds in model.step_seconds)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_threads_really_run_side_by_side(host, tmp_path: Path, threads: int) -> None:
    with runner.Model(str(build(tmp_path, ["meet"])), threads) as model:
        for _ in range(20):
            model.run()


@pytest.mark.parametrize(
    ("extent", "threads", "tasks"),
    [
        (28, 4, 28),
        (56, 4, 28),
        (112, 4, 28),
        (33, 4, 11),
        (7, 4, 7),
        (2, 4, 2),
        (1000, 4, 32),
        (9, 16, 9),
        (-70, 4, 70),
    ],
)
def test_a_loop_is_divided_finely_and_evenly(host, tmp_path: Path, extent: int, threads: int, tasks: int) -> None:
    """Four to eight tasks a thread where there are so many rounds, and none that makes the last one wait."""
    with runner.Model(str(build(tmp_path, ["held"], extents={"held": (extent,)})), threads) as model:
        if threads > 1:
            model.run()
            assert model.output()[0] == tasks


def test_the_default_is_a_thread_per_processor(library: Path) -> None:
    with runner.Model(str(library)) as model:
        assert 1 <= model.threads <= 4


@pytest.mark.parametrize("threads", [-1, 17])
def test_impossible_numbers_of_threads_are_refused(library: Path, threads: int) -> None:
    with pytest.raises(runner.RunnerError, match="threads: give 1 to 16"):
        runner.Model(str(library), threads)


@pytest.mark.parametrize("threads", [1, 4])
def test_a_failing_kernel_is_reported_and_the_model_stays_usable(library: Path, threads: int) -> None:
    with runner.Model(str(library), threads) as model:
        model.set_input(0, np.full(1000, 99, "float32"))
        with pytest.raises(runner.RunnerError, match=r"step 2 \(s2\) failed: ValueError: x is wrong  here"):
            model.run()
        model.set_input(0, np.zeros(1000, "float32"))
        model.run()
        assert model.output()[0] == 3.0


def test_threads_may_share_a_library(library: Path) -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        x = np.full(1000, seed, "float32")
        with runner.Model(str(library), 2) as model:
            for _ in range(50):
                if model(x)[0] != 4 * seed + 3:
                    wrong.append(seed)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not wrong and not any(worker.is_alive() for worker in workers)


def test_marked_runs_compute_the_same(library: Path) -> None:
    with runner.Model(str(library), 1) as model:
        model.set_input(0, np.zeros(1000, "float32"))
        for per_step in (False, True):
            model.run_marked(per_step)
            assert model.output()[0] == 3.0


def test_wrong_calls_give_errors_not_crashes(library: Path) -> None:
    bk = runner.open_library(str(library))
    model = bk.bk_create(1)
    info = runner._Info()
    for index in (-1, 1):
        assert bk.bk_input_info(model, index, ctypes.byref(info)) == -1
        assert bk.bk_output_info(model, index, ctypes.byref(info)) == -1
        assert bk.bk_output_data(model, index) is None
        assert bk.bk_set_input(model, index, b"", 0) == -1
    assert bk.bk_set_input(model, 0, b"1234", 4) == -1
    assert bk.bk_last_error(model) == b"input 0 (x) has 4000 bytes, not 4"
    for step in (-1, 3):
        assert bk.bk_run_step(model, step) == -1
        assert bk.bk_step_name(model, step) is None and bk.bk_step_kind(model, step) is None
        assert bk.bk_step_seconds(model, step) == -1
        assert bk.bk_step_output_count(model, step) == -1
        assert bk.bk_step_output_data(model, step, 0) is None
    assert bk.bk_step_output_data(model, 0, 1) is None
    bk.bk_destroy(model)
    bk.bk_destroy(None)


def test_threads_and_memory_are_given_back(library: Path) -> None:
    def threads_alive() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    before = threads_alive()
    for _ in range(50):
        with runner.Model(str(library), 4) as model:
            model.set_input(0, np.zeros(1000, "float32"))
            model.run()
    assert threads_alive() <= before


def test_the_default_heeds_what_the_process_may_use(library: Path) -> None:
    script = (
        "import os, sys, runner; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "print(runner.Model(sys.argv[1]).threads)"
    )
    environment = {**os.environ, "PYTHONPATH": str(DEVICE)}
    command = [sys.executable, "-c", script, str(library)]
    assert subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60).stdout == "1\n"


def test_memory_is_counted(library: Path) -> None:
    """The library, three tensors of 4,000 bytes at least, and once it has run its scratch memory."""
    with runner.Model(str(library), 1) as model:
        before = model.memory_bytes - library.stat().st_size
        model.set_input(0, np.zeros(1000, "float32"))
        model.run()
        model.run()
        assert 12000 <= before < 24000
        assert model.memory_bytes - library.stat().st_size - before == 4000 + 64


def test_threads_may_load_at_once(library: Path) -> None:
    answers: list[float] = []

    def load() -> None:
        with runner.Model(str(library), 2) as model:
            answers.append(float(model(np.zeros(1000, "float32"))[0]))

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [3.0] * 8


USES = r"""
#include "bitkiln.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
enum { N = 1000 };
static bk_model *shared;
static int stop;

static void check(const bk_model *model, float x)
{
    const float *y = bk_output_data(model, 0);
    for (int i = 0; i < N; i++)
        if (y[i] != 8 * x + 7) exit(3);
}

static void use(bk_model *model, float x)
{
    float *input = bk_input_data(model, 0);
    for (int i = 0; i < N; i++) input[i] = x;
    if (bk_run(model)) exit(2);
    check(model, x);
}

static void *create_and_use(void *unused)
{
    for (int i = 0; i < 20; i++) {
        bk_model *model = bk_create(i % 5);
        use(model, (float)i);
        bk_destroy(model);
    }
    return unused;
}

static void *run_shared(void *unused)
{
    while (!__atomic_load_n(&stop, __ATOMIC_RELAXED))
        if (bk_run(shared)) exit(4);
    return unused;
}

/* Children use the model, destroy it or leave it, while another thread may be running it. */
static void fork_children(int busy, int count)
{
    pthread_t thread;
    if (busy) pthread_create(&thread, NULL, run_shared, NULL);
    for (int i = 0; i < count; i++) {
        pid_t child = fork();
        if (child == 0) {
            alarm(30);
            if (i % 3 == 0) use(shared, (float)i), use(shared, 1);
            if (i % 3 < 2) bk_destroy(shared);
            _exit(0);
        }
        int status;
        if (waitpid(child, &status, 0) != child || status != 0) exit(5);
    }
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    if (busy) pthread_join(thread, NULL);
}

int main(int argc, char **argv)
{
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) pthread_create(&threads[i], NULL, create_and_use, NULL);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    shared = bk_create(4);
    use(shared, 1);
    for (int i = 0; i < 4; i++) pthread_create(&threads[i], NULL, run_shared, NULL);
    usleep(100000);
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    stop = 0;
    if (argc > 1) fork_children(0, atoi(argv[1])), stop = 0, fork_children(1, atoi(argv[1]));
    check(shared, 1);
    bk_destroy(shared);
    puts("done");
    return 0;
}
"""


@pytest.mark.parametrize(
    ("sanitizer", "forks"),
    # ThreadSanitizer does not know of threads that are started after a fork.
    [("thread", None), ("address,undefined", "60"), ("", "300")],
    ids=["thread", "address,undefined", "none"],
)
def test_threads_forks_and_sanitizers(host, tmp_path: Path, sanitizer: str, forks: str | None) -> None:
    flags = (f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all") if sanitizer else ()
    build(tmp_path, ["twice", "nested", "twice"], flags, {"twice": (250,)})
    (tmp_path / "main.c").write_text(USES)
    command = ["gcc", "-g", *flags, f"-I{DEVICE}", "main.c", "./model.so", "-Wl,-rpath,.", "-o", "main", "-lpthread"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    arguments = ["./main", *([forks] if forks else [])]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-2000:]
