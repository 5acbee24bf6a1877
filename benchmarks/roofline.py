"""What this machine can do at best, and how long a step of NG-GNN would take at that.

Rates are measured on one thread, into outputs that exist already. The ideal step counts the matrix
products that the function needs (not those of any arrangement of it), each at the rate measured at
its own shape, and the elementwise work, each kind at its own rate. Nothing is counted for memory
traffic between them, for allocation, or for Python. It is a limit for products and passes as
PyTorch offers them; one kernel for all could pass it.

python -m benchmarks.roofline
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

__all__ = ["Item", "Layout", "gemm_rate", "ideal_step", "machine_rates", "main", "pass_rate"]

#: Rows of a tile that stays in the cache with what is made of it, and of one that does not.
TILE_ROWS = (512, 1024, 4096)
TALL_ROWS = 200_000
#: Elements of a tensor that stays in the cache.
PASS_ELEMENTS = 2**16


@dataclass(frozen=True)
class Item:
    """A part of an ideal step.

    Attributes:
        name: What it is.
        amount: Billions of floating point operations of products, of elements of passes.
        rate: Billions per second.
        unit: ``"GFLOP"`` or ``"Gelem"``.
    """

    name: str
    amount: float
    rate: float
    unit: str

    @property
    def ms(self) -> float:
        """How long it takes."""
        return 1e3 * self.amount / self.rate


@dataclass(frozen=True)
class Layout:
    """Sizes that an ideal step follows from.

    Attributes:
        widths: Of the layers of the INRs.
        num_networks: In a batch.
        dim: Width of neurons and edges.
        num_layers: Of the metanetwork.
        num_frequencies: Gaussian rows of the Fourier features.
    """

    widths: tuple[int, ...]
    num_networks: int
    dim: int
    num_layers: int = 4
    num_frequencies: int = 128

    @property
    def num_neurons(self) -> int:
        """Of all networks."""
        return self.num_networks * sum(self.widths)

    @property
    def num_directed(self) -> int:
        """Edges of all networks, each in both directions."""
        pairs = zip(self.widths, self.widths[1:], strict=False)
        return 2 * self.num_networks * sum(a * b for a, b in pairs)

    @property
    def num_into_outputs(self) -> int:
        """Edges that end at output neurons: the last layer needs no others."""
        return self.num_networks * self.widths[-2] * self.widths[-1]


def _seconds(task: Callable[[], object], *, least: float = 0.03, repeats: int = 5) -> float:
    """Median CPU seconds of a task on one thread; short ones are run many times in a row."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        task()
        start = time.process_time()
        task()
        once = max(time.process_time() - start, 1e-7)
        number = max(1, round(least / once))
        taken = []
        for _ in range(repeats):
            start = time.process_time()
            for _ in range(number):
                task()
            taken.append((time.process_time() - start) / number)
    finally:
        torch.set_num_threads(before)
    return statistics.median(taken)


@cache
def _product_rate(rows: int, inner: int, columns: int, *, over_rows: bool = False) -> float:
    """GFLOP/s of ``x [rows, inner] @ [inner, columns]``, or of ``x.T @ [rows, columns]``."""
    x = torch.randn(rows, inner)
    if over_rows:
        other, out = torch.randn(rows, columns), torch.empty(inner, columns)
        seconds = _seconds(lambda: torch.mm(x.T, other, out=out))
    else:
        other, out = torch.randn(inner, columns), torch.empty(rows, columns)
        seconds = _seconds(lambda: torch.mm(x, other, out=out))
    return 2e-9 * rows * inner * columns / seconds


def gemm_rate(inner: int, columns: int, *, over_rows: bool = False, is_tall: bool = False) -> float:
    """GFLOP/s of a product with many rows at its best size of tile.

    Args:
        inner: Width of what is read.
        columns: Width of what is made.
        over_rows: The gradient of the matrix, a sum over the rows.
        is_tall: All rows at once, which leave the cache, in place of tiles.
    """
    sizes = (TALL_ROWS,) if is_tall else TILE_ROWS
    return max(_product_rate(rows, inner, columns, over_rows=over_rows) for rows in sizes)


_REDUCED = PASS_ELEMENTS // 32
_PASSES: dict[str, Callable[..., object]] = {
    "sin": lambda x, y, out: torch.sin(x, out=out),
    "cos": lambda x, y, out: torch.cos(x, out=out),
    "silu": lambda x, y, out: torch.ops.aten.silu.out(x, out=out),
    "silu backward": lambda x, y, out: torch.ops.aten.silu_backward.grad_input(
        x, y, grad_input=out
    ),
    "modulate": lambda x, y, out: torch.addcmul(x, x, y, out=out),
    "reduce": lambda x, y, out: torch.sum(x.view(-1, 32, 32), 1, out=out[:_REDUCED].view(-1, 32)),
}


@cache
def pass_rate(name: str) -> float:
    """Billions of elements per second of one elementwise operation on tensors in the cache."""
    x, y = torch.randn(2, PASS_ELEMENTS)
    out = torch.empty_like(x)
    return 1e-9 * PASS_ELEMENTS / _seconds(lambda: _PASSES[name](x, y, out))


