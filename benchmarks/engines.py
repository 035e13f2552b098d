"""What serving engines compute of upcycled models: each target, with each feature of a source, in each engine.

    make engines && python benchmarks/engines.py            measure what has not been measured, and write the page
    python benchmarks/engines.py --engine mlx --again       one engine again, after a new version or a new family
    python benchmarks/engines.py --page                     write docs/reference/engines.md from the results

The sources are those of tests/zoo.py, the targets those that the families table gives them, so that a new family and
its tiny model add rows. The experts differ from each other. An engine that is absent leaves its cells as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import machine

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
RESULTS = Path(__file__).with_name("results") / "engines.json"
PAGE = ROOT / "docs" / "reference" / "engines.md"
# What every engine can run: on a CPU vLLM needs heads whose width is a multiple of 32.
SIZES = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 192}
OTHER_HEAD_DIM = 64
REQUEST = {"experts": 4, "top_k": 2, "diversify": "noise", "noise_std": 0.2}
SHARED = 96  # of the 192 neurons, so that the experts have as many, which glm4_moe needs
SPARE = 4  # tokens
BIAS = 0.25  # of the last expert, and minus that of the first
SHORT = 240  # characters of a reason in the page


@dataclass
class Row:
    """A model: its target, whether it has a shared expert, the sources that give it, and where it is."""

    target: str
    shared: bool
    folder: Path
    sources: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        return f"`{self.target}`{' + shared' if self.shared else ''} | {'; '.join(self.sources)}"


def said(name: str) -> str:
    """A source of the zoo in words: its model type and what its config sets."""
    from tests.zoo import ZOO

    model_type, extra = ZOO[name]
    told = {key: value for key, value in extra.items() if not key.startswith("n_")}  # no sizes
    words = [_setting(key, value) for key, value in told.items() if value not in (None, False) or "tie" in key]
    return ", ".join([model_type, *(word for word in words if word)])


def _setting(key: str, value: Any) -> str:
    if key == "tie_word_embeddings":
        return "tied" if value else "untied"
    if key == "head_dim":
        value = OTHER_HEAD_DIM
    if isinstance(value, dict):
        return f"{key} {value.get('rope_type', '')}".strip()
    return key if value is True else f"{key} {value}"


def features(config: dict[str, Any]) -> str:
    """A config by what engines may support or not: two that differ only in their numbers are the same.

    0 and 1 stay, which switch multipliers off, and so does whether a head is as wide as its share of the hidden size.
    """
    heads, width, head = (config.get(key) for key in ("num_attention_heads", "hidden_size", "head_dim"))
    kept = {key: _feature(value) for key, value in config.items() if not key.endswith(("_token_id", "_dropout"))}
    return json.dumps([kept, bool(heads and head) and heads * head == width], sort_keys=True)


def _feature(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _feature(one) for key, one in value.items()}
    if isinstance(value, list):
        return sorted({json.dumps(_feature(one)) for one in value})
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return "number" if number and value not in (0, 1) else value


def rows(work: Path, *, one: bool = False) -> list[Row]:
    """All models, written; with `one` the first of each target. Sources whose MoEs have the same features are one row.

    The first of each target that has selection biases is there once more, with biases that differ as after training.
    """
    from tests.zoo import ZOO

    from smolmoe.families import DENSE_FAMILIES, MOE_TARGETS

    found: dict[str, Row] = {}
    for name, (model_type, _) in ZOO.items():
        family = DENSE_FAMILIES.get(model_type)
        targets = family.targets if family else ()
        generic = ("generic",) if family is None or name == "llama" else ()
        for target in (*targets, *generic):
            shared = MOE_TARGETS[target].shared
            for with_shared in {"never": (False,), "optional": (False, True), "required": (True,)}[shared]:
                if target == "generic" and with_shared:
                    continue  # no engine's support depends on it
                if target == "granitemoeshared" and not with_shared:
                    continue  # `auto` writes granitemoe
                if one and any((row.target, row.shared) == (target, with_shared) for row in found.values()):
                    continue
                folder = work / f"{name}-{target}{'-shared' if with_shared else ''}"
                if not _upcycle(name, target, with_shared, folder):
                    continue
                config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
                row = found.setdefault(f"{features(config)} {with_shared}", Row(target, with_shared, folder))
                if said(name) not in row.sources:
                    row.sources.append(said(name))
    firsts = {row.target: row for row in reversed(found.values())}
    found |= {name: _biased(row) for name, row in firsts.items() if MOE_TARGETS[name].names.selection_bias}
    return sorted(found.values(), key=lambda row: (row.target == "generic", list(MOE_TARGETS).index(row.target)))


def _biased(row: Row) -> Row:
    """A copy whose routers prefer the last experts."""
    from safetensors.torch import load_file, save_file

    from smolmoe.families import MOE_TARGETS

    folder = row.folder.with_name(f"{row.folder.name}-biased")
    shutil.copytree(row.folder, folder)
    tensors = load_file(folder / "model.safetensors")
    for name, bias in tensors.items():
        if name.endswith(f".{MOE_TARGETS[row.target].names.selection_bias}"):
            bias.copy_(torch.linspace(-BIAS, BIAS, bias.shape[-1]))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return Row(row.target, row.shared, folder, [f"{row.sources[0]}, selection biases moved"])


def _upcycle(name: str, target: str, shared: bool, folder: Path) -> bool:
    """Write one MoE; whether the target can express the source."""
    import smolmoe
    from smolmoe.errors import SmolmoeError

    try:
        options = {"target": target, "shared": SHARED if shared else "none", "overwrite": True, "verify": "none"}
        smolmoe.upcycle(_dense(name, folder.parent), folder, **REQUEST, **options)
    except SmolmoeError:
        return False
    return True


def _dense(name: str, work: Path) -> Path:
    """The source at sizes that engines can run; at its own where its class does not take these."""
    from tests import zoo
    from tests.helpers import save

    from smolmoe.families import DENSE_FAMILIES, MOE_TARGETS

    folder, family = work / name, DENSE_FAMILIES.get(zoo.ZOO[name][0])
    if not folder.is_dir():
        sizes = SIZES | ({"head_dim": OTHER_HEAD_DIM} if "head_dim" in zoo.ZOO[name][1] else {})
        if family and (family.own_tokenizer or any(MOE_TARGETS[one].own_tokenizer for one in family.targets)):
            sizes["vocab_size"] = SPARE + zoo.SIZES["vocab_size"]  # the class adds a token to the tests' tokenizer
        try:
            model = zoo.build(name, **sizes)
            model(input_ids=torch.tensor([[1, 2, 3]]))
        except Exception:  # each class checks its settings in its own way, some only when they compute
            model = zoo.build(name)
        save(model, folder)
    return folder


def cells(models: Sequence[Row], engine: str, timeout: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every model in an engine; none if it is absent."""
    from smolmoe import verify
    from smolmoe.errors import RequestError

    for row in models:
        try:
            result = verify(row.folder, engine=engine, timeout=timeout)
        except RequestError as error:
            print(f"{engine}: {error}", file=sys.stderr)
            return
        cell = {
            "verdict": result.verdict,
            "reason": result.reason and re.sub(r"/\S+/", "", result.reason),  # without folders of this machine
            "difference": None if result.difference is None else asdict(result.difference),
            "version": result.engine_version,
            "transformers": result.versions["transformers"],
            "date": datetime.now(UTC).date().isoformat(),
            "seconds": result.seconds,
        }
        print(engine, row.key, result.verdict, result.reason or "", flush=True)
        yield row.key, cell


