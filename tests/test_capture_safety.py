"""Capturing never changes the network or the process, whatever the network does in its forward."""

from __future__ import annotations

import collections
import copy
import dataclasses
import random
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from expected_groups import found_groups
from networks import Wired, vectors
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import paramgraph as pg

VECTOR = vectors(4, 3)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))


def two_layers(between: Callable[[Any, Tensor], Tensor], **parts: Any) -> Wired:
    """A network of two layers with something between them."""

    def wiring(n: Any, x: Tensor) -> Tensor:
        return n.second(between(n, n.first(x)))

    return Wired(wiring, first=nn.Linear(3, 5), second=nn.Linear(5, 2), **parts)


def free(graph: pg.ParamGraph) -> list[tuple[int, tuple[int, ...]]]:
    return found_groups(graph.axis_groups)


def read(network: nn.Module, inputs: Any = VECTOR, **options: Any) -> pg.ParamGraph:
    """Capture and verify; the network must be as it was afterwards."""
    with unchanged(network):
        graph = pg.capture(network, inputs, **options)
        verification = pg.verify(network, graph, inputs)
    assert verification.passed, verification
    return graph


@dataclasses.dataclass
class _Snapshot:
    """Everything about a network and the process that capture must leave alone."""

    network: nn.Module

    def take(self) -> dict[str, Any]:
        modules = dict(self.network.named_modules())
        tensors: dict[str, Tensor] = dict(self.network.named_parameters(remove_duplicate=False))
        tensors |= dict(self.network.named_buffers(remove_duplicate=False))
        hooks = {
            f"{path}:{name}": list(getattr(module, name))
            for path, module in modules.items()
            for name in vars(module)
            if name.endswith("_hooks")
        }
        numpy_state: Any = np.random.get_state()  # noqa: NPY002
        return {
            "tensors": {name: id(tensor) for name, tensor in tensors.items()},
            "memory": {name: _address(tensor) for name, tensor in tensors.items()},
            "values": {name: _bits(tensor) for name, tensor in tensors.items()},
            "flags": {n: (t.requires_grad, t.is_leaf, t.dtype) for n, t in tensors.items()},
            "gradients": {name: id(tensor.grad) for name, tensor in tensors.items()},
            "modes": {path: module.training for path, module in modules.items()},
            "modules": {path: id(module) for path, module in modules.items()},
            "attributes": {path: sorted(vars(module)) for path, module in modules.items()},
            "hooks": hooks,
            "torch": torch.get_rng_state().tolist(),
            "numpy": (numpy_state[1].tolist(), numpy_state[2:]),
            "python": random.getstate(),
            "default dtype": torch.get_default_dtype(),
            "gradients recorded": torch.is_grad_enabled(),
            "inference": torch.is_inference_mode_enabled(),
            "autocast": torch.is_autocast_enabled("cpu"),
            "threads": torch.get_num_threads(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "fast path": torch.backends.mha.get_fastpath_enabled(),
            "mkldnn": torch._C._get_mkldnn_enabled(),
            "attention": (
                torch.backends.cuda.math_sdp_enabled(),
                torch.backends.cuda.flash_sdp_enabled(),
                torch.backends.cuda.mem_efficient_sdp_enabled(),
                torch.backends.cuda.cudnn_sdp_enabled(),
            ),
            "warnings": list(warnings.filters),
        }


def _address(tensor: Tensor) -> int:
    return 0 if tensor.layout != torch.strided else tensor.data_ptr()


def _bits(tensor: Tensor) -> bytes:
    if tensor.is_meta:
        return b""
    flat = tensor.detach().to_dense() if tensor.layout != torch.strided else tensor.detach()
    return flat.cpu().resolve_conj().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


class unchanged:
    """A context in which a network and the process must stay as they are."""

    def __init__(self, network: nn.Module) -> None:
        self.snapshot = _Snapshot(network)

    def __enter__(self) -> None:
        self.before = self.snapshot.take()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        after = self.snapshot.take()
        changed = [name for name, value in self.before.items() if after[name] != value]
        assert not changed, f"capture changed: {changed}"


@pytest.fixture(scope="module", autouse=True)
def _first_capture() -> None:
    """The first run of a network lets torch import more of itself, which adds warning filters."""
    pg.verify(network := mlp(), pg.capture(network, VECTOR), VECTOR)


# The check itself.


@pytest.mark.parametrize(
    "change",
    [
        lambda n: n.weight.data.mul_(1 + 1e-6),
        lambda n: n.eval(),
        lambda n: n.requires_grad_(False),
        lambda n: setattr(n, "weight", nn.Parameter(n.weight.detach())),
        lambda n: setattr(n, "note", 1),
        lambda n: n.register_forward_hook(lambda *_: None),
        lambda n: torch.rand(1),
        lambda n: np.random.rand(),  # noqa: NPY002
        lambda n: random.random(),
        lambda n: torch.set_default_dtype(torch.float64),
        lambda n: n(torch.ones(3)).sum().backward(),
    ],
)
def test_a_change_is_noticed(change: Callable[[nn.Module], object]) -> None:
    def changing() -> None:
        network = nn.Linear(3, 2)
        with unchanged(network):
            change(network)

    with pytest.raises(AssertionError, match="capture changed"):
        changing()


# Modes of the network and of the caller.


def training_network() -> nn.Module:
    layers = [nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 2)]
    network = nn.Sequential(*layers).train()
    network[0].eval()  # modes differ within the network
    network[4].weight.requires_grad_(True)
    network(VECTOR).sum().backward()
    return network


