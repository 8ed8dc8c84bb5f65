"""The runtime inside model.so, built for this machine with kernels written in C: threads, scratch memory, errors."""

from __future__ import annotations

import ctypes
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

from bitkiln.pipeline.device import runner
from bitkiln.pipeline.link import DEVICE, plan_source
from bitkiln.pipeline.plan import PlannedCall, make_plan, new_view

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


def build(folder: Path, chain: list[str], flags: tuple[str, ...] = ()) -> Path:
    """A library whose network applies the kernels of ``chain`` to x float32[1000]."""
    views = [new_view("x", (1000,), "float32", boundary=True)]
    calls = []
    for index, kernel in enumerate(chain):
        views.append(new_view(f"s{index}", (1000,), "float32"))
        calls.append(PlannedCall(f"s{index}", kernel, kernel, (views[-2],), (views[-1],)))
    plan = make_plan(calls, [views[0]], [views[-1]])
    (folder / "plan.c").write_text(plan_source(plan) + "const unsigned char bk_constants[1];\n")
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


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_sanitizers_find_nothing(host, tmp_path: Path, sanitizer: str) -> None:
    build(tmp_path, ["twice", "nested", "twice"], (f"-fsanitize={sanitizer}",))
    (tmp_path / "main.c").write_text(
        '#include "bitkiln.h"\n#include <stdio.h>\n'
        "int main(void) { for (int t = 1; t <= 4; t++) { bk_model *m = bk_create(t); float x[1000] = {1}, y[1000];"
        "bk_set_input(m, 0, x, sizeof x); for (int i = 0; i < 100; i++) if (bk_run(m)) return 1;"
        'bk_get_output(m, 0, y, sizeof y); bk_destroy(m); if (y[0] != 15) return 2; } puts("done"); return 0; }'
    )
    command = ["gcc", f"-fsanitize={sanitizer}", f"-I{DEVICE}", "main.c", "./model.so", "-Wl,-rpath,.", "-o", "main"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    done = subprocess.run(["./main"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-2000:]
