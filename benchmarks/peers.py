"""The same dense models and requests through smolmoe, mergekit-moe, MixtureKit and ms-moe-maker: what each result is.

    make engines && python benchmarks/peers.py      measure what has not been measured, and write the page
    python benchmarks/peers.py --peer mergekit --again
    python benchmarks/peers.py --page               write docs/explanation/peers.md from the results

Each tool has an environment of its own (benchmarks/peers/NAME.txt), made on the first run. It is used as its
documentation says, with the settings under which it does best: those stand in `commands` below.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import textwrap
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import machine
from environments import HERE, PEERS, environment
from processes import MB, in_own_process, run

ROOT = HERE.parent
sys.path.insert(0, str(ROOT))
RESULTS = HERE / "results" / "peers.json"
PAGE = ROOT / "docs" / "explanation" / "peers.md"
REAL = Path.home() / ".cache" / "smolmoe" / "real-models" / "smollm2-135m-instruct"
DATA = ROOT.parent / "shared" / "data"
TEXT = DATA / "wiki_wikitext2.jsonl"
DOMAINS = {"stories": "stories_tinystories.jsonl", "code": "code_mbpp.jsonl"}
TOOLS = ("smolmoe", *PEERS)
ENGINES = ("vllm", "mlx", "llama.cpp")
SEED, ROUNDS, SEQUENCES, LENGTH = 0, 1, 8, 128
SIZES = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 192, "max_position_embeddings": 512}
SPREAD = 0.1  # of the weights' standard deviation: how far a specialist's FFN is from the base
PROMPTS = 8

Cell = dict[str, Any]
Command = list[str | Path]
# Key of a row -> its dense model, what is asked for, and in words.
ROWS: dict[str, tuple[str, str, str]] = {
    "copies": ("smollm2", "copies", "SmolLM2-135M-Instruct, 4 copies, top-2"),
    "copies-qwen2": ("qwen2", "copies", "random Qwen2, 4 copies, top-2"),
    "copies-mistral-window": ("mistral_window", "copies", "random Mistral with a window of 8 tokens, 4 copies, top-2"),
    "specialists": ("smollm2", "specialists", "SmolLM2, 2 specialists, top-1"),
    "split": ("smollm2", "split", "SmolLM2, 8 half-size experts, top-4"),
    "attention": ("smollm2", "attention", "SmolLM2, 4 copies of the query projections as experts, top-2"),
}

SERVED_TEXT = {"sequences": 2, "length": 64, "new_tokens": 4}
SERVED = ("copies", "copies-qwen2")  # the other results are of the same classes


class NotPossibleError(Exception):
    """The tool has no such request, for the reason given."""


class Bench:
    """The work folder: dense models in it, and what each tool is run with."""

    def __init__(self, work: Path):
        self.work = work

    def dense(self, name: str) -> Path:
        if name == "smollm2":
            return REAL
        folder = self.work / name
        if not folder.is_dir():
            in_own_process(write_dense, folder, name)
        return folder

    def specialists(self) -> dict[str, Path]:
        folders = {name: self.work / f"specialist-{name}" for name in DOMAINS}
        for seed, folder in enumerate(folders.values(), start=1):
            if not folder.is_dir():
                in_own_process(write_specialist, folder, seed)
        return folders

    def commands(self, tool: str, row: str, out: Path) -> tuple[list[Command], Path]:
        """What to run, in order, and the folder that then is the result. Raises NotPossibleError."""
        model, request, _ = ROWS[row]
        return getattr(self, f"_{tool.replace('-', '_')}")(self.dense(model), request, out)

    def _smolmoe(self, dense: Path, request: str, out: Path) -> tuple[list[Command], Path]:
        options: dict[str, list[str | Path]] = {
            "copies": ["--experts", "4", "--top-k", "2"],
            "split": ["--experts", "8", "--top-k", "4", "--granularity", "2"],
        }
        if request == "specialists":
            experts = [f"--expert={name}={folder}" for name, folder in self.specialists().items()]
            data = self.work / "domains.jsonl"
            rows = [{"text": text, "domain": name} for name in DOMAINS for text in domain_texts(name)]
            data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            options[request] = [
                *experts,
                "--experts",
                "2",
                "--top-k",
                "1",
                "--router",
                "domains",
                "--router-data",
                data,
            ]
        if request not in options:
            raise NotPossibleError("experts are FFNs only")
        command = [sys.executable, "-m", "smolmoe", "upcycle", dense, out, *options[request]]
        return [[*command, "--seed", str(SEED), "--verify", "none", "--overwrite"]], out

    def _mergekit(self, dense: Path, request: str, out: Path) -> tuple[list[Command], Path]:
        """Its Qwen MoE needs one shared expert, which a `residual_scale` of 0 takes out of the sum."""
        if request in ("split", "attention"):
            raise NotPossibleError("an expert is a whole FFN")
        config: dict[str, Any] = {"base_model": str(dense), "gate_mode": "random", "dtype": "bfloat16"}
        if request == "specialists":
            named = {name: (folder, domain_texts(name)) for name, folder in self.specialists().items()}
            config |= {"gate_mode": "hidden", "experts_per_token": 1}
            config["experts"] = [{"source_model": str(f), "positive_prompts": texts} for f, texts in named.values()]
        else:
            config |= {"experts_per_token": 2, "experts": [{"source_model": str(dense)}] * 4}
        if model_type(dense) == "qwen2":
            config["shared_experts"] = [{"source_model": str(dense), "residual_scale": 0.0}]
        path = out.with_suffix(".yml")
        path.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
        options = ["--quiet", "--random-seed", str(SEED), "--device", "cpu"]
        return [[environment("mergekit") / "mergekit-moe", path, out, *options]], out

    def _mixturekit(self, dense: Path, request: str, out: Path) -> tuple[list[Command], Path]:
        """Built, routers stored, exported as a native class if there is one for the model."""
        if request == "split":
            raise NotPossibleError("an expert is a whole FFN or projection")
        sources = list(self.specialists().values()) if request == "specialists" else [dense] * 4
        config: dict[str, Any] = {
            "moe_method": "btx" if request == "attention" else "traditional",
            "model_type": "peer",
            "num_experts_per_tok": 1 if request == "specialists" else 2,
            "experts": [{"expert_name": f"expert{n}", "model_id": str(s)} for n, s in enumerate(sources)],
            "alpha": 0.01,
        }
        if request == "attention":
            config["router_layers"] = ["self_attn.q_proj"]
        path, built, saved = (
            out.with_suffix(".yml"),
            out.with_name(f"{out.name}-built"),
            out.with_name(f"{out.name}-saved"),
        )
        path.write_text(json.dumps(config), encoding="utf-8")
        tools = environment("mixturekit")
        commands: list[Command] = [
            [tools / "mixturekit", "build", path, "--output", built],
            [tools / "python", HERE / "peers" / "save_routers.py", built, saved],
        ]
        if request == "attention" or model_type(dense) == "qwen2":
            return commands, saved
        return [*commands, [tools / "mixturekit", "export", saved, out]], out

    def _ms_moe_maker(self, dense: Path, request: str, out: Path) -> tuple[list[Command], Path]:
        if model_type(dense) != "qwen2":
            raise NotPossibleError("the base must be a Qwen model")
        if request != "copies":
            raise NotPossibleError("an expert is a whole FFN")
        python = environment("ms-moe-maker") / "python"
        return [[python, HERE / "peers" / "stitch.py", out, "2", *[dense] * 4]], out / "moe_untrained"


def model_type(folder: Path) -> str:
    return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"])


def domain_texts(name: str) -> list[str]:
    """The first documents of a domain, the same for routers from tagged text and from prompts."""
    lines = (DATA / DOMAINS[name]).read_text(encoding="utf-8").splitlines()[:PROMPTS]
    return [json.loads(line)["text"][:400] for line in lines]


def write_dense(folder: Path, name: str) -> None:
    """A random model of tests/zoo.py in bfloat16, with SmolLM2's tokenizer, so that it reads real text."""
    import torch
    from tests import zoo
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(REAL)
    model = zoo.build(name, seed=SEED, vocab_size=len(tokenizer), **SIZES)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_specialist(folder: Path, seed: int) -> None:
    """The real model with noise on the weights of its FFNs."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(REAL)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".mlp." in name:
                weight.add_(SPREAD * weight.float().std() * torch.randn_like(weight))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(REAL).save_pretrained(folder)


def measure(folder: Path, dense: Path, trust: bool, out: Path) -> None:
    """Compare two folders in transformers, float32, on real text; the result is written as JSON."""
    try:
        found = compared(folder, dense, trust)
    except Exception as error:  # whatever a class raises is its result
        found = {"error": last_line(f"{type(error).__name__}: {error}")}
    out.write_text(json.dumps(found), encoding="utf-8")


def compared(folder: Path, dense: Path, trust: bool) -> Cell:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from smolmoe.verification.logits import next_token_losses
    from smolmoe.verification.sample import draw_sample, plain

    def load(path: Path, **options: Any) -> tuple[Any, Any]:
        torch.manual_seed(SEED)
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True, **options)

    model, info = load(folder, trust_remote_code=trust)
    base, _ = load(dense)
    sample = draw_sample(
        AutoTokenizer.from_pretrained(dense), base.config, TEXT, count=SEQUENCES, length=LENGTH, seed=SEED
    )
    routing = Choices(model.eval())
    gap, largest, losses, base_losses = 0.0, 0.0, [], []
    with torch.no_grad():
        for ids in sample.sequences:
            ours, theirs = model(**plain(ids, "cpu")).logits[0], base.eval()(**plain(ids, "cpu")).logits[0]
            gap = max(gap, (ours - theirs).abs().max().item())
            largest = max(largest, theirs.abs().max().item())
            losses.append(next_token_losses(ours, ids))
            base_losses.append(next_token_losses(theirs, ids))
    return {
        "class": type(model).__name__,
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
        "max_delta_logit": gap,
        "max_logit": largest,
        "perplexity": torch.cat(losses).mean().exp().item(),
        "dense_perplexity": torch.cat(base_losses).mean().exp().item(),
        "tokens": sample.tokens,
        **routing.found(),
    }


class Choices:
    """What the routers of a model chose: smolmoe's capture if it can read them, else the logits of modules `gate`."""

    def __init__(self, model: Any):
        from smolmoe.errors import SourceError
        from smolmoe.moe.routing import RoutingCapture

        self.capture = None
        self.gates: dict[str, list[Any]] = {}
        self.top_k = model.config.num_experts_per_tok
        try:
            self.capture = RoutingCapture(model).__enter__()
        except SourceError:
            for name, module in model.named_modules():
                if name.endswith(".gate"):
                    self.gates[name] = []
                    module.register_forward_hook(lambda _, __, out, name=name: self.gates[name].append(out))

    def found(self) -> Cell:
        """Experts that no token reached, and tokens for which equal scores left the choice to the order of experts."""
        import torch

        from smolmoe.moe.routing import Routing, dead_experts, tied

        if self.capture is not None:
            routings = [self.capture.routing(layer) for layer in self.capture.layers]
        else:
            routings = []
            for calls in self.gates.values():
                logits = torch.cat([call.flatten(0, -2) for call in calls])
                top = logits.topk(self.top_k)
                routings.append(Routing(logits, top.values, top.indices, logits))
        return {
            "experts": sum(routing.experts for routing in routings),
            "dead": sum(len(dead_experts(routing)) for routing in routings),
            "tied": max(tied(routing).float().mean().item() for routing in routings),
        }