def told(folder: Path) -> dict[str, list[str]]:
    """For each engine, what `upcycle` and the model card say against running this model there."""
    from smolmoe.engines.registry import ENGINES
    from smolmoe.families.engines import engine_name
    from smolmoe.hub.model_facts import ModelFacts

    runs_in = ModelFacts.read(folder).runs_in
    return {engine: runs_in[engine_name(engine)] for engine in ENGINES}


def write(results: dict[str, Any]) -> None:
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _read() -> dict[str, Any]:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {"cells": {}}


def page(results: dict[str, Any]) -> str:
    """The tables."""
    from smolmoe.engines.registry import ENGINES, runner_of

    measured = [engine for engine in ENGINES if results["cells"].get(engine)]
    reasons: list[str] = []
    lines = [["target", "source", *measured], ["---"] * (len(measured) + 2)]
    for key in results["rows"]:
        target, _, source = key.partition(" | ")
        cells = [results["cells"][engine].get(key) for engine in measured]
        lines.append([target, source, *(_cell(cell, reasons) for cell in cells)])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = "\n".join(f"{number}. {reason}" for number, reason in enumerate(reasons, start=1))
    known = "\n".join(f"- {engine}: {' '.join(runner_of(engine).NOTES)}" for engine in measured)
    return f"{table}\n\nReasons:\n\n{notes}\n\nKnown of the engines:\n\n{known}\n\n{_versions(results, measured)}"


