"""Taking experts out and putting them in, on saved and reloaded files.

Whatever is extracted is loaded by one child process that cannot import smolmoe, and compared with the MoE that is
forced to the same experts.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import zoo
from tests.helpers import dense_llama, edit_tensors, moe_of, random_moe, save, tiny_tokenizer
from tests.processes import NO_SMOLMOE, run
from tests.surgery.test_subset import TOLERANCE, far, generic_moe, logits, rewrite

from smolmoe.data.text import Document, write_documents
from smolmoe.errors import OutputError, RequestError, SourceError, TargetError, VerificationError
from smolmoe.surgery.experts.add import choose_method, copied, from_dense
from smolmoe.surgery.experts.extract import Factors, constant_factors, dense_of
from smolmoe.surgery.experts.job import ExpertResult
from smolmoe.surgery.experts.merge import merge_by_use
from smolmoe.surgery.experts.moe_files import read_moe
from smolmoe.surgery.experts.run import add_expert, extract, merge_experts, prune
from smolmoe.surgery.experts.writer import write_program

ROPE = {"rope_type": "default", "rope_theta": 10000.0}
GLM = {"rope_parameters": {**ROPE, "partial_rotary_factor": 1.0}}
GRANITE = {
    "embedding_multiplier": 1.0,
    "logits_scaling": 1.0,
    "residual_multiplier": 1.0,
    "attention_multiplier": 8**-0.5,
}
QWEN2 = {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]}
QK_GLM = {**GLM, "use_qk_norm": True, "attention_bias": True, "routed_scaling_factor": 2.5}
WINDOWED = {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["sliding_attention"] * 2}
# name -> (how to make it, the dense class that comes out, the experts taken)
Made = tuple[Callable[[Path], Path], str, tuple[int, ...]]


def _random(
    kind: str, *, bf16: bool = False, closed: bool = False, tokenizer: bool = False, **config: Any
) -> Callable[[Path], Path]:
    """Makes a stock MoE with random experts, norms and biases. Without a tokenizer it is measured on random tokens."""

    def make(out: Path) -> Path:
        model = random_moe(kind, **config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.2 * torch.randn_like(parameter))
                if closed and "shared_expert_gate" in name:
                    parameter.zero_()
        return save(model.to(torch.bfloat16) if bf16 else model, out, tokenizer=tokenizer)

    return make


def _generic(source: str, **options: Any) -> Callable[[Path], Path]:
    return lambda out: generic_moe(out, source, **options)


def _zero_biases(out: Path) -> Path:
    """As a Qwen2Moe that was upcycled from a Mistral."""
    folder = _random("qwen2_moe", closed=True, **WINDOWED)(out)
    edit_tensors(folder, lambda tensors: [tensors[name].zero_() for name in tensors if name.endswith("proj.bias")])
    return folder


DENSE: dict[str, Made] = {
    "mixtral": (_random("mixtral"), "LlamaForCausalLM", (2,)),
    "mixtral window": (_random("mixtral", sliding_window=8), "MistralForCausalLM", (1,)),
    "mixtral bf16": (_random("mixtral", bf16=True), "LlamaForCausalLM", (0,)),
    "mixtral split": (lambda out: save(moe_of(dense_llama(), granularity=2), out), "LlamaForCausalLM", (2, 3)),
    "qwen2_moe": (_random("qwen2_moe", closed=True, **QWEN2), "Qwen2ForCausalLM", (2,)),
    "qwen2_moe not renormalised": (_random("qwen2_moe", closed=True, norm_topk_prob=False), "Qwen2ForCausalLM", (2,)),
    "qwen2_moe no bias": (_random("qwen2_moe", closed=True, qkv_bias=False), "LlamaForCausalLM", (3,)),
    "qwen2_moe zero biases": (_zero_biases, "MistralForCausalLM", (3,)),
    "qwen3_moe": (_random("qwen3_moe", mlp_only_layers=[0]), "Qwen3ForCausalLM", (2,)),
    "granitemoeshared": (_random("granitemoeshared", attention_bias=True, **GRANITE), "LlamaForCausalLM", (2,)),
    "glm4_moe": (_random("glm4_moe", **GLM), "LlamaForCausalLM", (2,)),
    "glm4_moe bias": (_random("glm4_moe", attention_bias=True, **GLM), "Qwen2ForCausalLM", (1,)),
    "glm4_moe qk-norm": (_random("glm4_moe", **QK_GLM), "Qwen3ForCausalLM", (2,)),
    "flex_olmo": (_random("flex_olmo"), "Olmo2ForCausalLM", (2,)),
    "generic llama": (_generic("llama_mlp_bias", shared=16, layers="1"), "LlamaForCausalLM", (2,)),
    "generic gpt2": (_generic("gpt2"), "GPT2LMHeadModel", (2,)),
    "generic gpt2 split": (_generic("gpt2", granularity=2, diversify="none"), "GPT2LMHeadModel", (2, 3)),
    "generic phi3": (_generic("phi3", shared=16, layers="0-1"), "Phi3ForCausalLM", (1,)),
}
_CHILD = """
import json, sys
import torch
from transformers import AutoModelForCausalLM
assert "smolmoe" not in sys.modules
ids = torch.randint(2, 300, (2, 24), generator=torch.Generator().manual_seed(0))
found = {}
for key, folder in json.load(open(sys.argv[1])).items():
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    with torch.no_grad():
        found[key] = (type(model).__name__, model(ids).logits)
