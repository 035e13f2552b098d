"""A teacher's targets for a text, in one folder: begun, written shard by shard by any number of processes, finished."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolmoe.core.checkpoint import Checkpoint, fingerprint, open_checkpoint
from smolmoe.core.files import place, write_json
from smolmoe.core.json_text import read_object
from smolmoe.core.progress import Progress
from smolmoe.core.provenance import command, versions
from smolmoe.data.same_tokenizer import tokenizer_hash
from smolmoe.data.targets import (
    ABOUT,
    FORMAT,
    REQUEST,
    TOKENIZER,
    digest_documents,
    file_sizes,
    open_cache,
    text_hash,
)
from smolmoe.data.tokens import end_of_text
from smolmoe.distillation.folder import TEXT, check_room, nothing_left, open_folder, writing
from smolmoe.distillation.options import CacheOptions
from smolmoe.distillation.shards import plan_shards, shard_name, write_shard
from smolmoe.distillation.teacher import Teacher, longest_window, vocabulary_of
from smolmoe.distillation.text import open_text, read_text, write_text
from smolmoe.errors import CheckpointError, OutputError, SourceError
from smolmoe.moe.loading import Skeleton, load_config, load_model, load_tokenizer
from smolmoe.results.distillation import CacheForecast, CacheResult


@dataclass(frozen=True)
class Job:
    """A cache that is being written: all that its processes must agree on."""

    folder: Path
    teacher: Path
    options: CacheOptions
    dtype: str
    finished: bool = False


def forecast(teacher: str, data: Sequence[str], out: Path, options: CacheOptions, *, report: Progress) -> CacheForecast:
    """What `begin` and the rest would write: the text is tokenised, the teacher's weights are not read."""
    place(out, "growing folder")
    checkpoint, tokenizer, vocabulary = _teacher(teacher, options)
    window = longest_window(load_config(checkpoint.folder).get_text_config(), options.batch_tokens)
    with tempfile.TemporaryDirectory() as folder:
        write_text(open_text(data), tokenizer, Path(folder) / TEXT, report)
        store = read_text(Path(folder) / TEXT, tokenizer)
        shards = len(plan_shards(store, options.shard_tokens))
        long = int((store.lengths > window).sum())
        most = options.most_bytes(vocabulary) + 24 * len(store) / store.tokens
    return CacheForecast(
        out, str(teacher), len(store), store.tokens, shards, window, round(most, 1), int(most * store.tokens), long
    )


def begin(
    teacher: str,
    data: Sequence[str],
    out: Path,
    options: CacheOptions,
    *,
    stored_dtype: bool,
    resume: bool,
    overwrite: bool,
    report: Progress,
) -> Job:
    """Check what is asked, and make the folder with the tokenised text in it; one process does it.

    Args:
        stored_dtype: the teacher computes in the type of its files, else in float32.

    Raises:
        SmolmoeError: a teacher, a text or options that will not do; OutputError: the folder holds something else, or a
            cache that was begun with another request.
    """
    checkpoint, tokenizer, vocabulary = _teacher(teacher, options)
    text = open_text(data)
    dtype = _dtype(checkpoint) if stored_dtype else "float32"
    report("Reading the teacher's files", 0, 0)
    request = {
        "format": FORMAT,
        "teacher": {"name": checkpoint.folder.name, "sha256": fingerprint(checkpoint), "dtype": dtype},
        "tokenizer": tokenizer_hash(tokenizer),
        "text": text.identity,
        "options": options.to_json(),
    }
    job = Job(out, checkpoint.folder, options, dtype, finished=(out / ABOUT).is_file() and not overwrite)
    with writing(out), nothing_left(out):
        open_folder(out, request, resume=resume, overwrite=overwrite)
        if job.finished:
            return job
        if not (out / TEXT).is_dir():
            write_text(text, tokenizer, out / TEXT, report)
        tokenizer.save_pretrained(out / TOKENIZER)
        check_room(out, read_text(out / TEXT, tokenizer, check=resume), options, vocabulary)
    return job


def write_shards(job: Job, *, rank: int, ranks: int, device: str, report: Progress) -> int:
    """Write those of this process's shards that are not there; returns how many were."""
    import torch

    tokenizer = load_tokenizer(job.teacher)
    store = read_text(job.folder / TEXT, tokenizer)
    own = list(enumerate(plan_shards(store, job.options.shard_tokens)))[rank::ranks]
    missing = [(shard_name(n), docs) for n, docs in own if not (job.folder / shard_name(n)).is_dir()]
    if not missing:
        return len(own)
    report("Loading the teacher", 0, 0)
    teacher = Teacher(
        load_model(job.teacher, dtype=getattr(torch, job.dtype), device=device),
        tokenizer,
        temperature=job.options.temperature,
        batch_tokens=job.options.batch_tokens,
    )
    total = sum(int(store.starts[docs.stop] - store.starts[docs.start]) for _, docs in missing)
    done = 0

    def told(tokens: int) -> None:
        nonlocal done
        done += tokens
        report("Running the teacher", done, total)

    for name, docs in missing:
        with writing(job.folder):
            write_shard(job.folder, name, teacher, store, docs, job.options, told)
    return len(own) - len(missing)


