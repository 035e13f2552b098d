"""The parts of benchmarks/gpu.py that check what a GPU computes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpu_setting import Setting, implementations, take_turns
from machine import HERE

# Norm of the difference of logits over that of the logits, and the same of all gradients, in fp32.
LOGITS, GRADIENTS = 1e-4, 1e-3


# -- machine -----------------------------------------------------------------------------------------------------------


def part_machine(setting: Setting) -> Iterator[dict[str, Any]]:
    import torch

    row: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": None, "gpus": 0}
    if setting.on_gpu:
        facts = torch.cuda.get_device_properties(setting.device)
        row |= {
            "gpu": facts.name,
            "gpus": torch.cuda.device_count(),
            "memory_gb": round(facts.total_memory / 1e9, 1),
            "capability": f"{facts.major}.{facts.minor}",
            "multiprocessors": facts.multi_processor_count,
            "cudnn": torch.backends.cudnn.version(),
            "driver": driver(),
            "works": bool(torch.ones(1, device=setting.device).item()),
        }
    yield row | {"packages": {name: version(name) for name in ("kernels", "liger_kernel", "triton", "flash_attn")}}


def driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return None


def version(package: str) -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# -- parity ------------------------------------------------------------------------------------------------------------


def part_parity(setting: Setting) -> Iterator[dict[str, Any]]:
    """A Mixtral and a GLM-4-MoE: logits, gradients and choices of every implementation against the CPU in fp32."""
    cases = [
        (kind, numbers, implementation)
        for kind in ("mixtral", "glm4_moe")
        for numbers in ("fp32", "fp32 with TF32", "bf16", "bf16 autocast")
        for implementation in ("smolmoe", *(implementations(setting) if numbers != "fp32 with TF32" else ()))
        if numbers != "fp32 with TF32" or setting.on_gpu
    ]
    references: dict[str, Any] = {}
    yield from setting.each(cases, lambda case: parity(setting, references, *case), ", ".join)


def parity(setting: Setting, references: dict[str, Any], kind: str, numbers: str, experts: str) -> dict[str, Any]:
    import torch

    if kind not in references:
        references[kind] = outputs(random_moe(kind, setting.tiny), "eager", setting.tiny)
        half = outputs(random_moe(kind, setting.tiny).to(torch.bfloat16), "eager", setting.tiny)
        references[f"{kind}, bf16"] = difference(references[kind], half)
    model = random_moe(kind, setting.tiny).to(setting.device, torch.bfloat16 if numbers == "bf16" else None)
    lowered = torch.autocast(setting.device.partition(":")[0], torch.bfloat16, enabled=numbers == "bf16 autocast")
    with tf32(numbers == "fp32 with TF32"), lowered:
        found = difference(references[kind], outputs(model, experts, setting.tiny))
    on_cpu = references[f"{kind}, bf16"]
    if numbers == "fp32":
        found["passed"] = found["logits"] <= LOGITS and found["gradients"] <= GRADIENTS
    elif numbers == "fp32 with TF32":  # the negative control: what the check above would find
        found["passed"] = found["logits"] > LOGITS
    else:
        found["passed"] = found["logits"] <= 2 * on_cpu["logits"] and found["gradients"] <= 2 * on_cpu["gradients"]
        found |= {"cpu_logits": on_cpu["logits"], "cpu_gradients": on_cpu["gradients"]}
    return {"kind": kind, "numbers": numbers, "experts": experts, **found}


def random_moe(kind: str, tiny: bool) -> Any:
    """On the CPU, in fp32, the same each time."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    size = 32 if tiny else 512
    values = {
        "vocab_size": 256 if tiny else 8192,
        "hidden_size": size,
        "intermediate_size": 2 * size,
        "num_hidden_layers": 2 if tiny else 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": size // 4,
        "initializer_range": 0.05,
        "num_experts_per_tok": 2,
    }
    own = {
        "mixtral": {"num_local_experts": 8},
        "glm4_moe": {
            "n_routed_experts": 8,
            "moe_intermediate_size": size,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
        },
    }
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**values, **own[kind])
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def outputs(model: Any, experts: str, tiny: bool) -> dict[str, Any]:
    """On the CPU in fp32: logits, gradients by name, chosen experts [T, E] of each layer."""
    import torch

    from smolmoe.moe.routing import RoutingCapture

    model.set_experts_implementation(experts)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(model.config.vocab_size, (2, 16 if tiny else 128), generator=generator).to(model.device)
    with RoutingCapture(model) as capture:
        out = model(input_ids=ids, labels=ids, use_cache=False)
    out.loss.backward()
    return {
        "logits": out.logits.detach().float().cpu(),
        "gradients": {name: p.grad.float().cpu() for name, p in model.named_parameters() if p.grad is not None},
        "chosen": [capture.routing(layer).chosen().cpu() for layer in capture.layers],
    }