assert not any(name.split(".")[0] == "smolmoe" for name in sys.modules)
torch.save(found, sys.argv[2])
"""


def stock_logits(folders: dict[str, Path], work: Path) -> dict[str, tuple[str, torch.Tensor]]:
    """Class and logits of each folder, from a process that cannot import smolmoe."""
    (work / "folders.json").write_text(json.dumps({key: str(folder) for key, folder in folders.items()}))
    run(NO_SMOLMOE + _CHILD, work / "folders.json", work / "logits.pt")
    return dict(torch.load(work / "logits.pt", weights_only=True))


Extracted = dict[str, tuple[Path, tuple[str, torch.Tensor]]]


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Extracted:
    """name -> MoE folder, and (class, logits) of what was extracted of it."""
    work = tmp_path_factory.mktemp("extracted")
    sources, folders = {}, {}
    for name, (make, _, experts) in DENSE.items():
        sources[name] = make(work / name)
        files = read_moe(sources[name])
        factors = constant_factors(files)
        assert factors is not None, name
        folders[name] = write_program(
            dense_of(files, experts, factors), files, work / f"{name} out", stage="extract", made={}
        )
    found = stock_logits(folders, work)
    return {name: (sources[name], found[name]) for name in DENSE}


@pytest.mark.parametrize("name", DENSE)
def test_an_extracted_expert_is_the_moe_forced_to_it(extracted: Extracted, name: str) -> None:
    folder, (architecture, got) = extracted[name]
    _, expected, experts = DENSE[name]
    layers = list(read_moe(folder).layers)
    assert architecture == expected
    assert far(logits(folder, dict.fromkeys(layers, experts)), got) <= TOLERANCE
    if name not in ("mixtral split", "generic gpt2 split"):  # whose groups are copies of each other
        other = tuple((e + 1) % 4 for e in experts)
        assert far(logits(folder, dict.fromkeys(layers, other)), got) > 100 * TOLERANCE


def test_text_is_split_as_it_was(tmp_path: Path, shared: Path) -> None:
    """transformers reads a tokenizer beside a Qwen2 by Qwen2's own rule, whatever the tokenizer's files say."""
    source = shared / "models" / "mix_llama_6m"
    vocabulary = json.loads((source / "config.json").read_text())["vocab_size"]
    folder = _random("qwen2_moe", closed=True, vocab_size=vocabulary)(tmp_path / "moe")
    for path in source.glob("tokenizer*"):
        shutil.copyfile(path, folder / path.name)
    with pytest.raises(VerificationError, match="The tokenizer produces the same tokens"):
        extract(folder, tmp_path / "qwen2", [0])
    edit_tensors(folder, lambda tensors: [tensors[name].zero_() for name in tensors if name.endswith("proj.bias")])
    result = extract(folder, tmp_path / "llama", [0])  # without biases Llama does, which leaves a tokenizer its rule
    assert (result.architecture, result.claim.kind) == ("LlamaForCausalLM", "exact")


def test_wrong_factors_are_seen(tmp_path: Path) -> None:
    folder = _random("qwen2_moe", closed=True)(tmp_path / "moe")
    files = read_moe(folder)
    wrong = dict.fromkeys(files.layers, Factors(routed=1.0, shared=1.0))  # the closed gate lets a half through
    out = write_program(dense_of(files, (2,), wrong), files, tmp_path / "out", stage="extract", made={})
    assert far(logits(folder, dict.fromkeys(files.layers, (2,))), logits(out)) > 100 * TOLERANCE


# -- extract, end to end --------------------------------------------------------------------------------------------


def test_extract_says_what_it_did_and_keeps_it(tmp_path: Path) -> None:
    folder = rewrite(_random("mixtral")(tmp_path / "moe"), tmp_path / "named", expert_names=["a", "b", None, "b"])
    result = extract(folder, tmp_path / "out", ["a"])
    assert result.claim.kind == "exact"
    assert result.measured is not None
    assert result.measured.passed
    assert result.measured.other_experts is not None
    assert result.measured.other_experts > 1
    assert result.after.parameters == result.after.active < result.before.active < result.before.parameters
    data = json.loads((tmp_path / "out" / "smolmoe.json").read_text())
    assert data["stage"] == "extract"
    assert data["experts"]["chosen"] == [0]
    assert data["experts"]["claim"]["kind"] == "exact"
    assert data["experts"]["measured"]["max_abs"] == result.measured.max_abs
    # The claim is about the MoE; against the dense model that the MoE was made of nothing is claimed.
    assert data["claim"]["kind"] == "none"
    smaller = extract(folder, tmp_path / "smaller", ["b"])
    assert smaller.architecture == "MixtralForCausalLM"
    assert json.loads((tmp_path / "smaller" / "config.json").read_text())["expert_names"] == ["b", "b"]


def test_a_trained_gate_is_said_to_be_approximated(tmp_path: Path) -> None:
    folder = _random("qwen2_moe")(tmp_path / "moe")
    result = extract(folder, tmp_path / "out", [1])
    assert result.claim.kind == "none"
    assert "An approximation: the shared expert's gate depends on the token" in result.claim.reason
    assert result.measured is not None
    assert result.measured.max_abs > 100 * TOLERANCE  # so it is measured, and does not pass for exact
    halved = dict.fromkeys(read_moe(folder).layers, Factors(shared=0.0))
    without = write_program(
        dense_of(read_moe(folder), (1,), halved), read_moe(folder), tmp_path / "w", stage="extract", made={}
    )
    forced = logits(folder, dict.fromkeys(halved, (1,)))
    assert far(forced, logits(tmp_path / "out")) < far(forced, logits(without))


def test_untied_shards_are_said_to_be_approximated(tmp_path: Path) -> None:
    folder = save(moe_of(dense_llama(), granularity=2), tmp_path / "moe", tokenizer=False)
    (folder / "smolmoe.json").write_text(json.dumps({"layout": {"granularity": 2}}))
    tied = extract(folder, tmp_path / "tied", [0, 1])
    assert (tied.architecture, tied.claim.kind) == ("LlamaForCausalLM", "exact")
    name = "model.layers.0.block_sparse_moe.gate.weight"
    edit_tensors(folder, lambda tensors: tensors[name][0].mul_(2))
    untied = extract(folder, tmp_path / "untied", [0, 1])
    assert (untied.architecture, untied.claim.kind) == ("LlamaForCausalLM", "none")
    assert "router rows of the 2 shards differ" in untied.claim.reason
    # A part of a group is no FFN of its own: two shards of different groups are a smaller MoE without groups.
    parts = extract(folder, tmp_path / "parts", [0, 2])
    assert parts.architecture == "MixtralForCausalLM"
    assert json.loads((tmp_path / "parts" / "smolmoe.json").read_text())["layout"]["granularity"] == 1


def test_scaling_in_sixteen_bits_is_not_called_exact(tmp_path: Path) -> None:
    folder = _random("glm4_moe", bf16=True, routed_scaling_factor=2.5, **GLM)(tmp_path / "moe")
    result = extract(folder, tmp_path / "out", [0])
    assert result.claim.kind == "rounded"
    assert result.measured is not None
    assert 0 < result.measured.max_abs < 0.02 * result.measured.max_logit


def test_a_class_without_a_dense_one_stays_itself(tmp_path: Path) -> None:
    result = extract(_random("olmoe")(tmp_path / "moe"), tmp_path / "out", [3])
    assert (result.architecture, result.claim.kind) == ("OlmoeForCausalLM", "exact")
    multiplied = _random("granitemoeshared", **{**GRANITE, "embedding_multiplier": 12.0})(tmp_path / "granite")
    granite = extract(multiplied, tmp_path / "one", [0])
    assert (granite.architecture, granite.claim.kind) == ("GraniteForCausalLM", "exact")
    rotated = _random("glm4_moe", rope_parameters={**ROPE, "partial_rotary_factor": 0.5})(tmp_path / "glm")
    with pytest.raises(TargetError, match="part of each head"):
        extract(rotated, tmp_path / "no", [0])


def test_bad_requests_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    folder = _random("mixtral")(tmp_path / "moe")
    with pytest.raises(SourceError, match="is a dense model"):
        extract(zoo.folder("llama"), tmp_path / "out", [0])
    with pytest.raises(RequestError, match="no such expert: the model has no names and experts 0 to 3"):
        extract(folder, tmp_path / "out", ["code"])
    with pytest.raises(RequestError, match="experts 0 to 3"):
        prune(folder, tmp_path / "out", keep=[4])
    with pytest.raises(RequestError, match="neither the experts to keep nor their number"):
        prune(folder, tmp_path / "out")
    with pytest.raises(RequestError, match="from 1 to 3"):
        prune(folder, tmp_path / "out", experts=4)
    with pytest.raises(RequestError, match="counted on text"):
        merge_experts(folder, tmp_path / "out", experts=2)
    with pytest.raises(RequestError, match="in two groups"):
        merge_experts(folder, tmp_path / "out", groups=[[0, 1], [1, 2]])
    with pytest.raises(RequestError, match="its FFN width"):
        add_expert(folder, tmp_path / "out", dense=save(dense_llama(intermediate_size=40), tmp_path / "dense"))
    tiny_tokenizer().save_pretrained(folder)
    other = save(dense_llama(), tmp_path / "other")
    rules = json.loads((other / "tokenizer.json").read_text())
    (other / "tokenizer.json").write_text(json.dumps(rules | {"normalizer": {"type": "Lowercase"}}))
    with pytest.raises(RequestError, match="tokenizer differs from the MoE's"):
        add_expert(folder, tmp_path / "out", dense=other)
    assert not (tmp_path / "out").exists()
    assert extract(folder, tmp_path / "out", [0], dry_run=True).measured is None
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(OutputError, match="exists"):
        extract(folder, tmp_path / "out", [0])


# -- fewer -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "text.jsonl"
    texts = {"code": "def add(a, b):\n    return a + b\n", "prose": "The sum of three and four is seven. "}
    documents = [Document(text * (3 + i), domain) for i in range(4) for domain, text in texts.items()]
    write_documents(path, documents)
    return path


def test_prune_keeps_what_is_used(tmp_path: Path, data: Path) -> None:
    folder = _random("mixtral", tokenizer=True, num_experts_per_tok=1)(tmp_path / "moe")

    def one_sided(tensors: dict[str, torch.Tensor]) -> None:
        for layer, (a, b) in enumerate(((0, 2), (1, 3))):  # a row and its opposite: one of the two is always first
            weight = tensors[f"model.layers.{layer}.block_sparse_moe.gate.weight"]
            row = weight[a].clone()
            weight.zero_()
            weight[a], weight[b] = row, -row

    edit_tensors(folder, one_sided)
    result = prune(folder, tmp_path / "out", experts=2, data=data)
    assert result.said == "the 2 most used in each layer"
    chosen = json.loads((tmp_path / "out" / "smolmoe.json").read_text())["experts"]["chosen"]
    assert chosen == {"0": [0, 2], "1": [1, 3]}
    assert result.losses is not None
    found = result.losses.to_json()
    assert found["delta"] == pytest.approx(0, abs=1e-6)  # nothing that was used is gone
    assert set(found["delta_by_domain"]) == {"code", "prose"}
    worse = prune(folder, tmp_path / "worse", keep=[0, 1], data=data)
    assert worse.claim.kind == "exact"  # against the MoE that may choose no others
    assert worse.losses is not None
    assert abs(worse.losses.to_json()["delta"]) > 1e-3  # which is another function


def test_named_experts_are_pruned_alike_in_all_layers(tmp_path: Path, data: Path) -> None:
    folder = _random("qwen3_moe", tokenizer=True)(tmp_path / "moe")
    names = ["a", "b", "c", None]
    result = prune(rewrite(folder, tmp_path / "named", expert_names=names), tmp_path / "out", experts=3, data=data)
    kept = json.loads((tmp_path / "out" / "config.json").read_text())["expert_names"]
    chosen = json.loads((tmp_path / "out" / "smolmoe.json").read_text())["experts"]["chosen"]
    assert len({tuple(experts) for experts in chosen.values()}) == 1
    assert kept == [names[e] for e in chosen["0"]]
    assert result.measured is not None
    assert result.measured.passed


def test_merging_copies_changes_nothing_and_merging_others_does(tmp_path: Path, data: Path) -> None:
    copies = save(moe_of(dense_llama()).to(torch.bfloat16), tmp_path / "copies", tokenizer=False)
    result = merge_experts(copies, tmp_path / "same", groups=[[0, 1, 2]])
    assert result.claim.kind == "exact"
    assert result.measured is not None
    assert result.measured.passed
    different = _random("mixtral", tokenizer=True)(tmp_path / "moe")
    result = merge_experts(different, tmp_path / "merged", groups=[[0, 1], [2, 3]], data=data)
    assert result.claim.kind == "none"
    assert result.measured is not None
    assert result.measured.max_abs > 0.1
    assert result.losses is not None
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["num_local_experts"] == 2


@pytest.mark.parametrize("kind", ["mixtral", "granitemoeshared"])
def test_a_merged_expert_is_the_weighted_mean(tmp_path: Path, kind: str) -> None:
    from smolmoe.surgery.experts.merge import merged

    files = read_moe(_random(kind, **(GRANITE if kind == "granitemoeshared" else {}))(tmp_path / "moe"))
    groups = ((0, 3), (1,), (2,))
    weights = dict.fromkeys(files.layers, (3.0, 1.0, 1.0, 1.0))
    program = merged(files, dict.fromkeys(files.layers, groups), weights)
    out = read_moe(write_program(program, files, tmp_path / "out", stage="merge-experts", made={}))
    for layer, found in out.layers.items():
        before = files.layers[layer]
        for part, name in found.experts[0].items():
            first, last = (files.parts.read(before.experts[e][part]) for e in (0, 3))
            torch.testing.assert_close(out.parts.read(name), 0.75 * first + 0.25 * last)
        rows, old = out.parts.read(found.router), files.parts.read(before.router)
        torch.testing.assert_close(rows, torch.stack([0.75 * old[0] + 0.25 * old[3], old[1], old[2]]))
        assert torch.equal(out.parts.read(found.experts[2]["up"]), files.parts.read(before.experts[2]["up"]))


def test_groups_form_around_the_most_used() -> None:
    similarity = torch.eye(4)
    similarity[0, 2] = similarity[2, 0] = 0.9
    similarity[1, 3] = similarity[3, 1] = 0.8
    assert merge_by_use([5.0, 4.0, 1.0, 0.5], similarity, 2) == ((0, 2), (1, 3))
    assert merge_by_use([1.0, 4.0, 5.0, 0.5], similarity, 3) == ((0,), (1, 3), (2,))


def test_shards_are_neither_merged_nor_added(tmp_path: Path) -> None:
    folder = save(moe_of(dense_llama(), granularity=2), tmp_path / "moe", tokenizer=False)
    (folder / "smolmoe.json").write_text(json.dumps({"layout": {"granularity": 2}}))
    with pytest.raises(RequestError, match="shards of one FFN"):
        merge_experts(folder, tmp_path / "out", groups=[[0, 1]])
    with pytest.raises(RequestError, match="shards of one FFN"):
        add_expert(folder, tmp_path / "out")


# -- one more --------------------------------------------------------------------------------------------------------

ADDED: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "mixtral": (_random("mixtral"), "generic", "SmolMoeForCausalLM"),
    "mixtral top-1": (_random("mixtral", num_experts_per_tok=1), "same row", "MixtralForCausalLM"),
    "mixtral copies": (lambda out: save(moe_of(dense_llama()), out, tokenizer=False), "copies", "MixtralForCausalLM"),
    "qwen2_moe": (_random("qwen2_moe", closed=True, **QWEN2), "generic", "SmolMoeForCausalLM"),
    "qwen3_moe": (_random("qwen3_moe", mlp_only_layers=[0]), "generic", "SmolMoeForCausalLM"),
    "granitemoeshared": (_random("granitemoeshared", **GRANITE), "generic", "SmolMoeForCausalLM"),
    "glm4_moe": (_random("glm4_moe"), "bias", "Glm4MoeForCausalLM"),
    "flex_olmo": (_random("flex_olmo", norm_topk_prob=True), "generic", "SmolMoeForCausalLM"),
    "generic": (_generic("gpt2"), "bias", "SmolMoeForCausalLM"),
    "mixtral bf16": (_random("mixtral", bf16=True), "generic", "SmolMoeForCausalLM"),
}


@pytest.mark.parametrize("name", ADDED)
def test_adding_an_expert_keeps_the_function(tmp_path: Path, name: str) -> None:
    make, method, architecture = ADDED[name]
    folder = make(tmp_path / "moe")
    files = read_moe(folder)
    assert choose_method(files, copied(files, 1)) == method
    result = add_expert(folder, tmp_path / "out", copy_of=1, name="new")
    assert (result.claim.kind, result.architecture) == ("exact", architecture)
    assert result.measured is not None
    assert result.measured.passed
    larger = read_moe(tmp_path / "out")
    assert (larger.experts, larger.top_k) == (5, files.top_k)
    assert larger.names == (None, None, None, None, "new")
    for layer, found in larger.layers.items():  # and it is there
        for part, name_of in found.experts[4].items():
            assert torch.equal(larger.parts.read(name_of), files.parts.read(files.layers[layer].experts[1][part]))


@pytest.mark.parametrize("top_k", [1, 2])
def test_a_specialist_from_a_dense_model(tmp_path: Path, top_k: int) -> None:
    folder = _random("mixtral", num_experts_per_tok=top_k)(tmp_path / "moe")
    dense = save(dense_llama(seed=7), tmp_path / "dense")
    result = add_expert(folder, tmp_path / "out", dense=dense, name="law")
    assert result.claim.kind == "exact"
    assert result.architecture == ("MixtralForCausalLM" if top_k == 1 else "SmolMoeForCausalLM")
    larger = read_moe(tmp_path / "out")
    with torch.no_grad():
        up = dense_llama(seed=7).model.layers[1].mlp.up_proj.weight
        assert torch.equal(larger.parts.read(larger.layers[1].experts[4]["up"]), up)


def test_an_expert_that_can_be_chosen_is_found_out(tmp_path: Path) -> None:
    """The negative control: the same files with the new expert's bias at zero are another function."""
    folder = _random("glm4_moe")(tmp_path / "moe")
    add_expert(folder, tmp_path / "out", copy_of=1)
    edit_tensors(tmp_path / "out", lambda t: [t[n][4].zero_() for n in t if n.endswith("e_score_correction_bias")])
    assert far(logits(folder), logits(tmp_path / "out")) > 100 * TOLERANCE


