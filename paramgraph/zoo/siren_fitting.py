"""Fits many SIRENs at once: one Adam step for a stack of INRs that share their points.

Where the time goes, and what is done about it (28 x 28 points, widths 32, one core):

* matrix products are about half; they run as one ``bmm`` per layer;
* the rest is passes over ``[num, width, points]`` arrays. A micro-batch is small enough for the
  processor's cache, the backward pass is written by hand so that sine and cosine come from one
  range reduction, and ``torch.compile`` fuses each layer into one pass;
* micro-batches run in Python threads of one core each (the kernels are long, so the interpreter
  lock does not matter), which no synchronisation slows down when other work shares the machine.
"""

import functools
import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.polynomial import Chebyshev, Polynomial
from torch import Tensor

from paramgraph.errors import ZooError
from paramgraph.zoo.siren import Siren
from paramgraph.zoo.threads import run_in_threads

__all__ = ["SirenFitter"]

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8
# Values in the widest layer of one micro-batch: 1.6 MB of float32, of which about five are live.
_MICRO_BATCH_VALUES = 16 * 32 * 784
# Compiling takes about 15 s; below this much work (INRs x steps x points x width) it costs more
# than it saves.
_COMPILE_FROM = 2e10
# glibc returns freed memory to the kernel above a threshold that grows with the largest block ever
# freed (to 32 MB at most); freeing one such block spares every later step its page faults.
_MALLOC_WARMUP_BYTES = 30 * 2**20

_PI_HIGH, _PI_LOW = 3.140625, 9.67653589793e-4  # pi in two parts; k * _PI_HIGH is exact


def _fit_polynomial(function: Callable[[np.ndarray], np.ndarray]) -> list[float]:
    """Return five coefficients, within 5e-8 of ``function(r ** 2)`` for ``|r| <= pi/2``."""
    fitted = Chebyshev.interpolate(function, 4, domain=[0, (math.pi / 2) ** 2])
    return [float(c) for c in fitted.convert(kind=Polynomial).coef]


_SINE = _fit_polynomial(lambda q: np.sinc(np.sqrt(q) / np.pi))  # sin(r) / r
_COSINE = _fit_polynomial(lambda q: np.cos(np.sqrt(q)))

Step = Callable[..., None]


