"""A model in a separate process, for `bench`."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import torch

from smolmoe.core.devices import pick_device
from smolmoe.errors import RequestError, SmolmoeError
from smolmoe.evaluation.flops import count_flops
from smolmoe.evaluation.memory import PeakMemory
from smolmoe.evaluation.speed import Reading, check_speed, read_speed
from smolmoe.inference.decoding import fast_decoding
from smolmoe.moe.gating import gate_spec
from smolmoe.moe.kernels.register import set_experts
from smolmoe.moe.loading import Skeleton, load_model
from smolmoe.moe.routing import find_routers
from smolmoe.moe.size import size_of
from smolmoe.results.bench import BenchSettings, Bytes, ModelFacts, Sizes
from smolmoe.results.flops import FlopCounts


class Worker:
    """A model in a separate process, which is idle between requests."""

    def __init__(self, name: str, settings: BenchSettings):
        context = multiprocessing.get_context("spawn")
        self._name = name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, settings), daemon=True)
        self._process.start()
        theirs.close()

    def ready(self) -> None:
        """Wait for the model; raise errors before anything is measured."""
        self.facts: ModelFacts = self._answer(None)
        self.ask("check")

    def ask(self, what: str, *arguments: Any) -> Any:
        with suppress(OSError):  # the process has ended: its last message, or its silence, is the answer
            self._pipe.send((what, *arguments))
        return self._answer(arguments[0] if arguments else None)

    def _answer(self, size: int | None) -> Any:
        try:
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise RequestError(
                "the process that ran the model ended; the system kills a process that uses too much memory.",
                field="model" if size is None else "batch_sizes",
                value=self._name if size is None else size,
                fix="Use smaller batches, or a smaller number type.",
            ) from error
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def close(self) -> None:
        self._pipe.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()


def _serve(pipe: Connection, name: str, settings: BenchSettings) -> None:
    """In the process of a model: load it, then answer until the pipe is closed."""
    try:
        model, facts = _load(name, settings)
        pipe.send(facts)
        while True:
            what, *arguments = pipe.recv()
            pipe.send(_TASKS[what](model, settings, *arguments))
    except SmolmoeError as error:
        pipe.send(error)
    except (EOFError, BrokenPipeError):
        return
    except Exception as error:  # raised in the process that asked; not every exception can be sent
        pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))


def _load(name: str, settings: BenchSettings) -> tuple[Any, ModelFacts]:
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    pick_device(settings.device)
    skeleton = Skeleton(name)
    dtype = skeleton.stored_dtype() if settings.dtype is None else getattr(torch, settings.dtype)
    memory = PeakMemory(settings.device)
    before, started = memory.held, time.perf_counter()
    model = load_model(skeleton.folder, dtype=dtype, device=settings.device, own=True)
    implementation = set_experts(model, settings.experts)
    seconds = time.perf_counter() - started
    memory.reset()
    size = size_of(model)
    routers = find_routers(model)
    spec = gate_spec(routers[0][1]) if routers else None
    return model, ModelFacts(
        name,
        type(model).__name__,
        str(dtype).removeprefix("torch."),
        implementation,
        None if spec is None else spec.experts,
        None if spec is None else spec.top_k,
        Sizes(size.total, size.active, size.total - size.embedding, size.active - size.embedding),
        Bytes(size.total * dtype.itemsize, size.multiplied * dtype.itemsize),
        seconds,
        before,
        memory.held - before,
    )


def _check(model: Any, settings: BenchSettings) -> None:
    for size in settings.batch_sizes:
        check_speed(model.config, size, settings.prompt_tokens, settings.new_tokens)


def _read(model: Any, settings: BenchSettings, batch_size: int, new_tokens: int) -> Reading:
    with fast_decoding(model):
        return read_speed(
            model,
            batch_size=batch_size,
            prompt_tokens=settings.prompt_tokens,
            new_tokens=new_tokens,
            seed=settings.seed,
        )


def _flops(model: Any, settings: BenchSettings) -> FlopCounts:
    return count_flops(model, length=settings.prompt_tokens, train=settings.train, seed=settings.seed)


_TASKS: dict[str, Callable[..., Any]] = {"check": _check, "read": _read, "flops": _flops}
