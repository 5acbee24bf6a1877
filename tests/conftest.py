"""Shared test set-up: one thread, a fixed seed, global state restored after each test."""

from __future__ import annotations

import os

os.environ["MPLBACKEND"] = "Agg"  # before anything imports matplotlib

import random
from collections.abc import Iterator

import hypothesis
import numpy as np
import pytest
import torch

torch.set_num_threads(1)  # small tensors: more threads only wait for each other

# The same examples on each run, and no time limit per example (pytest-timeout has one per test).
hypothesis.settings.register_profile("paramgraph", deadline=None, derandomize=True)
hypothesis.settings.load_profile("paramgraph")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _global_state() -> Iterator[None]:
    """Seed every generator; afterwards put global state back as it was before the test."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    grad, deterministic = torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled()
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    yield
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    random.setstate(states[2])
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)
    torch.set_grad_enabled(grad)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture
def float64(_global_state: None) -> torch.dtype:
    """Make float64 the default dtype for this test; only tests that ask for it get it."""
    torch.set_default_dtype(torch.float64)
    return torch.float64
