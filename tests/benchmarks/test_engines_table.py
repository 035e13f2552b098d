"""What is said of engines is what was measured there: every cell of docs/reference/engines.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

RESULTS: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "benchmarks" / "results" / "engines.json").read_text(encoding="utf-8")
)
# (engine, part of the row or of the reason) -> why the cell says nothing against the data.
EXPLAINED = {
    ("llama.cpp", "`qwen2_moe` + shared"): "`export --to gguf` writes it as an equivalent class",
    (
        "llama.cpp",
        "`granitemoe` | llama, rope_parameters llama3",
    ): "`export --to gguf` writes it as an equivalent class",
    ("llama.cpp", "`granitemoe` | llama, head_dim 64"): "`export --to gguf` writes it as an equivalent class",
    ("llama.cpp", "`generic` | llama"): "`export --to gguf` writes it as an equivalent class",
    (
        "llama.cpp",
        "`glm4_moe` + shared | phi3, rope_parameters default",
    ): "llama.cpp cannot read the tests' tokenizer here",
    ("llama.cpp", "`mellum` | qwen3"): "`export --to gguf` writes it as an equivalent class",
    ("llama.cpp", "tokenizer.model"): "its converter wants SentencePiece's file, which the tests' tokenizer has not",
    ("vllm", "Head dimension 20"): "the heads of the tiny model, not those of real ones",
    (
        "vllm",
        "Unsupported CPU attention configuration: head_dim=8",
    ): "the heads of the tiny model, not those of real ones",
    ("vllm", "`generic` | phi"): "GELU without a gate: equal here, not in GPT-NeoX, so it is not promised",
    ("vllm", "`generic` | starcoder2"): "GELU without a gate: equal here, not in GPT-NeoX, so it is not promised",
}


def _explained(engine: str, row: str, cell: dict[str, Any]) -> bool:
    return any(one == engine and part in f"{row} {cell['reason']}" for one, part in EXPLAINED)


@pytest.mark.parametrize("engine", RESULTS["cells"])
def test_every_cell_is_measured(engine: str) -> None:
    assert set(RESULTS["rows"]) <= set(RESULTS["cells"][engine])


@pytest.mark.parametrize("engine", RESULTS["cells"])
def test_what_is_told_is_what_was_measured(engine: str) -> None:
    wrong = {
        row: (cell["verdict"], RESULTS["told"][row][engine])
        for row, cell in RESULTS["cells"][engine].items()
        if row in RESULTS["rows"]
        and (cell["verdict"] == "equal") != (not RESULTS["told"][row][engine])
        and not _explained(engine, row, cell)
    }
    assert wrong == {}