def engine_cell(folder: Path, engine: str, timeout: float) -> Cell | None:
    """The folder in an engine; None if the engine is absent here."""
    from smolmoe import verify
    from smolmoe.engines.process import find_python, run_engine
    from smolmoe.engines.registry import runner_of
    from smolmoe.errors import CheckpointError, RequestError, SourceError

    runner = runner_of(engine)
    try:
        python = find_python(engine, runner, None)
    except RequestError:
        return None
    try:
        found = verify(folder, engine=engine, timeout=timeout, **SERVED_TEXT)
    except (SourceError, CheckpointError) as error:  # transformers has no such class: what does the engine say?
        if engine == "llama.cpp":
            refusal = why_no_gguf(folder, error.message)
            return {"verdict": "does not load" if refusal else "converts", "reason": refusal, "version": None}
        job = {"model": str(folder), "sequences": [[1, 2, 3, 4]], "prompts": [[1, 2]], "new_tokens": 2, "trust": True}
        answer = run_engine(python, runner, job, timeout).found
        verdict = "does not load" if answer["stage"] != "done" else "loads"
        reason = textwrap.shorten(answer.get("error", str(error)), 200, placeholder=" ...")
        return {"verdict": verdict, "reason": reason, "version": answer.get("version")}
    reason = found.reason
    if engine == "llama.cpp" and found.verdict == "does not load":  # smolmoe may be at fault: what does llama.cpp say?
        reason = why_no_gguf(folder, reason) or f"smolmoe does not export it: {reason}"
    perplexities = found.difference and (found.difference.engine_perplexity, found.difference.perplexity)
    return {
        "verdict": found.verdict,
        "reason": reason,
        "difference": found.difference and found.difference.max_abs,
        "perplexities": perplexities,
        "version": found.engine_version,
        "tokens": sum(found.lengths),
    }