def finish(job: Job) -> None:
    """Describe the shards in cache.json, which makes them a cache; one process does it when all are there.

    Raises:
        OutputError: a shard is missing, or is not of this text.
    """
    tokenizer = load_tokenizer(job.teacher)
    store = read_text(job.folder / TEXT, tokenizer)
    names = [shard_name(number) for number in range(len(plan_shards(store, job.options.shard_tokens)))]
    absent = [name for name in names if not (job.folder / name).is_dir()]
    digests = [_array(job.folder / name, "documents") for name in names if name not in absent]
    text = text_hash(digest_documents(store.documents()))
    if absent or text_hash(np.concatenate(digests)) != text:
        raise OutputError(
            f"{absent[0]} is missing." if absent else "the shards there are from a different text.",
            field="out",
            value=str(job.folder),
            fix="Start over with `overwrite=True`.",
        )
    shards = [_described(job.folder / name, job.options) for name in names]
    with writing(job.folder):
        write_json(job.folder / ABOUT, _about(job, shards, text, tokenizer))
        shutil.rmtree(job.folder / TEXT)


def describe(job: Job, *, reused: int, seconds: float) -> CacheResult:
    """The cache as it was written, read back."""
    cache = open_cache(job.folder)
    about = cache.about
    return CacheResult(
        out=job.folder,
        **{name: about[name] for name in ("kind", "size", "temperature", "documents", "tokens")},
        **{name: about[name] for name in ("bytes", "bytes_per_token", "width", "entries", "left_over", "entropy")},
        shards=len(about["shards"]),
        reused=reused,
        seconds=round(seconds, 2),
    )


def _about(job: Job, shards: list[dict[str, Any]], text: str, tokenizer: Any) -> dict[str, Any]:
    request = read_object(job.folder / REQUEST)
    tokens = sum(shard["tokens"] for shard in shards)
    size = sum(sum(shard["files"].values()) for shard in shards)

    def mean(name: str) -> float | None:
        found = [shard[name] * shard["tokens"] / tokens for shard in shards if shard[name] is not None]
        return sum(found) if found else None

    return {
        "format": FORMAT,
        "kind": job.options.kind,
        "size": job.options.size,
        "temperature": job.options.temperature,
        "vocabulary": vocabulary_of(tokenizer, load_config(job.teacher).get_text_config().vocab_size),
        "width": max(shard["width"] for shard in shards),
        "text": text,
        "documents": sum(shard["documents"] for shard in shards),
        "tokens": tokens,
        "bytes": size,
        "bytes_per_token": round(size / tokens, 2),
        "entries": mean("entries"),
        "left_over": mean("left_over"),
        "entropy": mean("entropy"),
        "teacher": request["teacher"],
        "request": request,
        "versions": versions(),
        "command": command(),
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "shards": shards,
    }


def _array(shard: Path, name: str) -> NDArray[Any]:
    file = shard / f"{name}.npy"
    try:
        found: NDArray[Any] = np.load(file)
    except (OSError, ValueError, EOFError) as error:
        raise CheckpointError(
            f"{shard.name}/{file.name} cannot be read ({error}).",
            field="out",
            value=str(shard),
            fix="Delete the shard, then use `resume=True`: it is written again.",
        ) from error
    return found


def _described(shard: Path, options: CacheOptions) -> dict[str, Any]:
    rest = _array(shard, "rest").astype(np.float64)
    tokens = len(rest)
    sampled = options.kind == "sampled"
    widths = np.diff(_array(shard, "ends").astype(np.int64), prepend=0) if sampled else np.array([options.size])
    return {
        "name": shard.name,
        "documents": len(_array(shard, "documents")),
        "tokens": tokens,
        "width": int(widths.max()),
        "entries": float(widths.mean()),
        "left_over": None if sampled else float(np.exp(rest).mean()),
        "entropy": float(rest.mean()) if sampled else None,
        "files": file_sizes(shard),
    }


def _teacher(teacher: str, options: CacheOptions) -> tuple[Checkpoint, Any, int]:
    """The checkpoint, its tokenizer and the size of its vocabulary."""
    checkpoint = open_checkpoint(teacher, field="teacher")
    tokenizer = load_tokenizer(checkpoint.folder)
    if tokenizer is None:
        raise SourceError(
            "the teacher has no tokenizer.",
            field="teacher",
            value=str(teacher),
            fix="Add the tokenizer files to its folder.",
        )
    end_of_text(tokenizer)
    config = load_config(checkpoint.folder).get_text_config()
    longest_window(config, options.batch_tokens)
    vocabulary = vocabulary_of(tokenizer, config.vocab_size)
    options.check_vocabulary(vocabulary)
    Skeleton(checkpoint.folder).check_finite()
    return checkpoint, tokenizer, vocabulary


def _dtype(checkpoint: Checkpoint) -> str:
    """The type that most of the numbers are stored in."""
    return str(Skeleton(checkpoint.folder).stored_dtype()).removeprefix("torch.")
