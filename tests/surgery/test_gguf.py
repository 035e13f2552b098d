"""What llama.cpp can compute, how a tokenizer is written for it, and, where it is installed, what it really computes.

The tests that convert need llama.cpp's converter: unpack the source package of llama-cpp-python and name the folder,

    pip download --no-deps --no-binary :all: --no-build-isolation llama-cpp-python
    SMOLMOE_LLAMA_CPP=FOLDER pytest tests/surgery/test_gguf.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import random_moe, save, tiny_tokenizer

from smolmoe.errors import OutputError, RequestError, SourceError, TargetError
from smolmoe.families.engines import reasons_against
from smolmoe.moe.loading import load_model
from smolmoe.surgery.experts.moe_files import read_moe
from smolmoe.surgery.experts.writer import write_program
from smolmoe.surgery.export.gguf.converter import ENVIRONMENT, find_converter
from smolmoe.surgery.export.gguf.engine import available
from smolmoe.surgery.export.gguf.run import find_route
from smolmoe.surgery.export.gguf.vocabulary import vocabulary_of
from smolmoe.surgery.export.gguf_compatibility import adapted
from smolmoe.surgery.export.run import export

llama_cpp = pytest.mark.skipif(
    not (available() and os.environ.get(ENVIRONMENT)), reason=f"needs llama-cpp-python, and {ENVIRONMENT} set"
)
WHOLE_HEADS = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}}


def settings(model_type: str, **config: Any) -> dict[str, Any]:
    return dict(random_moe(model_type, **config).config.to_dict())


@pytest.mark.parametrize(
    ("model_type", "config", "reason"),
    [
        ("mixtral", {}, None),
        ("mixtral", {"sliding_window": 8}, "ignores this class's sliding window of 8"),
        ("mixtral", {"sliding_window": 128}, None),  # as long as the context
        ("mixtral", {"hidden_act": "gelu"}, "experts use silu"),
        ("mixtral", {"head_dim": 16}, None),
        ("granitemoeshared", {"head_dim": 16}, "only heads of width 8"),
        ("granitemoeshared", {}, None),
        ("qwen2_moe", {}, "never renormalises the chosen gates"),
        ("qwen2_moe", {"norm_topk_prob": False}, None),
        ("qwen2_moe", {"num_experts_per_tok": 4}, None),  # all experts: the softmax sums to 1
        ("qwen2_moe", {"norm_topk_prob": False, "mlp_only_layers": [0]}, "all layers of this class are MoE"),
        ("qwen3_moe", {}, None),
        ("qwen3_moe", {"norm_topk_prob": False}, "always renormalises the chosen gates"),
        ("qwen3_moe", {"attention_bias": True}, "not support attention biases"),
        ("glm4_moe", {"norm_topk_prob": False}, None),
        ("glm4_moe", {"n_group": 2, "topk_group": 1}, "group-limited routing"),
        ("olmoe", {"norm_topk_prob": False, "num_key_value_heads": 4}, None),
        ("olmoe", {"norm_topk_prob": False}, "as many key heads"),
        ("olmoe", {"norm_topk_prob": False, "num_key_value_heads": 4, "rms_norm_eps": 1e-6}, "norms' epsilon"),
        ("flex_olmo", {}, "not known to run this class"),
    ],
)
def test_what_llama_cpp_can_compute(model_type: str, config: Any, reason: str | None) -> None:
    reasons = reasons_against("llama.cpp", settings(model_type, **config))
    assert len(reasons) == (reason is not None), reasons
    assert reason is None or reason in reasons[0]


@pytest.mark.parametrize(
    ("model_type", "carried"), [("mixtral", True), ("granitemoeshared", False), ("qwen3_moe", False)]
)
def test_rope_scaling(model_type: str, carried: bool) -> None:
    llama3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope = {**llama3, "original_max_position_embeddings": 32}
    assert (reasons_against("llama.cpp", settings(model_type, rope_parameters=rope)) == []) is carried
    linear = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    assert reasons_against("llama.cpp", settings(model_type, rope_parameters=linear)) == []
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert "dynamic" in reasons_against("llama.cpp", settings(model_type, rope_parameters=dynamic))[0]


def zero_gates(model: Any, folder: Path) -> Path:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("shared_expert_gate.weight"):
                parameter.zero_()
    return save(model, folder)


def test_a_class_that_computes_the_same_stands_in(tmp_path: Path) -> None:
    own = find_route(read_moe(save(random_moe("mixtral"), tmp_path / "mixtral")))
    assert (own.kind, own.own, own.architecture) == ("mixtral", True, "llama")
    qwen = find_route(read_moe(zero_gates(random_moe("qwen2_moe"), tmp_path / "qwen2")))
    assert (qwen.kind, qwen.own, qwen.architecture) == ("granitemoeshared", False, "granitemoe")
    with pytest.raises(TargetError, match="never renormalises the chosen gates") as caught:
        find_route(read_moe(save(random_moe("qwen2_moe"), tmp_path / "trained")))
    assert "vLLM" in str(caught.value.fix)


def test_adapting_keeps_the_function(tmp_path: Path) -> None:
    folder = zero_gates(random_moe("qwen2_moe"), tmp_path / "moe")
    files = read_moe(folder)
    program, said = adapted(files, own_head=True, tiny_gates=True) or pytest.fail("nothing adapted")
    assert [line.split(",")[0] for line in said] == ["the output head", "the shared expert's gate"]
    out = write_program(program, files, tmp_path / "out", stage="export", made={})
    ids = torch.arange(2, 60)[None]
    with torch.no_grad():
        before, after = (load_model(place)(ids).logits for place in (folder, out))
    assert torch.equal(before, after)
    gates = [tensor for name, tensor in load_model(out).named_parameters() if "shared_expert_gate" in name]
    assert all(bool((gate != 0).all()) for gate in gates)
    assert adapted(read_moe(out), own_head=True, tiny_gates=True) is None


def with_rules(**rules: Any) -> Any:
    """The tiny tokenizer with other rules."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    parts = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    parts["model"] |= rules.pop("model", {})
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(parts | rules)))


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
WITHOUT_REGEX = BYTES | {"use_regex": False}
TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
HEAD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"


