"""Small networks, one hazard each: what tests of capture and of metanetworks run on.

``make()`` returns the same weights each time and leaves the global random state alone. No weight
has a default value: gains are not 1, biases and running statistics not 0, so that a wrong
permutation cannot hide.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "HAZARDS",
    "Hazard",
    "Wired",
    "as_double",
    "by_name",
    "make_hazard",
    "outputs",
    "randomise",
    "vectors",
    "zeros",
]

ExampleInputs = Tensor | tuple[Any, ...] | dict[str, Any]


class Wired(nn.Module):
    """Parts (modules or parameters), and a function of itself and the inputs as its forward."""

    def __init__(self, wiring: Callable[..., Any], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.wiring = wiring
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        return self.wiring(self, *inputs, **named)


@dataclass(frozen=True)
class Hazard:
    """A network with one thing that can go wrong.

    Attributes:
        name: What can go wrong.
        make: Builds the network, with the same weights each time.
        example_inputs: What to call it with; a batch of three or more.
    """

    name: str
    make: Callable[[], nn.Module]
    example_inputs: ExampleInputs

    def __str__(self) -> str:
        return self.name


def randomise(network: nn.Module, seed: int) -> nn.Module:
    """Give every parameter and running statistic a value of its own, and set evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        # The scale of a layer's input, so that deep networks neither vanish nor explode.
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.7
        parameter.data = (scale * noise + (0.1 if parameter.ndim > 1 else 0.4)).to(parameter.dtype)
    for name, buffer in network.named_buffers():
        if buffer.is_floating_point():
            noise = torch.randn(buffer.shape, generator=generator, dtype=torch.float64)
            value = noise.exp() if name.endswith("running_var") else noise
            buffer.copy_(value.to(buffer.dtype))
    return network.eval()