def why_no_gguf(folder: Path, ours: str | None) -> str | None:
    """What llama.cpp's converter says; smolmoe's reason if the converter fails because of the model given to the tool.

    The random models borrow a tokenizer that transformers loads as Qwen2's: llama.cpp knows no such mixture.
    """
    said = unconvertible(folder)
    return f"smolmoe does not export it: {ours}" if said and "pre-tokenizer was not recognized" in said else said


def unconvertible(folder: Path) -> str | None:
    """The last line of llama.cpp's own converter if it fails."""
    from smolmoe.engines.run import gguf_converter

    with tempfile.TemporaryDirectory() as work:
        log, out = Path(work) / "log.txt", Path(work) / "model.gguf"
        try:
            run([sys.executable, gguf_converter() / "convert_hf_to_gguf.py", folder, "--outfile", out], log)
        except RuntimeError as error:
            return last_line(str(error))
    return None


def cell(bench: Bench, tool: str, row: str, timeout: float) -> Cell:
    """One request through one tool."""
    out = bench.work / f"{tool}-{row}"
    try:
        commands, folder = bench.commands(tool, row, out)
    except NotPossibleError as reason:
        return {"not_possible": str(reason)}
    runs = []
    for _ in range(ROUNDS):
        for path in bench.work.glob(f"{out.name}*"):
            if path.is_dir():
                shutil.rmtree(path)
        os.sync()
        try:
            runs.append([run(command, bench.work / "log.txt", {"HF_HUB_OFFLINE": "1"}) for command in commands])
        except RuntimeError as error:
            return {"failed": last_line(str(error))}
    made = {
        "seconds": min(sum(one.seconds for one in several) for several in runs),
        "cpu_seconds": min(sum(one.cpu_seconds for one in several) for several in runs),
        "anonymous_mb": round(max(one.anonymous for several in runs for one in several) / MB),
        "resident_mb": round(max(one.resident for several in runs for one in several) / MB),
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()),
        "commands": len(commands),
    }
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    result, answer = {"code": "auto_map" in config, "model_type": config["model_type"]}, bench.work / "answer.json"
    in_own_process(measure, folder, bench.dense(ROWS[row][0]), "auto_map" in config, answer)
    result |= json.loads(answer.read_text(encoding="utf-8"))
    asked = ENGINES if row in SERVED else ()
    engines = {engine: engine_cell(folder, engine, timeout) for engine in asked}
    return {"made": made, "result": result, "engines": {name: one for name, one in engines.items() if one}}


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].replace(str(Path.home()), "~")[:300] if lines else "no output"


