"""Dense equals upcycled on the saved and reloaded files: each family, each exact request, in stock transformers.

All conversions are made here; one child process that never imports smolmoe loads them and compares.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests import zoo
from tests.helpers import edit_tensors
from tests.processes import NO_SMOLMOE, run
from tests.surgery.test_request import plan

from smolmoe.families import MOE_TARGETS
from smolmoe.surgery.convert import convert

# Every exact request that a family can be asked for; top-4 of 8 in groups where the FFN is split.
REQUESTS: dict[str, dict[str, Any]] = {
    "copies": {"experts": 4},
    "top1": {"experts": 4, "top_k": 1},
    "all": {"experts": 3, "top_k": 3},
    "zero router": {"experts": 4, "router": "zero"},
    "split": {"granularity": 4, "top_k": 4},
    "thirds": {"granularity": 3, "experts": 6, "top_k": 3},
    "full": {"shared": "full"},
    "full split": {"shared": "full", "granularity": 2, "experts": 4},
    "width": {"shared": 16, "experts": 4},
    "width split": {"shared": 16, "granularity": 2, "top_k": 2},
    "independent": {"experts": 4, "gates": "independent", "router": "zero"},
    "independent full": {"experts": 4, "gates": "independent", "router": "zero", "shared": "full"},
    "independent width": {"experts": 4, "gates": "independent", "router": "zero", "shared": 24, "top_k": 1},
    "independent thirds": {"experts": 6, "gates": "independent", "router": "zero", "shared": 24, "top_k": 3},
    "residual": {"shared": "residual", "experts": 4},
    "residual noise": {"shared": "residual", "experts": 4, "diversify": "noise"},
    "residual split": {"shared": "residual", "granularity": 2, "experts": 4, "top_k": 3},
    "one layer": {"layers": "1", "experts": 4},
    "one layer, shared": {"layers": "1", "shared": "full", "experts": 4},
    "last layers, shared": {"layers": "1-2", "shared": "full", "experts": 4},
}
# One family of each native target in full; the others by default only what differs between them.
FULL = ("llama", "qwen2", "qwen3", "olmo2", "mistral_window", "gpt2")
QUICK = ("split", "full", "width", "independent width")
NATIVE = [name for name in MOE_TARGETS if name != "generic"]

_CHILD = """
import json, sys
import torch
from transformers import AutoModelForCausalLM
assert "smolmoe" not in sys.modules
torch.manual_seed(0)
ids = torch.randint(2, 300, (3, 24))
mask = torch.ones_like(ids)
mask[0, :7] = 0
mask[1, :2] = 0
def run(folder, remote):
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=remote, dtype=torch.float32).eval()
    with torch.no_grad():
        plain = model(ids).logits
        padded = model(ids, attention_mask=mask).logits[mask.bool()]
        cached = model.generate(ids[:, :12], max_new_tokens=8, do_sample=False, pad_token_id=1, eos_token_id=None,
                                return_dict_in_generate=True, output_logits=True)
    return type(model).__name__, plain, padded, cached.sequences, torch.stack(cached.logits, 1)
def far(a, b):
    return ((a - b).abs().max() / a.abs().max()).item()
results, dense = {}, {}
for key, (source, folder) in json.load(open(sys.argv[1])).items():
    if source not in dense:
        dense[source] = run(source, False)
    a, b = dense[source], run(folder, True)
    results[key] = {"class": b[0], "plain": far(a[1], b[1]), "padded": far(a[2], b[2]),
                    "tokens": bool((a[3] == b[3]).all()), "cached": far(a[4], b[4])}