def test_a_network_in_training_keeps_mode_gradients_and_statistics() -> None:
    assert free(read(training_network())) == [(5, ())]


@pytest.mark.parametrize(
    "around",
    [
        lambda: torch.no_grad(),
        lambda: torch.inference_mode(),
        lambda: torch.enable_grad(),
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda: torch.random.fork_rng(devices=[]),
        lambda: warnings.catch_warnings(),
    ],
    ids=["no_grad", "inference_mode", "enable_grad", "autocast", "fork_rng", "catch_warnings"],
)
def test_the_mode_of_the_caller_does_not_matter(around: Callable[[], Any]) -> None:
    network = training_network()
    expected = pg.capture(network, VECTOR).signature
    with around():
        assert read(network).signature == expected


def test_a_network_built_in_inference_mode() -> None:
    with torch.inference_mode():
        network = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
        inputs = VECTOR * 2
        assert free(read(network, inputs)) == [(5, ())]
    assert free(read(network, inputs)) == [(5, ())]


def test_the_default_data_type_does_not_matter(float64: torch.dtype) -> None:
    assert free(read(mlp(), VECTOR.double())) == [(5, ())]
    assert free(read(mlp().float())) == [(5, ())]


def test_flags_that_are_off_stay_off_and_those_on_stay_on() -> None:
    network = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    for is_on in (False, True):
        torch.backends.mha.set_fastpath_enabled(is_on)
        read(network, vectors(2, 3, 4))
        assert torch.backends.mha.get_fastpath_enabled() == is_on


def test_everything_is_put_back_when_the_network_fails() -> None:
    def wiring(n: Any, x: Tensor) -> Tensor:
        torch.rand(3)
        raise ValueError("too few rows")

    network = Wired(wiring, first=nn.Linear(3, 5)).train()
    with unchanged(network), pytest.raises(pg.CaptureError, match="ValueError: too few rows"):
        pg.capture(network, VECTOR)


def test_random_numbers_that_the_network_draws_are_not_missing_afterwards() -> None:
    def noisy(n: Any, hidden: Tensor) -> Tensor:
        return torch.relu(hidden) + np.random.rand() + random.random() + torch.rand(1)  # noqa: NPY002

    with unchanged(network := two_layers(noisy)):
        pg.capture(network, VECTOR)


def test_settings_that_the_network_changes_are_put_back() -> None:
    def setting(n: Any, hidden: Tensor) -> Tensor:
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(True)
        return torch.relu(hidden)

    assert free(read(two_layers(setting))) == [(5, ())]


def test_capture_gives_no_warnings_and_hides_none() -> None:
    def warning(n: Any, hidden: Tensor) -> Tensor:
        warnings.warn("from the network", UserWarning, stacklevel=1)
        return torch.relu(hidden)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(mlp())
    with pytest.warns(UserWarning, match="from the network"):
        pg.capture(two_layers(warning), VECTOR)


def test_the_inputs_are_not_changed() -> None:
    inputs = VECTOR.clone().requires_grad_()
    nested = {"x": (inputs, [inputs.detach().clone()])}

    def wiring(n: Any, x: Any) -> Tensor:
        x[1][0].zero_()
        x[1].append(None)
        return n.first(x[0])

    pg.capture(Wired(wiring, first=nn.Linear(3, 2)), nested)
    assert inputs.requires_grad
    assert inputs.grad is None
    assert torch.equal(nested["x"][1][0], VECTOR)
    assert len(nested["x"][1]) == 1


# Threads and nesting.