def page(results: Cell) -> str:
    """The tables: what each result is, and which engines compute it."""
    head = "| request | tool | class | largest logit difference | perplexity | experts never chosen | CPU time, s | "
    lines = [f"{head}peak memory, MB | size, MB |", f"| {' | '.join(['---'] * 9)} |"]
    served = [f"| request | tool | {' | '.join(ENGINES)} |", f"| {' | '.join(['---'] * (len(ENGINES) + 2))} |"]
    for row, (_, _, words) in ROWS.items():
        found = results["cells"].get(row, {})
        for tool in (tool for tool in TOOLS if tool in found):
            lines.append(f"| {words} | {tool} | {' | '.join(_figures(found[tool]))} |")
            if engines := found[tool].get("engines"):
                told = " | ".join(_served(engines[name]) if name in engines else "not measured" for name in ENGINES)
                served.append(f"| {words} | {tool} | {told} |")
    dates = sorted({one["date"] for row in results["cells"].values() for one in row.values()})
    about = f"Measured from {dates[0]} to {dates[-1]} on: {machine.in_words(results['machine'])}."
    return "\n".join([*lines, "", *served, "", about])


def _figures(one: Cell) -> list[str]:
    if "not_possible" in one or "failed" in one:
        said = f"not possible: {one['not_possible']}" if "not_possible" in one else f"fails: `{one['failed']}`"
        return [said, *[""] * 6]
    made, result = one["made"], one["result"]
    ends = [f"{made['cpu_seconds']:.1f}", str(made["anonymous_mb"]), f"{made['bytes'] / MB:.0f}"]
    if "error" in result:
        return [f"`{result['error']}`", "", "", "", *ends]
    kind = f"`{result['model_type']}`" if not result["code"] else "remote code"
    dead = f"{result['dead']} of {result['experts']}" + (f", ties {result['tied']:.1%}" if result["tied"] else "")
    both = f"{result['perplexity']:.5g} (dense {result['dense_perplexity']:.5g})"
    return [kind, f"{result['max_delta_logit']:.1e}", both, dead, *ends]


