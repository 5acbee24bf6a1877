"""Capture a network of your own, check the symmetries found, and read it with a metanetwork.

Run it: ``python examples/01_capture_your_network.py``. Then replace ``MyNetwork`` by yours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import paramgraph as pg
from paramgraph.nn import make_metanetwork


class MyNetwork(nn.Module):
    """Two convolutions with a skip connection, and a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of images."""
        x = self.first(x).relu()
        x = x + self.norm(self.second(x)).relu()
        return self.head(x.mean(dim=(2, 3)))


def main() -> None:
    """Network, graph, symmetry, metanetwork."""
    torch.manual_seed(0)
    network = MyNetwork().eval()
    images = torch.randn(4, 3, 16, 16)  # any input the network accepts, a batch of two or more

    # 1. The graph: neurons, edges, and which neurons may be permuted or rescaled.
    graph = pg.capture(network, images)
    print(graph.summary(), end="\n\n")

    # 2. Checked on the network itself, in float64: random symmetries must not change its outputs.
    print(pg.verify(network, graph, images), end="\n\n")

    # 3. The same by hand: other weights, same function.
    symmetry = graph.sample_symmetry()
    twin = MyNetwork().eval()
    twin.load_state_dict(symmetry.apply(network.state_dict()))
    with torch.no_grad():
        change = (twin(images) - network(images)).abs().max()
    print(f"largest change of an output: {float(change):.1e}")

    # 4. A metanetwork reads the weights; the twin is the same network to it.
    metanetwork = make_metanetwork("operator", out_dim=3).eval()
    both = graph.features([network.state_dict(), twin.state_dict()])
    with torch.no_grad():
        first, second = metanetwork(pg.collate([(graph, both)]))
    print(f"largest change of what is read: {float((first - second).abs().max()):.1e}")


if __name__ == "__main__":
    main()
