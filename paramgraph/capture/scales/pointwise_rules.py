"""Scale rules for elementwise operations."""

from __future__ import annotations

from fractions import Fraction

from paramgraph.capture.axis_rules.registry import output
from paramgraph.capture.scales.flow import Flow, Scaled, Values
from paramgraph.capture.scales.registry import scale_rule
from paramgraph.capture.scales.system import Number
from paramgraph.capture.tape import TapeEntry, TensorRef

__all__ = ["terms", "unary"]

_UNARY: dict[str, tuple[Number | None, Number | None]] = {
    # power of a positive factor, power of a sign; None where the argument must not scale
    "relu": (1, None),
    "leaky_relu": (1, None),
    "rrelu_with_noise": (1, None),
    "neg": (1, 1),
    "abs": (1, 0),
    "reciprocal": (-1, 1),
    "square": (2, 0),
    "sqrt": (Fraction(1, 2), None),
    "rsqrt": (Fraction(-1, 2), None),
    "sign": (0, 1),
    "sgn": (0, 1),
    **dict.fromkeys(("tanh", "sinh", "asinh", "atanh", "sin", "tan", "asin", "atan"), (None, 1)),
    **dict.fromkeys(("erf", "erfinv", "round", "trunc", "softshrink", "hardshrink"), (None, 1)),
    **dict.fromkeys(("cos", "cosh", "sinc"), (None, 0)),
    **dict.fromkeys(("isnan", "isinf", "isfinite", "logical_not"), (0, 0)),
}


def unary(
    flow: Flow, entry: TapeEntry, source: Scaled, powers: tuple[Number | None, Number | None]
) -> Values:
    """A function of each entry that passes factors on at some power."""
    power = powers[flow.is_sign]
    same = flow.onto(source, flow.layout(output(entry)))
    if power is None:
        flow.forbid(same)
        return _powered(flow, same, 0)
    return _powered(flow, same, power)


def _powered(flow: Flow, values: Values, power: Number) -> Values:
    # A function of zero may be anything but zero, unless it is a power.
    if power == 0:
        return [block and [{} for _ in block] for block in values]
    return values if power == 1 else flow.power(values, power)


@scale_rule(*_UNARY)
def _unary(flow: Flow, entry: TapeEntry) -> list[Values]:
    powers = _UNARY[entry.operation.removeprefix("aten.")]
    return [unary(flow, entry, flow.argument(entry, "self", "input"), powers)]


@scale_rule("sin", "cos")
def _wave(flow: Flow, entry: TapeEntry) -> list[Values]:
    """Odd, or even; and a shift by half a period flips the sign."""
    powers = (None, 1) if entry.operation == "aten.sin" else (None, 0)
    values = unary(flow, entry, flow.argument(entry, "self"), powers)
    for number, block in enumerate(values):
        phases = flow.phases.get((output(entry).number, number), ())
        new = list(block or ())
        for occurrence, unknown in phases if new else ():
            new[1 + occurrence] = flow.system.plus(new[1 + occurrence], unknown)
        values[number] = new or None
    return [values]


@scale_rule(
    *("clone", "detach", "alias", "contiguous", "lift_fresh", "lift_fresh_copy", "real", "imag"),
    *("conj", "_conj", "resolve_conj", "_neg_view", "resolve_neg"),
)
def _same(flow: Flow, entry: TapeEntry) -> list[Values]:
    return [flow.onto(flow.argument(entry, *entry.args), flow.layout(output(entry)))]


@scale_rule("_to_copy", "to", "native_dropout")
def _converted(flow: Flow, entry: TapeEntry) -> list[Values] | None:
    """A whole number or a truth value does not scale."""
    dtype = flow.run.tape.dtypes[output(entry).number]
    if not (dtype.is_floating_point or dtype.is_complex):
        return None
    return [flow.onto(flow.argument(entry, "self", "input"), flow.layout(output(entry)))]


def terms(flow: Flow, entry: TapeEntry, *names: str) -> list[Values] | None:
    """Arguments that are added up or compared, in the shape of the output.

    Returns:
        How each tensor scales; a number other than 0 does not, so nothing may.
    """
    layout = flow.layout(output(entry))
    found: list[Values] = []
    for name in names:
        value = entry.args.get(name)
        if isinstance(value, TensorRef):
            found.append(flow.onto(flow.of(value), layout))
        elif value is not None and value != 0:
            found.append(flow.none(layout))
    return found


def _sum(flow: Flow, values: list[Values] | None) -> list[Values]:
    assert values
    return [flow.equal(*values)]


@scale_rule("add", "sub", "rsub")
def _add(flow: Flow, entry: TapeEntry) -> list[Values]:
    return _sum(flow, terms(flow, entry, "self", "other"))


@scale_rule("maximum", "minimum", "fmax", "fmin", "hypot")
def _larger(flow: Flow, entry: TapeEntry) -> list[Values]:
    """The larger of two stays the larger under a common positive factor."""
    values = terms(flow, entry, "self", "other")
    assert values
    if flow.is_sign:
        for one in values:
            flow.forbid(one)
    return [flow.equal(*values)]


