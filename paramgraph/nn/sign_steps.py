"""The steps between matrix products of ``sign_update``: by PyTorch, or by compiled code.

Both forms compute the same; the compiled one (``engine/sign.cpp``) passes once over what it reads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from paramgraph.engine import address, library, runs_natively, type_name, workspace

__all__ = ["CompiledSteps", "PlainSteps", "steps_for"]

Optional = Tensor | None
_EPS = 1e-5  # of LayerNorm


class PlainSteps:
    """With PyTorch.

    Attributes:
        joins_again: Whether z is made anew on the way back: cheaper than fresh memory for it, if it
            is made in one pass.
    """

    joins_again = False

    def join(
        self, own: Optional, message: Tensor, bias: Tensor, other: Optional, factor: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Z of all parts (``None`` is left out), its magnitudes, and 1 / sqrt(1 + factor |z|^2)."""
        both = None if own is None else message.abs().mul_(own)
        pieces = (own, message, bias, other, both)
        z = torch.cat([piece for piece in pieces if piece is not None], dim=1)
        bound = torch.linalg.vector_norm(z, dim=1, keepdim=True)
        return z, z.abs(), bound.square_().mul_(factor).add_(1).rsqrt_()

    def activate(
        self, x: Tensor, norm: Tensor, norm_bias: Tensor, mask: Optional
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """SiLU of the layer norm, masked; and what the way back needs."""
        unit, mean, scale = torch.native_layer_norm(x, norm.shape, norm, norm_bias, _EPS)
        active = F.silu(unit)
        return (active if mask is None else active.mul_(mask)), (mean, scale, unit)

    def gate(self, moved: Tensor, gate: Tensor, bound: Tensor) -> Tensor:
        """``moved * gate * bound``."""
        return (moved * gate).mul_(bound)

    def gate_back(
        self, grad: Tensor, moved: Tensor, gate: Tensor, bound: Tensor, factor: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of gate and moved; what z is multiplied by for that of the bound."""
        grad = grad * bound
        of_gate = grad * moved
        of_moved = grad.mul_(gate)
        # d (1 + q s)^(-1/2) / dz = -s bound^3 z, and one bound is in the gradient already.
        size = (of_moved * moved).sum(1, keepdim=True)
        return of_gate, of_moved, size.mul_(bound).mul_(bound).mul_(-factor)

    def activate_back(
        self,
        grad: Tensor,
        x: Tensor,
        norm: Tensor,
        norm_bias: Tensor,
        mask: Optional,
        kept: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of x, of both weights of the norm, and their sum over rows."""
        mean, scale, unit = kept
        if mask is not None:
            grad.mul_(mask)
        of_x, of_norm, of_bias = torch.ops.aten.native_layer_norm_backward(
            torch.ops.aten.silu_backward.grad_input(grad, unit, grad_input=grad),
            *(x, norm.shape, mean, scale, norm, norm_bias, [True, True, True]),
        )
        return of_x, of_norm, of_bias, of_x.sum(0)

    def part(
        self,
        z: Tensor,
        known: Tensor,
        of_known: Tensor,
        of_z: Tensor,
        size: Tensor,
        own: Optional,
        message: Tensor,
        bias: Tensor,
        other: Optional,
    ) -> list[Optional]:
        """Gradients of the parts of z."""
        sign = z.sign()
        flows = (known * size).add_(of_known).mul_(sign).add_(of_z)  # z = sign(z) known
        pieces = iter(flows.split(message.shape[1], dim=1))
        found = [None if p is None else next(pieces) for p in (own, message, bias, other)]
        if own is not None and found[0] is not None and found[1] is not None:
            both = next(pieces)
            found[0].addcmul_(both, message.abs())
            found[1].addcmul_(both.mul_(own), message.sign())
        return found


class CompiledSteps(PlainSteps):
    """With ``engine/sign.cpp``; see ``PlainSteps`` for what each step is."""

    joins_again = True

    def _call(self, name: str, tensors: Sequence[Optional], width: int, *factor: float) -> None:
        compiled = library("sign")[0]
        assert compiled is not None
        first = next(t for t in tensors if t is not None)
        function = getattr(compiled, f"{name}_{type_name(first.dtype)}")
        numbers = [ctypes.c_void_p(address(t)) for t in tensors]
        rows = ctypes.c_long(self._rows(tensors))
        function(*numbers, rows, ctypes.c_long(width), *map(ctypes.c_double, factor))

    def _rows(self, tensors: Sequence[Optional]) -> int:
        return max(t.shape[0] for t in tensors if t is not None and t.ndim == 2)

    def join(
        self, own: Optional, message: Tensor, bias: Tensor, other: Optional, factor: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One pass, into buffers that are used again."""
        parts = [_contiguous(part) for part in (own, message, bias, other)]
        num = sum(part is not None for part in (*parts, own))
        n, dim = message.shape
        space = workspace(message)
        z, known = (space.get(name, (n, num * dim)) for name in ("z", "known"))
        bound = message.new_empty(n, 1)
        self._call("join", (*parts, z, known, bound), dim, factor)
        return z, known, bound

    def activate(
        self, x: Tensor, norm: Tensor, norm_bias: Tensor, mask: Optional
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One pass; the normed features are made anew on the way back."""
        active = torch.empty_like(x)
        mean, scale = x.new_empty(len(x), 1), x.new_empty(len(x), 1)
        tensors = x, norm, norm_bias, _contiguous(mask), active, mean, scale
        self._call("activate", tensors, x.shape[1])
        return active, (mean, scale)

    def gate(self, moved: Tensor, gate: Tensor, bound: Tensor) -> Tensor:
        """One pass."""
        out = torch.empty_like(moved)
        self._call("gate_all", (moved, gate, bound, out), moved.shape[1])
        return out

    def gate_back(
        self, grad: Tensor, moved: Tensor, gate: Tensor, bound: Tensor, factor: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One pass."""
        of_gate, of_moved = torch.empty_like(moved), torch.empty_like(moved)
        size = torch.empty_like(bound)
        tensors = grad.contiguous(), moved, gate, bound, of_gate, of_moved, size
        self._call("gate_back", tensors, moved.shape[1], factor)
        return of_gate, of_moved, size

    def activate_back(
        self,
        grad: Tensor,
        x: Tensor,
        norm: Tensor,
        norm_bias: Tensor,
        mask: Optional,
        kept: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One pass, in place."""
        sums = [torch.zeros_like(norm) for _ in range(3)]
        tensors = x, norm, norm_bias, _contiguous(mask), *kept, grad, *sums
        self._call("activate_back", tensors, x.shape[1])
        return grad, sums[0], sums[1], sums[2]

    def part(
        self,
        z: Tensor,
        known: Tensor,
        of_known: Tensor,
        of_z: Tensor,
        size: Tensor,
        own: Optional,
        message: Tensor,
        bias: Tensor,
        other: Optional,
    ) -> list[Optional]:
        """One pass."""
        own, message = _contiguous(own), message.contiguous()
        found = [
            None if p is None else torch.empty_like(message) for p in (own, message, bias, other)
        ]
        tensors = z, of_known, of_z, size, own, message, *found
        self._call("part", tensors, message.shape[1])
        return found


def _contiguous(tensor: Optional) -> Optional:
    return None if tensor is None else tensor.contiguous()


def steps_for(like: Tensor) -> PlainSteps:
    """The steps for signals ``[n, dim]`` of this width, dtype and device."""
    return CompiledSteps() if runs_natively(like, "sign") else PlainSteps()
