"""Processes of their own that start fast: a server that has imported torch and the library is forked for each."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    ["st2v_lib.loading", "st2v_lib.session", "st2v_lib.stream_cli", "st2v_lib.evaluation.cam"]
)


def started(target: Callable, *arguments: object, threads: int, environment: dict[str, str]):
    """A running process of that function, which returns an exit code."""
    process = FORKED.Process(target=_run, args=(target, arguments, threads, environment))
    process.start()
    return process


def run_as_ranks(target: Callable, *arguments: object) -> None:
    """Runs the function in two processes of one thread each that find one another as those of ``torchrun`` do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [group | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    running = [started(target, *arguments, threads=1, environment=rank) for rank in ranks]
    for process in running:
        process.join()
    assert [process.exitcode for process in running] == [0, 0]


def _run(target: Callable, arguments: tuple, threads: int, environment: dict[str, str]) -> None:
    import torch

    os.environ.update(environment, OMP_NUM_THREADS=str(threads))
    torch.set_num_threads(threads)
    sys.exit(target(*arguments))