@scale_rule("mul")
def _mul(flow: Flow, entry: TapeEntry) -> list[Values]:
    layout = flow.layout(output(entry))
    first, other = flow.onto(flow.argument(entry, "self"), layout), entry.args["other"]
    if not isinstance(other, TensorRef):
        return [first if other != 0 else [None] * len(first)]
    return [flow.product(first, flow.onto(flow.of(other), layout))]


@scale_rule("div")
def _div(flow: Flow, entry: TapeEntry) -> list[Values] | None:
    if entry.args.get("rounding_mode") is not None:
        return None
    layout = flow.layout(output(entry))
    first, other = flow.onto(flow.argument(entry, "self"), layout), entry.args["other"]
    if not isinstance(other, TensorRef):
        return [first]
    below = flow.onto(flow.of(other), layout)
    # Zeros divided by anything are zeros; by zeros nothing sensible is divided.
    return [flow.product(first, below, -1)]


@scale_rule("addcmul", "addcdiv")
def _add_product(flow: Flow, entry: TapeEntry) -> list[Values]:
    layout = flow.layout(output(entry))
    first, second = (flow.onto(flow.argument(entry, n), layout) for n in ("tensor1", "tensor2"))
    times = 1 if entry.operation == "aten.addcmul" else -1
    start = flow.onto(flow.argument(entry, "self"), layout)
    return [flow.equal(start, flow.product(first, second, times))]


@scale_rule("lerp")
def _lerp(flow: Flow, entry: TapeEntry) -> list[Values]:
    if isinstance(entry.args["weight"], TensorRef):
        flow.forbid(flow.argument(entry, "weight").values)
    return _sum(flow, terms(flow, entry, "self", "end"))


@scale_rule("pow")
def _pow(flow: Flow, entry: TapeEntry) -> list[Values] | None:
    exponent = entry.args["exponent"]
    if not isinstance(exponent, int | float) or not isinstance(entry.args["self"], TensorRef):
        return None
    is_whole = float(exponent).is_integer()
    power = int(exponent) if is_whole else Fraction(exponent).limit_denominator(1000)
    powers = (power, power % 2 if is_whole else None)
    return [unary(flow, entry, flow.argument(entry, "self"), powers)]


@scale_rule("prelu", "_prelu_kernel")
def _prelu(flow: Flow, entry: TapeEntry) -> list[Values]:
    flow.forbid(flow.argument(entry, "weight").values)
    return [unary(flow, entry, flow.argument(entry, "self"), (1, None))]


@scale_rule("clamp", "clamp_min", "clamp_max", "hardtanh", "threshold")
def _clamp(flow: Flow, entry: TapeEntry) -> list[Values] | None:
    """Cutting off at zero is a relu, at opposite numbers an odd function."""
    if entry.operation == "aten.threshold":
        bounds = [entry.args["threshold"], entry.args["value"]]
        is_relu = bounds == [0, 0]
    else:
        bounds = [entry.args.get(n) for n in ("min", "max", "min_val", "max_val")]
        bounds = [bound for bound in bounds if bound is not None]
        is_relu = bounds == [0]
    if any(isinstance(bound, TensorRef) for bound in bounds):
        return None
    is_odd = len(bounds) == 2 and bounds[0] == -bounds[1] and not is_relu
    powers = (1 if is_relu else None, 1 if is_odd else None)
    return [unary(flow, entry, flow.argument(entry, "self"), powers)]


@scale_rule("where")
def _where(flow: Flow, entry: TapeEntry) -> list[Values]:
    flow.forbid(flow.argument(entry, "condition").values)
    return _sum(flow, terms(flow, entry, "self", "other"))


@scale_rule("masked_fill")
def _masked_fill(flow: Flow, entry: TapeEntry) -> list[Values]:
    flow.forbid(flow.argument(entry, "mask").values)
    return _sum(flow, terms(flow, entry, "self", "value"))


@scale_rule("eq", "ne", "lt", "le", "gt", "ge")
def _compare(flow: Flow, entry: TapeEntry) -> list[Values]:
    """A comparison stays the same when both sides get one positive factor."""
    values = terms(flow, entry, "self", "other")
    assert values
    if flow.is_sign and entry.operation not in ("aten.eq", "aten.ne"):
        for one in values:
            flow.forbid(one)
    flow.equal(*values)
    return []


@scale_rule("copy")
def _copy(flow: Flow, entry: TapeEntry) -> list[Values] | None:
    dtype = flow.run.tape.dtypes[output(entry).number]
    if not (dtype.is_floating_point or dtype.is_complex):
        return None
    return [flow.onto(flow.argument(entry, "src"), flow.layout(output(entry)))]


@scale_rule("fill", "zero", "exponential", "uniform", "normal", "random", "bernoulli")
def _overwrite(flow: Flow, entry: TapeEntry) -> list[Values]:
    """What was there before does not count."""
    layout, value = flow.layout(output(entry)), entry.args.get("value")
    if isinstance(value, TensorRef):
        return [flow.onto(flow.of(value), layout)]
    is_zero = entry.operation == "aten.zero" or (entry.operation == "aten.fill" and value == 0)
    return [[None] * len(layout.boxes) if is_zero else flow.none(layout)]
