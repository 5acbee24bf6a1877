"""Normalisations: gain and shift behind, stored statistics in front."""

from __future__ import annotations

from dataclasses import replace

from paramgraph.capture.axes import Leaf
from paramgraph.capture.tape import TapeEntry, TensorRef
from paramgraph.capture.tensor_types import Axes
from paramgraph.capture.weave.factors import gain, multiply
from paramgraph.capture.weave.loom import Loom
from paramgraph.capture.weave.movement import by_likeness
from paramgraph.capture.weave.parameters import leaves_of
from paramgraph.capture.weave.reading import as_hidden
from paramgraph.capture.weave.records import Constant, Hidden, Input, Link, Param, Strand, identity
from paramgraph.capture.weave.sums import add, add_bias, fits_piece
from paramgraph.structure import EdgeKind, NeuronKind, NeuronRole, NormKind

__all__ = ["NORMS", "normalisation"]


NORMS = {
    **dict.fromkeys(
        (
            *("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"),
            *("_native_batch_norm_legit", "_batch_norm_no_update", "batch_norm"),
            *("miopen_batch_norm", "_batch_norm_with_update"),
        ),
        NormKind.BATCH,
    ),
    **dict.fromkeys(("native_layer_norm", "layer_norm"), NormKind.LAYER),
    **dict.fromkeys(("_fused_rms_norm", "rms_norm"), NormKind.RMS),
    "native_group_norm": NormKind.GROUP,
}


def normalisation(loom: Loom, entry: TapeEntry) -> None:
    """Gain and shift after a normalisation; stored statistics are features of what enters it."""
    ref, source = entry.outputs[0], entry.args["input"]
    assert ref is not None
    kind = NORMS[entry.operation.removeprefix("aten.")]
    if kind is NormKind.BATCH and entry.args.get("running_mean") is None:
        kind = NormKind.INSTANCE
    strands = []
    known: dict[object, Strand] = {}
    for block in range(len(loom.partition(ref))):
        at = by_likeness(loom, ref, block, source)
        names = ("weight", "bias", "running_mean", "running_var")
        axes = loom.partition(ref).axes[block]
        others = [a[1] for name in names if (a := _argument(loom, entry, name, axes)) is not None]
        key = tuple(map(identity, (loom.strand(source, at), *others)))
        if key not in known:
            known[key] = _normalised(loom, entry, (ref, block), (source, at), kind)
        strands.append(known[key])
    loom.strands[ref.number] = tuple(strands)
    for other in entry.outputs[1:]:
        if other is not None:
            hidden = [s for s in loom.strands[ref.number] if isinstance(s, Hidden)]
            first = hidden[0] if hidden else Constant()
            loom.strands[other.number] = (first,) * len(loom.partition(other))


def _argument(
    loom: Loom, entry: TapeEntry, name: str, axes: Axes
) -> tuple[TensorRef, Strand, int] | None:
    ref = entry.args.get(name)
    if not isinstance(ref, TensorRef):
        return None
    parts = loom.partition(ref)
    here = {id(f) for axis in axes for f in axis}
    score = [len(here & {id(f) for axis in own for f in axis}) for own in parts.axes]
    number = score.index(max(score))
    return ref, loom.strand(ref, number), number


def _normalised(
    loom: Loom,
    entry: TapeEntry,
    site: tuple[TensorRef, int],
    source: tuple[TensorRef, int],
    kind: NormKind,
) -> Strand:
    axes = loom.partition(site[0]).axes[site[1]]
    place = (site[0].number, site[1])
    value = loom.strand(*source)
    weight, bias = (_argument(loom, entry, name, axes) for name in ("weight", "bias"))
    statistics = [
        (role, _argument(loom, entry, name, axes))
        for name, role in (("running_mean", NeuronRole.MEAN), ("running_var", NeuronRole.VARIANCE))
    ]
    if isinstance(value, Input):
        channel = 1 if kind in (NormKind.BATCH, NormKind.INSTANCE, NormKind.GROUP) else -1
        value = Hidden(loom.read_input(value, channel), owned=False)
        known = [a for a in (weight, *(s for _, s in statistics), bias) if a is not None]
        params = [a[1] for a in known if isinstance(a[1], Param)]
        # Normalised inputs are neurons of their own, as fixed in their order as the inputs are.
        leaves = [leaf for p in params[:1] for leaf in leaves_of(loom, p.pieces[0])]
        sender = value.group
    elif isinstance(value, Constant):
        return value
    else:
        scaled = [a[1] for a in (weight, bias) if a is not None and isinstance(a[1], Param)]
        wanted = [leaf for p in scaled for piece in p.pieces for leaf in leaves_of(loom, piece)]
        value = as_hidden(loom, value, wanted, entry)
        sender = loom.read(value)
        leaves = [factor for factor in sender.factors if isinstance(factor, Leaf)]
    stats = [(role, s[1]) for role, s in statistics if s is not None and isinstance(s[1], Param)]
    if stats and (NeuronRole.MEAN in sender.features):
        # A second normalisation of the same neurons has statistics of its own.
        copy = loom.new_group(entry, leaves, origin=place)
        loom.skip(sender, copy)
        sender = copy
        value = Hidden(copy, site=place)
        copy.chain = ()
    for role, parameter in stats:
        piece = parameter.pieces[0]
        found = fits_piece(loom, replace(sender, factors=tuple(leaves)), piece, fixed=True)
        if found is not None:
            loom.feature(role, sender, *found)
    affine = weight[1] if weight is not None else None
    result: Strand | None = None
    plain = Hidden(sender, sender.chain or (), owned=False, site=value.site)
    if isinstance(affine, Param):
        piece = affine.pieces[0]
        match = fits_piece(loom, replace(sender, factors=tuple(leaves)), piece, fixed=True)
        if len(affine.pieces) == 1 and match and not affine.chain:
            group = loom.new_group(entry, leaves, piece.parameter, origin=place)
            shape = (group.size, 1, 1)
            loom.block(
                piece.parameter, piece.part, EdgeKind.SCALE, (sender, group), match[1], shape
            )
            result = Hidden(group, site=place)
        else:
            operand = (source[0], plain, source[1])
            result = (
                gain(loom, entry, site, operand, affine)
                if sender.kind is not NeuronKind.INPUT
                else None
            )
            assert weight is not None
            if result is None:
                result = multiply(loom, entry, site, operand, weight, None)
    else:
        group = loom.new_group(entry, leaves, origin=place)
        name = f"{sender.name}->{group.name}"
        loom.links.append(Link(name, EdgeKind.SCALE, sender, group, (group.size, 1, 1)))
        result = Hidden(group, site=place)
    if isinstance(result, Hidden):
        result.group.norm = kind
        if bias is not None and isinstance(bias[1], Param):
            if not add_bias(loom, result.group, bias[1], axes, fixed=True):
                result = add(loom, entry, site, (site[0], result, site[1]), bias)
    assert result is not None
    return result
