"""Hazards of convolutional networks: joined, grouped, shuffled and transposed channels."""

from __future__ import annotations

from typing import Any

import torch
from networks import Hazard, Wired, make_hazard, vectors, zeros
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["CONVOLUTION_HAZARDS"]

_relu = torch.relu


def _dense_concat() -> nn.Module:
    def wiring(n: Any, x: Tensor) -> Tensor:
        seen = [_relu(n.stem(x))]
        for norm, conv in zip(n.norms, n.convs, strict=True):
            seen.append(conv(_relu(norm(torch.cat(seen, 1)))))
        return n.head(_relu(n.transition(torch.cat(seen, 1))).mean((2, 3)))

    return Wired(
        wiring,
        stem=nn.Conv2d(1, 3, 3),
        norms=nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(5)]),
        convs=nn.ModuleList([nn.Conv2d(3, 2, 3, padding=1), nn.Conv2d(5, 2, 3, padding=1)]),
        transition=nn.Conv2d(7, 4, 1),
        head=nn.Linear(4, 2),
    )


def _squeeze_excite() -> nn.Module:
    def wiring(n: Any, x: Tensor) -> Tensor:
        stem = functional.relu6(n.stem(x))
        wide = functional.relu6(n.norm1(n.expand(stem)))
        wide = functional.hardswish(n.norm2(n.depthwise(wide)))
        squeezed = functional.leaky_relu(n.squeeze(wide.mean((2, 3), keepdim=True)))
        wide = wide * torch.sigmoid(n.excite(squeezed))
        return n.head((stem + n.project(wide)).mean((2, 3)))

    return Wired(
        wiring,
        **{"stem": nn.Conv2d(1, 4, 3), "expand": nn.Conv2d(4, 6, 1, bias=False)},
        **{"norm1": nn.BatchNorm2d(6), "norm2": nn.BatchNorm2d(6)},
        **{"depthwise": nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)},
        **{"squeeze": nn.Conv2d(6, 2, 1), "excite": nn.Conv2d(2, 6, 1)},
        **{"project": nn.Conv2d(6, 4, 1), "head": nn.Linear(4, 2)},
    )


def _u_net() -> nn.Module:
    def wiring(n: Any, x: Tensor) -> Tensor:
        fine = _relu(n.fine(x))
        coarse = _relu(n.coarse(fine))
        coarse = functional.leaky_relu(n.middle(coarse))
        joined = torch.cat([fine, n.up(coarse)], 1)
        return n.out(_relu(n.decode(joined)))

    return Wired(
        wiring,
        **{"fine": nn.Conv2d(1, 2, 3, padding=1), "coarse": nn.Conv2d(2, 4, 2, stride=2)},
        **{"middle": nn.Conv2d(4, 5, 1), "up": nn.ConvTranspose2d(5, 3, 2, stride=2)},
        **{"decode": nn.Conv2d(5, 3, 1), "out": nn.Conv2d(3, 1, 1)},
    )


def _grouped_conv() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 2), nn.ReLU(), nn.Conv2d(6, 9, 3, groups=3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(9, 2)),
    )


def _grouped_transposed_conv() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 6, 2, groups=2), nn.Tanh()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)),
    )


def _channel_shuffle() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 1, groups=2), nn.ReLU()),
        *(nn.ChannelShuffle(2), nn.Conv2d(8, 6, 3, groups=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)),
    )


def _conv_3d() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv3d(1, 3, 2), nn.ReLU(), nn.MaxPool3d(2, stride=1), nn.Conv3d(3, 4, 2), nn.ReLU()),
        *(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 2)),
    )


def _group_norm_grouped_conv() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 12, 2, groups=4)),
        *(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 2)),
    )


def _group_norm_of_concat() -> nn.Module:
    """As in the U-Nets of diffusion: the groups of the norm are counted across the joint."""

    def wiring(n: Any, x: Tensor) -> Tensor:
        joined = torch.cat([n.left(x), n.right(x)], 1)
        return n.head(functional.silu(n.norm(joined)).mean((2, 3)))

    left, right, norm = nn.Conv2d(1, 4, 2), nn.Conv2d(1, 2, 2), nn.GroupNorm(3, 6)
    return Wired(wiring, left=left, right=right, norm=norm, head=nn.Linear(6, 2))


def _excite_after_group_norm() -> nn.Module:
    """Channels within groups, and a matrix that has them on both of its axes."""

    def wiring(n: Any, x: Tensor) -> Tensor:
        hidden = torch.tanh(n.norm(n.stem(x)))
        hidden = hidden * torch.sigmoid(n.excite(hidden.mean((2, 3))))[..., None, None]
        return n.head(hidden.amax((2, 3)))

    stem, norm, excite = nn.Conv2d(1, 6, 2), nn.GroupNorm(3, 6), nn.Linear(6, 6)
    return Wired(wiring, stem=stem, norm=norm, excite=excite, head=nn.Linear(6, 2))


