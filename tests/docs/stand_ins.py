"""What the pages speak of and a test does not have: models of the hub, data sets, the reader's own models and texts.

A model of the hub is a tiny random one of the same class, with a tokenizer, in a cache of the hub's own form, so that
blocks run as they are written. Where a page is about sizes it has the true shapes and no weights.
"""

from __future__ import annotations

import json
import math
import random
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import pytest
from tests import helpers, zoo

from smolmoe.data.presets import PRESETS

# Hub id -> model type, its true sizes as its config gives them, and the type of its files.
_SMOL = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
_QWEN = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
}
HUB: dict[str, tuple[str, dict[str, Any], str]] = {
    "HuggingFaceTB/SmolLM-135M": ("llama", {**_SMOL, "max_position_embeddings": 2048}, "F32"),
    "HuggingFaceTB/SmolLM2-135M": ("llama", {**_SMOL, "max_position_embeddings": 8192, "rope_theta": 100000.0}, "BF16"),
    "Qwen/Qwen2.5-0.5B": ("qwen2", {**_QWEN, "max_position_embeddings": 32768, "rope_theta": 1000000.0}, "BF16"),
}
_COMMIT = "0" * 40


def hub_cache(folder: Path, *, sizes: bool) -> Path:
    """A cache as the hub's client keeps it, with every model of HUB."""
    for name, (model_type, config, dtype) in HUB.items():
        place = folder / f"models--{name.replace('/', '--')}"
        snapshot = place / "snapshots" / _COMMIT
        snapshot.mkdir(parents=True)
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(_COMMIT)
        if sizes:
            hollow(snapshot, model_type, config, dtype)
        else:
            helpers.save(zoo.build(model_type, use_sliding_window=False, max_position_embeddings=512), snapshot)
    return folder