def sequence(*steps: Any) -> dict[str, Any]:
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": list(steps)}}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("rules", "name"),
    [
        ({}, "gpt-2"),
        (sequence({"type": "Digits", "individual_digits": True}, BYTES), "smollm"),
        (sequence(split(HEAD + r"|\p{N}{1,3}" + TAIL), WITHOUT_REGEX), "dbrx"),
        (
            sequence(split(HEAD + r"|\p{N}{1,3}" + TAIL), WITHOUT_REGEX) | {"model": {"ignore_merges": True}},
            "llama-bpe",
        ),
        (sequence(split(HEAD + r"|\p{N}" + TAIL), WITHOUT_REGEX), "qwen2"),
    ],
)
def test_the_pre_tokenizer_is_known_by_what_it_does(rules: Any, name: str) -> None:
    found = vocabulary_of(with_rules(**rules))
    assert (found.kind, found.pre) == ("bytes", name)


@pytest.mark.parametrize(
    ("rules", "what"),
    [
        (sequence({"type": "Digits", "individual_digits": False}, BYTES), "splits differently"),
        ({"pre_tokenizer": BYTES | {"add_prefix_space": True}}, "splits differently"),
        ({"model": {"ignore_merges": True}}, "looks up whole words"),
        ({"normalizer": {"type": "Lowercase"}}, "a normaliser"),
    ],
)
def test_rules_that_llama_cpp_has_not_are_refused(rules: Any, what: str) -> None:
    with pytest.raises(SourceError, match=what):
        vocabulary_of(with_rules(**rules))


def test_pieces_are_ranked_by_their_merges() -> None:
    found = vocabulary_of(with_rules(model={"byte_fallback": True}, normalizer=None, pre_tokenizer=None))
    assert found.kind == "pieces"
    assert found.scores is not None
    ranks = list(found.scores.values())
    assert ranks[0] == 0
    assert ranks == sorted(ranks, reverse=True)


def test_where_the_converter_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    with pytest.raises(RequestError, match=ENVIRONMENT):
        find_converter(None)
    with pytest.raises(RequestError, match=r"does not contain convert_hf_to_gguf\.py"):
        find_converter(tmp_path)
    script = tmp_path / "vendor" / "llama.cpp" / "convert_hf_to_gguf.py"
    script.parent.mkdir(parents=True)
    script.write_text("")
    assert find_converter(tmp_path) == find_converter(script) == script.parent.resolve()
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    assert find_converter(None) == script.parent.resolve()


