"""Predicted errors are what the files then measure, and each part of the prediction matters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests import zoo
from tests.surgery.test_request import plan

from smolmoe import upcycle
from smolmoe.surgery.predict import with_predictions

SEQUENCES = [[5, 9, 17, 33, 65, 129, 2, 40, 41, 42], [7] * 12, [100, 50, 25, 12, 6, 3]]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {"diversify": "drop"}),
        ("llama", {"diversify": "drop", "shared": "full", "granularity": 2}),
        ("llama", {"diversify": "noise", "noise_std": 0.05, "shared": 16, "target": "qwen2_moe", "layers": "1-2"}),
        ("llama", {"diversify": "drop", "shared": "full", "target": "glm4_moe"}),
        ("llama_mlp_bias", {"diversify": "drop", "shared": 16}),
        ("gpt2", {"diversify": "drop", "drop_independent": True}),
        ("qwen3", {"diversify": "lora", "lora_rank": 2, "lora_std": 0.05}),
        ("llama", {"gates": "independent", "shared": 24, "top_k": 1, "router_std": 0.1}),
        ("qwen3", {"gates": "independent", "shared": "full", "target": "glm4_moe"}),
        ("gpt2", {"gates": "independent", "diversify": "noise", "router": "zero"}),
        ("llama", {"subsets": "random", "granularity": 2, "shared": 16, "shared_by": "importance"}),
        ("qwen2", {"subsets": "complementary", "granularity": 4, "top_k": 4, "target": "generic"}),
        ("llama_mlp_bias", {"subsets": "complementary", "granularity": 2, "gates": "independent", "shared": 16}),
        ("olmo2", {"diversify": "noise", "dtype": "bfloat16"}),
    ],
)
def test_measured_on_the_files(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    result = upcycle(zoo.folder(name), tmp_path / "moe", **options)
    assert result.claim.kind == "deviates"
    assert result.verification is not None
    measured = result.verification.ffn_error
    for layer, predicted in enumerate(result.claim.predicted_ffn_error):
        assert (predicted is None) == (layer not in result.plan.layout.moe_layers)
        if predicted is not None:
            assert measured[layer] == pytest.approx(predicted, rel=0.33)


def test_more_change_more_error_and_more_experts_average_it_out() -> None:
    def error(**options: Any) -> float:
        found = with_predictions(plan(**options), SEQUENCES).claim.predicted_ffn_error[1]
        assert found is not None
        return found

    assert error(diversify="drop", drop_ratio=0.25) < error(diversify="drop", drop_ratio=0.75)
    assert error(diversify="noise", noise_std=0.02) < error(diversify="noise", noise_std=0.1)
    assert error(diversify="noise", top_k=8) < error(diversify="noise", top_k=1)
    assert error(diversify="drop", shared="full") < 0.7 * error(diversify="drop")


def test_exact_and_merged_plans_are_left_as_they_are() -> None:
    made = plan()
    assert with_predictions(made, SEQUENCES) is made
