"""Several processes of one run: who this one is, starting the others, adding up what each has.

A process learns its rank from the environment (``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``), as
torchrun sets it; ``launch`` sets the same variables for processes that it starts itself.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from paramgraph.tasks.config import TrainingError

__all__ = ["TIMEOUT", "Ranks", "launch", "sum_over_ranks"]

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others before it gives up with an error."""

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@dataclass(frozen=True)
class Ranks:
    """Which process of how many this is.

    Attributes:
        rank: Its number; 0 writes the files.
        num_ranks: All processes of the run.
        num_local: Those on this machine.
    """

    rank: int = 0
    num_ranks: int = 1
    num_local: int = 1

    @classmethod
    def here(cls) -> Ranks:
        """From the group of connected processes or the environment; one if they say nothing.

        Raises:
            TrainingError: Some variables are set and others not.

        Example:
            >>> Ranks.here()
            Ranks(rank=0, num_ranks=1, num_local=1)
        """
        if _is_connected():  # Lightning clears some variables when it is done
            num = torch.distributed.get_world_size()
            num_local = int(os.environ.get("LOCAL_WORLD_SIZE", num))
            return cls(torch.distributed.get_rank(), num, num_local)
        found = [name for name in _NAMES if name in os.environ]
        if not found:
            return cls()
        if len(found) < len(_NAMES):
            missing = ", ".join(name for name in _NAMES if name not in os.environ)
            raise TrainingError(
                f"the environment sets {', '.join(found)} but not {missing}. Start several "
                "processes with torchrun or --num-processes, or clear these variables."
            )
        num = int(os.environ["WORLD_SIZE"])
        return cls(int(os.environ["RANK"]), num, int(os.environ.get("LOCAL_WORLD_SIZE", num)))

    @property
    def writes(self) -> bool:
        """Whether this process writes the run folder."""
        return self.rank == 0


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum over all processes of the run; the values themselves where there is one.

    Example:
        >>> sum_over_ranks(torch.ones(2))
        tensor([1., 1.])
    """
    if not _is_connected():
        return values
    on_gpu = torch.distributed.get_backend() == "nccl"
    total = values.cuda() if on_gpu and not values.is_cuda else values.clone()
    torch.distributed.all_reduce(total)
    return total.to(values.device)


def _is_connected() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def launch(num_processes: int, work: Callable[..., object], *arguments: Any) -> None:
    """Run ``work(*arguments)`` in new processes on this machine, with a rank each; wait for all.

    Args:
        num_processes: How many.
        work: A function of a module (new processes import it).
        arguments: What can be pickled.

    Raises:
        TrainingError: A process failed or was killed; the others are ended then.
    """
    from torch.multiprocessing.spawn import (
        ProcessExitedException,
        ProcessRaisedException,
        start_processes,
    )

    port = _free_port()
    try:
        start_processes(
            _ranked,
            (num_processes, port, torch.get_num_threads(), work, arguments),
            nprocs=num_processes,
            start_method="spawn",  # a fork would inherit threads that wait for ever
        )
    except ProcessExitedException as error:
        ended = f"signal {error.signal_name}" if error.signal_name else f"code {error.exit_code}"
        raise TrainingError(
            f"process {error.error_index} of {num_processes} ended with {ended}; the others were "
            "stopped. Go on from the last epoch with --resume."
        ) from error
    except ProcessRaisedException as error:
        raise TrainingError(
            f"process {error.error_index} of {num_processes} failed, the others were stopped:\n"
            f"{str(error).strip()}"
        ) from error


def _ranked(
    rank: int,
    num: int,
    port: int,
    num_threads: int,
    work: Callable[..., object],
    arguments: tuple[Any, ...],
) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(num),
        LOCAL_WORLD_SIZE=str(num),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(max(1, num_threads // num))  # config.num_threads wins, if it is given
    work(*arguments)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