@dataclass(frozen=True)
class SirenFitter:
    """Fits stacks of SIRENs of one architecture on one grid of points.

    Attributes:
        architecture: What to fit.
        points: Coordinates, shape ``[num_points, in_dim]``.
        steps: Number of Adam steps.
        lr: Learning rate; it falls to zero along a cosine.
        micro_batch: INRs per step call.
        is_compiled: Whether the step is compiled.
    """

    architecture: Siren
    points: Tensor
    steps: int
    lr: float
    micro_batch: int
    is_compiled: bool
    _step: Step

    @classmethod
    def create(
        cls,
        architecture: Siren,
        points: Tensor,
        *,
        num: int,
        stack_size: int,
        steps: int,
        lr: float,
        compile: bool | None = None,
    ) -> "SirenFitter":
        """Choose the micro-batch and decide whether compiling pays.

        Args:
            architecture: What to fit.
            points: Coordinates, shape ``[num_points, in_dim]``.
            num: How many INRs will be fitted in all.
            stack_size: How many at most in one call of :meth:`fit`.
            steps: Number of Adam steps.
            lr: Highest learning rate.
            compile: True or False to force it; None to compile if there is much to do and a C++
                compiler works.
        """
        width, num_points = max(architecture.widths), len(points)
        limit = max(1, _MICRO_BATCH_VALUES // (width * num_points))
        # Independent of the number of threads, so that the same seed gives the same bytes.
        micro_batch = math.ceil(stack_size / math.ceil(stack_size / limit))
        work = float(num) * steps * num_points * sum(architecture.widths)
        wanted = work >= _COMPILE_FROM if compile is None else compile
        step = _make_step(architecture, is_compiled=False)
        is_compiled = False
        if wanted:
            compiled = _compile_step(architecture, points, micro_batch)
            is_compiled = compiled is not None
            step = compiled or step
            if compile and not is_compiled:
                raise ZooError(
                    "fitting INRs with compile=True: torch.compile does not work here (see the "
                    "warning). Install a C++ compiler, or leave compile=None."
                )
        return cls(architecture, points, steps, lr, micro_batch, is_compiled, step)

    def fit(
        self,
        state: dict[str, Tensor],
        targets: Tensor,
        on_progress: Callable[[int], None] = lambda num: None,
    ) -> Tensor:
        """Fit a stack of INRs, in place.

        Args:
            state: Stacked initial weights, as :meth:`Siren.sample_parameters` gives them.
            targets: Values at the points, shape ``[num, num_points, out_dim]``.
            on_progress: Called with the number of INRs finished.

        Returns:
            Mean squared error of each INR after the last step, shape ``[num]``.
        """
        num = len(targets)
        errors = targets.new_empty(num)
        starts = range(0, num, self.micro_batch)

        def work(start: int) -> None:
            # A compiled step has one batch size: fill the last micro-batch with repeats.
            rows = torch.arange(start, start + self.micro_batch) % num
            own = {name: value[rows] for name, value in state.items()}
            errors_here = self._fit_micro_batch(own, targets[rows])
            kept = min(self.micro_batch, num - start)
            for name, value in own.items():
                state[name][start : start + kept] = value[:kept]
            errors[start : start + kept] = errors_here[:kept]
            on_progress(kept)

        torch.empty(_MALLOC_WARMUP_BYTES, dtype=torch.uint8)
        run_in_threads(work, starts)
        return errors

    def _fit_micro_batch(self, state: dict[str, Tensor], targets: Tensor) -> Tensor:
        """Fit one micro-batch in place and return the errors."""
        # One flat row per INR: each tensor argument costs a compiled step time in checks, and the
        # optimiser becomes one pass.
        flat = torch.cat([value.flatten(1) for value in state.values()], dim=1)
        first, second = torch.zeros_like(flat), torch.zeros_like(flat)
        # clone and not contiguous: the strides of an axis of size 1 must be the usual ones too, or
        # the step is compiled a second time.
        x = self.points.T.clone(memory_format=torch.contiguous_format)
        t = targets.transpose(1, 2).clone(memory_format=torch.contiguous_format)
        with torch.no_grad():
            for i in range(self.steps):
                lr = 0.5 * self.lr * (1 + math.cos(math.pi * i / self.steps))
                # As tensors: a compiled step would be compiled anew for each number.
                scale = torch.tensor(lr / (1 - _BETA_1 ** (i + 1)), dtype=x.dtype)
                correction = torch.tensor(1 / (1 - _BETA_2 ** (i + 1)), dtype=x.dtype)
                self._step(flat, first, second, x, t, scale, correction)
            layers = _split_layers(self.architecture, flat)
            for value, part in zip(
                state.values(), itertools.chain.from_iterable(layers), strict=True
            ):
                value.copy_(part)
            y = _forward(self.architecture, layers, x)
            return (y - t).square().mean(dim=(1, 2))


def _split_layers(architecture: Siren, flat: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return weight and bias of each layer as views of the flat rows."""
    layers, start = [], 0
    for d_in, d_out in itertools.pairwise(architecture.dims):
        middle, end = start + d_in * d_out, start + (d_in + 1) * d_out
        weight = flat[:, start:middle].unflatten(1, (d_out, d_in))
        layers.append((weight, flat[:, middle:end]))
        start = end
    return layers


def _forward(architecture: Siren, layers: list[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    h = x.expand(len(layers[0][0]), *x.shape)
    for weight, bias in layers[:-1]:
        h = torch.sin(architecture.omega * torch.baddbmm(bias[:, :, None], weight, h))
    weight, bias = layers[-1]
    return torch.baddbmm(bias[:, :, None], weight, h) + architecture.output_offset


def _plain_sincos(z: Tensor) -> tuple[Tensor, Tensor]:
    return z.sin(), z.cos()


def _fast_sincos(z: Tensor) -> tuple[Tensor, Tensor]:
    """Sine and cosine from one range reduction, to about 3e-7 for ``|z| < 1e4``.

    With ``z = k pi + r`` and ``|r| <= pi/2``, both are polynomials in ``r`` times ``(-1)^k``.
    Only worth it compiled, where it is one pass; the library sine and cosine are two slow ones.
    """
    k = torch.round(z * (1 / math.pi))
    r = (z - k * _PI_HIGH) - k * _PI_LOW
    sign = 1 - 2 * (k - 2 * torch.floor(0.5 * k))
    q = r * r
    sine, cosine = _SINE[-1] * q, _COSINE[-1] * q
    for s, c in zip(_SINE[-2:0:-1], _COSINE[-2:0:-1], strict=True):
        sine, cosine = (sine + s) * q, (cosine + c) * q
    return sign * r * (sine + _SINE[0]), sign * (cosine + _COSINE[0])


def _make_step(architecture: Siren, *, is_compiled: bool) -> Step:
    """Return one training step; the two versions compute the same function.

    Compiled code prefers broadcast sums for the thin first and last layers, which it fuses with
    their neighbours; plain code prefers matrix products.
    """
    sincos = _fast_sincos if is_compiled else _plain_sincos
    omega, offset = architecture.omega, architecture.output_offset
    last = len(architecture.widths)
    thin_end = architecture.out_dim <= 3

    def thin_product(weight: Tensor, h: Tensor) -> Tensor:
        """``weight @ h`` where one of the two sizes of the weight is small."""
        if not is_compiled:
            return torch.matmul(weight, h)
        if weight.shape[2] <= 3:
            terms = [weight[:, :, i, None] * h[..., None, i, :] for i in range(weight.shape[2])]
            return functools.reduce(torch.add, terms)
        return torch.stack(
            [(weight[:, i, :, None] * h).sum(1) for i in range(weight.shape[1])], dim=1
        )

    def step(
        flat: Tensor,
        first: Tensor,
        second: Tensor,
        x: Tensor,
        targets: Tensor,
        scale: Tensor,
        correction: Tensor,
    ) -> None:
        layers = _split_layers(architecture, flat)
        inputs, cosines = [x], []
        for layer, (weight, bias) in enumerate(layers[:-1]):
            product = thin_product if layer == 0 else torch.bmm
            sine, cosine = sincos(product(omega * weight, inputs[-1]) + omega * bias[:, :, None])
            inputs.append(sine)
            cosines.append(cosine)
        weight, bias = layers[last]
        end = thin_product if thin_end else torch.bmm
        error = end(weight, inputs[-1]) + bias[:, :, None] + offset - targets
        grad = error * (2 / (targets.shape[1] * targets.shape[2]))  # d mean((y-t)^2) / dy

        grads: list[Tensor] = []  # from the last bias to the first weight
        for layer in range(last, -1, -1):
            h = inputs[layer]
            if layer == last and thin_end and is_compiled:
                rows = [(h * grad[:, i, None]).sum(2) for i in range(grad.shape[1])]
                weight_grad = torch.stack(rows, dim=1)
            elif layer == 0 and is_compiled:
                columns = [(grad * h[i]).sum(2) for i in range(h.shape[0])]
                weight_grad = torch.stack(columns, dim=2)
            else:
                weight_grad = torch.matmul(grad, h.transpose(-1, -2))
            grads += [grad.sum(2), weight_grad.flatten(1)]
            if layer > 0:
                transposed = omega * layers[layer][0].transpose(1, 2)
                back = thin_product if layer == last and thin_end else torch.bmm
                grad = back(transposed, grad) * cosines[layer - 1]

        flat_grad = torch.cat(grads[::-1], dim=1)
        first.lerp_(flat_grad, 1 - _BETA_1)
        second.mul_(_BETA_2).addcmul_(flat_grad, flat_grad, value=1 - _BETA_2)
        flat.sub_(scale * first / ((second * correction).sqrt() + _EPSILON))

    return step


def _compile_step(architecture: Siren, points: Tensor, micro_batch: int) -> Step | None:
    """Compile the step and run it once on throw-away weights; None if that fails."""
    step = torch.compile(_make_step(architecture, is_compiled=True), dynamic=False, fullgraph=True)
    state = architecture.sample_parameters(micro_batch, torch.Generator().manual_seed(0))
    state = {name: value.to(points.dtype) for name, value in state.items()}
    targets = points.new_zeros((micro_batch, len(points), architecture.out_dim))
    probe = SirenFitter(architecture, points, 2, 0.0, micro_batch, True, step)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(1)  # the generated code is specialised to the number of threads
    try:
        probe._fit_micro_batch(state, targets)
    except Exception as error:  # whatever the compiler tool chain raises
        # The first line often only says who raised; the second says what.
        reason = " ".join(str(error).split("\n")[:2]).strip() or type(error).__name__
        warnings.warn(
            f"torch.compile does not work here ({reason}); fitting INRs about four times slower "
            "without it.",
            stacklevel=3,
        )
        return None
    finally:
        torch.set_num_threads(threads_before)
    return step