def difference(reference: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Relative norms of the differences of logits and gradients, and the share of tokens with other experts."""
    import torch

    expected, given = reference["gradients"], found["gradients"]
    if expected.keys() != given.keys():
        raise ValueError(f"gradients of other parameters: {sorted(expected.keys() ^ given.keys())[:3]}")
    apart = sum((expected[name] - given[name]).double().square().sum() for name in expected)
    norm = sum(gradient.double().square().sum() for gradient in expected.values())
    flips = [(a != b).any(-1) for a, b in zip(reference["chosen"], found["chosen"], strict=True)]
    logits = (reference["logits"] - found["logits"]).norm() / reference["logits"].norm()
    return {
        "logits": logits.item(),
        "gradients": float(apart / norm) ** 0.5,
        "flips": torch.cat(flips).float().mean().item(),
    }


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Within, matrix products of fp32 are rounded to TF32, or are not."""
    import torch

    backend = torch.backends.cuda.matmul
    before, backend.fp32_precision = backend.fp32_precision, "tf32" if on else "ieee"
    try:
        yield
    finally:
        backend.fp32_precision = before


# -- verify ------------------------------------------------------------------------------------------------------------

REQUESTS: dict[str, dict[str, Any]] = {
    "copies in fp32": {"dtype": "float32"},
    "copies in bf16": {},
    "granularity 2": {"granularity": 2, "top_k": 4, "experts": 8},
    "a shared expert": {"shared": "full"},
}


def part_verify(setting: Setting) -> Iterator[dict[str, Any]]:
    """Each request upcycled once and verified on both devices."""
    from dataclasses import replace

    from checkpoints import SMOLLM_135M, write_random

    with tempfile.TemporaryDirectory() as folder:
        small = {"hidden": 72, "ffn": 48, "layers": 2, "vocabulary": 400} if setting.tiny else {"layers": 8}
        dense = Path(folder) / "dense"
        write_random(dense, replace(SMOLLM_135M, **small), 0)
        yield from setting.each(
            REQUESTS.items(), lambda case: verify(setting, dense, Path(folder), *case), lambda case: case[0]
        )


def verify(setting: Setting, dense: Path, folder: Path, name: str, request: dict[str, Any]) -> dict[str, Any]:
    import smolmoe

    out = folder / name.replace(" ", "-")
    smolmoe.upcycle(source=str(dense), out=str(out), verify="none", **{"experts": 4, "top_k": 2, **request})
    found: dict[str, Any] = {"request": request}
    for where in dict.fromkeys(("cpu", setting.device)):
        begun = time.perf_counter()
        result = smolmoe.verify(dense, out, device=where)
        failed = [check.name for check in result.checks if not check.passed]
        found["cpu" if where == "cpu" else "gpu"] = {
            "passed": result.passed,
            "failed": failed,
            "max_abs": result.logits.max_abs,
            "top1": result.logits.top1,
            "half_max_abs": result.half.max_abs if result.half else None,
            "seconds": round(time.perf_counter() - begun, 2),
        }
    checked = found.get("gpu", found["cpu"])
    return {**found, "passed": checked["passed"] and checked["passed"] == found["cpu"]["passed"]}


# -- FSDP --------------------------------------------------------------------------------------------------------------


def part_fsdp(setting: Setting) -> Iterator[dict[str, Any]]:
    """One process, over NCCL on a GPU: sharded steps against plain ones, resuming from a gathered state."""
    import torch.distributed as dist

    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        backend = "nccl" if setting.on_gpu else "gloo"
        dist.init_process_group(backend, init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        try:
            yield from setting.each(("fp32", "bf16"), lambda numbers: fsdp(setting, backend, numbers))
        finally:
            dist.destroy_process_group()


def fsdp(setting: Setting, backend: str, numbers: str) -> dict[str, Any]:
    """Two steps plain and sharded; then the second again, from weights and moments gathered after the first."""
    import torch

    from smolmoe.training import distributed

    bf16 = numbers == "bf16"

    def begin(weights: Any = None, moments: Any = None, *, sharded: bool) -> tuple[Any, Any]:
        model = random_moe("mixtral", setting.tiny).to(setting.device).train()
        if weights is not None:
            model.load_state_dict(weights)
        if sharded:
            distributed.shard(model, setting.device.partition(":")[0], bf16=bf16)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-5, fused=True)
        if moments is not None:
            distributed.load_optimizer(optimizer, moments)
        return model, optimizer

    def step(model: Any, optimizer: Any, number: int, *, autocast: bool) -> float:
        generator = torch.Generator().manual_seed(number)
        ids = torch.randint(model.config.vocab_size, (2, 16 if setting.tiny else 128), generator=generator)
        ids = ids.to(setting.device)
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=autocast):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    def weights(model: Any) -> dict[str, Any]:
        return {name: tensor.clone() for name, tensor in distributed.whole_state(model.state_dict()).items()}

    plain, sharded = begin(sharded=False), begin(sharded=True)
    losses = [step(*plain, 0, autocast=bf16), step(*sharded, 0, autocast=False)]
    kept = io.BytesIO()
    torch.save((weights(sharded[0]), distributed.whole_state(sharded[1].state_dict())), kept)
    kept.seek(0)
    resumed = begin(*torch.load(kept, weights_only=True), sharded=True)
    losses += [step(*plain, 1, autocast=bf16), step(*sharded, 1, autocast=False)]
    step(*resumed, 1, autocast=False)
    here, there, again = weights(plain[0]), weights(sharded[0]), weights(resumed[0])
    apart = max((here[name].cpu() - there[name].cpu()).abs().max().item() for name in here)
    resuming = max((there[name] - again[name]).abs().max().item() for name in there)
    return {
        "backend": backend,
        "numbers": numbers,
        "losses": losses,
        "weights": apart,
        "resumed": resuming,
        # In bf16 a rounded gradient near 0 may change its sign, and with it Adam's step.
        "passed": resuming <= 1e-6 and (apart <= 1e-5 if not bf16 else abs(losses[2] - losses[3]) <= 5e-3 * losses[2]),
    }


