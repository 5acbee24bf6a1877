"""The symmetries of a graph in words: what may be permuted, inside what, and what is rescaled."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from paramgraph.graph import ParamGraph
from paramgraph.structure import (
    AxisGroup,
    EdgeKind,
    Factor,
    ParameterLayout,
    ParameterPart,
    ScaleExponents,
    ScaleKind,
    Split,
    Step,
)

__all__ = ["SymmetryWords", "part_code", "shape_text"]

_SCALES = {
    ScaleKind.NONE: "no rescaling keeps the function",
    ScaleKind.SIGN: "sign flips",
    ScaleKind.POSITIVE: "positive factors",
    ScaleKind.REAL: "any factor except zero",
    ScaleKind.PHASE: "whole half periods of the sine",
}


class SymmetryWords:
    """Speaks about the axis groups of one graph, with the nouns that fit: heads, experts, channels.

    Args:
        graph: Any graph.

    Example:
        >>> import torch, paramgraph as pg
        >>> network = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU())
        >>> graph = pg.capture(network, torch.randn(4, 3))
        >>> SymmetryWords(graph).factors(graph.neuron_groups[-1].axes)
        '5 neurons in a fixed order (network output 0)'
    """

    def __init__(self, graph: ParamGraph) -> None:
        self.axes = {row.name: row for row in graph.axis_groups}
        self.scales = {row.name: row for row in graph.scale_groups}
        self._nouns = _nouns(graph)

    def axis(self, row: AxisGroup) -> str:
        """How one axis group moves: '16 neurons, permuted freely'."""
        noun = self._nouns.get(row.name, "neurons" if row.size != 1 else "neuron")
        if not row.free:
            return f"{row.size} {noun} in a fixed order ({row.reason or 'frozen'})"
        if row.given:
            return f"inside each {self._inside(row)} {row.size} {noun} by themselves"
        return f"{row.size} {noun}, permuted freely"

    def factors(self, factors: Sequence[Factor]) -> str:
        """How the neurons of a group, or the entries of a part, move together."""
        phrases = [
            self.axis(self.axes[f]) if isinstance(f, str) else f"{f} in a fixed order"
            for f in factors
        ]
        return ", and ".join(phrases) or "a single one"

    def short(self, factors: Sequence[Factor]) -> str:
        """The axes of a part, one word each: ``[name]`` in a fixed order, ``(3)`` a size alone."""
        words = []
        for f in factors:
            if isinstance(f, str):
                words.append(f if self.axes[f].free else f"[{f}]")
            else:
                words.append(f"({f})")
        return " x ".join(words) or "-"

    def exponents(self, exponents: ScaleExponents) -> str:
        """Which factors a neuron takes: ``layers.0:positive ** -1``."""
        return ", ".join(_power(name, power) for name, power in exponents) or "-"

    def part_scales(self, part: ParameterPart) -> str:
        """How a part is rescaled and shifted, with the axis that numbers the factors."""
        words = [
            _power(s.group, s.exponent) + (f" along axis {s.axis}" if s.axis >= 0 else "")
            for s in part.scales
        ]
        words += [
            f"+ {shift.amount:.6g} n({shift.group}) along axis {shift.axis}"
            for shift in part.shifts
        ]
        return ", ".join(words) or "-"

    def scale_kind(self, kind: ScaleKind) -> str:
        """A kind of scale in words."""
        return _SCALES[kind]

    def _inside(self, row: AxisGroup) -> str:
        nouns = [_singular(self._nouns.get(name, "group")) for name in row.given]
        return " and ".join(dict.fromkeys(nouns))


def part_code(layout: ParameterLayout, number: int) -> str:
    """Torch code that takes a part out of its parameter.

    Example:
        >>> from paramgraph.structure import Take
        >>> layout = ParameterLayout("w", (4, 2), (ParameterPart((Take(0, 2, 2),), ("a", "b")),))
        >>> part_code(layout, 0)
        'w.narrow(0, 2, 2)'
    """
    start = f"stack of {len(layout.members)}: {layout.name}" if layout.members else layout.name
    return start + "".join(_step(step) for step in layout.parts[number].steps)


def shape_text(sizes: Sequence[int]) -> str:
    """Sizes with signs between them; ``scalar`` for none.

    Example:
        >>> shape_text((3, 4)), shape_text(())
        ('3 x 4', 'scalar')
    """
    return " x ".join(map(str, sizes)) or "scalar"


def _step(step: Step) -> str:
    if not isinstance(step, Split):
        return f".narrow({step.axis}, {step.start}, {step.length})"
    return f".unflatten({step.axis}, {step.sizes})" if step.sizes else f".squeeze({step.axis})"


def _power(name: str, power: Fraction) -> str:
    return name if power == 1 else f"{name} ** {power}"


def _singular(noun: str) -> str:
    return noun.replace("groups of", "group of") if " of " in noun else noun.removesuffix("s")


def _nouns(graph: ParamGraph) -> dict[str, str]:
    """What an axis group counts, where the graph tells: heads, experts, groups, channels."""
    nouns: dict[str, str] = {}
    for block in graph.blocks:
        if block.kind is EdgeKind.CONV and block.view is not None:
            for index in (block.sender, block.receiver):
                for f in graph.neuron_groups[index].axes:
                    nouns[str(f)] = "channels"
    for row in graph.axis_groups:
        for name in row.given:
            nouns[name] = "groups"
    receive, send = (
        {getattr(b, end) for b in graph.blocks if b.kind is EdgeKind.ATTENTION}
        for end in ("receiver", "sender")
    )
    for index, group in enumerate(graph.neuron_groups):
        names = [f for f in group.axes if isinstance(f, str)]
        if index in receive and index in send:  # scores: queries and keys in, mixtures out
            nouns.update(dict.fromkeys(names, "heads"))
        elif len(names) == 1 and "topk" in group.activation_text:  # a router
            nouns[names[0]] = "experts"
    for row in graph.axis_groups:
        if nouns.get(row.name) == "heads":  # grouped queries: heads that share their keys
            nouns |= {name: "groups of heads" for name in row.given if nouns[name] == "heads"}
    sizes = {row.name: row.size for row in graph.axis_groups}
    return {name: _singular(noun) if sizes.get(name) == 1 else noun for name, noun in nouns.items()}
