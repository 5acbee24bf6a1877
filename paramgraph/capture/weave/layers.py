"""Normalisations, reductions, tables and everything that has no rule of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from paramgraph.capture.activations import token
from paramgraph.capture.axes import Leaf
from paramgraph.capture.tape import ALIASED, TapeEntry, TensorRef, entry_refs
from paramgraph.capture.weave.elementwise import (
    add,
    add_bias,
    fits_piece,
    gain,
    multiply,
    product,
    with_step,
)
from paramgraph.capture.weave.loom import Loom
from paramgraph.capture.weave.movement import by_likeness, moved, overwritten, united
from paramgraph.capture.weave.parameters import forgotten, leaves_of, stated, table
from paramgraph.capture.weave.records import (
    Constant,
    Hidden,
    Input,
    Link,
    Param,
    Reduced,
    Strand,
    identity,
)
from paramgraph.structure import EdgeKind, NeuronKind, NeuronRole, NormKind

__all__ = [
    "gated",
    "generic",
    "normalisation",
    "reduction",
    "same_neurons",
    "table_lookup",
    "written",
]

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
            known = [s for s in loom.strands[ref.number] if isinstance(s, Hidden)]
            axes = len(loom.partition(other))
            loom.strands[other.number] = tuple((*known, Constant())[:1]) * axes


def _argument(
    loom: Loom, entry: TapeEntry, name: str, axes: Sequence[object]
) -> tuple[TensorRef, Strand, int] | None:
    ref = entry.args.get(name)
    if not isinstance(ref, TensorRef):
        return None
    parts = loom.partition(ref)
    here = {id(f) for axis in axes for f in axis}  # type: ignore[attr-defined]
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
        value = loom.hidden(value, wanted, entry)
        sender = loom.read(value)
        leaves = list(sender.factors)  # type: ignore[arg-type]
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
                result = add(loom, entry, site, (site[0], result, site[1]), bias)  # type: ignore[assignment]
    assert result is not None
    return result


def reduction(loom: Loom, entry: TapeEntry) -> None:
    """Sums, means, extremes: over positions the neurons stay, over neurons a statistic is left."""
    source = next(iter(entry_refs(entry.args)))
    name = entry.operation.removeprefix("aten.")
    for ref in entry.outputs:
        if ref is None:
            continue
        parts = loom.partition(ref)
        strands: list[Strand] = []
        for block in range(len(parts)):
            values = _reduced_from(loom, entry, ref, block, source)
            telling = {
                (id(v.group), v.chain) if isinstance(v, Hidden) else id(v): (v, at)
                for v, at in values
                if not isinstance(v, Constant)
            }
            if not telling:
                strands.append(values[0][0] if values else Constant())
                continue
            if len(telling) > 1:
                strands.append(
                    united(loom, entry, ref, block, [value for value, _ in telling.values()])
                )
                continue
            value, at = next(iter(telling.values()))
            strands.append(_reduced(loom, entry, name, (source, at), (ref, block), value))
        loom.strands[ref.number] = tuple(strands)


def _reduced_from(
    loom: Loom, entry: TapeEntry, ref: TensorRef, block: int, source: TensorRef
) -> list[tuple[Strand, int]]:
    parts = loom.partition(source)
    if len(parts) == 1:
        return [(loom.strand(source), 0)]
    rank = len(source.shape)
    dims = entry.args.get("dim")
    dims = (
        list(range(rank))
        if dims is None or dims == []
        else [dims]
        if isinstance(dims, int)
        else dims
    )
    gone = {dim % rank for dim in dims}
    probe = (loom.partition(ref).probes(block) or [()])[0]
    keep = len(probe) == rank
    left = iter(probe)
    place: list[int | None] = []
    for axis in range(rank):
        if axis in gone:
            place.append(None)
            if keep:
                next(left, None)
        else:
            place.append(next(left, None))
    return [(loom.strand(source, at), at) for at in parts.find(place)]


def _reduced(
    loom: Loom,
    entry: TapeEntry,
    name: str,
    source: tuple[TensorRef, int],
    target: tuple[TensorRef, int],
    value: Strand,
) -> Strand:
    ref, block = target
    if isinstance(value, Input):
        return Input(ref.number, ref.shape)
    if isinstance(value, Param):
        return forgotten(value)
    here = loom.present(loom.partition(ref).axes[block])
    if isinstance(value, Reduced):
        return replace(value, chain=(*value.chain, name))
    assert isinstance(value, Hidden)
    kept = all(
        isinstance(f, int) or f.size == 1 or any(f is leaf for leaf in here)  # type: ignore[union-attr]
        for f in value.group.factors
    )
    if kept:
        # A later bias or skip may not move in front of a sum or a maximum over positions.
        keeps_bias = name == "mean"
        result = moved(loom, entry, value, source, target)
        assert isinstance(result, Hidden)
        result = result if keeps_bias else replace(result, owned=False)
        is_plain = name in ("mean", "sum", "amax", "amin", "max", "min", "nansum", "nanmean")
        return result if is_plain else replace(result, chain=(*value.chain, name), owned=False)
    return Reduced(value, (name,))


def same_neurons(loom: Loom, entry: TapeEntry, *, keeps_bias: bool, step: str = "") -> None:
    """An operation on positions, or over neurons that stay: softmax, pooling, padding."""
    source = next(iter(entry_refs(entry.args)))
    for ref in entry.outputs:
        if ref is None:
            continue
        strands: list[Strand] = []
        for block in range(len(loom.partition(ref))):
            at = by_likeness(loom, ref, block, source)
            value = loom.strand(source, at)
            if isinstance(value, Hidden) and step:
                value = with_step(loom, value, source, (ref, block), step)
            else:
                value = moved(loom, entry, value, (source, at), (ref, block))
                if isinstance(value, Hidden) and not keeps_bias:
                    value = replace(value, owned=False)
            strands.append(value)
        loom.strands[ref.number] = tuple(strands)


def gated(loom: Loom, entry: TapeEntry) -> None:
    """One half of a tensor times the sigmoid of the other half."""
    source, ref = entry_refs(entry.args)[0], entry.outputs[0]
    assert ref is not None
    parts, dim = loom.partition(source), entry.args["dim"] % len(source.shape)
    strands: list[Strand] = []
    for block in range(len(loom.partition(ref))):
        place = loom.partition(ref).probes(block)[0]
        other = (*place[:dim], place[dim] + ref.shape[dim], *place[dim + 1 :])
        one, two = (loom.strand(source, (parts.find(at) or [0])[0]) for at in (place, other))
        if isinstance(two, Hidden):
            two = replace(two, chain=(*two.chain, "sigmoid"), owned=False)
        strands.append(product(loom, entry, (ref, block), [one, two], EdgeKind.GATE))
    loom.strands[ref.number] = tuple(strands)


def table_lookup(loom: Loom, entry: TapeEntry) -> None:
    """Rows of a table, chosen by the inputs: an embedding; by a router: parameters still."""
    refs = entry_refs(entry.args)
    source, ref = refs[0], entry.outputs[0]
    assert ref is not None
    parts = loom.partition(source)
    chosen = [loom.strand(r) for r in refs[1:]]
    if len(parts) > 1 or not isinstance(loom.strand(source), Param):
        return generic(loom, entry)
    value = loom.strand(source)
    assert isinstance(value, Param)
    strands: list[Strand] = []
    for block, axes in enumerate(loom.partition(ref).axes):
        piece = value.pieces[0]
        if any(isinstance(v, Hidden) for v in chosen):
            strands.append(_picked(loom, value, parts.axes[0], axes))
            continue
        if len(value.pieces) > 1 or piece.labels is None or not stated(loom, piece):
            strands.append(forgotten(value))
            continue
        # A row that the inputs choose is no neuron of what is looked up, only a choice.
        here = [f for axis in axes for f in axis if isinstance(f, Leaf) and loom.leaf(f) is f]
        rows = [leaf for leaf in leaves_of(loom, piece) if all(leaf is not f for f in here)]
        if not rows:
            strands.append(forgotten(value))
            continue
        key = ("rows", piece.parameter, piece.part, *map(id, rows))
        if key not in loom._adapters:
            loom._adapters[key] = table(loom, piece, here, entry, rows)
            loom._adapters[key].origin = (ref.number, block)
        strands.append(
            Hidden(loom._adapters[key], value.chain, owned=False, site=(ref.number, block))
        )
    loom.strands[ref.number] = tuple(strands)


def _picked(loom: Loom, value: Param, before: Sequence[object], after: Sequence[object]) -> Param:
    """A parameter some of whose indices were chosen: the choice stands for the axis."""
    pieces = []
    for piece in value.pieces:
        labels = None
        if piece.labels is not None:
            known = [
                (loom.leaf(f), f, label)
                for axis, ls in zip(before, piece.labels, strict=True)  # type: ignore[arg-type]
                for f, label in zip(axis, ls, strict=True)  # type: ignore[arg-type, call-overload]
                if label
            ]
            new = []
            for axis in after:
                row = []
                for factor in axis:  # type: ignore[attr-defined]
                    match = next(
                        (
                            k
                            for k in known
                            if k[1] is factor or (k[0] is not None and k[0] is loom.leaf(factor))
                        ),
                        None,
                    )
                    if match is not None:
                        known.remove(match)
                    row.append(match[2] if match is not None else ())
                new.append(tuple(row))
            labels = tuple(new)
        pieces.append(replace(piece, labels=labels))
    return replace(value, pieces=tuple(pieces), is_spread=False)


def written(loom: Loom, entry: TapeEntry) -> None:
    """A tensor that another one was written into: what was written, and what was there."""
    refs = entry_refs(entry.args)
    ref = entry.outputs[0]
    assert ref is not None
    is_alias = entry.operation == ALIASED
    is_copy = entry.operation == "aten.copy"
    sources = refs[1:2] if is_copy else refs[:2]
    if not is_alias and not is_copy:
        sources = [r for r in refs if r is not entry.args.get("index") and r not in _indices(entry)]
    strands: list[Strand] = []
    for block in range(len(loom.partition(ref))):
        values: dict[object, tuple[TensorRef, int, Strand]] = {}
        if is_alias:
            places = overwritten(loom, ref, block, sources[0], sources[1])
        else:
            places = [(source, by_likeness(loom, ref, block, source)) for source in sources]
        for source, at in places:
            value = loom.strand(source, at)
            if not isinstance(value, Constant):
                key = (id(value.group), value.chain) if isinstance(value, Hidden) else id(value)
                values.setdefault(key, (source, at, value))
        if not values:
            strands.append(Constant())
        elif len(values) == 1:
            source, at, value = next(iter(values.values()))
            here = loom.present(loom.partition(ref).axes[block])
            if isinstance(value, Hidden) and not _all_present(value, here):
                strands.append(united(loom, entry, ref, block, [value]))
                continue
            result = moved(loom, entry, value, (source, at), (ref, block))
            strands.append(replace(result, owned=False) if isinstance(result, Hidden) else result)
        elif "add" in entry.operation and len(values) == 2:
            one, two = values.values()
            strands.append(
                add(loom, entry, (ref, block), (one[0], one[2], one[1]), (two[0], two[2], two[1]))
            )
        else:
            strands.append(united(loom, entry, ref, block, [v for _, _, v in values.values()]))
    loom.strands[ref.number] = tuple(strands)


def _all_present(value: Hidden, here: Sequence[object]) -> bool:
    return all(any(f is leaf for leaf in here) for f in value.group.factors)


def _indices(entry: TapeEntry) -> list[TensorRef]:
    return entry_refs([entry.args.get("indices"), entry.args.get("index"), entry.args.get("mask")])


def generic(loom: Loom, entry: TapeEntry) -> None:
    """Any operation: functions of one group stay in it where its neurons are still told apart."""
    name = entry.operation.removeprefix("aten.")
    refs = entry_refs(entry.args)
    for ref in entry.outputs:
        if ref is None:
            continue
        parts = loom.partition(ref)
        strands: list[Strand] = []
        for block, axes in enumerate(parts.axes):
            values: dict[object, tuple[TensorRef, int, Strand]] = {}
            for source in refs:
                at = by_likeness(loom, ref, block, source)
                value = loom.strand(source, at)
                if isinstance(value, Hidden):
                    values.setdefault((id(value.group), value.chain), (source, at, value))
                elif not isinstance(value, Constant | Input):
                    values.setdefault(id(value), (source, at, value))
            if not values:
                data = any(isinstance(loom.strand(r), Input) for r in refs)
                strands.append(Input(ref.number, ref.shape) if data else Constant())
                continue
            here = loom.present(axes)
            source, at, value = next(iter(values.values()))
            alone = len(values) == 1 and isinstance(value, Hidden)
            if alone and all(
                any(f is leaf for leaf in here)
                for f in value.group.factors  # type: ignore[union-attr]
            ):
                assert isinstance(value, Hidden)
                silent = name in ("index", "embedding", "gather", "index_select", "flip", "roll")
                chain = value.chain if silent else (*value.chain, token(name, []))
                new = Hidden(value.group, chain, owned=False, site=(ref.number, block))
                strands.append(new)
                continue
            if all(isinstance(v, Param) for _, _, v in values.values()) and len(values) == 1:
                assert isinstance(value, Param)
                if not any(isinstance(loom.strand(r), Input) for r in refs):
                    strands.append(forgotten(value))
                    continue
            several = [v for _, _, v in values.values()]
            if len(several) > 1 and all(isinstance(v, Param) for v in several):
                pieces = {
                    (p.parameter, p.part): _fitting(loom, p, axes)
                    for v in several
                    if isinstance(v, Param)
                    for p in v.pieces
                }
                strands.append(Param(tuple(pieces.values())))
                continue
            strands.append(
                product(
                    loom, entry, (ref, block), [v for _, _, v in values.values()], EdgeKind.FLOW
                )
            )
        loom.strands[ref.number] = tuple(strands)


def _fitting(loom: Loom, piece, axes):  # type: ignore[no-untyped-def]
    """Labels stay where the result has the axes of the part (weight normalisation)."""
    if piece.labels is None:
        return piece
    fit = len(piece.labels) == len(axes) and all(
        len(ls) == len(axis) for ls, axis in zip(piece.labels, axes, strict=True)
    )
    fit = fit and len(leaves_of(loom, piece)) == len(loom.present(axes))
    return piece if fit else replace(piece, labels=None)
