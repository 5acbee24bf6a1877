"""Folders of transformers: offline, complete, and without code or pickles from the folder."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

import transformers
from onnx_networks import TRANSFORMERS, make_transformer

from paramgraph.errors import CheckpointError
from paramgraph.frontends import load_transformers

_TINY: dict[str, Any] = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
                         "encoder_attention_heads": 2, "decoder_attention_heads": 2,
                         "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "vocab_size": 30,
                         "max_position_embeddings": 16}  # fmt: skip

# Class of the configuration, class of the network, values, expected inputs by shape.
OTHERS: dict[str, tuple[str, str, dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "bart": ("BartConfig", "BartForConditionalGeneration",
             {**_TINY, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
              "decoder_start_token_id": 2, "forced_eos_token_id": 2},
             {"input_ids": (2, 6), "decoder_input_ids": (2, 6)}),
    "t5": ("T5Config", "T5ForConditionalGeneration",
           {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2,
            "vocab_size": 30, "decoder_start_token_id": 0},
           {"input_ids": (2, 6), "decoder_input_ids": (2, 6)}),
    "whisper": ("WhisperConfig", "WhisperForConditionalGeneration",
                {**_TINY, "num_mel_bins": 8, "max_source_positions": 10, "pad_token_id": 0,
                 "max_target_positions": 12, "bos_token_id": 1, "eos_token_id": 2,
                 "decoder_start_token_id": 1, "suppress_tokens": None,
                 "begin_suppress_tokens": None},
                {"input_features": (2, 8, 20), "decoder_input_ids": (2, 6)}),
    "resnet": ("ResNetConfig", "ResNetForImageClassification",
               {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1],
                "layer_type": "basic"}, {"pixel_values": (2, 3, 32, 32)}),
    "wav2vec2": ("Wav2Vec2Config", "Wav2Vec2Model",
                 {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                  "intermediate_size": 24, "conv_dim": [8, 8], "conv_stride": [5, 4],
                  "conv_kernel": [10, 8], "num_conv_pos_embeddings": 4,
                  "num_conv_pos_embedding_groups": 2}, {"input_values": (2, 4000)}),
    "one sentence at a time": ("GPT2Config", "GPT2ForSequenceClassification",
                               {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 30,
                                "bos_token_id": 0, "eos_token_id": 0}, {"input_ids": (1, 6)}),
}  # fmt: skip


def _logits(result: Any) -> Tensor:
    return result.logits if hasattr(result, "logits") else result[0]


@pytest.mark.parametrize("name", [*TRANSFORMERS, *OTHERS])
@pytest.mark.filterwarnings("ignore")
def test_network_of_a_folder_is_the_network(name: str, tmp_path: Path) -> None:
    network: Any
    if name in TRANSFORMERS:
        network, _ = make_transformer(name)
        shapes = None
    else:
        config, kind, values, shapes = OTHERS[name]
        made: Any = getattr(transformers, kind)(getattr(transformers, config)(**values))
        network = made.eval()
    network.save_pretrained(tmp_path)
    loaded, inputs = load_transformers(tmp_path)
    assert isinstance(inputs, dict)
    if shapes is not None:
        assert {key: tuple(value.shape) for key, value in inputs.items()} == shapes
    with torch.no_grad():
        torch.testing.assert_close(_logits(loaded(**inputs)), _logits(network(**inputs)))
    assert not loaded.training
    expected = dict(network.named_parameters())
    assert {n: p.shape for n, p in loaded.named_parameters()} == {
        n: p.shape for n, p in expected.items()
    }
    for key, value in inputs.items():
        if value.dtype == torch.long:
            assert len(value.unique()) > 1, key


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny GPT-2 in several parts."""
    network: Any = make_transformer("gpt2")[0]
    target = tmp_path / "network"
    network.save_pretrained(target, max_shard_size="8KB")
    assert len(list(target.glob("*.safetensors"))) > 2
    return target


def test_parts_are_put_together_and_ties_kept(folder: Path) -> None:
    loaded = load_transformers(folder).network
    head, embedding = (loaded.get_submodule(n) for n in ("lm_head", "transformer.wte"))
    assert head.weight is embedding.weight
    again = load_transformers(folder).network
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


def _change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _code(folder: Path) -> None:
    _change(folder / "config.json", auto_map={"AutoModelForCausalLM": "code.Network"})
    (folder / "code.py").write_text("import os\nos.mkdir('mark')\n")


def _kernel(folder: Path) -> None:
    _change(folder / "config.json", _attn_implementation="someone/kernels")


def _nested_code(folder: Path) -> None:
    _change(folder / "config.json", text_config={"auto_map": {"AutoModel": "code.Network"}})


def _adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("mark",)


def _pickle(folder: Path) -> None:
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    torch.save(_Bomb(), folder / "pytorch_model.bin")


def _outside(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    part = weight_map["transformer.wte.weight"]
    shutil.copy(folder / part, folder.parent / "outside.safetensors")
    _change(index, weight_map=weight_map | {"transformer.wte.weight": "../outside.safetensors"})


def _pickled_part(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    torch.save(_Bomb(), folder / "part.bin")
    _change(index, weight_map=weight_map | {"transformer.wte.weight": "part.bin"})


def _missing_part(folder: Path) -> None:
    next(iter(sorted(folder.glob("*.safetensors")))).unlink()


def _missing_weight(folder: Path) -> None:
    _change(folder / "config.json", n_layer=3)


def _other_class(folder: Path) -> None:
    _change(folder / "config.json", architectures=["os"])


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _list(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def _truncated(folder: Path) -> None:
    path = next(iter(sorted(folder.glob("*.safetensors"))))
    path.write_bytes(path.read_bytes()[:-10])


def _other_shape(folder: Path) -> None:
    _change(folder / "config.json", n_embd=20)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (_code, r"code of its own \(auto_map: .*code.Network"),
        (_nested_code, "auto_map"),
        (_kernel, "_attn_implementation: someone/kernels"),
        (_adapter, "adapter_config.json"),
        (_pickle, r"only pytorch_model.bin, a pickle"),
        (_pickled_part, "names the file 'part.bin'"),
        (_outside, r"names the file '../outside.safetensors'"),
        (_missing_part, "the part 'model-00001-of-.*' that its index names is missing"),
        (_missing_weight, r"lack 12 weights of GPT2LMHeadModel \(first 'transformer.h.2"),
        (_other_class, "has no network 'os'"),
        (_no_config, "no file config.json"),
        (_no_json, "it is not JSON"),
        (_list, "expected an object, got list"),
        (_truncated, "cannot load .* as GPT2LMHeadModel"),
        (_other_shape, "cannot load .* as GPT2LMHeadModel"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_folder_is_refused(
    change: Callable[[Path], None],
    part: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    change(folder)
    with pytest.raises(CheckpointError, match=part):
        load_transformers(folder)
    assert not (tmp_path / "mark").exists()


def test_missing_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CheckpointError, match=r"pip install 'paramgraph\[hub\]'"):
        load_transformers(folder)


def test_network_for_which_no_inputs_are_known(tmp_path: Path) -> None:
    class _Never(nn.Module):
        config = transformers.GPT2Config(vocab_size=5)

        def forward(self, other: Tensor) -> Tensor:
            raise ValueError("never")

    from paramgraph.frontends.transformers_inputs import example_inputs

    assert example_inputs(_Never()) is None
