"""Settings read without transformers are those that its config classes make of the same file."""

from __future__ import annotations

import json
from typing import Any

import pytest

from smolmoe.families import DENSE_FAMILIES
from smolmoe.families.settings import known_settings

_SIZES = {
    "architectures": ["XForCausalLM"], "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
}  # fmt: skip
_WINDOWS = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}
_LEAST = {"granitemoehybrid": {"mamba_n_heads": 4}}  # what a class needs at these sizes
# The others' configs are always read by transformers.
_READ_HERE = [name for name, family in DENSE_FAMILIES.items() if family.defaults]
VARIANTS: list[dict[str, Any]] = [
    {},
    {"num_key_value_heads": 2, "tie_word_embeddings": True, "bos_token_id": 5, "eos_token_id": [6, 7]},
    {"rope_theta": 5000.0, "rope_scaling": None, "torch_dtype": "bfloat16", "pad_token_id": 0},
    {"rope_parameters": {"rope_theta": 7000.0, "rope_type": "default"}, "hidden_act": "gelu", "use_cache": False},
    {"head_dim": 16, "attention_dropout": 0.1, "initializer_range": 0.1},
    _WINDOWS,
    {**_WINDOWS, "use_sliding_window": False},
]


@pytest.mark.parametrize("variant", range(len(VARIANTS)))
@pytest.mark.parametrize("model_type", _READ_HERE)
def test_equal_to_the_config_class(model_type: str, variant: int) -> None:
    from transformers import AutoConfig

    extra = VARIANTS[variant]
    if "use_sliding_window" in extra and DENSE_FAMILIES[model_type].windows != "layers":
        pytest.skip("not a setting of this family")
    settings = known_settings({"model_type": model_type, **_SIZES, **extra})
    assert settings is not None
    stock = AutoConfig.for_model(model_type, **_SIZES, **json.loads(json.dumps(extra))).to_dict()
    read_by_surgery = {key: value for key, value in settings.items() if key != "torch_dtype"}
    assert {key: stock.get(key) for key in read_by_surgery} == read_by_surgery
    needed = {"rope_parameters", "sliding_window", "layer_types", "head_dim", "attention_bias", "num_key_value_heads"}
    assert {key for key in needed if key in stock} <= set(settings)


@pytest.mark.parametrize(
    "unusual",
    [
        {"model_type": "gpt2"},
        {"hidden_size": None},
        {"mlp_bias": True},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}},
        {"quantization_config": {"quant_method": "gptq"}},
    ],
)
def test_what_is_not_plain_is_left_to_transformers(unusual: dict[str, Any]) -> None:
    assert known_settings({"model_type": "llama", **_SIZES, **unusual}) is None


@pytest.mark.parametrize("model_type", [name for name, family in DENSE_FAMILIES.items() if family.defaults])
@pytest.mark.parametrize("tokenizer_class", ["TokenizersBackend", "PreTrainedTokenizerFast"])
def test_which_families_split_text_by_a_rule_of_their_own(model_type: str, tokenizer_class: str, tmp_path: Any) -> None:
    """Where `own_tokenizer` is False, files that name a plain class are read as they stand."""
    from tests.helpers import tiny_tokenizer
    from transformers import AutoTokenizer

    tiny_tokenizer().save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": tokenizer_class}))
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": model_type, **_SIZES, **_LEAST.get(model_type, {})})
    )
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    as_it_stands = loaded.backend_tokenizer.to_str() == tiny_tokenizer().backend_tokenizer.to_str()
    assert as_it_stands != DENSE_FAMILIES[model_type].own_tokenizer