def hollow(folder: Path, model_type: str, sizes: dict[str, Any], dtype: str) -> None:
    """A checkpoint whose weights file is a header and a hole."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(model_type, **sizes)
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    header, end = {}, 0
    for name, tensor in model.state_dict().items():
        if name not in tied:
            begin, end = end, end + math.prod(tensor.shape) * {"F32": 4, "BF16": 2}[dtype]
            header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    config.architectures = [type(model).__name__]
    config.dtype = {"F32": "float32", "BF16": "bfloat16"}[dtype]
    config.save_pretrained(folder)
    encoded = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        file.truncate(8 + len(encoded) + end)
    helpers.tiny_tokenizer().save_pretrained(folder)


def use_hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))


def use_data_sets(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """The presets of the hub as local files of the same columns."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    for name, preset in PRESETS.items():
        place = folder / name
        place.mkdir(parents=True)
        rows = [dict.fromkeys(preset.columns, f"Row {n}: {sentence(n)}") for n in range(300)]
        (place / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        monkeypatch.setitem(PRESETS, name, replace(preset, path=str(place), name=None, split="train"))


WORDS = [f"{first}{last}" for first in ("wa", "sto", "ri", "le", "no", "gra") for last in ("ter", "ver", "mon", "ding")]


def sentence(number: int) -> str:
    """Forty words that differ from those of any other number."""
    return " ".join(random.Random(number).choices(WORDS, k=40)) + "."


def write_texts(path: Path, count: int = 240) -> None:
    """Tagged text in three domains, another one in each file."""
    start = sum(path.name.encode()) * 10_000
    with path.open("w", encoding="utf-8") as file:
        for n in range(start, start + count):
            text = (f"def f{n}(x):\n    return x + {n}\n", f"Problem: What is {n} + 1?\nSolution: {n + 1}\n", "")[n % 3]
            row = {"text": text + sentence(n), "domain": ("code", "math", "prose")[n % 3]}
            file.write(json.dumps(row) + "\n")


def write_prompts(path: Path) -> None:
    path.write_text("def add(\nThe sum of\n", encoding="utf-8")


def write_corrections(path: Path) -> None:
    rows = [
        {"task": "gec", "src": f"Fix grammar: He go to {n} home.", "tgt": f"He goes to {n} home."} for n in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def dense(path: Path) -> None:
    helpers.save(zoo.build("llama", max_position_embeddings=512), path)


def mixture(path: Path) -> None:
    """Copies of a random dense model, through the product's own door."""
    from smolmoe.surgery.run import upcycle

    source = path.parent / f"{path.name}-source"
    dense(source)
    upcycle(source, path, experts=4, top_k=2, verify="none")


def generic(path: Path) -> None:
    from smolmoe.surgery.run import upcycle

    source = path.parent / f"{path.name}-source"
    helpers.save(helpers.dense_gpt2(), source)
    upcycle(source, path, experts=4, top_k=2, verify="none")


def sweep(path: Path) -> None:
    """A sweep of one curve without a law."""
    from smolmoe.results.scaling_law import (
        FILE,
        Curve,
        Gain,
        HeldOutFacts,
        Interval,
        Schedule,
        Sweep,
        Uncertainty,
    )

    gain = Gain(1_000, 10_000, Interval(0.2, 0.1, 0.3), "measured")
    curve = Curve("moe", None, None, (), (), None, "too few points", (gain,), (gain,), ())
    facts = HeldOutFacts(10, 1_000, ("text",)), Uncertainty(0.95, 100, ("documents",), "of documents")
    schedule = Schedule("own", "cosine", 0, None, "each its own")
    found = Sweep(
        recipe="r",
        stage=None,
        model="new",
        schedule=schedule,
        held_out=facts[0],
        training_tokens=10,
        largest=10,
        extrapolated_to=10,
        curves=(curve,),
        joint=None,
        joint_reason=None,
        uncertainty=facts[1],
        warnings=(),
        versions={},
        command=None,
    )
    path.mkdir(parents=True)
    found.write(path / FILE)


# What the pages name as the reader's own -> what makes it.
PLACES: dict[str, Callable[[Path], None]] = {
    "runs/quickstart/dense": dense,
    "runs/quickstart/corpus/validation.jsonl": write_texts,
    "runs/quickstart/corpus/train.jsonl": write_texts,
    "gpt2-moe": generic,
    "runs/sweep/moe": sweep,
    "MODEL": mixture,
    "MOE": mixture,
    "DENSE": dense,
    "lines.txt": write_prompts,
    "text.jsonl": write_texts,
    "tagged.jsonl": write_texts,
    "corrections.jsonl": write_corrections,
    "held-out.jsonl": write_corrections,
}


def put_places(folder: Path, text: str) -> None:
    """Make what a block names and no earlier block has made."""
    for name, make in PLACES.items():
        named = re.search(rf"(?<![\w/.-]){re.escape(name)}(?![\w/.-])", text)
        if named and not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            make(folder / name)


def given(name: str, folder: Path) -> Any:
    """A name that a Python block of a page uses and does not define."""
    return _GIVEN[name](folder)


def _moe_folder(folder: Path) -> Path:
    path = folder / "given-moe"
    if not path.exists():
        mixture(path)
    return path


def _dense_state(folder: Path) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    from smolmoe.surgery.moments import Moments

    _moe_folder(folder)
    model = AutoModelForCausalLM.from_pretrained(folder / "given-moe-source")
    zeros = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    return {name: Moments(zero, zero.clone(), 10) for name, zero in zeros.items()}


def _model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(_moe_folder(folder))


def _spec(folder: Path) -> Any:
    from smolmoe.families.spec import read_spec

    return read_spec(_moe_folder(folder).parent / "given-moe-source")


_GIVEN: dict[str, Callable[[Path], Any]] = {
    "moe_folder": _moe_folder,
    "folder": _moe_folder,
    "dense_state": _dense_state,
    "model": _model,
    "tokenizer": lambda folder: helpers.tiny_tokenizer(),
    "spec": _spec,
}
GIVEN = frozenset(_GIVEN)
