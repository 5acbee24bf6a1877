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
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
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
        step: Step = _plain_step
        is_compiled = False
        if wanted:
            step, is_compiled = _compile_step(architecture, points, micro_batch)
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
        weights, biases = _split_layers(self.architecture, state)
        moments = [torch.zeros_like(p) for p in (*weights, *biases, *weights, *biases)]
        # clone and not contiguous: the strides of an axis of size 1 must be the usual ones too, or
        # the step is compiled a second time.
        x = self.points.T.clone(memory_format=torch.contiguous_format)
        t = targets.transpose(1, 2).clone(memory_format=torch.contiguous_format)
        step_args = (weights, biases, moments, x, t)
        omega, offset = self.architecture.omega, self.architecture.output_offset
        with torch.no_grad():
            for i in range(self.steps):
                lr = 0.5 * self.lr * (1 + math.cos(math.pi * i / self.steps))
                # As tensors: a compiled step would be compiled anew for each number.
                scale = torch.tensor(lr / (1 - _BETA_1 ** (i + 1)), dtype=x.dtype)
                correction = torch.tensor(1 / (1 - _BETA_2 ** (i + 1)), dtype=x.dtype)
                self._step(*step_args, scale, correction, omega, offset)
            y = _forward(weights, biases, x, omega, offset)
            return (y - t).square().mean(dim=(1, 2))


def _split_layers(
    architecture: Siren, state: dict[str, Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    num_layers = len(architecture.dims) - 1
    weights = [state[f"layers.{layer}.weight"] for layer in range(num_layers)]
    return weights, [state[f"layers.{layer}.bias"] for layer in range(num_layers)]


def _forward(
    weights: list[Tensor], biases: list[Tensor], x: Tensor, omega: float, offset: float
) -> Tensor:
    h = x.expand(len(weights[0]), *x.shape)
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        h = torch.sin(omega * torch.baddbmm(bias[:, :, None], weight, h))
    return torch.baddbmm(biases[-1][:, :, None], weights[-1], h) + offset


def _plain_sincos(z: Tensor) -> tuple[Tensor, Tensor]:
    return z.sin(), z.cos()


def _fast_sincos(z: Tensor) -> tuple[Tensor, Tensor]:
    """Sine and cosine from one range reduction, to about 1e-6 for ``|z| < 1e5``.

    With ``z = k pi + r`` and ``|r| <= pi/2``, both are Taylor sums in ``r`` times ``(-1)^k``.
    Only worth it compiled, where it is one pass; the library sine and cosine are two slow ones.
    """
    k = torch.round(z * (1 / math.pi))
    r = (z - k * _PI_HIGH) - k * _PI_LOW
    sign = 1 - 2 * (k - 2 * torch.floor(0.5 * k))
    q = r * r
    sine, cosine = torch.zeros_like(q), torch.zeros_like(q)
    for n in range(6, -1, -1):
        sine = sine * q + (-1) ** n / math.factorial(2 * n + 1)
        cosine = cosine * q + (-1) ** n / math.factorial(2 * n)
    return sign * r * sine, sign * cosine


def _make_step(*, is_compiled: bool) -> Step:
    """Return one training step; the two versions compute the same function.

    Compiled code prefers broadcast sums for the thin first and last layers, which it fuses with
    their neighbours; plain code prefers matrix products.
    """
    sincos = _fast_sincos if is_compiled else _plain_sincos

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
        weights: list[Tensor],
        biases: list[Tensor],
        moments: list[Tensor],
        x: Tensor,
        targets: Tensor,
        scale: Tensor,
        correction: Tensor,
        omega: float,
        offset: float,
    ) -> None:
        inputs, cosines = [x], []
        for layer, (weight, bias) in enumerate(zip(weights[:-1], biases[:-1], strict=True)):
            product = thin_product if layer == 0 else torch.bmm
            sine, cosine = sincos(product(omega * weight, inputs[-1]) + omega * bias[:, :, None])
            inputs.append(sine)
            cosines.append(cosine)
        last = len(weights) - 1
        thin_end = weights[last].shape[1] <= 3
        end = thin_product if thin_end else torch.bmm
        error = end(weights[last], inputs[-1]) + biases[last][:, :, None] + offset - targets
        grad = error * (2 / (targets.shape[1] * targets.shape[2]))  # d mean((y-t)^2) / dy

        grads: dict[tuple[int, int], Tensor] = {}
        for layer in range(last, -1, -1):
            h = inputs[layer]
            if layer == last and thin_end and is_compiled:
                rows = [(h * grad[:, i, None]).sum(2) for i in range(grad.shape[1])]
                grads[0, layer] = torch.stack(rows, dim=1)
            elif layer == 0 and is_compiled:
                columns = [(grad * h[i]).sum(2) for i in range(h.shape[0])]
                grads[0, layer] = torch.stack(columns, dim=2)
            else:
                grads[0, layer] = torch.matmul(grad, h.transpose(-1, -2))
            grads[1, layer] = grad.sum(2)
            if layer > 0:
                transposed = omega * weights[layer].transpose(1, 2)
                back = thin_product if layer == last and thin_end else torch.bmm
                grad = back(transposed, grad) * cosines[layer - 1]

        num = 2 * len(weights)
        for i, parameter in enumerate((*weights, *biases)):
            grad = grads[i // len(weights), i % len(weights)]
            first, second = moments[i], moments[num + i]
            first.lerp_(grad, 1 - _BETA_1)
            second.mul_(_BETA_2).addcmul_(grad, grad, value=1 - _BETA_2)
            parameter.sub_(scale * first / ((second * correction).sqrt() + _EPSILON))

    return step


_plain_step = _make_step(is_compiled=False)


def _compile_step(architecture: Siren, points: Tensor, micro_batch: int) -> tuple[Step, bool]:
    """Compile the step and run it once on throw-away weights; fall back if that fails."""
    step = torch.compile(_make_step(is_compiled=True), dynamic=False, fullgraph=True)
    state = architecture.sample_parameters(micro_batch, torch.Generator().manual_seed(0))
    state = {name: value.to(points.dtype) for name, value in state.items()}
    targets = points.new_zeros((micro_batch, len(points), architecture.out_dim))
    probe = SirenFitter(architecture, points, 2, 0.0, micro_batch, True, step)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(1)  # the generated code is specialised to the number of threads
    try:
        probe._fit_micro_batch(state, targets)
    except Exception as error:  # whatever the compiler tool chain raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        warnings.warn(
            f"torch.compile does not work here ({reason}); fitting INRs about four times slower "
            "without it.",
            stacklevel=3,
        )
        return _plain_step, False
    finally:
        torch.set_num_threads(threads_before)
    return step, True
