"""Which rescalings of single numbers leave a network as it is, from its computation graph.

Each number of each parameter gets an unknown: the logarithm of its factor (positive scales), or
whether its sign flips. A product adds the unknowns of its factors, all terms of a sum must have the
same, a function passes it on, as relu does for positive factors, or demands that there is none.
Inputs, outputs and constants have none. What is left free is counted exactly: modulo a large prime
for scales, modulo 2 for signs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

import numpy as np
from scalar_graph import ScalarGraph

__all__ = ["count_scales"]

PRIME = 2**31 - 1
HALF = (PRIME + 1) // 2
POSITIVE: Mapping[str, int] = {
    "relu": 1,
    "leaky_relu": 1,
    "abs": 1,
    "inverse": -1,
    "reciprocal": -1,
}
SIGN: Mapping[str, int] = {"tanh": 1, "sin": 1, "erf": 1, "inverse": 1, "reciprocal": 1}
SQUARE_ROOTS: Mapping[str, int] = {"sqrt": HALF, "rsqrt": -HALF}
EVEN = ("abs", "cos")

Vector = np.ndarray


def count_scales(
    graph: ScalarGraph, outputs: Sequence[int], sizes: Mapping[str, int], *, free_running: bool
) -> tuple[int, int]:
    """Numbers of independent positive scales and of independent sign flips.

    Args:
        graph: The nodes.
        outputs: Nodes that keep their value.
        sizes: Number of entries of each parameter.
        free_running: Whether running statistics are parameters like others. If not, they remain
            the statistics of what they describe: a variance scales as the square of its mean.

    Returns:
        Both numbers; parameters that no output depends on do not count.
    """
    live = graph.reaching(outputs)
    scales, signs = (_Equations(graph, live, sizes, modulus) for modulus in (PRIME, 2))
    if not free_running:
        scales.tie_running_statistics()
        signs.tie_running_statistics()
    return scales.num_free(outputs), signs.num_free(outputs)


class _Equations:
    """Linear equations over the integers modulo a prime, in the entries of the parameters."""

    def __init__(
        self, graph: ScalarGraph, live: list[int], sizes: Mapping[str, int], modulus: int
    ) -> None:
        self.graph, self.modulus = graph, modulus
        entries = [
            n for n in live if graph.keys[n][0][0] == "leaf" and graph.keys[n][0][1] in sizes
        ]
        self.place = {node: number for number, node in enumerate(entries)}
        self.rows: dict[bytes, Vector] = {}
        self.factor: dict[int, Vector] = {}
        for node in live:  # arguments come first
            self.factor[node] = self._factor(node)

    def _zero(self) -> Vector:
        return np.zeros(len(self.place), dtype=np.int64)

    def _demand_none(self, vector: Vector) -> None:
        vector = vector % self.modulus
        if vector.any():
            self.rows[vector.tobytes()] = vector

    def _factor(self, node: int) -> Vector:
        kind, arguments = self.graph.keys[node]
        name = str(kind[0])
        vectors = [self.factor[argument] for argument in arguments]
        if node in self.place:
            vector = self._zero()
            vector[self.place[node]] = 1
            return vector
        if not vectors:
            return self._zero()
        if name == "product":
            return np.sum(vectors, axis=0) % self.modulus
        if name == "sum" or (name == "maximum" and self.modulus == PRIME):
            for vector in vectors[1:]:
                self._demand_none(vector - vectors[0])
            return vectors[0]
        if name.startswith("power "):
            return vectors[0] * int(name.split()[1]) % self.modulus
        passed_on = self._passed_on(name)
        if passed_on is None:
            for vector in vectors:
                self._demand_none(vector)
            return self._zero()
        return vectors[0] * passed_on % self.modulus

    def _passed_on(self, name: str) -> int | None:
        """The power at which a function hands on the factor of its argument."""
        word = name.split()[0]
        if word == "pow":  # written as "pow (0.5,) {}"
            exponent = Fraction(float(name.split("(")[1].split(",")[0])).limit_denominator(100)
            number = exponent.numerator * pow(exponent.denominator, -1, PRIME)
            return number if self.modulus == PRIME else None
        if self.modulus == 2:
            return 0 if word in EVEN else SIGN.get(word)
        return POSITIVE.get(word, SQUARE_ROOTS.get(word))

    def tie_running_statistics(self) -> None:
        """A running variance is the square of a standard deviation that scales as its mean."""
        means, variances = {}, {}
        for node, place in self.place.items():
            _, name, index = self.graph.keys[node][0]
            if name.endswith("running_mean"):
                means[name.removesuffix("mean"), index] = place
            elif name.endswith("running_var"):
                variances[name.removesuffix("var"), index] = place
        for key, place in variances.items():
            equation = self._zero()
            equation[place], equation[means[key]] = 1, -2
            self._demand_none(equation)

    def num_free(self, outputs: Iterable[int]) -> int:
        """How many unknowns the equations leave free."""
        for node in outputs:
            self._demand_none(self.factor[node])
        basis: dict[int, Vector] = {}
        for row in self.rows.values():
            while row.any():
                lead = int(row.nonzero()[0][0])
                if lead not in basis:
                    basis[lead] = row * pow(int(row[lead]), -1, self.modulus) % self.modulus
                    break
                row = (row - row[lead] * basis[lead]) % self.modulus
        return len(self.place) - len(basis)
