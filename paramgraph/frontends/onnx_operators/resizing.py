"""Resizing of images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from paramgraph.frontends.onnx_operators.registry import Call, operator

__all__: list[str] = []


@operator("Resize", "Upsample")
def _resize(call: Call, x: Tensor, *inputs: Tensor | None) -> Tensor:
    if call.kind == "Upsample" or call.opset < 11:
        scales = inputs[0] if inputs else None
        numbers = call.get("scales") if scales is None else scales.tolist()
        sizes = None
        transform, nearest = "asymmetric", "floor"
    else:
        _, scales, given = (*inputs, None, None, None)[:3]
        numbers = scales.tolist() if scales is not None and scales.numel() else None
        sizes = given.tolist() if given is not None and given.numel() else None
        transform = call.get("coordinate_transformation_mode", "half_pixel")
        nearest = call.get("nearest_mode", "round_prefer_floor")
    if call.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise call.error("keep_aspect_ratio_policy is used")
    axes = call.get("axes", list(range(x.dim())))
    new, factors = list(x.shape), [1.0] * x.dim()
    for place, axis in enumerate(axes):
        if sizes is not None:
            new[axis] = int(sizes[place])
            factors[axis] = new[axis] / x.shape[axis]
        else:
            factors[axis] = float(numbers[place])
            new[axis] = int(x.shape[axis] * factors[axis])
    mode = call.get("mode", "nearest")
    if mode == "nearest":
        return _nearest(call, x, new, factors, transform, nearest)
    return _smooth(call, x, new, factors, transform, sizes is not None)


def _smooth(
    call: Call, x: Tensor, new: list[int], factors: list[float], transform: str, is_size: bool
) -> Tensor:
    mode = call.get("mode")
    names = {("linear", 1): "linear", ("linear", 2): "bilinear", ("linear", 3): "trilinear",
             ("cubic", 2): "bicubic"}  # fmt: skip
    rank = x.dim() - 2
    known = transform in ("half_pixel", "pytorch_half_pixel", "align_corners")
    cubic_is_ours = mode != "cubic" or abs(call.get("cubic_coeff_a", -0.75) + 0.75) < 1e-6
    unchanged = new[:2] == list(x.shape[:2])
    # Where torch computes other coordinates than ONNX.
    is_whole = all(f * size == size_ for f, size, size_ in zip(factors, x.shape, new, strict=True))
    differs = transform == "align_corners" and not is_whole
    differs |= transform == "pytorch_half_pixel" and 1 in new[2:]
    differs |= bool(call.get("antialias", 0) or call.get("exclude_outside", 0))
    if (mode, rank) not in names or not (known and cubic_is_ours and unchanged) or differs:
        raise call.error(
            f"resizing with mode {mode!r}, coordinates {transform!r}, from {list(x.shape)} to {new}"
        )
    options: dict[str, Any] = {"mode": names[mode, rank], "align_corners": False}
    if transform == "align_corners":
        options["align_corners"] = True
    if is_size or transform == "align_corners":
        return F.interpolate(x, size=new[2:], **options)
    return F.interpolate(x, scale_factor=factors[2:], recompute_scale_factor=False, **options)


def _nearest(
    call: Call, x: Tensor, new: list[int], factors: list[float], transform: str, rounding: str
) -> Tensor:
    is_whole = all(float(f).is_integer() for f in factors)
    if (
        new[:2] == list(x.shape[:2])
        and x.dim() in (3, 4, 5)
        and (
            (transform == "asymmetric" and rounding == "floor")
            or (is_whole and transform == "half_pixel" and rounding.startswith("round"))
        )
    ):
        return F.interpolate(x, size=new[2:], mode="nearest")
    for axis, (size, factor) in enumerate(zip(new, factors, strict=True)):
        if size != x.shape[axis]:
            place = _places(call, x.shape[axis], size, factor, transform, rounding)
            x = x.index_select(axis, place.to(x.device))
    return x


def _places(call: Call, old: int, new: int, factor: float, transform: str, rounding: str) -> Tensor:
    """For each new position the old one that it shows."""
    at = torch.arange(new, dtype=torch.float64)
    if transform == "align_corners":
        at = at * ((old - 1) / (new - 1)) if new > 1 else at * 0
    elif transform == "asymmetric":
        at = at / factor
    elif transform in ("half_pixel", "pytorch_half_pixel"):
        at = (at + 0.5) / factor - 0.5
    else:
        raise call.error(f"coordinate_transformation_mode {transform!r} of nearest")
    rounded = {
        "floor": at.floor(),
        "ceil": at.ceil(),
        "round_prefer_floor": (at - 0.5).ceil(),
        "round_prefer_ceil": (at + 0.5).floor(),
    }[rounding]
    return rounded.long().clamp(0, old - 1)


@operator("GridSample")
def _grid_sample(call: Call, x: Tensor, grid: Tensor) -> Tensor:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(
        call.get("mode", "linear"), call.get("mode", "bilinear")
    )
    padding = call.get("padding_mode", "zeros")
    return F.grid_sample(x, grid, mode, padding, bool(call.get("align_corners", 0)))