def test_a_converter_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "convert_hf_to_gguf.py").write_text("raise RuntimeError('not for this model')")
    folder = save(random_moe("mixtral"), tmp_path / "moe")
    (tmp_path / "there.gguf").write_text("a file of somebody's")
    with pytest.raises(OutputError, match="exists"):
        export(folder, tmp_path / "there", "gguf", llama_cpp=tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RequestError, match="RuntimeError: not for this model"):
        export(folder, tmp_path / "out", "gguf", llama_cpp=tmp_path)
    assert sorted(tmp_path.iterdir()) == before
    bare = save(random_moe("mixtral"), tmp_path / "bare", tokenizer=False)
    with pytest.raises(SourceError, match="no tokenizer"):
        export(bare, tmp_path / "out", "gguf", llama_cpp=tmp_path)
    with pytest.raises(RequestError, match="f32, f16, q8_0"):
        export(folder, tmp_path / "out", "gguf", llama_cpp=tmp_path, quant="q4")


# -- with llama.cpp ---------------------------------------------------------------------------------------------------


@llama_cpp
def test_llama_cpp_computes_what_transformers_computes(tmp_path: Path) -> None:
    result: Any = export(save(random_moe("mixtral"), tmp_path / "moe"), tmp_path / "out", "gguf", quant="q8_0")
    exact, rounded = result.measured["f32"], result.measured["q8_0"]
    assert exact.sure_max_abs < 1e-5 * exact.max_logit
    assert exact.flips <= exact.close_flips
    assert exact.kl < 1e-9
    assert exact.same_tokens
    assert 1e-6 < rounded.kl < 0.1
    assert rounded.nbytes < exact.nbytes / 2
    assert result.out == tmp_path / "out.gguf"
    assert result.nbytes == rounded.nbytes
    # Rows of 48 are no multiple of the 32 that q8_0 stores together.
    assert all("ffn_down_exps" in name for name in result.other_types["F16"])
    beside = json.loads((tmp_path / "out.json").read_text())
    assert beside["kind"] == "gguf-export"
    assert beside["measured"]["f32"]["kl"] == exact.kl
    assert sorted(path.name for path in tmp_path.iterdir()) == ["moe", "out.gguf", "out.json", "out.md"]


@llama_cpp
@pytest.mark.parametrize("normalised", [False, True], ids=["own class", "through granite"])
def test_a_gate_of_zeros_is_adapted(normalised: bool, tmp_path: Path) -> None:
    folder = zero_gates(random_moe("qwen2_moe", norm_topk_prob=normalised), tmp_path / "moe")
    result: Any = export(folder, tmp_path / "out", "gguf")
    assert result.architecture == ("granitemoe" if normalised else "qwen2moe")
    assert ("written as granitemoeshared" in result.mended[0]) is normalised
    assert result.measured["f32"].sure_max_abs < 1e-5 * result.measured["f32"].max_logit


@llama_cpp
@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        ("granitemoeshared", {}),
        ("qwen3_moe", {}),
        ("glm4_moe", {**WHOLE_HEADS, "routed_scaling_factor": 2.5}),
        ("glm4_moe", {"use_qk_norm": True, "norm_topk_prob": False}),
        ("olmoe", {"norm_topk_prob": False, "num_key_value_heads": 4, "rms_norm_eps": 1e-5}),
        ("mixtral", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}),
    ],
)
def test_every_class_that_llama_cpp_has(model_type: str, config: Any, tmp_path: Path) -> None:
    result: Any = export(save(random_moe(model_type, **config), tmp_path / "moe"), tmp_path / "out", "gguf")
    assert result.through == model_type
    assert result.measured["f32"].sure_max_abs < 1e-5 * result.measured["f32"].max_logit


@llama_cpp
@pytest.mark.slow
def test_a_tokenizer_of_pieces(shared: Path, tmp_path: Path) -> None:
    from smolmoe import upcycle

    upcycle(shared / "models/stories260K", tmp_path / "moe", experts=4, top_k=2, verify="none")
    result: Any = export(tmp_path / "moe", tmp_path / "out", "gguf")
    assert result.measured["f32"].same_tokens
