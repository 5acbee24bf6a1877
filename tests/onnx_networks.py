"""Networks to export to ONNX: one for each family of layers, all small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["NETWORKS", "TRANSFORMERS", "make_transformer", "randomised"]


class _Function(nn.Module):
    """A function with one linear layer before it, so that there is a parameter."""

    def __init__(self, function: Callable[[Tensor], Any], width: int = 6) -> None:
        super().__init__()
        self.first, self.function = nn.Linear(width, width), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.first(x))


class _Recurrent(nn.Module):
    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)[0]


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(11, 8), nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.table: Tensor
        self.register_buffer("table", torch.randn(5, 8))

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        states = self.norm(self.embedding(tokens) + self.table[: tokens.shape[1]])
        return {"logits": self.head(states), "states": states}


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        self.group = nn.GroupNorm(2, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + F.silu(self.group(self.depthwise(x)))
        return self.head(F.max_pool2d(x, 2).mean((2, 3)))


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


class _Indexing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.score = nn.Parameter(torch.randn(7, 6)), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Any:
        score = self.score(x)
        values, places = score.topk(2, -1)
        mask = torch.zeros_like(score).scatter(-1, places, values.softmax(-1))
        one_hot = F.one_hot(places[..., 0], 6).to(x.dtype)
        rows = self.table[places[..., 0]]
        picked = torch.gather(score, -1, places)
        written = score.clone()
        written[0] = self.table[0]
        return mask, one_hot, rows, picked, written, score.argmax(-1), score.cumsum(-1)


def _shapes(x: Tensor) -> Any:
    a, b, c = x.chunk(3, -1)
    y = torch.cat([c, a], -1).flip(-1)[..., 1:4:2]
    z = F.pad(x, (1, 2), value=0.5).roll(1, -1).repeat(2, 1)
    w = torch.stack([a, b]).permute(1, 0, 2).reshape(x.shape[0], -1)
    t = torch.tril(x[:, :, None] * x[:, None, :]).diagonal(dim1=1, dim2=2)
    return y, z, w + t[:, :4], x.unsqueeze(1).expand(-1, 3, -1), x.split([1, 2, 3], -1)


def _reductions(x: Tensor) -> Any:
    return (
        x.sum(-1), x.mean(0, keepdim=True), x.amax(-1), x.amin(0), x.prod(-1), x.norm(dim=-1),
        torch.logsumexp(x, -1), x.var(-1), x.std(0), x.abs().sum(), x.max(-1)[0], x.norm(1, -1),
    )  # fmt: skip


def _elementwise(x: Tensor) -> Any:
    y = x.abs() + 0.5
    return (
        y.sqrt() + y.rsqrt() + y.log() + x.exp() - y.reciprocal() + y.log1p() + x.expm1(),
        x.sin() * x.cos() / y.atan() + x.tanh().asin() + x.sinh() - x.cosh() + x.erf(),
        torch.where(x > 0, x, -x).clamp(-0.3, 0.4) ** 2 + x.pow(3) + y.pow(0.5),
        torch.maximum(x, y) - torch.minimum(x, -y) + x.floor() + x.ceil() + x.round() + x.sign(),
        (x * 10).to(torch.int64) // 3 + (x * 10).long() % 3, x.remainder(0.7) + x.fmod(0.7),
        (x > 0) & ~(x < 0.5) | (x == 1), x.masked_fill(x < 0, -1.0), torch.isnan(x),
    )  # fmt: skip


def _activations(x: Tensor) -> Any:
    names = ("relu", "gelu", "silu", "mish", "elu", "selu", "celu", "leaky_relu", "hardswish",
             "hardsigmoid", "softplus", "softsign", "logsigmoid", "relu6", "hardtanh",
             "tanhshrink", "softshrink", "hardshrink")  # fmt: skip
    found = [getattr(F, name)(x) for name in names]
    found += [F.gelu(x, approximate="tanh"), F.glu(x, -1), F.threshold(x, 0.1, 0.0)]
    return [*found, x.softmax(-1), x.log_softmax(0), F.prelu(x, torch.tensor([0.2]))]


def _einsums(x: Tensor) -> Any:
    a, b = x.reshape(-1, 2, 3), x.reshape(-1, 3, 2)
    return (
        torch.einsum("bij,bjk->bik", a, b), torch.einsum("bij->bji", a), torch.bmm(a, b),
        torch.addmm(x, x[:, :3], a[0].new_ones(3, 6), beta=0.5, alpha=2.0),
        F.normalize(x, dim=-1), F.layer_norm(x, (6,)), torch.baddbmm(a @ b, a, b),
    )  # fmt: skip


def _pools(x: Tensor) -> Any:
    return (
        F.max_pool2d(x, 3, 2, 1), F.avg_pool2d(x, 3, 2, 1), F.adaptive_avg_pool2d(x, 1),
        F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False), F.adaptive_avg_pool2d(x, 3),
        F.interpolate(x, scale_factor=2), F.interpolate(x, size=(9, 7), mode="bilinear"),
        F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True),
        F.interpolate(x, size=(4, 9)), F.interpolate(x, size=(8, 8), mode="bicubic"),
        F.pad(x, (1, 2, 0, 1), mode="reflect"), F.pad(x, (1, 1, 1, 1), mode="replicate"),
        F.pixel_shuffle(x, 2), F.pixel_unshuffle(x, 3), F.instance_norm(x),
        F.pad(x, (1, 2), value=1.0), F.adaptive_max_pool2d(x, 1), F.lp_pool2d(x.abs(), 2.0, 2),
    )  # fmt: skip


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "perceptron": (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4, bias=False)),
        (torch.randn(3, 6),),
    ),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.LeakyReLU(), nn.Flatten(),
            nn.Linear(36, 3), nn.LogSoftmax(-1),
        ),
        (torch.randn(2, 1, 8, 8),),
    ),
    "residual, depthwise, groups": (_Residual, (torch.randn(2, 1, 8, 8),)),
    "other convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, (3, 1), dilation=(2, 1), padding=(2, 0), groups=2), nn.PReLU(4),
            nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1), nn.Dropout(),
            nn.Conv2d(2, 2, 3, padding="same", padding_mode="circular"), nn.Hardtanh(),
        ),
        (torch.randn(2, 2, 5, 4),),
    ),
    "convolutions in 1 and 3 dimensions": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.AvgPool1d(2), nn.ConvTranspose1d(3, 2, 2),
            nn.Unflatten(1, (2, 1, 1)), nn.Conv3d(2, 2, (1, 1, 2)), nn.MaxPool3d((1, 1, 2)),
        ),
        (torch.randn(2, 2, 12),),
    ),
    "lstm": (lambda: _Recurrent(nn.LSTM(4, 5, 2, bidirectional=True)), (torch.randn(3, 2, 4),)),
    "gru": (lambda: _Recurrent(nn.GRU(4, 5, batch_first=True)), (torch.randn(2, 3, 4),)),
    "rnn": (lambda: _Recurrent(nn.RNN(4, 5, nonlinearity="relu")), (torch.randn(3, 2, 4),)),
    "tied": (_Tied, (torch.randint(0, 11, (2, 4)),)),
    "attention": (_Attention, (torch.randn(2, 3, 8),)),
    "encoder": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True), 2,
            enable_nested_tensor=False,
        ),
        (torch.randn(2, 3, 8),),
    ),
    "decoder": (
        lambda: nn.TransformerDecoderLayer(8, 2, 16, norm_first=True, batch_first=True),
        (torch.randn(2, 3, 8), torch.randn(2, 4, 8)),
    ),
    "indexing": (_Indexing, (torch.randn(3, 6),)),
    "shapes": (lambda: _Function(_shapes), (torch.randn(2, 6),)),
    "reductions": (lambda: _Function(_reductions), (torch.randn(3, 6),)),
    "elementwise": (lambda: _Function(_elementwise), (torch.randn(3, 6),)),
    "activations": (lambda: _Function(_activations), (torch.randn(3, 6),)),
    "products": (lambda: _Function(_einsums), (torch.randn(3, 6),)),
    "images": (lambda: _Function(_pools), (torch.randn(1, 4, 6, 6),)),
    "rms norm": (
        lambda: nn.Sequential(nn.Linear(6, 8), nn.RMSNorm(8), nn.Softplus(), nn.Linear(8, 2)),
        (torch.randn(3, 6),),
    ),
}  # fmt: skip

_TINY: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                         "intermediate_size": 24, "vocab_size": 30,
                         "max_position_embeddings": 16}  # fmt: skip

TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel",
             {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 30, "n_positions": 16}),
    "bert": ("BertConfig", "BertForSequenceClassification", _TINY),
    "llama": ("LlamaConfig", "LlamaForCausalLM", {**_TINY, "num_key_value_heads": 1}),
    "opt": ("OPTConfig", "OPTForCausalLM",
            {**_TINY, "ffn_dim": 24, "word_embed_proj_dim": 16}),
    "vit": ("ViTConfig", "ViTForImageClassification",
            {**_TINY, "image_size": 8, "patch_size": 4, "num_channels": 1}),
}  # fmt: skip
"""Name -> class of the configuration, class of the network, values of the configuration."""


def make_transformer(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A tiny network of ``transformers`` with random weights, and inputs."""
    import transformers

    config, network, values = TRANSFORMERS[name]
    built = getattr(transformers, network)(getattr(transformers, config)(**values)).eval()
    if hasattr(built.config, "use_cache"):
        built.config.use_cache = False
    if name == "vit":
        return built, (torch.randn(2, 1, 8, 8),)
    return built, (torch.randint(0, 30, (2, 5)),)


def randomised(network: nn.Module) -> nn.Module:
    """All numbers different, so that no exporter can merge two tensors."""
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(-0.8, 1.0).add_(torch.tensor(0.05).exp() - 1)
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                assert module.running_var is not None
                module.running_var.uniform_(0.5, 1.5)
    return network