def machine_rates(*, num_rows: int = 1_000_000) -> dict[str, float]:
    """The ceilings of this machine on one thread, by name and unit.

    Args:
        num_rows: Of the tall products, and of the tensors that are copied and summed.
    """
    found = {}
    for rows in sorted({min(100_000, num_rows), num_rows}):
        found[f"sgemm [{rows},64] x [64,64], GFLOP/s"] = _product_rate(rows, 64, 64)
    for dim in (32, 64):
        for rows in TILE_ROWS:
            key = f"sgemm [{rows},{dim}] x [{dim},{dim}] in the cache, GFLOP/s"
            found[key] = _product_rate(rows, dim, dim)
    found["sgemm 1024 x 1024 x 1024, GFLOP/s"] = _product_rate(1024, 1024, 1024)
    big = torch.randn(num_rows, 64)
    copy = torch.empty_like(big)
    gigabytes = 1e-9 * big.numel() * 4
    # Read and written: both count, as in STREAM.
    found["copy into an existing tensor, GB/s"] = 2 * gigabytes / _seconds(lambda: copy.copy_(big))
    found["copy into a fresh tensor, GB/s"] = 2 * gigabytes / _seconds(big.clone)
    found["sum of a tensor, GB/s"] = gigabytes / _seconds(big.sum)
    blocks = big[: num_rows // 32 * 32].view(-1, 32, 64)
    part = 1e-9 * blocks.numel() * 4
    found["sum over the middle axis, GB/s"] = part / _seconds(lambda: blocks.sum(1))
    found["max over the middle axis, GB/s"] = part / _seconds(lambda: blocks.amax(1))
    for name in _PASSES:
        found[f"{name} in the cache, Gelem/s"] = pass_rate(name)
    return found


def ideal_step(layout: Layout, *, train: bool, is_tall: bool = False) -> list[Item]:
    """The parts of a forward pass or a training step of NG-GNN at the rates of this machine.

    Per directed edge, d = ``dim`` and K = ``num_frequencies``: 2 * 2K * d operations of the
    encoder, whose two maps are one; and in each layer 6 d^2, since scale, shift (4 d^2) and what
    the edge itself says in its update (2 d^2) read the same features, and the map that ends an
    update is multiplied into the maps that read it. The last layer sends messages to output
    neurons alone, so it and the update before it need the edges that end there. Per neuron 26 d^2
    in each layer: both ends of messages 4, summary 18 (two maps are one), both ends of updates 4.
    Backward: each product twice, once where what is read needs no gradient (the encoder). Passes:
    sin and cos of all phases once; per channel of a message one that makes it and one that reduces
    it four ways, in the backward pass four more (made again, gradients of the message, of its scale
    and of its shift); silu once, and once more with its gradient.

    Args:
        layout: Sizes.
        train: With the backward pass.
        is_tall: Products at the rate of many rows at once, as eager code has them, in place of the
            rate of tiles that stay in the cache.
    """
    d, waves = layout.dim, 2 * layout.num_frequencies
    edges, last = layout.num_directed, layout.num_into_outputs
    items: list[Item] = []

    def product(name: str, rows: float, inner: int, columns: int, *, leaf: bool = False) -> None:
        amount = 2e-9 * rows * inner * columns
        items.append(Item(name, amount, gemm_rate(inner, columns, is_tall=is_tall), "GFLOP"))
        if not train:
            return
        rate = gemm_rate(inner, columns, over_rows=True, is_tall=is_tall)
        items.append(Item(f"{name}, gradient of the map", amount, rate, "GFLOP"))
        if not leaf:
            rate = gemm_rate(columns, inner, is_tall=is_tall)
            items.append(Item(f"{name}, gradient of what it reads", amount, rate, "GFLOP"))

    def elements(name: str, amount: float, kind: str) -> None:
        items.append(Item(name, 1e-9 * amount, pass_rate(kind), "Gelem"))

    updates = max(0, layout.num_layers - 2) * edges + last * (layout.num_layers > 1)
    messages = (layout.num_layers - 1) * edges + last
    full = max(0, layout.num_layers - 2) * edges
    product("edge encoder", edges, waves, d, leaf=True)
    product("scale, shift and own part of edges", full, d, 3 * d)
    product("scale and shift where no update follows", messages - full, d, 2 * d)
    product("own part of edges into outputs", updates - full, d, d)
    product("maps of neurons", layout.num_layers * layout.num_neurons * 13, d, d)
    for kind in ("sin", "cos"):
        elements(f"{kind} of phases", edges * layout.num_frequencies, kind)
    elements("messages", d * messages, "modulate")
    elements("their four statistics, in one pass", d * messages, "reduce")
    elements("silu of updates", updates * d, "silu")
    if train:
        elements("messages, again and their gradients", 4 * d * messages, "modulate")
        elements("silu of updates, again and its gradient", updates * d, "silu backward")
    return items


def main() -> int:
    """Print the ceilings, and the ideal steps at d = 32 and 64."""
    for name, rate in machine_rates().items():
        print(f"{name:56s} {rate:8.1f}")
    for dim in (32, 64):
        for train in (False, True):
            items = ideal_step(Layout((2, 32, 32, 1), 64, dim), train=train)
            total = sum(item.ms for item in items)
            print(f"\nNG-GNN d={dim}, {'training step' if train else 'forward'}: {total:.1f} ms")
            for item in items:
                print(
                    f"  {item.name:62s} {item.amount:7.3f} {item.unit} at {item.rate:6.1f}/s "
                    f"{item.ms:7.1f} ms"
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
