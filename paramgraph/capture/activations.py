"""Pointwise chains: what was applied to a neuron, its name, and which scalings pass through it."""

from __future__ import annotations

from collections.abc import Sequence

from paramgraph.structure import Activation

__all__ = ["Chain", "is_odd", "is_positively_homogeneous", "name_activation", "token"]

Chain = tuple[str, ...]
"""Tokens such as ``("mul(30)", "sin")``, in the order they were applied."""

_NAMES = {
    "relu": Activation.RELU,
    "leaky_relu": Activation.LEAKY_RELU,
    "prelu": Activation.LEAKY_RELU,
    "gelu": Activation.GELU,
    "silu": Activation.SILU,
    "tanh": Activation.TANH,
    "sigmoid": Activation.SIGMOID,
    "celu": Activation.CELU,
    "softplus": Activation.SOFTPLUS,
    "mish": Activation.MISH,
    "hardswish": Activation.HARDSWISH,
    "hardsigmoid": Activation.HARDSIGMOID,
    "log_sigmoid_forward": Activation.LOGSIGMOID,
    "sin": Activation.SINE,
    "cos": Activation.COSINE,
    "exp": Activation.EXP,
    "square": Activation.SQUARE,
    "abs": Activation.ABS,
    "softmax": Activation.SOFTMAX,
    "centre": Activation.NONE,
    "log_softmax": Activation.SOFTMAX,
    "div[|abs add(1)]": Activation.SOFTSIGN,
    "sub[|tanh]": Activation.TANHSHRINK,
    "mul[|sigmoid]": Activation.SILU,
}
_ODD = {
    *("tanh", "sin", "erf", "atan", "asinh", "sinh", "sign", "softshrink", "hardshrink", "neg"),
    *("div[|abs add(1)]", "sub[|tanh]"),
}
_POSITIVE = {"relu", "leaky_relu", "abs", "neg"}


def token(name: str, constants: Sequence[float]) -> str:
    """One step of a chain.

    Example:
        >>> token("mul", [30.0]), token("relu", [])
        ('mul(30)', 'relu')
    """
    return f"{name}({','.join(f'{c:.9g}' for c in constants)})" if constants else name


def _stem(step: str) -> str:
    return step if "[" in step else step.partition("(")[0]


def _arguments(step: str) -> list[float]:
    inside = step.partition("(")[2].rstrip(")")
    return [float(c) for c in inside.split(",")] if inside and "[" not in step else []


def name_activation(chain: Chain) -> tuple[Activation, float]:
    """The activation that a chain is, and the frequency of a sine.

    Constants that are added or multiplied do not change the name.

    Example:
        >>> name_activation(("mul(30)", "sin"))
        (<Activation.SINE: 'sine'>, 30.0)
        >>> name_activation(("hardtanh(0,6)",))
        (<Activation.RELU6: 'relu6'>, 1.0)
        >>> name_activation(("cumprod", "relu"))
        (<Activation.OTHER: 'other'>, 1.0)
    """
    omega = 1.0
    core: list[str] = []
    for step in chain:
        if _stem(step) in ("mul", "add", "neg", "mask"):
            if _stem(step) == "mul" and not core and _arguments(step):
                omega *= _arguments(step)[0]
        else:
            core.append(step)
    if not core:
        return Activation.NONE, 1.0
    if len(core) > 1:
        return Activation.OTHER, 1.0
    stem, arguments = _stem(core[0]), _arguments(core[0])
    if stem == "hardtanh":
        return (Activation.RELU6 if arguments == [0, 6] else Activation.HARDTANH), 1.0
    if stem == "elu":
        return (Activation.SELU if len(arguments) > 1 else Activation.ELU), 1.0
    if stem == "pow":
        return (Activation.SQUARE if arguments == [2] else Activation.OTHER), 1.0
    activation = _NAMES.get(stem, Activation.OTHER)
    periodic = activation in (Activation.SINE, Activation.COSINE)
    return activation, omega if periodic else 1.0


def is_odd(chain: Chain) -> bool:
    """Whether f(-x) = -f(x), so that signs pass through.

    Example:
        >>> is_odd(("mul(30)", "sin")), is_odd(("relu",))
        (True, False)
    """

    def odd(step: str) -> bool:
        if _stem(step) == "hardtanh":
            low, high = _arguments(step)
            return low == -high
        return _stem(step) in _ODD or _stem(step) == "mul"

    return all(odd(step) for step in chain)


def is_positively_homogeneous(chain: Chain) -> bool:
    """Whether f(q x) = q f(x) for q > 0, so that positive scales pass through.

    Example:
        >>> is_positively_homogeneous(("leaky_relu(0.01)",)), is_positively_homogeneous(("tanh",))
        (True, False)
    """
    return all(_stem(step) in _POSITIVE or _stem(step) == "mul" for step in chain)