# -- compile -----------------------------------------------------------------------------------------------------------


def part_compile(setting: Setting) -> Iterator[dict[str, Any]]:
    """The layer and models, each as one graph or not at all."""
    tokens = (16,) if setting.tiny else (16, 512, 4096)
    lowered, layers = ([("layer", numbers, count) for count in tokens] for numbers in ("autocast", "bf16"))
    models = [("model, forward", kind, 0) for kind in ("mixtral", "glm4_moe")] + [("model, step", "mixtral", 0)]
    yield from setting.each(
        [*layers, *models, *lowered],
        lambda case: compiled_layer(setting, *case[1:]) if case[0] == "layer" else compiled_model(setting, *case[:2]),
        lambda case: f"{case[0]}, {case[1]}" + (f", T{case[2]}" if case[2] else ""),
    )


def compiled_layer(setting: Setting, numbers: str, tokens: int) -> dict[str, Any]:
    import torch

    from gpu_speed import SHAPES
    from layer import Case, make_layers

    size, experts, top_k, width = (32, 4, 2, 48) if setting.tiny else SHAPES[0]
    dtype = torch.bfloat16 if numbers == "bf16" else torch.float32
    case = Case(1, numbers, "forward", tokens, experts, top_k, width)
    (layer,), _ = make_layers(case, dtype, 1, size=size, device=setting.device)
    layer.config._experts_implementation = "smolmoe"
    x = torch.randn(tokens, size, device=setting.device).to(dtype)
    gates, index = torch.randn(tokens, experts, device=setting.device).softmax(-1).topk(top_k)
    given = (x, index, gates.to(dtype))
    return compare(setting, layer, lambda run: run(*given), numbers == "autocast")


