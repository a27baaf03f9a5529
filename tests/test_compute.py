"""Fan-out over processes: order, failures, and the scheduler's address."""

import math
import os
import subprocess
import sys
import time

import pytest

from helpers import compute


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_the_order_of_the_tasks(workers, capsys):
    with compute.pool(workers=workers) as pool:
        results = pool.run(math.sqrt, {f"{n}": (n * n,) for n in range(5)}, "roots")
    assert list(results.items()) == [(str(n), float(n)) for n in range(5)]
    assert "5/5" in capsys.readouterr().out


def begin(_):
    begun = time.perf_counter()
    time.sleep(0.3)
    return begun


def test_tasks_of_one_kind_run_apart_while_another_kind_waits():
    tasks = {name: (0,) for name in ("big 1", "big 2", "small 1", "small 2")}
    with compute.pool(workers=2) as pool:
        begun = pool.run(begin, tasks, "tasks", kind=lambda name: name.split()[0])
    assert max(begun["big 1"], begun["small 1"]) < min(begun["big 2"], begun["small 2"])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_task_begins_when_the_one_before_it_has_ended(workers):
    tasks = {name: (0,) for name in ("long", "short", "on long", "on short")}
    with compute.pool(workers=workers) as pool:
        begun = pool.run(begin, tasks, "tasks", after={"on long": "long", "on short": "short"})
    assert begun["on long"] >= begun["long"] + 0.3
    assert begun["on short"] >= begun["short"] + 0.3


@pytest.mark.parametrize("workers", [0, 2])
def test_what_hangs_on_a_failure_fails_and_says_on_what(workers):
    tasks = {"bad": (-1,), "good": (4,), "on bad": (9,), "on that": (9,), "on good": (16,)}
    after = {"on bad": "bad", "on that": "on bad", "on good": "good"}
    with compute.pool(workers=workers) as pool, pytest.raises(compute.TasksFailed) as caught:
        pool.run(math.sqrt, tasks, "roots", after=after)
    assert set(caught.value.failures) == {"bad", "on bad", "on that"}
    assert "on bad: RuntimeError: bad failed before it" in str(caught.value)


def test_workers_are_other_processes():
    with compute.pool(workers=2) as pool:
        places = pool.run(os.getpid, {"a": (), "b": ()}, "places")
    assert os.getpid() not in places.values()


@pytest.mark.parametrize("workers", [0, 1])
def test_one_failure_leaves_the_others_and_is_named(workers):
    with compute.pool(workers=workers) as pool, pytest.raises(compute.TasksFailed) as caught:
        pool.run(math.sqrt, {"good": (4,), "bad": (-1,), "better": (9,)}, "roots")
    assert list(caught.value.failures) == ["bad"]
    assert "1 of 3 tasks failed" in str(caught.value)
    assert "ValueError" in str(caught.value)


def test_a_real_scheduler_is_used_by_its_address():
    from distributed import LocalCluster

    with (
        LocalCluster(n_workers=1, processes=False, dashboard_address=":0") as cluster,
        compute.pool(scheduler=cluster.scheduler_address) as pool,
    ):
        assert pool.run(math.sqrt, {"four": (16,)}, "roots") == {"four": 4.0}


def test_no_scheduler_at_the_address_is_an_error():
    with pytest.raises(ConnectionError, match="no Dask scheduler answers at"), compute.pool(scheduler="nonsense://x"):
        pass


def test_workers_fit_cores_and_memory():
    assert compute.fitted_workers(memory_per_worker=1e15) == 1
    assert 1 <= compute.fitted_workers(memory_per_worker=1.0) <= os.cpu_count()


def test_numpy_has_one_thread_where_helpers_come_first():
    """Two BLAS threads that wait for each other made a lesson ten times slower on a busy machine."""
    code = (
        "import helpers, numpy, threadpoolctl; "
        "print(*{i['num_threads'] for i in threadpoolctl.threadpool_info() if i['user_api'] == 'blas'})"
    )
    environment = {name: value for name, value in os.environ.items() if "NUM_THREADS" not in name}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["1"]