def _served(one: Cell) -> str:
    if one.get("difference") is None or one["verdict"] == "equal":
        return one["verdict"] if not one["reason"] else f"{one['verdict']}: {one['reason'].replace('|', '/')[:160]}"
    ours, theirs = one["perplexities"]
    return f"**differs**: {one['difference']:.1e} nats, perplexity {ours:.5g} for {theirs:.5g}"


def _about() -> Cell:
    return machine.describe() | PEERS | {"seed": SEED, "rounds": ROUNDS, "text": TEXT.name}


def _read() -> Cell:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {"cells": {}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="append", choices=TOOLS, help="only these tools")
    parser.add_argument("--row", action="append", choices=ROWS, help="only these requests")
    parser.add_argument("--again", action="store_true", help="measure what has been measured, too")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one engine on one model")
    parser.add_argument("--work", type=Path, help="folder for the models, 10 GB free (default: a temporary one)")
    parser.add_argument("--page", action="store_true", help="only write the page")
    given = parser.parse_args()
    if not given.page:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        with tempfile.TemporaryDirectory(dir=given.work, prefix="smolmoe-peers-") as work:
            bench = Bench(Path(work))
            for row in given.row or ROWS:
                for tool in given.peer or TOOLS:
                    if tool in _read()["cells"].get(row, {}) and not given.again:
                        continue
                    found = cell(bench, tool, row, given.timeout)
                    print(row, tool, json.dumps(found), flush=True)
                    results = _read() | {"machine": _about()}
                    results["cells"].setdefault(row, {})[tool] = found | {"date": datetime.now(UTC).date().isoformat()}
                    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    machine.put_between(PAGE, "peers", page(_read()))


if __name__ == "__main__":
    main()