def test_two_threads_at_a_time() -> None:
    network = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    inputs = vectors(2, 3, 4)
    expected = pg.capture(network, inputs).signature
    found: list[str] = []
    problems: list[Exception] = []

    def work() -> None:
        try:
            found.extend(pg.capture(network, inputs).signature for _ in range(4))
        except Exception as problem:
            problems.append(problem)

    with unchanged(network):
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not problems
    assert found == [expected] * 12


def test_a_network_that_captures_another_one_in_its_forward() -> None:
    inner, graphs = mlp(), []

    def capturing(n: Any, hidden: Tensor) -> Tensor:
        graphs.append(pg.capture(inner, VECTOR, check=False))
        return torch.relu(hidden)

    outer = two_layers(capturing)
    with unchanged(inner):
        assert free(read(outer)) == [(5, ())]
    assert {graph.signature for graph in graphs} == {pg.capture(inner, VECTOR).signature}


# Networks that write.


def _scaled_by(write: Callable[[nn.Parameter], object]) -> Wired:
    def wiring(n: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            write(n.first.weight)
            n.count += 1
        return n.second(torch.relu(n.first(x)))

    network = Wired(wiring, first=nn.Linear(3, 5), second=nn.Linear(5, 2))
    network.register_buffer("count", torch.zeros(()))
    return network


@pytest.mark.parametrize(
    "write",
    [
        lambda w: w.mul_(0.5),
        lambda w: w.data.mul_(0.5),
        lambda w: w.data.view(-1).mul_(0.5),
        lambda w: w.copy_(w * 0.5),
        lambda w: torch.mul(w, 0.5, out=w.data),
        lambda w: w.clamp_(-1, 1),
        lambda w: w[0].zero_(),
        lambda w: torch._foreach_mul_([w.data], 0.5),
        lambda w: np.multiply(w.detach().numpy(), 0.5, out=w.detach().numpy()),
        lambda w: nn.init.constant_(w, 0.3),
        lambda w: nn.init.normal_(w),
    ],
)
def test_a_network_that_writes_to_its_own_parameters(write: Callable[[Any], object]) -> None:
    read(_scaled_by(write))


def test_the_symmetry_of_a_network_that_scales_its_own_parameters() -> None:
    assert free(read(_scaled_by(lambda w: w.mul_(0.5)))) == [(5, ())]
    # What is written to one row only is not the same for all neurons.
    assert free(read(_scaled_by(lambda w: w[0].zero_()))) == [(4, ())]


def test_a_write_that_the_network_hides_does_not_reach_the_parameters() -> None:
    def swallowing(weight: nn.Parameter) -> None:
        try:
            weight.mul_(0.5)
        except Exception:
            weight.data.mul_(0.25)

    read(_scaled_by(swallowing))


def test_other_memory_for_a_parameter_is_refused() -> None:
    def moving(weight: nn.Parameter) -> None:
        weight.data = weight.data.roll(1, 0)

    network = _scaled_by(moving)
    with unchanged(network), pytest.raises(pg.CaptureError, match="other memory while it ran"):
        pg.capture(network, VECTOR)


class _Merging(nn.Module):
    """Adds its low-rank part to its weight in evaluation mode, as ``loralib`` does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 3))
        self.down, self.up = nn.Parameter(torch.randn(2, 3)), nn.Parameter(torch.randn(5, 2))
        self.merged = False

    def train(self, mode: bool = True) -> _Merging:
        super().train(mode)
        if mode == self.merged:
            sign = -1 if mode else 1
            self.weight.data += sign * self.up @ self.down
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.merged else self.weight + self.up @ self.down
        return x @ weight.t()


def test_a_network_that_writes_when_its_mode_changes() -> None:
    read(nn.Sequential(_Merging(), nn.ReLU(), nn.Linear(5, 2)).train())


def test_a_network_whose_train_method_returns_nothing() -> None:
    class _Silent(nn.Sequential):
        def train(self, mode: bool = True) -> None:  # type: ignore[override]
            super().train(mode)

    assert free(read(_Silent(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)))) == [(5, ())]


def test_a_network_that_caches_what_depends_on_its_weights() -> None:
    def caching(n: Any, hidden: Tensor) -> Tensor:
        if n.cache is None:
            n.cache = n.table[n.index]
        return torch.relu(hidden + n.cache)

    network = two_layers(caching, table=nn.Parameter(torch.randn(9)))
    network.index, network.cache = torch.tensor([3, 1, 2, 2, 1]), None  # type: ignore[assignment]
    graph = read(network)
    assert "table" in {layout.name for layout in graph.parameters}
    assert network.cache is None
    # A cache that is already there holds numbers, which do not follow the table.
    network(VECTOR)
    graph = read(network)
    assert graph.unused_parameters == ("table",)
    assert free(graph) == []


def test_a_network_with_extra_state() -> None:
    class _Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"version": 3}

        def set_extra_state(self, state: dict[str, int]) -> None:
            assert state == {"version": 3}

    assert free(read(nn.Sequential(_Extra(3, 5), nn.Tanh(), nn.Linear(5, 2)))) == [(5, ())]


# Hooks and parametrizations.


def test_hooks_are_part_of_the_network() -> None:
    network = mlp()
    seen: list[Tensor] = []
    network[0].register_forward_hook(lambda module, args, out: out * torch.arange(5.0))
    network.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    network.get_parameter("0.weight").register_hook(seen.append)
    network.register_full_backward_hook(lambda *_: None)
    assert free(read(network)) == []
    assert not seen
    network[0]._forward_hooks.clear()
    assert free(read(network)) == [(5, ())]


def _old_norm(kind: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still in many networks
        first = getattr(nn.utils, kind)(nn.Linear(3, 5))
    return nn.Sequential(first, nn.ReLU(), nn.Linear(5, 2))


@pytest.mark.parametrize("has_run", [False, True])
@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm"])
def test_weight_norms_made_of_hooks(kind: str, has_run: bool) -> None:
    network = _old_norm(kind)
    if has_run:
        network(VECTOR)
    graph = read(network)
    assert graph.unused_parameters == ()
    if kind == "weight_norm":
        assert free(graph) == [(5, ())]


def test_parametrizations() -> None:
    first = parametrizations.weight_norm(nn.Linear(3, 5))
    assert free(read(nn.Sequential(first, nn.ReLU(), nn.Linear(5, 2)))) == [(5, ())]
    second = parametrizations.spectral_norm(nn.Linear(3, 5))
    read(nn.Sequential(second, nn.ReLU(), nn.Linear(5, 2)).train())


def test_a_forward_that_was_replaced_by_a_function_of_the_network_itself() -> None:
    network = training_network()
    inner = network.forward
    network.forward = lambda x: 2 * inner(x)
    with unchanged(network):
        try:
            graph = pg.capture(network, VECTOR)
        except pg.CaptureError as error:
            assert "itself" in str(error)  # noqa: PT017 (either is right: refuse, or read it)
        else:
            assert free(graph) == [(5, ())]


def test_a_function_made_with_the_network_in_it() -> None:
    class _Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 2)
            self.gain = nn.Parameter(torch.rand(5))
            self.act = lambda x: torch.relu(x) * self.gain

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.act(self.first(x)))

    network = _Scaled()
    with unchanged(network):
        try:
            graph = pg.capture(network, VECTOR)
        except pg.CaptureError as error:
            assert "itself" in str(error)  # noqa: PT017
        else:
            assert free(graph) == [(5, ())]
            symmetry = graph.sample_symmetry()
            other = _Scaled()
            other.load_state_dict(symmetry.apply(network.state_dict()))
            torch.testing.assert_close(other(VECTOR), network(VECTOR), rtol=1e-4, atol=1e-5)


# Networks that are built while they run.


def test_a_lazy_network_must_have_run() -> None:
    network = nn.Sequential(nn.LazyLinear(5), nn.ReLU(), nn.LazyLinear(2))
    message = "'0.weight' of Sequential has no shape yet: run the network once before"
    with pytest.raises(pg.CaptureError, match=message):
        pg.capture(network, VECTOR)
    network(VECTOR)
    assert free(read(network)) == [(5, ())]


def test_a_network_that_makes_modules_in_its_forward() -> None:
    def wiring(n: Any, x: Tensor) -> Tensor:
        if not hasattr(n, "first"):
            n.first = nn.Linear(3, 5)
        return n.second(torch.relu(n.first(x)))

    network = Wired(wiring, second=nn.Linear(5, 2))
    with (
        unchanged(network),
        pytest.raises(pg.CaptureError, match=r"first.bias.*run it once before"),
    ):
        pg.capture(network, VECTOR)
    network(VECTOR)
    assert free(read(network)) == [(5, ())]


def test_what_is_not_a_network_is_refused() -> None:
    with pytest.raises(pg.CaptureError, match="function"):
        pg.capture(lambda x: x, VECTOR)  # type: ignore[arg-type]
    with pytest.raises(pg.CaptureError, match="no output of the network depends on its param"):
        pg.capture(nn.ReLU(), VECTOR)


# Numbers that leave the tape.


def test_a_number_without_order_leaves_the_group_free() -> None:
    assert free(read(two_layers(lambda n, h: torch.relu(h) / h.norm().item()))) == [(5, ())]


@pytest.mark.parametrize(
    "between",
    [
        lambda n, h: torch.relu(h) * h[0, 0].item(),
        lambda n, h: torch.relu(h) * float(h[0, 0]),
        lambda n, h: torch.relu(h) if bool((h[:, 0] > 0).any()) else torch.tanh(h),
        lambda n, h: torch.relu(h) if h[0, 0] > 0 else torch.tanh(h),
    ],
)
def test_a_number_read_from_one_neuron_fixes_it(between: Callable[[Any, Tensor], Tensor]) -> None:
    graph = pg.capture(two_layers(between), VECTOR, check=False)
    assert free(graph) == [(4, ())]
    read(two_layers(between))


def test_a_parameter_read_as_a_number_is_not_called_unused() -> None:
    network = two_layers(
        lambda n, h: torch.relu(h) * n.gain.item(), gain=nn.Parameter(torch.ones(()))
    )
    assert "gain" not in read(network).unused_parameters


@pytest.mark.parametrize(
    "between",
    [
        lambda n, h: torch.relu(h) * n.gain.tolist()[0],
        lambda n, h: torch.relu(h) * float(n.gain.detach().numpy()[0]),
        lambda n, h: torch.relu(h) * torch.from_numpy(n.gain.detach().numpy()),
        lambda n, h: torch.relu(h) * torch.tensor(n.gain.detach().numpy()),
        lambda n, h: torch.from_numpy(np.maximum(h.detach().numpy(), 0)),
        lambda n, h: torch.tensor(h.tolist()).relu(),
    ],
)
def test_a_way_around_torch_is_refused(between: Callable[[Any, Tensor], Tensor]) -> None:
    network = two_layers(between, gain=nn.Parameter(torch.rand(5)))
    message = "recorded operation|changes the outputs"
    with unchanged(network), pytest.raises(pg.CaptureError, match=message):
        pg.capture(network, VECTOR)


# Parameters of unusual shapes and types.


def _with_gain(gain: Tensor) -> Wired:
    return two_layers(lambda n, h: torch.relu(h) * n.gain, gain=nn.Parameter(gain))


def test_parameters_of_unusual_layout() -> None:
    wide = nn.Parameter(torch.randn(5, 3).t())
    network = Wired(
        lambda n, x: n.second(torch.relu(x @ n.wide)), wide=wide, second=nn.Linear(5, 2)
    )
    assert not wide.is_contiguous()
    assert free(read(network)) == [(5, ())]
    assert free(read(_with_gain(torch.rand(())))) == [(5, ())]
    assert free(read(_with_gain(torch.rand(1)))) == [(5, ())]
    whole = torch.rand(20)
    assert free(read(_with_gain(whole[7:12]))) == [(5, ())]
    graph = read(_with_gain(torch.rand(1).expand(5)))
    assert free(graph) == [(5, ())]


def test_parameters_without_entries() -> None:
    network = _with_gain(torch.rand(5))
    network.idle = nn.Parameter(torch.zeros(0, 4))
    assert read(network).unused_parameters == ("idle",)

    def wiring(n: Any, x: Tensor) -> Tensor:
        return n.second(torch.relu(torch.cat([n.first(x), x @ n.none], -1)))

    none = nn.Parameter(torch.zeros(3, 0))
    network = Wired(wiring, first=nn.Linear(3, 5), none=none, second=nn.Linear(5, 2))
    assert (5, ()) in free(read(network))


def test_an_integer_parameter() -> None:
    network = two_layers(lambda n, h: torch.relu(h) * n.steps)
    network.steps = nn.Parameter(torch.arange(5), requires_grad=False)
    assert free(read(network)) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_networks_of_other_precisions(dtype: torch.dtype) -> None:
    assert free(read(mlp().to(dtype), VECTOR.to(dtype))) == [(5, ())]


def test_a_complex_network() -> None:
    def wiring(n: Any, x: Tensor) -> Tensor:
        return n.second(torch.tanh(n.first(x))).abs()

    first, second = (nn.Linear(*sizes, dtype=torch.complex64) for sizes in ((3, 5), (5, 2)))
    network = Wired(wiring, first=first, second=second)
    assert free(read(network, torch.complex(VECTOR, vectors(4, 3, seed=1)))) == [(5, ())]


def test_a_sparse_parameter_is_read_or_refused() -> None:
    weight = nn.Parameter(torch.eye(4).to_sparse())
    network = Wired(lambda n, x: torch.sparse.mm(n.weight, x), weight=weight)
    with pytest.raises(pg.CaptureError, match=r"weight.*sparse"):
        pg.capture(network, VECTOR)


def test_tied_parameters_are_one() -> None:
    first, second = nn.Linear(5, 5), nn.Linear(5, 5)
    second.weight = first.weight
    layers = [nn.Linear(3, 5), nn.ReLU(), first, nn.ReLU(), second, nn.ReLU(), nn.Linear(5, 2)]
    graph = read(nn.Sequential(*layers))
    assert free(graph) == [(5, ())]
    layout = next(layout for layout in graph.parameters if layout.aliases)
    assert (layout.name, layout.aliases) == ("2.weight", ("4.weight",))


def test_parameters_that_share_memory_are_tied_or_refused() -> None:
    """Two ``nn.Parameter`` of one tensor: what is written to one is written to the other."""
    weight = torch.randn(5, 5)

    def wiring(n: Any, x: Tensor) -> Tensor:
        return n.head(torch.relu(torch.relu(n.first(x)) @ n.one) @ n.two)

    one, two = nn.Parameter(weight), nn.Parameter(weight)
    network = Wired(wiring, first=nn.Linear(3, 5), one=one, two=two, head=nn.Linear(5, 2))
    expected = network(VECTOR)
    try:
        graph = pg.capture(network, VECTOR)
    except pg.CaptureError as error:
        assert "memory" in str(error)  # noqa: PT017
        return
    network.load_state_dict(graph.sample_symmetry().apply(copy.deepcopy(network.state_dict())))
    torch.testing.assert_close(network(VECTOR), expected, rtol=1e-4, atol=1e-5)


def test_attributes_and_classes_of_parameters_are_kept() -> None:
    class _Marked(nn.Parameter):
        power: float

    network = two_layers(lambda n, h: torch.relu(h) * n.gain * n.gain.power)
    network.gain = _Marked(torch.rand(5))
    network.gain.power = 2.0
    assert free(read(network)) == [(5, ())]


# Inputs and outputs.

_Pair = collections.namedtuple("_Pair", "left right")


@pytest.mark.parametrize(
    "inputs",
    [
        {"x": VECTOR, "mask": None, "kind": "plain"},
        (VECTOR, None, "plain"),
        (VECTOR,),
        {"x": VECTOR},
    ],
)
def test_arguments_that_are_no_tensors(inputs: Any) -> None:
    def wiring(n: Any, x: Tensor, mask: Tensor | None = None, kind: str = "plain") -> Tensor:
        assert mask is None
        assert kind == "plain"
        return n.second(torch.relu(n.first(x)))

    network = Wired(wiring, first=nn.Linear(3, 5), second=nn.Linear(5, 2))
    assert free(read(network, inputs)) == [(5, ())]


def test_containers_among_the_arguments_keep_their_type() -> None:
    def wiring(n: Any, x: Any) -> Tensor:
        assert type(x["list"]) is list
        assert type(x["pair"]) is _Pair
        return n.second(torch.relu(n.first(x["list"][0] + x["pair"].left + x["pair"].right[0])))

    network = Wired(wiring, first=nn.Linear(3, 5), second=nn.Linear(5, 2))
    inputs = {"x": {"list": [VECTOR], "pair": _Pair(VECTOR, (VECTOR,))}}
    assert free(read(network, inputs)) == [(5, ())]


def test_sequences_of_different_lengths() -> None:
    def wiring(n: Any, x: nn.utils.rnn.PackedSequence) -> Tensor:
        return n.head(n.cell(x)[1][-1])

    network = Wired(wiring, cell=nn.RNN(3, 4), head=nn.Linear(4, 2))
    packed = nn.utils.rnn.pack_sequence([vectors(3, 3), vectors(2, 3)])
    assert free(read(network, (packed,))) == [(4, ())]


def test_inputs_without_a_tensor_are_refused() -> None:
    for inputs in ((3, "a"), {"x": None}, ()):
        with pytest.raises(pg.CaptureError, match="example_inputs hold no tensor"):
            pg.capture(mlp(), inputs)
    with pytest.raises(pg.CaptureError, match="example_inputs is an empty list"):
        pg.capture(mlp(), [])


def test_inputs_that_do_not_fit_are_named_with_the_module() -> None:
    message = r"failed on the example inputs \(shapes \(4, 7\)\) in module '0'"
    with pytest.raises(pg.CaptureError, match=message):
        pg.capture(mlp(), torch.zeros(4, 7))


@dataclasses.dataclass
class _Result:
    prediction: Tensor
    hidden: Tensor | None


@dataclasses.dataclass
class _WithLogits:
    logits: Tensor
    hidden: Tensor


_Named = collections.namedtuple("_Named", "prediction hidden")


def _returning(wrap: Callable[[Tensor, Tensor], Any]) -> Wired:
    def wiring(n: Any, x: Tensor) -> Any:
        hidden = torch.relu(n.first(x))
        return wrap(n.second(hidden), hidden)

    return Wired(wiring, first=nn.Linear(3, 5), second=nn.Linear(5, 2))


@pytest.mark.parametrize(
    ("wrap", "output"),
    [
        (lambda y, h: {"prediction": y, "hidden": h}, "prediction"),
        (lambda y, h: {"prediction": y, 0: h}, "prediction"),
        (lambda y, h: _Named(y, h), "prediction"),
        (lambda y, h: _Named(y, h), 0),
        (lambda y, h: _Result(y, h), "prediction"),
        (lambda y, h: _WithLogits(y, h), None),
        (lambda y, h: (y, h), 0),
        (lambda y, h: [h, (h, y)], lambda result: result[1][1]),
        (lambda y, h: (y, h), lambda result: result[0].softmax(-1)[:, :1]),
        (lambda y, h: (y, None, 3, "a"), None),
        (lambda y, h: _Result(y, None), None),
    ],
)
def test_the_output_that_counts(wrap: Callable[[Tensor, Tensor], Any], output: Any) -> None:
    graph = read(_returning(wrap), output=output)
    assert (5, ()) in free(graph)


def test_by_default_all_outputs_count() -> None:
    for wrap in (lambda y, h: (y, h), lambda y, h: {"y": y, "h": h}, lambda y, h: _Named(y, h)):
        assert free(read(_returning(wrap))) == []


def test_an_output_that_is_not_there_is_named() -> None:
    by_key = _returning(lambda y, h: {"prediction": y, "hidden": h})
    message = r"no output 'logits'; it returned \['prediction', 'hidden'\]. Name one of these"
    with pytest.raises(pg.CaptureError, match=message):
        pg.capture(by_key, VECTOR, output="logits")
    with pytest.raises(pg.CaptureError, match="no output 2; it returned tuple"):
        pg.capture(_returning(lambda y, h: (y, h)), VECTOR, output=2)
    with pytest.raises(pg.CaptureError, match="no output 'logits'; it returned Tensor"):
        pg.capture(mlp(), VECTOR, output="logits")
    with pytest.raises(pg.CaptureError, match="returned no tensor"):
        pg.capture(_returning(lambda y, h: (y, "text")), VECTOR, output=1)
    with pytest.raises(pg.CaptureError, match="AttributeError: 'tuple' object has no attribute"):
        pg.capture(_returning(lambda y, h: (y, h)), VECTOR, output=lambda result: result.first)
    with pytest.raises(pg.CaptureError, match="returned no tensor"):
        pg.capture(Wired(lambda n, x: None, first=nn.Linear(3, 5)), VECTOR)


# Several example inputs.


def _branching() -> Wired:
    def wiring(n: Any, x: Tensor) -> Tensor:
        return n.head(torch.relu(n.one(x) if x.sum() > 0 else n.two(x)))

    return Wired(wiring, one=nn.Linear(3, 5), two=nn.Linear(3, 5), head=nn.Linear(5, 2))


def test_several_inputs_show_all_branches() -> None:
    ahead, back = VECTOR.abs(), -VECTOR.abs()
    one = read(_branching(), ahead)
    assert one.unused_parameters == ("two.weight", "two.bias")
    for inputs in ([ahead, back], [(ahead,), {"x": back}], [back, ahead, ahead * 2]):
        graph = read(_branching(), inputs)
        assert graph.unused_parameters == ()
        assert {layout.name for layout in graph.parameters} == set(_branching().state_dict())
        assert free(graph) == [(5, ())]
        # Both branches write the neurons that the head reads, so they are permuted together.
        assert len({part_name(graph, name) for name in ("one.weight", "two.weight")}) == 1


def part_name(graph: pg.ParamGraph, parameter: str) -> Any:
    layout = next(layout for layout in graph.parameters if layout.name == parameter)
    return layout.parts[0].factors[0]


def test_parameters_of_the_second_run_stand_in_the_graph() -> None:
    ahead, back = VECTOR.abs(), -VECTOR.abs()
    graph = read(_branching(), [ahead, back])
    state = {name: value.double() for name, value in _branching().state_dict().items()}
    values = graph.features(state)
    again = graph.write_back(values)
    assert all(torch.equal(value[0], state[name]) for name, value in again.items())
    assert set(again) == set(state)


def test_inputs_of_other_shapes_may_take_another_way() -> None:
    def wiring(n: Any, x: Tensor) -> Tensor:
        return n.three(torch.relu(n.one(x))) if len(x) > 4 else n.four(torch.tanh(n.two(x)))

    parts = {"one": nn.Linear(3, 5), "two": nn.Linear(3, 4)}
    network = Wired(wiring, **parts, three=nn.Linear(5, 2), four=nn.Linear(4, 2))
    graph = read(network, [VECTOR, vectors(6, 3)])
    assert free(graph) == [(4, ()), (5, ())]
    assert graph.unused_parameters == ()


# Ways to run a network other than calling its modules.


def _energy(n: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        energy = n.second(torch.tanh(n.first(x))).sum()
        return torch.autograd.grad(energy, x, create_graph=True)[0]


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


@pytest.mark.parametrize(
    "wiring",
    [
        _energy,
        lambda n, x: torch.vmap(lambda row: n.second(torch.relu(n.first(row))))(x),
        lambda n, x: torch.vmap(torch.func.jacrev(lambda r: n.second(torch.tanh(n.first(r)))))(x),
        lambda n, x: n.second(
            torch.func.functional_call(n.first, {"weight": 2 * n.first.weight}, (x,)).relu()
        ),
        lambda n, x: n.second(
            torch.utils.checkpoint.checkpoint(lambda y: n.first(y).relu(), x, use_reentrant=False)
        ),
        lambda n, x: n.second(_Straight.apply(n.first(x))),
    ],
    ids=["gradient", "vmap", "jacrev", "functional_call", "checkpoint", "autograd_function"],
)
def test_functional_ways_to_run_a_network(wiring: Callable[[Any, Tensor], Tensor]) -> None:
    network = Wired(wiring, first=nn.Linear(3, 5), second=nn.Linear(5, 2))
    assert (5, ()) in free(read(network))  # a sum over outputs frees these too


def test_wrapped_networks() -> None:
    assert free(read(torch.fx.symbolic_trace(mlp()))) == [(5, ())]
    assert free(read(nn.DataParallel(mlp()))) == [(5, ())]
    assert free(read(torch.compile(mlp(), backend="eager"))) == [(5, ())]  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_scripted_networks_are_read_or_refused() -> None:
    for network in (torch.jit.script(mlp()), nn.Sequential(torch.jit.script(mlp()))):
        try:
            graph = pg.capture(network, VECTOR)
        except pg.CaptureError as error:
            assert "jit" in str(error) or "Script" in str(error)  # noqa: PT017
        else:
            assert free(graph) == [(5, ())]


# Devices.


def test_the_meta_device_gives_the_structure_and_no_check() -> None:
    with torch.device("meta"):
        network, inputs = mlp(), torch.empty(4, 3)
    graph = pg.capture(network, inputs)
    assert graph.signature == pg.capture(mlp(), VECTOR).signature
    with pytest.raises(pg.GraphError, match="lies on the meta device and has no weights"):
        pg.verify(network, graph, inputs)
    with pytest.raises(pg.CaptureError, match="meta"):
        pg.capture(network, VECTOR)


def test_a_number_of_a_network_on_the_meta_device_is_an_error_that_says_so() -> None:
    with torch.device("meta"):
        network, inputs = two_layers(lambda n, h: h * h.sum().item()), torch.empty(4, 3)
    with pytest.raises(pg.CaptureError, match=r"item\(\) cannot be called on meta tensors"):
        pg.capture(network, inputs)


@pytest.fixture
def meta_by_default() -> Iterator[None]:
    with torch.device("meta"):
        yield


def test_the_default_device_does_not_matter(meta_by_default: None) -> None:
    assert free(read(_on_cpu())) == [(5, ())]


def _on_cpu() -> nn.Module:
    with torch.device("cpu"):
        return mlp()


@pytest.mark.gpu
def test_a_network_on_a_gpu() -> None:
    network, inputs = training_network().cuda(), VECTOR.cuda()
    kept = torch.cuda.get_rng_state()
    graph = read(network, inputs)
    assert torch.equal(torch.cuda.get_rng_state(), kept)
    assert graph.signature == pg.capture(training_network(), VECTOR).signature
    assert all(parameter.is_cuda for parameter in network.parameters())
    moved = graph.sample_symmetry().apply(network.state_dict())
    assert all(value.is_cuda for value in moved.values())


@pytest.mark.gpu
def test_a_network_on_the_cpu_leaves_the_gpu_alone() -> None:
    torch.cuda.init()
    kept = torch.cuda.get_rng_state()
    read(mlp())
    assert torch.equal(torch.cuda.get_rng_state(), kept)