def compiled_model(setting: Setting, what: str, kind: str) -> dict[str, Any]:
    import torch

    model = random_moe(kind, setting.tiny).to(setting.device, torch.bfloat16)
    model.set_experts_implementation("smolmoe")
    ids = torch.arange(32, device=setting.device).view(2, 16) if setting.tiny else None
    ids = torch.arange(1024, device=setting.device).view(2, 512) if ids is None else ids

    def forward(run: Any) -> Any:
        return run(input_ids=ids, use_cache=False).logits

    def step(run: Any) -> Any:
        model.zero_grad()
        run(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        return model.get_input_embeddings().weight.grad

    return compare(setting, model, step if what == "model, step" else forward, False, grads=what == "model, step")


def compare(
    setting: Setting, module: Any, call: Callable[[Any], Any], autocast: bool, *, grads: bool = False
) -> dict[str, Any]:
    """Eager against compiled with `fullgraph=True`, which raises at the first graph break."""
    import torch

    torch.compiler.reset()
    backend = "inductor" if setting.on_gpu else "aot_eager"
    compiled = torch.compile(module, backend=backend, fullgraph=True)

    def of(run: Any) -> Callable[[], Any]:
        def once() -> Any:
            lowered = torch.autocast(setting.device.partition(":")[0], torch.bfloat16, enabled=autocast)
            with torch.set_grad_enabled(grads), lowered:
                return call(run)

        return once

    begun = time.perf_counter()
    ours = of(compiled)().float().clone()
    setting.wait()
    compiling = time.perf_counter() - begun
    expected = of(module)().float()
    apart = ((ours - expected).abs().max() / expected.abs().max()).item()
    found = take_turns(setting, {"eager": of(module), "compiled": of(compiled)}, 1.0 if not setting.tiny else 0.01)
    return {"backend": backend, "compiling": compiling, "difference": apart, "passed": apart <= 0.05, **found}


# -- tests -------------------------------------------------------------------------------------------------------------


def part_tests(setting: Setting) -> Iterator[dict[str, Any]]:
    """The tests that need a GPU."""
    if not setting.on_gpu:
        return
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        command += ["-n", "4"] if version("pytest-xdist") else []  # most of a test is launching
        begun = time.perf_counter()
        try:
            done = subprocess.run(command, cwd=HERE.parent, check=False, timeout=max(1.0, setting.left))
            status = done.returncode
        except subprocess.TimeoutExpired:
            status = None
        counts, failed = read_report(report) if report.is_file() else ({}, [])
        yield {
            "status": status,
            **counts,
            "failed_tests": failed,
            "seconds": round(time.perf_counter() - begun, 1),
            "passed": status == 0,
        }


def read_report(file: Path) -> tuple[dict[str, int], list[str]]:
    """The counts of pytest's report, and the names of the tests that failed with their messages' first lines."""
    suite = next(ElementTree.parse(file).iter("testsuite"))
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = []
    for test in suite.iter("testcase"):
        for problem in (*test.iter("failure"), *test.iter("error")):
            said = (problem.get("message") or "").splitlines()[:1]
            failed.append(" ".join([f"{test.get('classname')}::{test.get('name')}", *said])[:300])
    return counts, failed
