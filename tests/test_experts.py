"""Mixtures of experts: the experts can be permuted, and the neurons of each within it.

However the chosen expert is reached: a row of a stack by a number, a module of a list by a number,
a mask, an index tensor, or all experts weighed by an encoding of the choice.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from expected_groups import found_groups
from networks import Wired, make_hazard, vectors, zeros
from torch import Tensor, nn
from torch.nn import functional

import paramgraph as pg

NUM_EXPERTS, STREAM, WIDTH = 3, 5, 4
TOKENS = vectors(24, 3)

#: The residual stream, the experts, and the neurons of each expert.
EXPECTED = [(NUM_EXPERTS, ()), (WIDTH, (NUM_EXPERTS,)), (STREAM, ())]


def _choice(n: Any, stream: Tensor) -> tuple[Tensor, Tensor]:
    """The two best experts of every token and their weights."""
    best, index = n.router(stream).softmax(-1).topk(2, dim=-1)
    return best / best.sum(-1, keepdim=True), index


def _stacked_by_number(n: Any, x: Tensor) -> Tensor:
    """The loop of mixtral: experts that were hit, their number read, rows of two stacks."""
    stream = n.embed(x)
    best, index = _choice(n, stream)
    mixed = torch.zeros_like(stream)
    mask = functional.one_hot(index, NUM_EXPERTS).permute(2, 1, 0)
    for hit in (mask.sum((-1, -2)) > 0).nonzero():
        number = int(hit[0].item())
        place, token = torch.where(mask[number])
        hidden = torch.relu(stream[token] @ n.up[number] + n.bias[number])
        mixed.index_add_(0, token, hidden @ n.down[number] * best[token, place, None])
    return n.head(stream + mixed)


def _stacked_by_tensor(n: Any, x: Tensor) -> Tensor:
    """The same, the number kept as a tensor."""
    stream = n.embed(x)
    best, index = _choice(n, stream)
    mixed = torch.zeros_like(stream)
    mask = functional.one_hot(index, NUM_EXPERTS).permute(2, 1, 0)
    for hit in (mask.sum((-1, -2)) > 0).nonzero():
        place, token = torch.where(mask[hit].squeeze(0))
        hidden = torch.relu(stream[token] @ n.up[hit[0]] + n.bias[hit[0]])
        mixed.index_add_(0, token, hidden @ n.down[hit[0]] * best[token, place, None])
    return n.head(stream + mixed)


def _modules_by_number(n: Any, x: Tensor) -> Tensor:
    """A list of modules, one of them taken by the number that was read."""
    stream = n.embed(x)
    best, index = _choice(n, stream)
    mixed = torch.zeros_like(stream)
    mask = functional.one_hot(index, NUM_EXPERTS).permute(2, 1, 0)
    for hit in (mask.sum((-1, -2)) > 0).nonzero():
        number = int(hit[0].item())
        place, token = torch.where(mask[number])
        mixed.index_add_(0, token, n.experts[number](stream[token]) * best[token, place, None])
    return n.head(stream + mixed)


def _gathered(n: Any, x: Tensor) -> Tensor:
    """The weights of the chosen experts are gathered by an index tensor."""
    stream = n.embed(x)
    best, index = _choice(n, stream)
    hidden = torch.relu(torch.einsum("bd,bkdh->bkh", stream, n.up[index]) + n.bias[index])
    return n.head(stream + torch.einsum("bkh,bkhd,bk->bd", hidden, n.down[index], best))


def _dense_one_hot(n: Any, x: Tensor) -> Tensor:
    """All experts run on all tokens; those not chosen are weighed with zero."""
    stream = n.embed(x)
    best, index = _choice(n, stream)
    weight = (functional.one_hot(index, NUM_EXPERTS).to(best.dtype) * best[..., None]).sum(1)
    hidden = torch.relu(torch.einsum("bd,edh->beh", stream, n.up) + n.bias)
    return n.head(stream + torch.einsum("beh,ehd,be->bd", hidden, n.down, weight))


def _dense_scattered(n: Any, x: Tensor) -> Tensor:
    """The weights of the choice are scattered into a table of all experts."""
    stream = n.embed(x)
    best, index = _choice(n, stream)
    weight = torch.zeros(len(x), NUM_EXPERTS, dtype=best.dtype).scatter(1, index, best)
    hidden = torch.relu(torch.einsum("bd,edh->beh", stream, n.up) + n.bias)
    return n.head(stream + torch.einsum("beh,ehd,be->bd", hidden, n.down, weight))


def _dispatched(n: Any, x: Tensor) -> Tensor:
    """One expert per token, and a place for every token of an expert: switch, GShard."""
    stream = n.embed(x)
    best, index = n.router(stream).softmax(-1).max(-1)
    mask = functional.one_hot(index, NUM_EXPERTS).to(stream.dtype)
    inputs = torch.einsum("be,bd->ebd", mask, stream)
    hidden = torch.relu(inputs @ n.up + n.bias[:, None])
    return n.head(stream + torch.einsum("ebd,be,b->bd", hidden @ n.down, mask, best))


def _build(wiring: Any, *, modules: bool = False) -> nn.Module:
    ends = {"embed": nn.Linear(3, STREAM), "router": nn.Linear(STREAM, NUM_EXPERTS)}
    if modules:
        experts = [
            nn.Sequential(nn.Linear(STREAM, WIDTH), nn.ReLU(), nn.Linear(WIDTH, STREAM))
            for _ in range(NUM_EXPERTS)
        ]
        parts: dict[str, Any] = {"experts": nn.ModuleList(experts)}
    else:
        parts = {
            "up": zeros(NUM_EXPERTS, STREAM, WIDTH),
            "bias": zeros(NUM_EXPERTS, WIDTH),
            "down": zeros(NUM_EXPERTS, WIDTH, STREAM),
        }
    return Wired(wiring, **ends, **parts, head=nn.Linear(STREAM, 2))


WAYS = {
    "stacked_by_number": _stacked_by_number,
    "stacked_by_tensor": _stacked_by_tensor,
    "modules_by_number": _modules_by_number,
    "gathered": _gathered,
    "dense_one_hot": _dense_one_hot,
    "dense_scattered": _dense_scattered,
    "dispatched": _dispatched,
}


def make(name: str) -> nn.Module:
    """A network with the same weights each time."""
    is_list = name.startswith("modules")
    return make_hazard(name, lambda: _build(WAYS[name], modules=is_list), TOKENS).make()


@pytest.mark.parametrize("name", WAYS)
def test_experts_and_the_neurons_of_each_are_free(name: str) -> None:
    network = make(name)
    graph = pg.capture(network, TOKENS, check=False)
    assert found_groups(graph.axis_groups) == EXPECTED
    assert graph.unused_parameters == ()
    assert graph.unknown_operations == ()
    verification = pg.verify(network, graph, TOKENS)
    assert verification.passed, verification


@pytest.mark.parametrize("name", WAYS)
def test_the_number_of_permutations_is_that_of_all_experts(name: str) -> None:
    graph = pg.capture(make(name), TOKENS)
    each = math.factorial(WIDTH) ** NUM_EXPERTS
    expected = each * math.factorial(NUM_EXPERTS) * math.factorial(STREAM)
    assert graph.log_group_size() == pytest.approx(math.log(expected))
    assert graph.repairs == ()


@pytest.mark.parametrize("name", WAYS)
def test_another_order_of_experts_is_another_network_with_the_same_function(name: str) -> None:
    network = make(name).double()
    expected = network(TOKENS.double())
    graph = pg.capture(network, TOKENS.double())
    state = network.state_dict()
    moved = graph.sample_symmetry(torch.Generator().manual_seed(1)).apply(state)
    assert any(not torch.equal(moved[key], state[key]) for key in state if "router" in key)
    network.load_state_dict(moved)
    torch.testing.assert_close(network(TOKENS.double()), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["stacked_by_number", "gathered", "dense_one_hot"])
def test_experts_in_another_order_than_the_router_are_noticed(name: str) -> None:
    network = make(name).double()
    expected = network(TOKENS.double())
    for key in ("up", "bias", "down"):
        tensor = network.get_parameter(key)
        tensor.data = tensor.data.roll(1, 0)
    assert not torch.allclose(network(TOKENS.double()), expected, rtol=1e-3, atol=1e-3)


def test_experts_that_no_input_reaches_are_not_called_symmetric_by_mistake() -> None:
    """The router never picks the last expert on one of the inputs, and not the first on another."""
    network = make("modules_by_number")
    state = network.state_dict()
    router = torch.zeros(NUM_EXPERTS, STREAM)
    router[0, 0], router[2, 0] = 9.0, -9.0
    state["router.weight"], state["router.bias"] = router, torch.zeros(NUM_EXPERTS)
    state["embed.weight"], state["embed.bias"] = state["embed.weight"].abs(), torch.zeros(STREAM)
    network.load_state_dict(state)
    ahead, back = TOKENS.abs(), -TOKENS.abs()
    one = pg.capture(network, ahead)
    assert {name.split(".")[1] for name in one.unused_parameters} == {"2"}
    both = pg.capture(network, [ahead, back])
    assert both.unused_parameters == ()
    for graph, inputs in ((one, ahead), (both, [ahead, back])):
        verification = pg.verify(network, graph, inputs)
        assert verification.passed, verification


# The networks that people use.


def _mixtral() -> tuple[nn.Module, Any]:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        **_SIZES, intermediate_size=12, num_local_experts=4, num_experts_per_tok=2
    )
    return MixtralForCausalLM(config), _IDS


def _qwen2_moe() -> tuple[nn.Module, Any]:
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    config = Qwen2MoeConfig(
        **_SIZES,
        intermediate_size=10,
        moe_intermediate_size=12,
        shared_expert_intermediate_size=14,
        num_experts=4,
        num_experts_per_tok=2,
        decoder_sparse_step=1,
    )
    return Qwen2MoeForCausalLM(config), _IDS


def _qwen3_moe() -> tuple[nn.Module, Any]:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    sizes = {**_SIZES, "head_dim": 4, "intermediate_size": 10, "moe_intermediate_size": 12}
    config = Qwen3MoeConfig(**sizes, num_experts=4, num_experts_per_tok=2)
    return Qwen3MoeForCausalLM(config), _IDS


def _switch() -> tuple[nn.Module, Any]:
    from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

    config = SwitchTransformersConfig(
        vocab_size=40,
        d_model=16,
        d_kv=4,
        d_ff=12,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=2,
        num_experts=4,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
        expert_capacity=64,
    )
    ids = torch.randint(3, 40, (4, 12), generator=torch.Generator().manual_seed(0))
    network = SwitchTransformersForConditionalGeneration(config)
    return network, {"input_ids": ids, "decoder_input_ids": ids[:, :11].flip(1)}


_SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_IDS = {"input_ids": torch.randint(3, 40, (4, 12), generator=torch.Generator().manual_seed(0))}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make_network", "num_mixtures"),
    [(_mixtral, 2), (_qwen2_moe, 2), (_qwen3_moe, 2), (_switch, 2)],
)
def test_experts_of_transformers(make_network: Any, num_mixtures: int) -> None:
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    network, inputs = make_network()
    graph = pg.capture(network, inputs, check=False)
    rows = found_groups(graph.axis_groups)
    # No other group has 4 members (2 heads of keys, 2 query heads each) or 12.
    assert rows.count((12, (4,))) == num_mixtures
    assert sum(size == 4 and not given for size, given in rows) >= num_mixtures
    assert graph.unused_parameters == ()
    verification = pg.verify(network, graph, inputs)
    assert verification.passed, verification
