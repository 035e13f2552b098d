"""Settings read without transformers are those that its config classes make of the same file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from smolmoe.core.files import write_json
from smolmoe.errors import SourceError
from smolmoe.families import DENSE_FAMILIES
from smolmoe.families.settings import known_settings
from smolmoe.families.spec import read_spec

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
        {"head_dim": [8]},
        {"intermediate_size": [48]},
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


_OLD_ROPES: dict[str, dict[str, Any]] = {
    "cwm": {"type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "ministral3": {"type": "yarn", "factor": 4.0},
    "phi3": {"type": "longrope", "short_factor": [1.0] * 2, "long_factor": [2.0] * 2},
}


@pytest.mark.parametrize("name", [name for name, family in DENSE_FAMILIES.items() if family.by_class])
def test_rotary_parameters_in_the_old_form(name: str, tmp_path: Path) -> None:
    """`rope_theta` and `rope_scaling` at the top level give the same parameters as `rope_parameters`."""
    from tests import zoo

    source = next(key for key, (model_type, _) in zoo.ZOO.items() if model_type == name)
    config = json.loads((zoo.folder(source) / "config.json").read_text())
    if any(isinstance(value, dict) for value in (config["rope_parameters"] or {}).values()):
        pytest.skip("of each type of layer: has no old form")
    scaling = _OLD_ROPES.get(name)
    kind = {"rope_type": scaling["type"] if scaling else "default"}
    limit = {"original_max_position_embeddings": 64} if scaling else {}
    share = {"partial_rotary_factor": 0.5} if DENSE_FAMILIES[name].partial_rotary else {}
    new = {**config, **limit, "rope_parameters": {"rope_theta": 5e3, **(scaling or {}), **kind, **limit, **share}}
    old = {**config, **limit, **share, "rope_theta": 5e3, "rope_scaling": {**scaling, **limit} if scaling else None}
    del old["rope_parameters"]
    read = []
    for values in (new, old):
        write_json(tmp_path / "config.json", values)
        read.append(read_spec(tmp_path))
    assert read[0].rope == read[1].rope
    assert read[0].rope["rope_theta"] == 5e3
    assert read[0].rope["rope_type"] == kind["rope_type"]
    assert read[0].rotary_share == read[1].rotary_share


@pytest.mark.parametrize(
    ("name", "key"), [("granite_swa", "layer_rope_theta"), ("smollm3", "no_rope_layers"), ("lfm2", "layer_types")]
)
def test_a_list_of_another_length_than_the_layers_is_refused(name: str, key: str, tmp_path: Path) -> None:
    from tests import zoo

    config = json.loads((zoo.folder(name) / "config.json").read_text())
    write_json(tmp_path / "config.json", {**config, key: config[key][:-1]})
    with pytest.raises(SourceError, match="as many layers as there are") as caught:
        read_spec(tmp_path)
    assert caught.value.field == key