def _cell(cell: dict[str, Any] | None, reasons: list[str]) -> str:
    if cell is None:
        return "not measured"
    found = cell["difference"]
    if found is not None:
        greedy = (
            ""
            if found["greedy_equal"] == found["greedy_tokens"]
            else f", greedy {found['greedy_equal']} of {found['greedy_tokens']}"
        )
        figure = f"{found['max_abs']:.0e}".replace("e-0", "e-").replace("0e+00", "0")
        if cell["verdict"] == "equal":
            return f"equal, {figure}"
        return f"**differs**, {found['max_abs']:.2g}, perplexity {found['engine_perplexity']:.5g} for " + (
            f"{found['perplexity']:.5g}{greedy}"
        )
    reason = cell["reason"].replace("|", "/")
    reason = reason if len(reason) <= SHORT else f"{reason[:SHORT]} ..."
    if reason not in reasons:
        reasons.append(reason)
    return f"{cell['verdict']} ({reasons.index(reason) + 1})"


def _versions(results: dict[str, Any], engines: Sequence[str]) -> str:
    lines = []
    for engine in engines:
        cells = results["cells"][engine].values()
        versions = sorted({cell["version"] for cell in cells if cell["version"]})
        dates = sorted({cell["date"] for cell in cells})
        span = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
        lines.append(f"{engine} {', '.join(versions)} ({span})")
    return f"Versions: {'; '.join(lines)}. Measured on: {machine.in_words(results['machine'])}."


def main() -> None:
    from smolmoe.engines.registry import ENGINES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", action="append", choices=ENGINES, help="only these engines")
    parser.add_argument("--target", action="append", help="only these targets")
    parser.add_argument("--one", action="store_true", help="only the first source of each target")
    parser.add_argument("--again", action="store_true", help="measure cells that have been measured, too")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one engine on one model")
    parser.add_argument("--page", action="store_true", help="only write the page")
    given = parser.parse_args()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    results = _read()
    if not given.page:
        with tempfile.TemporaryDirectory(prefix="engines-") as work:
            models = rows(Path(work), one=given.one)
            earlier = results.get("rows", []) if given.one else []
            about = {"rows": [*dict.fromkeys([*earlier, *(row.key for row in models)])], "machine": machine.describe()}
            about["told"] = {**results.get("told", {}), **{row.key: told(row.folder) for row in models}}
            write(_read() | about)
            targets = [row.target for row in models]
            order = {row.key: targets[:index].count(row.target) for index, row in enumerate(models)}
            models.sort(key=lambda row: order[row.key])  # the first source of every target first
            models = [row for row in models if not given.target or row.target in given.target]
            for engine in given.engine or ENGINES:
                done = results["cells"].get(engine, {})
                left = [row for row in models if given.again or row.key not in done]
                for key, cell in cells(left, engine, given.timeout):
                    results = _read() | about  # another process may measure another engine
                    results["cells"].setdefault(engine, {})[key] = cell
                    write(results)
        results = _read()
    machine.put_between(PAGE, "engines", page(results))


if __name__ == "__main__":
    main()
