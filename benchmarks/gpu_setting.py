"""What each part of benchmarks/gpu.py has: a device, a time to end, and clocks that wait for the device."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

Case = TypeVar("Case")
WARM_UP = 3
LEAST_ROUNDS, MOST_ROUNDS = 5, 40
SAMPLE = 2e-3  # seconds: as many calls as take so long are one sample


@dataclass
class Setting:
    """Of a part.

    Attributes:
        device: cuda, cuda:N or cpu.
        tiny: small models and few cases.
        end: by the monotonic clock, after which no case begins.
        left_out: cases that the time did not suffice for.
    """

    device: str
    tiny: bool
    end: float
    left_out: int = 0

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def use(self) -> None:
        """Make it torch's current GPU, and set what every part measures with."""
        import torch

        import smolmoe

        smolmoe.register()
        if self.on_gpu:
            torch.cuda.set_device(torch.device(self.device).index or 0)

    def each(
        self, cases: Iterable[Case], measure: Callable[[Case], Mapping[str, Any]], name: Callable[[Case], Any] = str
    ) -> Iterator[dict[str, Any]]:
        """A row for each case while there is time. A case that fails is a row with its error."""
        for case in cases:
            if self.left <= 0:
                self.left_out += 1
                continue
            begun = time.monotonic()
            try:
                found = dict(measure(case))
            except Exception as error:  # of any kind: the other cases are measured
                found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
            self.free()
            yield {"case": name(case), **found, "took": round(time.monotonic() - begun, 2)}

    def wait(self) -> None:
        import torch

        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def free(self) -> None:
        import torch

        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()


def implementations(setting: Setting) -> tuple[str, ...]:
    """transformers' implementations of experts that run here."""
    from transformers.integrations.sonicmoe import is_sonicmoe_loadable

    return ("eager", "grouped_mm", "batched_mm", *(("sonicmoe",) if setting.on_gpu and is_sonicmoe_loadable() else ()))


def spread(seconds: Iterable[float]) -> dict[str, float]:
    """Median, quartiles and number of samples."""
    ordered = sorted(seconds)
    low, _, high = statistics.quantiles(ordered, n=4) if len(ordered) > 1 else (ordered[0],) * 3
    return {"median": statistics.median(ordered), "low": low, "high": high, "samples": len(ordered)}


def take_turns(setting: Setting, contenders: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, Any]:
    """The seconds of a call of each contender: they take turns, in reverse order every other round.

    A contender that fails is left out, with its error. On a GPU the time is between two events of its stream, so that
    kernels are measured, and launching them where that takes longer.

    Args:
        seconds: of measuring, warming up excluded.

    Returns:
        `seconds`: name -> spread; `errors`: name -> text.
    """
    errors: dict[str, str] = {}
    calls: dict[str, int] = {}
    for name, run in contenders.items():
        try:
            for _ in range(WARM_UP):
                run()
            taken = _sample(setting, run, 1)
            calls[name] = max(1, min(50, int(SAMPLE / max(taken, 1e-7))))
        except Exception as error:
            errors[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            setting.free()
    found: dict[str, list[float]] = {name: [] for name in calls}
    begun = time.monotonic()
    for number in range(MOST_ROUNDS):
        for name in calls if number % 2 == 0 else reversed(calls):
            found[name].append(_sample(setting, contenders[name], calls[name]))
        if number + 1 >= LEAST_ROUNDS and time.monotonic() - begun > seconds:
            break
    return {"seconds": {name: spread(samples) for name, samples in found.items()}, "errors": errors}


def _sample(setting: Setting, run: Callable[[], Any], calls: int) -> float:
    """Seconds of one of so many calls."""
    if not setting.on_gpu:
        begun = time.perf_counter()
        for _ in range(calls):
            run()
        return (time.perf_counter() - begun) / calls
    import torch

    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    setting.wait()
    first.record()
    for _ in range(calls):
        run()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3 / calls
