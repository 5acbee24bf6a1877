"""Trains many CNNs of one architecture at once, each with its own weights, data and optimiser.

The networks lie side by side in the channels: a convolution of ``num`` networks is one grouped
convolution with ``num`` groups, batch norm over ``num * channels`` channels is exact as it is, and
linear layers are one ``bmm``. On a CPU this took 219 us per network and step where ``torch.vmap``
took 311, unfolding into matrix products 1,382, and a loop over modules 708 (36 networks of widths
16, batches of 32 digits, one core).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paramgraph.zoo.cnn import CNN, NUM_GROUPS, activation_module

__all__ = ["Hyperparameters", "StackedTrainer", "stacked_forward"]

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8
# Of the gradient of each network; keeps a large learning rate from overflowing at the first steps.
_MAX_GRADIENT_NORM = 5.0
_EVAL_BATCH = 256


@dataclass(frozen=True)
class Hyperparameters:
    """Training settings, one value per network; each array has shape ``[num]``.

    Attributes:
        learning_rate: Step size.
        weight_decay: Decoupled decay: each step takes off this fraction times the learning rate.
        init_gain: Factor on the initial weights of convolutions and linear layers.
        label_noise: Fraction of training labels replaced by random ones.
        data_fraction: Fraction of the training images used.
        uses_adam: Adam if true, else SGD with momentum 0.9 and ten times the learning rate.
    """

    learning_rate: np.ndarray
    weight_decay: np.ndarray
    init_gain: np.ndarray
    label_noise: np.ndarray
    data_fraction: np.ndarray
    uses_adam: np.ndarray

    @classmethod
    def sample(cls, num: int, rng: np.random.Generator) -> "Hyperparameters":
        """Draw settings from wide ranges, so that accuracies spread from chance to the best."""
        return cls(
            learning_rate=10 ** rng.uniform(-2.8, -1.8, num),
            weight_decay=10 ** rng.uniform(-4.0, -0.5, num),
            init_gain=10 ** rng.uniform(0.0, 0.4, num),
            # Most runs see clean labels; the others up to 20 % noise.
            label_noise=np.where(rng.random(num) < 0.85, 0.0, rng.uniform(0, 0.2, num)),
            data_fraction=10 ** rng.uniform(-0.3, 0.0, num),
            uses_adam=rng.random(num) < 0.85,
        )

    def columns(self) -> dict[str, np.ndarray]:
        """Return the settings by name."""
        return dict(vars(self))


def stacked_forward(spec: CNN, state: Mapping[str, Tensor], x: Tensor, *, training: bool) -> Tensor:
    """Run networks that share an architecture, each on its own images.

    In training, batch norm uses the statistics of the batch and updates the running ones in
    ``state`` in place, as ``nn.BatchNorm2d`` does.

    Args:
        spec: The architecture.
        state: Stacked state dict entries ``[num, ...]``.
        x: Images, shape ``[batch, num, channels, height, width]``.
        training: Whether batch norm is in training mode.

    Returns:
        Logits, shape ``[num, batch, classes]``.
    """
    batch, num = x.shape[:2]
    activation = activation_module(spec.activation)
    x = x.flatten(1, 2)
    for layer, is_residual in enumerate(spec.is_residual_layer):
        conv, norm = f"convs.{layer}", f"norms.{layer}"
        h = F.conv2d(
            x,
            state[f"{conv}.weight"].flatten(0, 1),
            state[f"{conv}.bias"].flatten(),
            stride=spec.strides[layer],
            padding=spec.kernel_sizes[layer] // 2,
            groups=num,
        )
        if spec.norm != "none":
            scale, shift = state[f"{norm}.weight"].flatten(), state[f"{norm}.bias"].flatten()
            if spec.norm == "batch":
                # view, not flatten: the running statistics are updated in place.
                mean = state[f"{norm}.running_mean"].view(-1)
                variance = state[f"{norm}.running_var"].view(-1)
                h = F.batch_norm(h, mean, variance, scale, shift, training=training)
                if training:
                    state[f"{norm}.num_batches_tracked"].add_(1)
            else:
                groups = num * (NUM_GROUPS if spec.norm == "group" else 1)
                h = F.group_norm(h, groups, scale, shift)
        h = activation(h)
        x = x + h if is_residual else h
    features = x.mean(dim=(2, 3)) if spec.head == "pool" else x.flatten(2)
    features = features.reshape(batch, num, spec.head_dim).transpose(0, 1)
    weight, bias = state["head.weight"], state["head.bias"]
    return torch.baddbmm(bias[:, None], features, weight.transpose(1, 2))


class StackedTrainer:
    """Trains a stack of CNNs step by step; the networks never influence each other.

    Args:
        spec: The architecture.
        state: Stacked initial weights; changed in place. ``init_gain`` is applied by the caller.
        settings: One value per network.
    """

    def __init__(self, spec: CNN, state: dict[str, Tensor], settings: Hyperparameters) -> None:
        self.spec = spec
        self.state = state
        dtype = state["head.weight"].dtype
        self._trained = [
            name
            for name in state
            if name.endswith((".weight", ".bias"))  # the rest are running statistics
        ]
        lr = np.where(settings.uses_adam, 1.0, 10.0) * settings.learning_rate
        self._lr = torch.from_numpy(lr).to(dtype)
        self._decay = torch.from_numpy(1 - lr * settings.weight_decay).clamp_min(0).to(dtype)
        self._uses_adam = torch.from_numpy(settings.uses_adam)
        self._first = {name: torch.zeros_like(state[name]) for name in self._trained}
        self._second = {name: torch.zeros_like(state[name]) for name in self._trained}
        self._num_steps = 0

    def step(self, x: Tensor, y: Tensor) -> None:
        """Take one step of every network on its own batch.

        Args:
            x: Images, shape ``[batch, num, channels, height, width]``.
            y: Labels, shape ``[num, batch]``.
        """
        leaves = {name: self.state[name].detach().requires_grad_() for name in self._trained}
        logits = stacked_forward(self.spec, {**self.state, **leaves}, x, training=True)
        # Mean over the batch, sum over the networks: each gets the gradient of its own loss.
        losses = F.cross_entropy(logits.transpose(1, 2), y, reduction="none").mean(1)
        grads = torch.autograd.grad(losses.sum(), list(leaves.values()))
        self._num_steps += 1
        with torch.no_grad():
            squared = torch.stack([grad.flatten(1).square().sum(1) for grad in grads]).sum(0)
            clip = (_MAX_GRADIENT_NORM / squared.sqrt().clamp_min(1e-12)).clamp_max(1.0)
            for name, grad in zip(self._trained, grads, strict=True):
                self._update(name, grad * _per_network(clip, grad))

    def _update(self, name: str, grad: Tensor) -> None:
        """Adam or SGD with momentum, chosen per network; weight decay apart from both."""
        value, first, second = self.state[name], self._first[name], self._second[name]
        first.lerp_(grad, 1 - _BETA_1)
        second.mul_(_BETA_2).addcmul_(grad, grad, value=1 - _BETA_2)
        mean = first / (1 - _BETA_1**self._num_steps)
        adam = mean / ((second / (1 - _BETA_2**self._num_steps)).sqrt() + _EPSILON)
        direction = torch.where(_per_network(self._uses_adam, value), adam, mean)
        value.mul_(_per_network(self._decay, value))
        value.sub_(_per_network(self._lr, value) * direction)

    @torch.no_grad()
    def evaluate(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Measure every network on the same images, in evaluation mode.

        Args:
            x: Images, shape ``[num_images, channels, height, width]``.
            y: Labels, shape ``[num_images]``.

        Returns:
            Accuracy and mean cross entropy of each network, shape ``[num]``, float64.
        """
        num = len(self.state["head.weight"])
        correct, loss = torch.zeros(num, dtype=torch.float64), torch.zeros(num, dtype=torch.float64)
        for start in range(0, len(x), _EVAL_BATCH):
            images, labels = x[start : start + _EVAL_BATCH], y[start : start + _EVAL_BATCH]
            shared = images[:, None].expand(-1, num, -1, -1, -1)
            logits = stacked_forward(self.spec, self.state, shared, training=False).double()
            correct += (logits.argmax(2) == labels).sum(1)
            log_p = logits.log_softmax(2)
            loss -= log_p.gather(2, labels.expand(num, -1)[..., None]).sum((1, 2))
        return correct / len(x), loss / len(x)


def _per_network(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))