def _shuffled_halves() -> nn.Module:
    """ShuffleNet v2: one half passes, the other is transformed, then both are interleaved."""

    def wiring(n: Any, x: Tensor) -> Tensor:
        x = _relu(n.stem(x))
        for unit in (n.unit1, n.unit2):
            passed, changed = x.chunk(2, dim=1)
            x = functional.channel_shuffle(torch.cat([passed, unit(changed)], 1), 2)
        return n.head(x.mean((2, 3)))

    def unit() -> nn.Module:
        depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        return nn.Sequential(
            nn.Conv2d(4, 4, 1), nn.ReLU(), depthwise, nn.Conv2d(4, 4, 1), nn.Tanh()
        )

    stem, head = nn.Conv2d(1, 8, 4), nn.Linear(8, 2)
    return Wired(wiring, stem=stem, unit1=unit(), unit2=unit(), head=head)


def _instance_norm() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 3, 3), nn.InstanceNorm2d(3, affine=True), nn.ReLU(), nn.Conv2d(3, 4, 2)),
        *(nn.InstanceNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(4, 2),
    )


def _pixel_shuffle() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 8, 1), nn.PixelShuffle(2), nn.ReLU()),
        nn.Conv2d(2, 1, 3),
    )


def _generator() -> nn.Module:
    return nn.Sequential(
        *(nn.ConvTranspose2d(3, 4, 2, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.ConvTranspose2d(4, 3, 3, stride=2, bias=False), nn.BatchNorm2d(3), nn.ReLU()),
        *(nn.ConvTranspose2d(3, 1, 2, bias=False), nn.Tanh()),
    )


def _channels_last_block() -> nn.Module:
    """A ConvNeXt block: normalised and mixed with channels last, scaled per channel."""

    def wiring(n: Any, x: Tensor) -> Tensor:
        stream = n.stem(x)
        mixed = n.norm(n.depthwise(stream).permute(0, 2, 3, 1))
        mixed = n.gamma * n.down(functional.gelu(n.up(mixed)))
        stream = stream + mixed.permute(0, 3, 1, 2)
        return n.head(stream.mean((-2, -1)))

    return Wired(
        wiring,
        **{"stem": nn.Conv2d(1, 4, 2, stride=2), "norm": nn.LayerNorm(4)},
        **{"depthwise": nn.Conv2d(4, 4, 3, padding=1, groups=4)},
        gamma=zeros(4),
        **{"up": nn.Linear(4, 6), "down": nn.Linear(6, 4), "head": nn.Linear(4, 2)},
    )


def _mixer() -> nn.Module:
    def wiring(n: Any, x: Tensor) -> Tensor:
        stream = n.embed(x)
        tokens = n.norm1(stream).transpose(1, 2)
        tokens = n.token_down(functional.gelu(n.token_up(tokens)))
        stream = stream + tokens.transpose(1, 2)
        stream = stream + n.down(functional.gelu(n.up(n.norm2(stream))))
        return n.head(stream.mean(1))

    return Wired(
        wiring,
        **{"embed": nn.Linear(3, 5), "norm1": nn.LayerNorm(5), "norm2": nn.LayerNorm(5)},
        **{"token_up": nn.Linear(4, 3), "token_down": nn.Linear(3, 4)},
        **{"up": nn.Linear(5, 6), "down": nn.Linear(6, 5), "head": nn.Linear(5, 2)},
    )


def _tri_plane() -> nn.Module:
    """Features of three axis-aligned planes, sampled at points and summed."""

    def wiring(n: Any, points: Tensor) -> Tensor:
        pairs = torch.stack([points[:, [0, 1]], points[:, [0, 2]], points[:, [1, 2]]])
        sampled = functional.grid_sample(n.planes, pairs[:, None], align_corners=True)
        features = sampled[:, :, 0].sum(0).t()
        return n.head(_relu(n.mix(features)))

    return Wired(wiring, planes=zeros(3, 4, 3, 3), mix=nn.Linear(4, 5), head=nn.Linear(5, 1))


_image = vectors(3, 1, 6, 6)

CONVOLUTION_HAZARDS: list[Hazard] = [
    make_hazard("dense_concat", _dense_concat, _image),
    make_hazard("squeeze_excite", _squeeze_excite, _image),
    make_hazard("u_net", _u_net, _image),
    make_hazard("grouped_conv", _grouped_conv, _image),
    make_hazard("grouped_transposed_conv", _grouped_transposed_conv, _image),
    make_hazard("channel_shuffle", _channel_shuffle, _image),
    make_hazard("conv_3d", _conv_3d, vectors(3, 1, 4, 4, 4)),
    make_hazard("group_norm_grouped_conv", _group_norm_grouped_conv, _image),
    make_hazard("group_norm_of_concat", _group_norm_of_concat, _image),
    make_hazard("excite_after_group_norm", _excite_after_group_norm, _image),
    make_hazard("shuffled_halves", _shuffled_halves, _image),
    make_hazard("instance_norm", _instance_norm, _image),
    make_hazard("pixel_shuffle", _pixel_shuffle, _image),
    make_hazard("generator", _generator, vectors(3, 3, 1, 1)),
    make_hazard("channels_last_block", _channels_last_block, _image),
    make_hazard("mixer", _mixer, vectors(3, 4, 3)),
    make_hazard("tri_plane", _tri_plane, vectors(6, 3).tanh()),
]
