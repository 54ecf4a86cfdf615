"""Processes that share the work of a search or of `fastres reproduce`. A terminal's Ctrl-C reaches only the first; it
asks the others once to stop."""

import multiprocessing
import os
import signal
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from fastres.errors import Interrupted, UserError, out_of_gpu_memory
from fastres.utils.signals import signals_wait
from fastres.utils.variables import kept_variables


class Works(Protocol):
    """The part of the work that a process does; it can be pickled."""

    def work(self) -> None:
        """Do it."""


def stop_without_parent(rows: object = None) -> None:
    """Raise Interrupted, as `on_epoch` of a training, where the process that started this one has ended."""
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        raise Interrupted("the process that started this one has ended")


def run(workers: Sequence[Works]) -> None:
    """Run `workers` to their end: one in this process, several each in its own with its share of the threads.

    Raises Interrupted when all have stopped after SIGINT or SIGTERM, UserError with what the first of them met that the
    user can put right or where one was killed, RuntimeError where one crashed.
    """
    if len(workers) < 2:
        for worker in workers:
            worker.work()
        return
    context = multiprocessing.get_context("spawn")  # a fork would inherit threads and, on a GPU, its context
    answers = context.SimpleQueue()
    processes = [context.Process(target=_process, args=(worker, answers)) for worker in workers]
    with kept_variables("OMP_NUM_THREADS"):
        os.environ["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // len(workers)))
        with signals_wait():  # until a process has a group of its own, which the terminal's signals do not reach
            for process in processes:
                process.start()
    stopped = False
    try:
        _join(processes)
    except KeyboardInterrupt:
        stopped = True
        for process in processes:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, signal.SIGINT)
        _join(processes)
    said = []
    while not answers.empty():
        said.append(answers.get())
    errors = [error for error in said if isinstance(error, UserError)]
    if errors:
        raise errors[0]
    if stopped or said:
        raise Interrupted("interrupted")
    status = next((process.exitcode for process in processes if process.exitcode), 0)
    if status < 0:
        raise UserError(
            f"a worker was killed by {signal.Signals(-status).name}: the same command goes on; "
            "where memory was short, with fewer workers"
        )
    if status > 0:
        raise RuntimeError(f"a worker ended with status {status}")


def _join(processes: list[Any]) -> None:
    for process in processes:
        process.join()


def _process(worker: Works, answers: Any) -> None:
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
        worker.work()
    except (UserError, Interrupted) as error:
        answers.put(error)
    except KeyboardInterrupt:
        answers.put(Interrupted("interrupted"))
    except Exception as error:
        if not out_of_gpu_memory(error):
            raise
        answers.put(UserError("the GPU has too little free memory: lower train.batch_size, or the number of workers"))
