"""Finding FFNs: the right layout for each family, and a plain reason where there is none."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from smolmoe.errors import SourceError
from smolmoe.families import detect
from smolmoe.families.detect import find_mlp
from smolmoe.families.types import MlpLayout, Slot


def gated(**options: Any) -> MlpLayout:
    return MlpLayout("model.layers", "mlp", Slot("gate_proj"), Slot("up_proj"), Slot("down_proj"), **options)


def fused(up: str = "gate_up_proj", down: str = "down_proj", **options: Any) -> MlpLayout:
    return MlpLayout("model.layers", "mlp", Slot(up, 0), Slot(up, 1), Slot(down), **options)


def gpt2(activation: str = "gelu_new", **options: Any) -> MlpLayout:
    return plain("transformer.h", "c_fc", "c_proj", activation, transposed=True, **options)


def plain(layers: str, up: str, down: str, activation: str, **options: Any) -> MlpLayout:
    options = {"bias": True, **options}
    return MlpLayout(layers, "mlp", None, Slot(up), Slot(down), activation=activation, **options)


STARCODER = plain("model.layers", "c_fc", "c_proj", "gelu", dropout=0.2)

# Sizes are the classes' own (up to 8B parameters): detection must not need memory for them.
LAYOUTS = [
    ("LlamaConfig", {}, gated()),
    ("LlamaConfig", {"mlp_bias": True, "hidden_act": "relu"}, gated(bias=True, activation="relu")),
    ("LlamaConfig", {"hidden_size": 64, "intermediate_size": 64}, gated()),
    ("MistralConfig", {}, gated()),
    ("Qwen2Config", {}, gated()),
    ("Qwen3Config", {}, gated()),
    ("Olmo2Config", {}, gated()),
    ("SmolLM3Config", {}, gated()),
    ("StableLmConfig", {}, gated()),
    ("GemmaConfig", {}, gated(activation="gelu_pytorch_tanh")),
    ("Gemma2Config", {}, gated(activation="gelu_pytorch_tanh")),
    ("Gemma3TextConfig", {}, gated(activation="gelu_pytorch_tanh")),
    ("Phi3Config", {}, fused()),
    ("GlmConfig", {}, fused()),
    ("ModernBertDecoderConfig", {}, fused("Wi", "Wo", activation="gelu")),
    ("Lfm2Config", {}, MlpLayout("model.layers", "feed_forward", Slot("w1"), Slot("w3"), Slot("w2"))),
    ("GPT2Config", {}, gpt2(dropout=0.1)),
    ("GPT2Config", {"resid_pdrop": 0.25}, gpt2(dropout=0.25)),
    ("GPT2Config", {"resid_pdrop": 0.0}, gpt2()),
    ("OpenAIGPTConfig", {"afn": "relu"}, gpt2("relu", dropout=0.1)),
    ("GPTNeoXConfig", {}, plain("gpt_neox.layers", "dense_h_to_4h", "dense_4h_to_h", "gelu")),
    ("GPTJConfig", {}, plain("transformer.h", "fc_in", "fc_out", "gelu_new")),
    ("PhiConfig", {}, plain("model.layers", "fc1", "fc2", "gelu_new")),
    ("Starcoder2Config", {}, plain("model.layers", "c_fc", "c_proj", "gelu_pytorch_tanh")),
    ("Starcoder2Config", {"residual_dropout": 0.2, "hidden_act": "gelu"}, STARCODER),
    ("FalconConfig", {}, plain("transformer.h", "dense_h_to_4h", "dense_4h_to_h", "gelu", bias=False)),
    ("ArceeConfig", {}, plain("model.layers", "up_proj", "down_proj", "relu2", bias=False)),
]


@pytest.mark.parametrize(
    ("name", "options", "expected"), LAYOUTS, ids=[f"{n[:-6]}-{i}" for i, (n, *_) in enumerate(LAYOUTS)]
)
def test_layouts(name: str, options: dict[str, Any], expected: MlpLayout) -> None:
    config = getattr(transformers, name)(**options)
    before, state = copy.deepcopy(vars(config)), torch.random.get_rng_state()
    assert find_mlp(config) == expected
    assert vars(config) == before
    assert torch.equal(torch.random.get_rng_state(), state)


REFUSALS = [
    ("OPTConfig", {}, "fc1, fc2 are directly in the layer"),
    ("BloomConfig", {}, "`mlp` .BloomMLP. cannot be called with the hidden states alone .*residual"),
    ("MptConfig", {}, "residual"),
    ("T5Config", {}, "encoder-decoder"),
    ("BartConfig", {}, "encoder-decoder"),
    ("BertConfig", {}, "encoder: a masked language model, not a causal one"),
    ("BertGenerationConfig", {"num_hidden_layers": 2}, "consists of just 2 or 3 projections"),
    ("MixtralConfig", {"num_hidden_layers": 1}, "already a Mixture-of-Experts"),
    ("Qwen2MoeConfig", {"num_hidden_layers": 2, "mlp_only_layers": [0]}, "already a Mixture-of-Experts"),
    ("ViTConfig", {}, "no causal language model"),
    ("LlavaConfig", {}, "composite"),
    ("MambaConfig", {"num_hidden_layers": 2}, "consists of just 2 or 3 projections"),
    ("ApertusConfig", {"num_hidden_layers": 2}, "consists of just 2 or 3 projections"),  # its activation has weights
    ("Gemma3nTextConfig", {}, "does not compute"),  # keeps only the largest activations
    ("GPT2Config", {"n_embd": 30, "n_head": 4}, "cannot be built from this config"),
]


@pytest.mark.parametrize(("name", "options", "reason"), REFUSALS, ids=[n[:-6] for n, *_ in REFUSALS])
def test_refusals_give_the_reason(name: str, options: dict[str, Any], reason: str) -> None:
    config = getattr(transformers, name)(**options)
    with pytest.raises(SourceError, match=reason) as caught:
        find_mlp(config)
    assert (caught.value.field, caught.value.value) == ("model_type", config.model_type)


def test_a_generic_moe_is_refused() -> None:
    from smolmoe.moe.generic import SmolMoeConfig

    with pytest.raises(SourceError, match="already a Mixture-of-Experts"):
        find_mlp(SmolMoeConfig())


class Ffn(nn.Module):
    """A Llama-like FFN; subclasses deviate in one point each."""

    def __init__(self, wide: int = 24, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(16, wide, bias=False), nn.Linear(16, wide, bias=bias)
        self.down_proj = nn.Linear(wide, 16, bias=False)

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.silu(self.gate_proj(x)) * self.up_proj(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.hidden(x))


class ScaledFfn(Ffn):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1.001 * super().forward(x)


class ResidualFfn(Ffn):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x)


class InnerDropoutFfn(Ffn):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(nn.functional.dropout(self.hidden(x), 0.1, self.training))


class TwoDropoutsFfn(InnerDropoutFfn):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(super().forward(x), 0.1, self.training)


class ScaledPlainFfn(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(16, 24), nn.SiLU(), nn.Linear(24, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1.001 * super().forward(x)


class TupleFfn(Ffn):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x), None


class NormedFfn(Ffn):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(24)


class SwappedFfn(Ffn):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(nn.functional.silu(self.up_proj(x)) * self.gate_proj(x))


def find_with(monkeypatch: pytest.MonkeyPatch, *ffns: nn.Module) -> MlpLayout:
    """What is found in a Llama whose layers have these FFNs."""
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=8
    )
    model = transformers.LlamaForCausalLM(config)
    for layer, ffn in zip(model.model.layers, ffns, strict=True):
        layer.mlp = ffn
    monkeypatch.setattr(detect, "_skeleton", lambda config: model)
    return find_mlp(config)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (ScaledFfn, "does not compute"),
        (ResidualFfn, "does not compute"),
        (ScaledPlainFfn, "does not compute"),
        (InnerDropoutFfn, "applies dropout to more than its output"),
        (TwoDropoutsFfn, "applies dropout to more than its output"),
        (TupleFfn, "does not return a single tensor"),
        (NormedFfn, "consists of just 2 or 3 projections"),
        (lambda: Ffn(bias=True), "with and without a bias"),
    ],
)
def test_what_a_module_computes_decides(kind: Any, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match=reason):
        find_with(monkeypatch, kind(), kind())


def test_names_do_not_decide_which_projection_is_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_with(monkeypatch, Ffn(), Ffn()) == gated()
    swapped = find_with(monkeypatch, SwappedFfn(), SwappedFfn())
    assert (swapped.gate, swapped.up) == (Slot("up_proj"), Slot("gate_proj"))


@pytest.mark.parametrize("other", [Ffn(wide=32), SwappedFfn()])
def test_layers_must_agree(other: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match="layer 1 differs from that of layer 0"):
        find_with(monkeypatch, Ffn(), other)


def test_of_an_ffn_and_its_wrapper_the_wrapper_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_with(monkeypatch, nn.Sequential(Ffn(), nn.Dropout(0.3)), nn.Sequential(Ffn(), nn.Dropout(0.3)))
    assert (found.module, found.up, found.dropout) == ("mlp", Slot("0.up_proj"), 0.3)


def test_two_ffns_in_a_layer_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = [nn.ModuleDict({"a": Ffn(), "b": Ffn()}) for _ in range(2)]
    with pytest.raises(SourceError, match=r"more than one FFN: mlp\.a, mlp\.b"):
        find_with(monkeypatch, *pair)
