"""One process or many, by Detectron2's arguments or by torchrun; a dead process ends them all."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from argparse import Namespace
from collections.abc import Callable, Sequence
from datetime import timedelta
from signal import SIGTERM
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import multiprocessing

from unified.commands import MISUSE, TERMINATED, Terminated
from unified.engine.failures import FailureWatch
from unified.engine.interruption import ended_in_order
from unified.errors import ConfigError, UnifiedError

# How long a process waits for the others before it gives up. Long enough for the first process to
# score a test set; one that fails says so at once, one that dies on the same machine is noticed.
TIMEOUT = timedelta(minutes=30)


def launch(main: Callable[..., None], args: Namespace, device: str, *more: Any) -> int:
    """Runs ``main(*more)`` in every process and returns the exit code.

    ``args`` holds Detectron2's ``num_gpus``, ``num_machines``, ``machine_rank`` and ``dist_url``;
    under torchrun its environment counts instead. On the CPU ``num_gpus`` is the number of
    processes. Errors that a user can mend are printed without a traceback.

    Raises:
        ConfigError: more GPUs are asked for than there are.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ or {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local_world = int(os.environ.get("LOCAL_WORLD_SIZE", world))
        local_rank = int(os.environ.get("LOCAL_RANK", rank % local_world))
        return _work(main, more, device, rank, world, local_rank, local_world, "env://")
    world = args.num_gpus * args.num_machines
    available = _backend(device).device_count() if _is_accelerator(device) else args.num_gpus
    if args.num_gpus > available:
        raise ConfigError(f"--num-gpus is {args.num_gpus}, but this machine has {available}")
    if world == 1:
        return _work(main, more, device, 0, 1, 0, 1, "")
    url = f"tcp://127.0.0.1:{_free_port()}" if args.num_machines == 1 else args.dist_url
    context = multiprocessing.start_processes(
        _spawned,
        args=(main, more, device, args.machine_rank, args.num_gpus, world, url),
        nprocs=args.num_gpus,
        join=False,
    )
    assert context is not None
    return _wait(context)


def _wait(context: Any) -> int:
    """Joins all processes; when one fails the others are ended and the first cause is named.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when all have ended.
    """
    try:
        with ended_in_order():
            while not context.join():
                pass
    except KeyboardInterrupt as stop:
        for process in context.processes:
            if isinstance(stop, Terminated):  # Ctrl-C reached them too
                process.terminate()
        for process in context.processes:
            process.join()
        raise
    except (
        multiprocessing.ProcessExitedException,
        multiprocessing.ProcessRaisedException,
    ) as error:
        return _name_cause(context.processes, error)
    return 0


def _name_cause(processes: Sequence[Any], error: Any) -> int:
    """Says which of the ended processes was killed; returns the exit code of the job.

    Raises:
        Terminated: a process stopped after SIGTERM.
        Exception: the error itself, if it says more.
    """
    codes = [process.exitcode for process in processes]
    if MISUSE in codes:
        return MISUSE  # it has said why
    if TERMINATED in codes:
        raise Terminated from None
    # Processes that lose their partner fail too; the ones ended here got SIGTERM, or SIGKILL if
    # they hung: the first that failed comes first.
    order = (error.error_index, *range(len(codes)))
    killed = [i for i in order if (codes[i] or 0) < 0 and codes[i] != -SIGTERM]
    if not killed and 1 in codes and isinstance(error, multiprocessing.ProcessExitedException):
        return 1  # one of another machine failed; what it said was printed
    if not killed:
        raise error
    name = signal.Signals(-codes[killed[0]]).name
    sys.stderr.write(
        f"error: training process {killed[0]} (pid {processes[killed[0]].pid}) was "
        f"ended by {name}, so the others were stopped: continue with --resume\n"
    )
    logging.getLogger(__name__).debug("what its partners saw", exc_info=error)
    return 1


def _spawned(
    local_rank: int,
    main: Callable[..., None],
    more: tuple[Any, ...],
    device: str,
    machine: int,
    local_world: int,
    world: int,
    url: str,
) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    rank = machine * local_world + local_rank
    try:
        code = _work(main, more, device, rank, world, local_rank, local_world, url)
    except Terminated:
        code = TERMINATED
    if code:
        # Without clean-up, which could wait for processes that no longer answer.
        sys.stderr.flush()
        os._exit(code)


def _end_with_parent() -> None:
    """A process whose parent was killed would train on unseen, and write into the next run."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(
    main: Callable[..., None],
    more: tuple[Any, ...],
    device: str,
    rank: int,
    world: int,
    local_rank: int,
    local_world: int,
    url: str,
) -> int:
    """Joins the group, if any, and runs ``main``; 0, or 2 after an error that was printed."""
    accelerator = _is_accelerator(device)
    if accelerator:
        _backend(device).set_device(local_rank)
    if world == 1:
        main(*more)
        return 0
    dist.init_process_group(
        "nccl" if accelerator else "gloo",
        init_method=url,
        rank=rank,
        world_size=world,
        timeout=TIMEOUT,
    )
    watch = FailureWatch(rank=rank, world=world, local_world=local_world)
    try:
        comm.create_local_process_group(local_world)
        main(*more)
        watch.finish()
    except BaseException as error:  # SIGTERM and Ctrl-C too
        code = watch.fail(error)
        if isinstance(error, UnifiedError):
            return code
        raise
    dist.destroy_process_group()
    return 0


def _is_accelerator(device: str) -> bool:
    return torch.device(device).type not in ("cpu", "mps")


def _backend(device: str) -> Any:
    """The module of torch that manages the devices of this kind."""
    return getattr(torch, torch.device(device).type)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
