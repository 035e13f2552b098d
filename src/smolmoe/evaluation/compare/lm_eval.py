"""Scores on task files by lm-evaluation-harness, an extra (`pip install 'smolmoe[eval]'`)."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from smolmoe.core.files import expanded
from smolmoe.core.words import first_line
from smolmoe.errors import DataError, RequestError
from smolmoe.results.comparison import Score

BATCH = 16
DRAWS = 1000  # of the errors of metrics that are not means
SEED = 1234  # of the few-shot examples, as in the harness
PACKAGE = "lm_eval"
_QUIET = ("lm_eval", "datasets", "evaluate")


def load_tasks(path: str | Path) -> dict[str, Any]:
    """The tasks of a file of lm-evaluation-harness, or of all that lie in a folder, by name.

    Relative paths in a task's `dataset_kwargs` are relative to the task file. Its `!function` runs code next to it.

    Args:
        path: a `.yaml`, or a folder of them. The tasks that come with the harness are not searched.

    Raises:
        RequestError: lm-evaluation-harness is not installed.
        DataError: there is no task, one cannot be read, or two have the same name.
    """
    if find_spec(PACKAGE) is None:
        raise RequestError(
            "task files need lm-evaluation-harness, which is not installed.",
            field="tasks",
            value=str(path),
            fix="pip install 'smolmoe[eval]'",
        )
    from lm_eval.tasks import TaskManager

    place = expanded(path)
    if not place.exists():
        raise DataError("there is no such file or folder.", field="tasks", value=str(path), fix="Name a task's .yaml.")
    with _quietly():
        manager = TaskManager(include_path=str(place) if place.is_dir() else None, include_defaults=False)
        files = [place] if place.is_file() else _task_files(manager)
        tasks: dict[str, Any] = {}
        for file in files:
            for name, task in _load(manager, file).items():
                if name in tasks:
                    raise DataError("two files have a task of this name.", field="tasks", value=name)
                _prepare(task)
                tasks[name] = task
    if not tasks:
        raise DataError("there is no task.", field="tasks", value=str(path), fix="A task's .yaml has a key `task`.")
    return tasks


def _task_files(manager: Any) -> Sequence[Path]:
    return sorted({Path(manager.task_index[name].yaml_path) for name in manager.all_subtasks})


def _load(manager: Any, file: Path) -> Mapping[str, Any]:
    where = file.resolve()
    try:
        # The harness reads a task's data when it makes the task, with paths relative to the working directory.
        with contextlib.chdir(where.parent):
            found: Mapping[str, Any] = manager.load([str(where)])["tasks"]
    except Exception as error:  # yaml, datasets and the harness raise any class; each means a bad file
        raise DataError(
            f"the task cannot be loaded ({type(error).__name__}: {first_line(error)}).",
            field="tasks",
            value=str(file),
            fix="See lm-evaluation-harness's guide to task files; paths are relative to the file.",
        ) from error
    return found


def _prepare(task: Any) -> None:
    """What the harness's command does to a task before it runs."""
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=SEED)


def score_tasks(model: Any, tokenizer: Any, tasks: Mapping[str, Any]) -> dict[str, dict[str, Score]]:
    """Every metric of every task, of a causal language model in memory.

    Args:
        tasks: from `load_tasks`.

    Returns:
        Task -> metric -> score, of one seed. A filtered metric is called "metric (filter)".

    Raises:
        DataError: a task's rows do not fit it.
    """
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM

    with _quietly():
        wrapped = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=BATCH, truncation=True)
        try:
            found = evaluate(
                lm=wrapped,
                task_dict={"tasks": dict(tasks), "groups": {}, "group_map": {}},
                bootstrap_iters=DRAWS,
                log_samples=False,
            )
        except Exception as error:  # templates and filters are the task's
            raise DataError(
                f"the tasks cannot be scored ({type(error).__name__}: {first_line(error)}).",
                field="tasks",
                value=", ".join(tasks),
            ) from error
    return {
        task: dict(_scores(metrics, found["higher_is_better"].get(task, {})))
        for task, metrics in found["results"].items()
        if task in tasks
    }


def _scores(metrics: Mapping[str, Any], higher_is_better: Mapping[str, bool | None]) -> Iterator[tuple[str, Score]]:
    """The harness calls a metric "name,filter" and its error "name_stderr,filter"."""
    for key, value in metrics.items():
        name, separator, filtered = key.partition(",")
        if not separator or name.endswith("_stderr") or isinstance(value, bool | str):
            continue
        stderr = metrics.get(f"{name}_stderr,{filtered}")
        known = None if isinstance(stderr, str) or stderr is None else float(stderr)
        label = name if filtered == "none" else f"{name} ({filtered})"
        # If a metric does not say, higher is better, as for most.
        yield label, Score(float(value), known, higher_is_better.get(name) is not False, (float(value),))


def mean_scores(seeds: Sequence[Mapping[str, Mapping[str, Score]]]) -> dict[str, dict[str, Score]]:
    """The scores of several seeds as one: means, each value kept, the first seed's error."""
    found: dict[str, dict[str, Score]] = {}
    for task, metrics in seeds[0].items():
        for metric, first in metrics.items():
            values = tuple(seed[task][metric].value for seed in seeds)
            mean = sum(values) / len(values)
            found.setdefault(task, {})[metric] = Score(mean, first.stderr, first.higher_is_better, values)
    return found


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Hide the harness's advice and progress bars, which no option disables; errors are still raised."""
    loggers = [logging.getLogger(name) for name in _QUIET]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