def test_where_no_class_can_nothing_is_promised(tmp_path: Path) -> None:
    folder = _random("olmoe")(tmp_path / "moe")
    result = add_expert(folder, tmp_path / "out")
    assert (result.claim.kind, result.architecture) == ("none", "OlmoeForCausalLM")
    assert "measured, not promised" in result.claim.reason
    files = read_moe(_random("mixtral", num_experts_per_tok=1)(tmp_path / "top1"))
    dense = from_dense(files, save(dense_llama(), tmp_path / "dense"))
    assert choose_method(files, dense) == "mean row"


def test_a_claim_that_does_not_hold_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores may not differ by more than the bias is lowered: with nearly nothing the new expert is chosen."""
    monkeypatch.setattr("smolmoe.surgery.experts.add.BELOW", 1e-6)
    folder = _random("glm4_moe")(tmp_path / "moe")
    with pytest.raises(VerificationError, match="logits"):
        add_expert(folder, tmp_path / "out", copy_of=1)
    assert isinstance((tmp_path / "out" / "config.json").read_text(), str)  # left for inspection


def test_results_are_plain_data(tmp_path: Path) -> None:
    result = extract(_random("mixtral")(tmp_path / "moe"), tmp_path / "out", [1])
    assert isinstance(result, ExpertResult)
    assert json.loads(json.dumps(result.to_json()))["measured"]["passed"] is True
