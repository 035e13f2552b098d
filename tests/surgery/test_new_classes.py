"""MoEs of classes that share their config with a dense model, or in which more than the FFN changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests import zoo
from tests.helpers import save
from tests.training.runs import recipe, rows

import smolmoe
from smolmoe.errors import SourceError
from smolmoe.families.spec import read_spec
from smolmoe.moe.loading import load_model
from smolmoe.moe.routing import RoutingCapture

CLASSES: dict[str, dict[str, Any]] = {
    "gemma3": {"granularity": 2},
    "granitemoehybrid": {"shared": "full"},
}


def test_layers_that_reuse_the_keys_of_others_are_verified(tmp_path: Path) -> None:
    """Gemma 4: with a cache these layers run for the end of the prompt only."""
    made = smolmoe.upcycle(zoo.folder("gemma4"), tmp_path / "moe", experts=4, granularity=2)
    assert made.target == "generic"
    assert made.verification is not None
    assert made.verification.passed


def test_a_class_that_padding_changes_is_verified_within_that(tmp_path: Path) -> None:
    """Linear attention of Qwen3.5 is sensitive to padding on the left, in the dense model too."""
    dense, moe = zoo.folder("qwen3_5"), tmp_path / "moe"
    made = smolmoe.upcycle(dense, moe, experts=4, shared="full", verify="none")
    assert (made.target, made.claim.kind) == ("qwen3_5_moe_text", "exact")
    # It depends on the text, which is to be the same on every machine.
    (tmp_path / "text.txt").write_text(" ".join(f"{4 * i % 97} is the sum" for i in range(400)))
    found = smolmoe.verify(dense, moe, text=tmp_path / "text.txt")
    assert found.passed
    assert found.padding.left_dense > made.claim.tolerance * found.logits.max_logit  # else this test shows nothing


def test_a_class_that_padding_changes_by_more_than_rounding_is_verified_too(tmp_path: Path) -> None:
    """LFM2 adds the bias of its convolutions at padded places."""
    made = smolmoe.upcycle(zoo.folder("lfm2_untied"), tmp_path / "moe", experts=4)
    assert made.verification is not None
    assert made.verification.passed
    assert made.verification.padding.left_dense > 0.1


def test_decoding_is_verified_on_one_side_of_the_length_at_which_longrope_changes(tmp_path: Path) -> None:
    """Beyond it the dense class computes its cache again, which the claim excepts."""
    model = zoo.build("phi3_short", original_max_position_embeddings=40)
    dense = save(model, tmp_path / "dense")
    made = smolmoe.upcycle(dense, tmp_path / "moe", experts=4)
    assert (made.target, made.claim.kind) == ("mixtral", "exact")
    assert "past 40 tokens" in made.claim.reason
    assert made.verification is not None
    assert made.verification.passed


@pytest.mark.parametrize(
    ("model_type", "config", "says"),
    [
        (
            "gemma4_text",
            {"use_double_wide_mlp": True, "num_kv_shared_layers": 1},
            "layer 2 differs from that of layer 0",
        ),
        ("nemotron_h", {"layers_block_type": ["mlp", "full_attention", "mlp"]}, "No module inside its layers"),
    ],
)
def test_layers_that_differ_are_refused(model_type: str, config: dict[str, Any], says: str, tmp_path: Path) -> None:
    from tests.helpers import SIZES
    from transformers import AutoConfig

    types = {"layer_types": ["sliding_attention", "full_attention", "full_attention"]}
    sizes = {**SIZES, "num_hidden_layers": 3, "intermediate_size": 48}
    values = {**sizes, **(types if model_type == "gemma4_text" else {}), **config}
    AutoConfig.for_model(model_type, **values).save_pretrained(tmp_path)
    with pytest.raises(SourceError, match=says):
        read_spec(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_written_verified_routed_trained_and_pruned(name: str, tmp_path: Path) -> None:
    made = smolmoe.upcycle(zoo.folder(name), tmp_path / "moe", experts=4, **CLASSES[name])
    assert made.target != "generic"
    assert made.verification is not None
    assert made.verification.passed
    model = load_model(tmp_path / "moe")
    with RoutingCapture(model) as capture:
        model(input_ids=torch.arange(3, 30)[None])
    assert capture.layers == [0, 1, 2]
    assert capture.routing(1).indices.shape == (27, 2)
    smolmoe.train(recipe(tmp_path, tmp_path / "moe", objective={"load_balance": 0.1}))
    trained = rows(tmp_path / "run", "step")
    assert trained[-1]["ce"] < trained[0]["ce"]
    smolmoe.prune(tmp_path / "run", tmp_path / "pruned", keep=[0, 1])
    assert load_model(tmp_path / "pruned").num_parameters() < model.num_parameters()
