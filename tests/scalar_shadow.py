"""Runs a network and writes down what it computes, number by number, as a ``ScalarGraph``.

A shadow of each storage holds the node of each number. Views need no rule (they share the
storage), and operations that only move numbers are run on the nodes themselves. The others have a
rule in ``scalar_rules.py`` or are broken down by PyTorch's own decompositions. Nothing of
``paramgraph`` is used: this is the oracle that its capture is compared with. Every result is
compared with the real one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from scalar_graph import ScalarGraph
from torch import Tensor
from torch._decomp import decomposition_table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

__all__ = ["Rule", "Shadow", "pointwise", "rule_for"]

MOVES = {
    *("clone", "_to_copy", "index", "index_select", "embedding", "gather", "cat", "stack", "copy"),
    *("repeat", "flip", "roll", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle"),
    *("where", "_unsafe_view", "native_channel_shuffle", "lift_fresh_copy", "constant_pad_nd"),
    *("diagonal_copy", "tril", "triu", "masked_fill", "contiguous", "_reshape_copy"),
}
CONSTANTS = {"zeros_like", "ones_like", "empty_like", "full_like", "new_zeros", "new_ones"}
CONSTANTS |= {"new_empty", "new_full", "_local_scalar_dense", "argmax"}
CONSTANTS |= {"gt", "lt", "eq", "ge", "le"}
VIEWS = {"detach", "alias", "_reshape_alias", "lift_fresh"}
VIEWS |= {"transpose_", "t_", "squeeze_", "unsqueeze_", "as_strided_"}
# Functions of one number, whatever their other (constant) arguments are.
POINTWISE = {
    *("relu", "tanh", "sigmoid", "exp", "log", "sqrt", "rsqrt", "sin", "cos", "abs", "gelu"),
    *("silu", "softplus", "hardswish", "hardtanh", "leaky_relu", "elu", "erf", "reciprocal"),
    *("clamp", "clamp_min", "hardsigmoid", "mish", "pow", "floor"),
}


class Shadow(TorchDispatchMode):
    """Records a scalar graph; enter it and run a network in float64 without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = ScalarGraph()
        self._memory: dict[int, Tensor] = {}
        self._alive: list[Tensor] = []  # so that no storage is used for two tensors

    def register(self, name: str, tensor: Tensor) -> None:
        """Make the numbers of a tensor leaves: an input or a parameter."""
        values = tensor.reshape(-1).tolist()
        nodes = [self.graph.leaf(name, i, value) for i, value in enumerate(values)]
        self._write(tensor, torch.tensor(nodes).reshape(tensor.shape))

    def nodes(self, tensor: Tensor) -> Tensor:
        """The node of each number; a tensor that was not computed from leaves is constant."""
        memory = self._memory.get(tensor.untyped_storage()._cdata)
        if memory is None:
            values = tensor.double().reshape(-1).tolist()
            constants = [self.graph.constant(value) for value in values]
            return torch.tensor(constants, dtype=torch.long).reshape(tensor.shape)
        return memory.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def _write(self, tensor: Tensor, nodes: Tensor) -> None:
        self._alive.append(tensor)
        key = tensor.untyped_storage()._cdata
        if key not in self._memory:
            length = tensor.untyped_storage().nbytes() // tensor.element_size()
            self._memory[key] = torch.zeros(length, dtype=torch.long)
        view = self._memory[key].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        view.copy_(nodes)

    def _is_shadowed(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.untyped_storage()._cdata in self._memory

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        leaves = torch.utils._pytree.tree_leaves((args, kwargs))
        self._alive += [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        writes = func._schema.is_mutable
        if name in CONSTANTS or not any(self._is_shadowed(leaf) for leaf in leaves):
            return func(*args, **kwargs)
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:
                return func.decompose(*args, **kwargs)
        if func.is_view or name in VIEWS:
            return func(*args, **kwargs)
        name = name.removesuffix("_") if writes else name
        rule = _RULES.get(name)
        if rule is None and name in MOVES:
            rule = _moved(func if not writes else getattr(torch.ops.aten, name).default)
        if rule is None and name in POINTWISE:
            rule = pointwise(f"{name} {args[1:]} {kwargs}")
        if rule is None:
            with self:
                result = decomposition_table.get(func, func.decompose)(*args, **kwargs)
            if result is NotImplemented or writes:
                raise NotImplementedError(f"the oracle has no rule for {func}")
            return result
        if writes:
            self._start_memory(args[0])
        is_plain = name in MOVES or name == "index_add"  # indices and masks are what they are

        def nodes_of(tensor: Tensor) -> Tensor:
            keep = is_plain and not tensor.is_floating_point()
            return tensor if keep else self.nodes(tensor).clone()

        before = tree_map_only(Tensor, nodes_of, (args, kwargs))
        result = func(*args, **kwargs)
        real = result if isinstance(result, tuple) else (result,)
        if not real[0].is_floating_point():
            return result
        found = rule(self, real[0], *before[0], **before[1])
        found = found if isinstance(found, tuple) else (found,)
        for tensor, nodes in zip(real, found, strict=False):  # the others are indices
            self._write(tensor, nodes)
            self._assert_equal(func, tensor, nodes)
        return result

    def _start_memory(self, tensor: Tensor) -> None:
        """Give a tensor that is written to a memory of what it holds until now."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._memory:
            whole = tensor.new_empty(0).set_(storage)
            self._write(whole, self.nodes(whole))

    def _assert_equal(self, func: Any, real: Tensor, nodes: Tensor) -> None:
        values = [self.graph.values[node] for node in nodes.reshape(-1).tolist()]
        computed = torch.tensor(values, dtype=real.dtype).reshape(real.shape)
        assert torch.allclose(computed, real, rtol=1e-9, atol=1e-12), f"wrong rule for {func}"

    def each(self, function: Callable[..., int], *tensors: Tensor) -> Tensor:
        """A function of nodes, for each place of tensors that are broadcast together."""
        wide = torch.broadcast_tensors(*tensors)
        columns = [tensor.reshape(-1).tolist() for tensor in wide]
        results = [function(*row) for row in zip(*columns, strict=True)]
        return torch.tensor(results, dtype=torch.long).reshape(wide[0].shape)

    def along(self, function: Callable[[list[int]], int], nodes: Tensor, num_kept: int) -> Tensor:
        """A function of all nodes behind the first ``num_kept`` axes."""
        length = math.prod(nodes.shape[num_kept:])
        rows = nodes.reshape(math.prod(nodes.shape[:num_kept]), length).tolist()
        results = [function(row) for row in rows]
        return torch.tensor(results, dtype=torch.long).reshape(nodes.shape[:num_kept])

    def multiply(self, *tensors: Tensor) -> Tensor:
        return self.each(lambda *factors: self.graph.multiply(factors), *tensors)

    def wrap(self, value: Any) -> Tensor:
        """A number that is not a tensor."""
        return value if isinstance(value, Tensor) else torch.tensor(self.graph.constant(value))


Rule = Callable[..., Any]
_RULES: dict[str, Rule] = {}


def rule_for(*names: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


def _moved(func: Any) -> Rule:
    def rule(shadow: Shadow, real: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name, listed = func._schema.name.removeprefix("aten::"), list(args)
        if name in ("masked_fill", "constant_pad_nd") and not isinstance(listed[-1], Tensor):
            listed += [0.0] if name == "constant_pad_nd" and len(listed) == 2 else []
            listed[-1] = shadow.graph.constant(listed[-1])
        if name == "_to_copy":
            return listed[0]
        if name == "copy":
            return listed[1].expand(listed[0].shape)
        if name in ("tril", "triu"):
            kept = getattr(torch.ones_like(real), name)(*listed[1:]).bool()
            return torch.where(kept, listed[0], shadow.wrap(0.0))
        kwargs.pop("memory_format", None)
        return func(*listed, **kwargs)

    return rule


def pointwise(text: str) -> Rule:
    def rule(shadow: Shadow, real: Tensor, x: Tensor, *_: Any, **__: Any) -> Tensor:
        if text.startswith(("pow (2,)", "pow (2.0,)")):
            return shadow.multiply(x, x)
        values = real.reshape(-1).tolist()
        pairs = zip(x.reshape(-1).tolist(), values, strict=True)
        results = [shadow.graph.function(text, node, value) for node, value in pairs]
        return torch.tensor(results).reshape(real.shape)

    return rule
