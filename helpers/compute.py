"""Fan-out of independent tasks over processes or a cluster, with Dask distributed."""

from __future__ import annotations

import ctypes
import gc
import logging
import multiprocessing
import os
import sys
from contextlib import contextmanager, suppress
from types import MappingProxyType

import psutil
from tqdm import tqdm

# Dask's workers hand freed memory back to the system at once. Training frees and asks for the same megabytes in every
# step, and with Dask's own value spends two fifths of its time on that; `_one_task` hands it back when a task ends.
ALLOCATION = {"MALLOC_TRIM_THRESHOLD_": 2**28, "MALLOC_MMAP_THRESHOLD_": 2**25}


class TasksFailed(RuntimeError):
    """Some tasks of a fan-out failed; `failures` maps each to its error. What the others computed is kept."""

    def __init__(self, label, failures, total):
        self.failures = failures
        lines = "".join(f"\n  {name}: {type(error).__name__}: {error}" for name, error in failures.items())
        super().__init__(f"{label}: {len(failures)} of {total} tasks failed, the results of the others are kept{lines}")


def fitted_workers(memory_per_worker: float = 1.5e9) -> int:
    """Processes of one thread each that cores and free memory allow, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores, int(psutil.virtual_memory().available // memory_per_worker)))


def _one_task(function, *arguments):
    """Run a task as every worker does, with one thread: then results are the same wherever it runs."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return function(*arguments)
    finally:
        torch.set_num_threads(threads)
        _hand_back_memory()


def _hand_back_memory():
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


class _Here:
    """Runs the tasks one after the other in this process."""

    description = "in this process"

    def results(self, function, tasks, kind, after):
        failed = set()
        for name, arguments in tasks.items():
            error = _unmet(name, after, failed)
            if error is None:
                try:
                    yield name, _one_task(function, *arguments), None
                    continue
                except Exception as raised:
                    error = raised
            failed.add(name)
            yield name, None, error


def _unmet(name, after, failed):
    return RuntimeError(f"{after[name]} failed before it") if after.get(name) in failed else None


class _OnDask:
    def __init__(self, client, description):
        self.client, self.description = client, description

    def results(self, function, tasks, kind, after):
        from distributed import as_completed

        # Only as many tasks as there are threads are handed over at a time: Dask would give the rest away at once,
        # and a worker with a long task would keep the next one waiting while others have nothing to do.
        waiting, running, failed, done = dict(tasks), {}, set(), as_completed()
        threads = max(1, sum(self.client.nthreads().values()))

        def choose():
            ready = [name for name in waiting if after.get(name) not in {*waiting, *running.values()}]
            kinds = {kind(name) for name in running.values()}
            return next((name for name in ready if kind(name) not in kinds), next(iter(ready), None))

        try:
            while waiting or running:
                while len(running) < threads and (name := choose()) is not None:
                    arguments, error = waiting.pop(name), _unmet(name, after, failed)
                    if error:
                        failed.add(name)
                        yield name, None, error
                        continue
                    future = self.client.submit(_one_task, function, *arguments, key=name, pure=False)
                    running[future] = name
                    done.add(future)
                if running:
                    future = next(done)
                    name, error = running.pop(future), future.exception()
                    failed |= {name} if error else set()
                    yield name, None if error else future.result(), error
        finally:
            self.client.cancel(list(running))


class Pool:
    """Where tasks run; made by `pool`."""

    def __init__(self, backend):
        self._backend = backend

    def run(self, function, tasks, label: str, kind=lambda name: name, after=MappingProxyType({})) -> dict:
        """Run `function(*arguments)` for every task and show how many are done and the time left.

        Parameters
        ----------
        function : importable by the workers
        tasks : mapping from a task's name to its tuple of arguments; started in this order
        label : what the progress bar calls it
        kind : from a task's name to its kind; tasks of one kind do not run side by side while another kind is waiting,
            so that the largest ones do not need their memory at the same time
        after : mapping from a task's name to that of an earlier task which must have ended before it begins; if that
            one fails, so does this one

        Returns
        -------
        dict from name to result, in the order of `tasks`

        Raises
        ------
        TasksFailed
            after all tasks have run, if any failed
        """
        done, failures = {}, {}
        width = {"bar_format": "{desc} {bar:20} {n}/{total} · {elapsed} so far · {remaining} left", "ncols": 100}
        with tqdm(total=len(tasks), desc=f"{label}, {self._backend.description}", file=sys.stdout, **width) as bar:
            for name, result, error in self._backend.results(function, tasks, kind, after):
                if error is None:
                    done[name] = result
                else:
                    failures[name] = error
                bar.update()
        if failures:
            raise TasksFailed(label, failures, len(tasks))
        return {name: done[name] for name in tasks}


@contextmanager
def _forked_workers():
    """Workers are forked from a process that has loaded the libraries: these are in memory once, not once each."""
    import dask
    from distributed.utils import get_mp_context

    if "forkserver" not in multiprocessing.get_all_start_methods():
        yield
        return
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        get_mp_context().set_forkserver_preload(["distributed", "lightning", "torchvision"])
        yield


@contextmanager
def pool(scheduler: str | None = None, workers: int | None = None):
    """A `Pool`: a Dask cluster at an address, a local one that ends with the block, or this process.

    Parameters
    ----------
    scheduler : address of a running Dask scheduler such as "tcp://node:8786", whose workers see the same files
    workers : local processes of one thread each; None fits them to the machine, 0 works in this process
    """
    if scheduler is None and workers == 0:
        yield Pool(_Here())
        return
    import dask
    from distributed import Client, LocalCluster

    if scheduler is not None:
        try:
            client = Client(scheduler, timeout="20s")
        except (OSError, TimeoutError, ValueError) as error:
            raise ConnectionError(f"no Dask scheduler answers at {scheduler!r}: {error}") from error
        with client:
            yield Pool(_OnDask(client, f"on {len(client.scheduler_info()['workers'])} Dask workers"))
        return
    _hand_back_memory()
    count = fitted_workers() if workers is None else workers
    options = {"processes": True, "threads_per_worker": 1, "dashboard_address": ":0", "memory_limit": 0}
    with (
        dask.config.set({f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in ALLOCATION.items()}),
        dask.config.set({"distributed.worker.profile.enabled": False}),
        _forked_workers(),
        LocalCluster(n_workers=count, silence_logs=logging.CRITICAL, **options) as cluster,
        Client(cluster) as client,
    ):
        yield Pool(_OnDask(client, f"{count} processes"))
