"""Runs independent pieces of work in Python threads of one core each."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

__all__ = ["run_in_threads"]

T = TypeVar("T")


def run_in_threads(work: Callable[[T], None], items: Iterable[T]) -> None:
    """Call ``work`` on every item, as many at a time as PyTorch would use threads.

    Each call runs its tensor operations on one core. Unlike threads inside each operation, these
    never wait for each other, so other work on the machine does not stall them.

    Args:
        work: What to do; it must not share state that it changes.
        items: What to do it with. The first error stops the items that have not begun.
    """
    threads_before = torch.get_num_threads()

    def work_on_one_core(item: T) -> None:
        torch.set_num_threads(1)
        work(item)

    try:
        with ThreadPoolExecutor(threads_before) as pool:
            futures = [pool.submit(work_on_one_core, item) for item in items]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    finally:
        torch.set_num_threads(threads_before)