assert not any(name.split(".")[0] == "smolmoe" for name in sys.modules)
json.dump(results, open(sys.argv[2], "w"))
"""


def stock_results(pairs: dict[str, tuple[Path, Path]], work: Path) -> dict[str, dict[str, Any]]:
    """Compare (dense, MoE) folders in a process that cannot import smolmoe."""
    (work / "pairs.json").write_text(json.dumps({key: [str(a), str(b)] for key, (a, b) in pairs.items()}))
    run(NO_SMOLMOE + _CHILD, work / "pairs.json", work / "results.json")
    return json.loads((work / "results.json").read_text())


def _conversions(
    name: str, work: Path, requests: Sequence[str], targets: Sequence[str]
) -> dict[str, tuple[Path, Path]]:
    """Each request on each target that takes it."""
    from smolmoe.errors import TargetError

    pairs = {}
    for request in requests:
        options = REQUESTS[request]
        for target in targets:
            try:
                made = plan(name, **options, target=target)
            except TargetError:
                continue
            key = f"{name}: {request} -> {made.target.name}"
            if key in pairs:
                continue
            object.__setattr__(made.recipe, "out", work / f"{name}_{len(pairs)}")
            pairs[key] = (zoo.folder(name), convert(made))
    return pairs


# A few families in one child process: starting it takes longer than what it does.
@pytest.mark.parametrize("names", [FULL[:2], FULL[2:4], FULL[4:]], ids=" ".join)
def test_every_exact_request_keeps_the_function(names: tuple[str, ...], tmp_path: Path) -> None:
    _check(names, tmp_path, list(REQUESTS), ["auto"])


@pytest.mark.parametrize("part", range(2))
def test_every_family_keeps_the_function(part: int, tmp_path: Path) -> None:
    _check([name for name in zoo.ZOO if name not in FULL][part::2], tmp_path, QUICK, ["auto"])


@pytest.mark.slow
@pytest.mark.parametrize("name", list(zoo.ZOO))
def test_every_exact_request_on_every_target(name: str, tmp_path: Path) -> None:
    _check([name], tmp_path, list(REQUESTS), [*NATIVE, "generic"])


def _check(names: Sequence[str], work: Path, requests: Sequence[str], targets: Sequence[str]) -> None:
    pairs = {key: pair for name in names for key, pair in _conversions(name, work, requests, targets).items()}
    for name in names:  # the negative control: a comparison that cannot fail proves nothing
        made = plan(name, experts=4)
        object.__setattr__(made.recipe, "out", work / f"broken_{name}")
        pairs[f"{name}: broken"] = (zoo.folder(name), convert(made))
        edit_tensors(made.recipe.out, _lose_neurons)
    for key, found in stock_results(pairs, work).items():
        if key.endswith("broken"):
            assert found["plain"] > 1e-3, key
            continue
        assert found["class"] == MOE_TARGETS[key.split(" -> ")[1]].architecture, key
        assert found["tokens"], key
        assert max(found["plain"], found["padded"], found["cached"]) <= 1e-5, (key, found)


def _lose_neurons(tensors: dict[str, Any]) -> None:
    """Every second neuron. A wrong scale would not do: OLMo 2 and Gemma 2 normalise it away."""
    for key in tensors:
        if ".w2." in key or "down_proj" in key or "output_linear" in key:
            tensors[key][..., ::2] = 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_files_in_16_bits_hold_the_same_function(dtype: str, tmp_path: Path) -> None:
    """Computed in float32, powers of two lose nothing: equal to the dense model's own 16-bit files."""
    pairs = {}
    for request in ("copies", "full split", "width split", "residual"):
        made = plan("llama", **REQUESTS[request])
        object.__setattr__(made.recipe, "source", str(zoo.folder("llama", dtype=dtype)))
        from smolmoe.core.checkpoint import open_checkpoint
        from smolmoe.surgery.plan import make_plan

        made = make_plan(made.recipe, open_checkpoint(made.recipe.source))
        object.__setattr__(made.recipe, "out", tmp_path / request.replace(" ", "_"))
        pairs[request] = (zoo.folder("llama", dtype=dtype), convert(made))
    for key, found in stock_results(pairs, tmp_path).items():
        assert max(found["plain"], found["padded"], found["cached"]) <= 1e-5, (key, found)


@pytest.mark.parametrize("name", ["llama_rope3", "qwen2_window", "qwen3", "olmo2", "mistral_window", "llama"])
def test_config_says_nothing_that_the_class_does_not_know(name: str, tmp_path: Path) -> None:
    """Written config and the class's reading of it agree key by key, explicit None included."""
    from transformers import AutoConfig

    for target in NATIVE:
        for shared in ("none", "full"):
            try:
                made = plan(name, shared=shared, target=target, experts=4)
            except Exception:
                continue
            known = AutoConfig.for_model(target)
            read = AutoConfig.for_model(target, **{k: v for k, v in made.config.items() if k != "model_type"})
            for key, value in made.config.items():
                if key in ("transformers_version", "partial_rotary_factor"):
                    continue
                if key == "sliding_window" and not value:
                    assert not getattr(read, key)  # Qwen2Moe writes 0 for none
                    continue
                assert str(getattr(read, key)).removeprefix("torch.") == str(value), (target, key)
                read_by_engines = target == "dots1" and key == "scoring_func"  # of llama.cpp's converter
                assert hasattr(known, key) or key == "head_dim" or read_by_engines, (target, key)
            source = made.spec.config
            for key in ("bos_token_id", "eos_token_id", "pad_token_id", "rope_parameters", "rms_norm_eps"):
                if key == "rope_parameters":
                    own = read.rope_parameters
                    for rope in [own] if "rope_theta" in own else own.values():  # Mellum has one for each type of layer
                        assert source[key].items() <= rope.items()
                else:
                    assert getattr(read, key) == source[key], (target, key)


def test_text_becomes_the_same_tokens(tmp_path: Path) -> None:
    """transformers splits text by Qwen2's own rule beside a Qwen2 config only; the MoE's files must say it."""
    from transformers import AutoTokenizer

    source = zoo.folder("qwen2")
    text = "x=1234567; It's\n\n  a naïve test"
    theirs = AutoTokenizer.from_pretrained(source)
    for target, shared in (("granitemoeshared", "none"), ("qwen2_moe", "full"), ("generic", "none")):
        made = plan("qwen2", shared=shared, target=target, experts=4)
        object.__setattr__(made.recipe, "out", tmp_path / target)
        ours = AutoTokenizer.from_pretrained(convert(made), trust_remote_code=True)
        assert ours(text)["input_ids"] == theirs(text)["input_ids"], target
        # With this small vocabulary few texts would show another rule, so the rules themselves are compared.
        assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str(), target
    assert type(theirs).__name__ == "Qwen2Tokenizer"  # else this test sees nothing


def test_a_tokenizer_that_the_class_of_the_result_does_not_follow_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Qwen3.5's MoE type has its own rule for every tokenizer, the dense text model's type has none."""
    made = plan("qwen3_5", shared="full", experts=4)
    object.__setattr__(made.recipe, "out", tmp_path / "moe")
    with caplog.at_level("WARNING", logger="smolmoe"):
        convert(made)
    assert "load it with PreTrainedTokenizerFast" in caplog.text