def vectors(*shape: int, seed: int = 0) -> Tensor:
    """Float32 example inputs that are the same each time."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float32)


def as_double(inputs: Any) -> Any:
    """The same example inputs in float64; indices stay whole numbers."""
    if isinstance(inputs, Tensor):
        return inputs.double() if inputs.is_floating_point() else inputs
    if isinstance(inputs, dict):
        return {name: as_double(value) for name, value in inputs.items()}
    return tuple(as_double(value) for value in inputs)


def outputs(network: nn.Module, inputs: Any) -> list[Tensor]:
    """What the network returns, as a list of tensors."""
    with torch.no_grad():
        if isinstance(inputs, dict):
            result = network(**inputs)
        else:
            result = network(*inputs) if isinstance(inputs, tuple) else network(inputs)
    if isinstance(result, Tensor):
        return [result]
    return list(result.values() if isinstance(result, dict) else result)


def make_hazard(name: str, build: Callable[[], nn.Module], inputs: ExampleInputs) -> Hazard:
    """A hazard whose weights follow from its name."""

    def make() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            # Built in float32 whatever the default of the test: call .double() where needed.
            return randomise(build().float(), zlib.crc32(name.encode()))

    return Hazard(name, make, inputs)


def zeros(*shape: int) -> nn.Parameter:
    """A bare parameter; ``make_hazard`` gives it its values."""
    return nn.Parameter(torch.zeros(shape))


_vector, _image, _series = vectors(4, 3), vectors(3, 1, 6, 6), vectors(3, 2, 12)
_relu = torch.relu


def _mlp() -> nn.Module:
    layers = [nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)]
    return nn.Sequential(*layers)


def _mixed_activations() -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.ReLU(inplace=True)),
        *(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4), nn.Softsign(), nn.Linear(4, 2)),
    )


def _no_bias() -> nn.Module:
    first, second = nn.Linear(3, 5, bias=False), nn.Linear(5, 2, bias=False)
    return nn.Sequential(first, nn.LeakyReLU(), second)


def _strided_cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 3, 3, padding=2, dilation=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(3, 4, 2, stride=2, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
    )


def _cnn_1d() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv1d(2, 4, 3, dilation=2), nn.LeakyReLU(), nn.Conv1d(4, 3, 2, stride=2), nn.Tanh()),
        *(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(3, 2)),
    )


def _flatten() -> nn.Module:
    convolution = [nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*convolution, nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2))


def _permute_then_flatten() -> nn.Module:
    def wiring(n: Any, x: Tensor) -> Tensor:
        return n.head(_relu(n.conv(x)).permute(0, 2, 3, 1).flatten(1))

    return Wired(wiring, conv=nn.Conv2d(1, 4, 4), head=nn.Linear(36, 2))


def _residual_mlp() -> nn.Module:
    def wiring(n: Any, x: Tensor) -> Tensor:
        hidden = _relu(n.first(x))
        return n.head(hidden + n.up(_relu(n.down(hidden))))

    first, down, up = nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(4, 5)
    return Wired(wiring, first=first, down=down, up=up, head=nn.Linear(5, 2))


def _resnet() -> nn.Module:
    def wiring(n: Any, x: Tensor) -> Tensor:
        stem = _relu(n.stem(x))
        first = _relu(n.bn2(n.conv2(_relu(n.bn1(n.conv1(stem))))) + n.projection(stem))
        second = _relu(n.conv3(first) + first)
        return n.head(second.mean((2, 3)))

    return Wired(
        wiring,
        **{
            "stem": nn.Conv2d(1, 2, 3, stride=2),
            "conv1": nn.Conv2d(2, 3, 3, padding=1, bias=False),
        },
        **{"bn1": nn.BatchNorm2d(3), "conv2": nn.Conv2d(3, 3, 1, bias=False)},
        **{"bn2": nn.BatchNorm2d(3), "projection": nn.Conv2d(2, 3, 1)},
        **{"conv3": nn.Conv2d(3, 3, 1), "head": nn.Linear(3, 2)},
    )


def _preactivation_residual() -> nn.Module:
    def wiring(n: Any, x: Tensor) -> Tensor:
        stream = n.first(x)
        stream = stream + n.mix(_relu(n.norm(stream)))
        return n.head(stream)

    first, norm, mix = nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 5)
    return Wired(wiring, first=first, norm=norm, mix=mix, head=nn.Linear(5, 2))


def _batch_norm() -> nn.Module:
    norm = nn.BatchNorm1d(5)
    return nn.Sequential(nn.Linear(3, 5), norm, nn.ReLU(), nn.Linear(5, 2))


def _batch_norm_without_affine() -> nn.Module:
    norm = nn.BatchNorm1d(5, affine=False)
    return nn.Sequential(nn.Linear(3, 5), norm, nn.Tanh(), nn.Linear(5, 2))


def _layer_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.SiLU(), nn.Linear(5, 2))


def _group_norm() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 2), nn.GroupNorm(3, 6), nn.SiLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)),
    )


def _depthwise() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 2), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
    )


def _tied() -> nn.Module:
    shared = nn.Linear(4, 4)
    return nn.Sequential(
        *(nn.Linear(3, 4), nn.ReLU(), shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(4, 2))
    )


def _unused_parameter() -> nn.Module:
    def wiring(n: Any, x: Tensor) -> Tensor:
        n.idle(x)  # runs, but nothing reads the result
        return n.head(_relu(n.first(x)))

    first, idle, head = nn.Linear(3, 5), nn.Linear(3, 5), nn.Linear(5, 2)
    return Wired(wiring, first=first, idle=idle, head=head)


def _two_inputs() -> nn.Module:
    def wiring(n: Any, x: Tensor, y: Tensor) -> Tensor:
        return n.head(_relu(n.left(x) + n.right(y)))

    left, right = nn.Linear(3, 5), nn.Linear(2, 5, bias=False)
    return Wired(wiring, left=left, right=right, head=nn.Linear(5, 2))


def _raw_parameters() -> nn.Module:
    def wiring(n: Any, x: Tensor) -> Tensor:
        return _relu(x @ n.w + n.b) @ n.v.t()

    return Wired(wiring, w=zeros(3, 5), b=zeros(5), v=zeros(2, 5))


def _siren() -> nn.Module:
    def wiring(n: Any, x: Tensor) -> Tensor:
        hidden = torch.sin(30.0 * n.first(x))
        return n.head(torch.sin(30.0 * n.second(hidden))) + 0.5

    return Wired(wiring, first=nn.Linear(2, 5), second=nn.Linear(5, 5), head=nn.Linear(5, 1))


def _raw_and_activated() -> nn.Module:
    def wiring(n: Any, x: Tensor) -> Tensor:
        hidden = n.first(x)
        return n.head(_relu(hidden)) + n.bypass(hidden)

    first, head, bypass = nn.Linear(3, 5), nn.Linear(5, 2), nn.Linear(5, 2, bias=False)
    return Wired(wiring, first=first, head=head, bypass=bypass)


def _dict_output() -> nn.Module:
    def wiring(n: Any, x: Tensor) -> dict[str, Tensor]:
        hidden = torch.tanh(n.first(x))
        return {"logits": n.logits(hidden), "value": n.value(hidden)}

    first, logits, value = nn.Linear(3, 5), nn.Linear(5, 2), nn.Linear(5, 1)
    return Wired(wiring, first=first, logits=logits, value=value)


def _width_one() -> nn.Module:
    layers = [nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1)]
    return nn.Sequential(*layers)


HAZARDS: list[Hazard] = [
    make_hazard("mlp", _mlp, _vector),
    make_hazard("mixed_activations", _mixed_activations, _vector),
    make_hazard("no_bias", _no_bias, _vector),
    make_hazard("strided_cnn", _strided_cnn, _image),
    make_hazard("cnn_1d", _cnn_1d, _series),
    make_hazard("flatten", _flatten, _image),
    make_hazard("permute_then_flatten", _permute_then_flatten, _image),
    make_hazard("residual_mlp", _residual_mlp, _vector),
    make_hazard("resnet", _resnet, _image),
    make_hazard("preactivation_residual", _preactivation_residual, _vector),
    make_hazard("batch_norm", _batch_norm, _vector),
    make_hazard("batch_norm_without_affine", _batch_norm_without_affine, _vector),
    make_hazard("layer_norm", _layer_norm, _vector),
    make_hazard("group_norm", _group_norm, _image),
    make_hazard("depthwise", _depthwise, _image),
    make_hazard("tied", _tied, _vector),
    make_hazard("unused_parameter", _unused_parameter, _vector),
    make_hazard("two_inputs", _two_inputs, (_vector, vectors(4, 2, seed=1))),
    make_hazard("raw_parameters", _raw_parameters, _vector),
    make_hazard("siren", _siren, vectors(6, 2)),
    make_hazard("raw_and_activated", _raw_and_activated, _vector),
    make_hazard("dict_output", _dict_output, {"x": _vector}),
    make_hazard("width_one", _width_one, vectors(4, 1)),
]


def by_name(name: str) -> Hazard:
    """The hazard of that name."""
    return next(hazard for hazard in HAZARDS if hazard.name == name)
