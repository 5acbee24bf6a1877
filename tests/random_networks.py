"""Random networks of random blocks: what nobody thought of when writing the hazards.

Each block maps ``[batch, time, width]`` to the same with a width of its own. Blocks split, join,
regroup, transpose and share features in ways that move the borders of axis groups. To look for what
capture misses: ``python tests/random_networks.py FIRST_SEED LAST_SEED NUM_BLOCKS``.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from expected_groups import found_groups, num_permutations
from networks import Wired, randomise, vectors
from oracle import count_symmetries
from torch import Tensor, nn
from torch.nn import functional

import paramgraph as pg
from paramgraph.testing import check_graph

__all__ = ["TIME", "WIDTH", "random_network"]

TIME, WIDTH = 3, 2
Block = tuple[nn.Module, int]


def _wired(wiring: Callable[[Any, Tensor], Tensor], **parts: Any) -> nn.Module:
    return Wired(wiring, **parts)


def _linear(rng: random.Random, width: int) -> Block:
    wide = rng.choice([2, 3, 4, 6])
    act = rng.choice([torch.tanh, torch.relu, functional.gelu, torch.sin, lambda x: x])
    return _wired(lambda n, x: act(n.linear(x)), linear=nn.Linear(width, wide)), wide


def _residual(rng: random.Random, width: int) -> Block:
    hidden = rng.choice([2, 3])
    norm = rng.choice([nn.LayerNorm, nn.RMSNorm, nn.Identity])(width)
    up, down = nn.Linear(width, hidden), nn.Linear(hidden, width)
    return _wired(
        lambda n, x: x + n.down(torch.tanh(n.up(n.norm(x)))), norm=norm, up=up, down=down
    ), width


def _gated(rng: random.Random, width: int) -> Block:
    hidden = rng.choice([2, 3])

    def wiring(n: Any, x: Tensor) -> Tensor:
        gate, value = n.both(x).chunk(2, -1)
        return n.down(functional.silu(gate) * value)

    return _wired(wiring, both=nn.Linear(width, 2 * hidden), down=nn.Linear(hidden, width)), width


def _attention(rng: random.Random, width: int) -> Block:
    kv, group, dim = rng.choice([(1, 2, 2), (2, 1, 2), (2, 2, 2), (3, 1, 2), (1, 1, 3)])
    packed = rng.random() < 0.5

    def wiring(n: Any, x: Tensor) -> Tensor:
        sizes = [kv * group * dim, kv * dim, kv * dim]
        q, k, v = n.qkv(x).split(sizes, -1) if packed else (n.q(x), n.k(x), n.v(x))
        q = q.unflatten(-1, (kv, group, dim)).permute(0, 2, 3, 1, 4)
        k, v = (t.unflatten(-1, (kv, 1, dim)).permute(0, 2, 3, 1, 4) for t in (k, v))
        mixed = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return x + n.out(mixed.permute(0, 3, 1, 2, 4).flatten(2))

    wide, narrow = kv * group * dim, kv * dim
    if packed:
        parts = {"qkv": nn.Linear(width, wide + 2 * narrow)}
    else:
        parts = {name: nn.Linear(width, narrow) for name in ("k", "v")}
        parts["q"] = nn.Linear(width, wide)
    return _wired(wiring, **parts, out=nn.Linear(wide, width)), width


def _grouped(rng: random.Random, width: int) -> Block:
    groups = rng.choice([g for g in (2, 3, width) if width % g == 0] or [1])
    wide = groups * rng.choice([1, 2])
    conv = nn.Conv1d(width, wide, 3, padding=1, groups=groups)
    return _wired(
        lambda n, x: torch.relu(n.conv(x.transpose(1, 2))).transpose(1, 2), conv=conv
    ), wide


def _group_norm(rng: random.Random, width: int) -> Block:
    groups = rng.choice([g for g in (1, 2, 3) if width % g == 0])
    norm = nn.GroupNorm(groups, width)
    return _wired(lambda n, x: n.norm(x.transpose(1, 2)).transpose(1, 2), norm=norm), width


def _split(rng: random.Random, width: int) -> Block:
    """The first features go one way, the others another."""
    cut = rng.randrange(1, width)

    def wiring(n: Any, x: Tensor) -> Tensor:
        return torch.cat([x[..., cut:], torch.tanh(n.linear(x[..., :cut]))], -1)

    return _wired(wiring, linear=nn.Linear(cut, 2)), width - cut + 2


def _interleave(_: random.Random, width: int) -> Block:
    def wiring(n: Any, x: Tensor) -> Tensor:
        return torch.stack([x, torch.relu(n.linear(x))], -1).flatten(-2)

    return _wired(wiring, linear=nn.Linear(width, width)), 2 * width


def _regroup(rng: random.Random, width: int) -> Block:
    """Channel shuffle."""
    groups = rng.choice([g for g in (2, 3) if width % g == 0] or [1])
    return _wired(lambda n, x: x.unflatten(-1, (groups, -1)).transpose(-1, -2).flatten(-2)), width


def _pool_groups(rng: random.Random, width: int) -> Block:
    """The largest of each group of features, as in maxout, or the mean of nonlinear ones.

    (The mean of linear ones would have symmetries of single entries, which move no neuron.)
    """
    groups = rng.choice([g for g in (2, 3) if width % g == 0 and g < width] or [width])
    if rng.random() < 0.5:
        return _wired(lambda n, x: x.unflatten(-1, (groups, -1)).amax(-1)), groups
    return _wired(lambda n, x: x.tanh().unflatten(-1, (-1, groups)).mean(-2)), groups


def _outer(rng: random.Random, width: int) -> Block:
    left, right = nn.Linear(width, 2), nn.Linear(width, rng.choice([2, 3]))

    def wiring(n: Any, x: Tensor) -> Tensor:
        return torch.einsum("bti,btj->btij", torch.tanh(n.left(x)), n.right(x)).flatten(2)

    return _wired(wiring, left=left, right=right), 2 * right.out_features


def _twice(_: random.Random, width: int) -> Block:
    """The features, and a function of them, side by side."""
    return _wired(
        lambda n, x: torch.relu(n.linear(torch.cat([x, torch.tanh(x)], -1))),
        linear=nn.Linear(2 * width, 3),
    ), 3


def _recurrent(rng: random.Random, width: int) -> Block:
    cell = rng.choice([nn.GRU, nn.LSTM])(
        width, 2, batch_first=True, bidirectional=rng.random() < 0.3
    )
    return _wired(lambda n, x: n.cell(x)[0], cell=cell), 2 * (1 + cell.bidirectional)


def _tied(_: random.Random, width: int) -> Block:
    def wiring(n: Any, x: Tensor) -> Tensor:
        return torch.tanh(n.linear(torch.tanh(n.linear(x))))

    return _wired(wiring, linear=nn.Linear(width, width)), width


def _over_time(_: random.Random, width: int) -> Block:
    def wiring(n: Any, x: Tensor) -> Tensor:
        return x + n.linear(x.transpose(1, 2)).transpose(1, 2).flip(1).cumsum(1)

    return _wired(wiring, linear=nn.Linear(TIME, TIME)), width


def _squeezed(_: random.Random, width: int) -> Block:
    def wiring(n: Any, x: Tensor) -> Tensor:
        return x * torch.sigmoid(n.linear(x.mean(1, keepdim=True)))

    return _wired(wiring, linear=nn.Linear(width, width)), width


def _softmax(_: random.Random, width: int) -> Block:
    """Features compete, and all are scaled by one number."""
    return _wired(lambda n, x: x.softmax(-1) * x.logsumexp(-1, keepdim=True)), width


BLOCKS = [
    *(_linear, _linear, _residual, _gated, _attention, _grouped, _group_norm, _split),
    *(_interleave, _regroup, _pool_groups, _outer, _twice, _recurrent, _tied, _over_time),
    *(_squeezed, _softmax),
]


def random_network(seed: int, num_blocks: int = 4) -> nn.Sequential:
    """A network of random blocks between two linear layers, with random weights."""
    rng = random.Random(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width = rng.choice([4, 6])
        blocks: list[nn.Module] = [nn.Linear(WIDTH, width)]
        while len(blocks) <= num_blocks:
            block, wide = rng.choice(BLOCKS)(rng, width)
            if 2 <= wide <= 12:
                blocks, width = [*blocks, block], wide
        network = nn.Sequential(*blocks, nn.Linear(width, 2)).float()
        randomise(network, seed)
        return network


def main(first: int, last: int, num_blocks: int) -> None:
    """Compare capture with the oracle on random networks and print where they differ.

    ``misses`` is a graph with fewer symmetries than the network has. ``WRONG`` has symmetries that
    are none, ``INVALID`` breaks a law of graphs, ``CRASH`` cannot be captured: these are bugs.
    """
    words: Counter[str] = Counter()
    for seed in range(first, last):
        network, inputs = random_network(seed, num_blocks), vectors(3, TIME, WIDTH)
        layers = [layer for layer in network if isinstance(layer, Wired)]
        names = " ".join(layer.wiring.__qualname__.split(".")[0] for layer in layers)
        word, note = _judge(network, inputs)
        words[word] += 1
        if word != "ok":
            print(f"{seed} {word}: {names}: {note}", flush=True)
    print(f"{num_blocks} blocks, seeds {first} to {last - 1}: {dict(words)}")


def _judge(network: nn.Module, inputs: Tensor) -> tuple[str, str]:
    try:
        graph = pg.capture(network, inputs)
    except (pg.ParamGraphError, AssertionError, LookupError) as problem:
        return "CRASH", f"{type(problem).__name__}: {problem}"
    report = check_graph(network, inputs, graph=graph, num_seeds=2)
    if not report.passed:
        return "INVALID", "; ".join(map(str, report.failures))
    try:
        counted = count_symmetries(network, inputs[:1]).count
    except AssertionError as problem:
        return "uncounted", str(problem)  # by the oracle: numbers too large to compare
    found = num_permutations(graph.axis_groups)
    if found == counted:
        return "ok", ""
    word = "misses" if found < counted else "WRONG"
    return word, f"{found} of {counted}: {found_groups(graph.axis_groups)}"


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:4]))
