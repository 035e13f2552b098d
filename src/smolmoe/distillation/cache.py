"""A teacher's targets for a text in one folder, written shard by shard by any number of processes."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smolmoe.core.checkpoint import Checkpoint, fingerprint, open_checkpoint
from smolmoe.core.files import place, write_json
from smolmoe.core.json_text import read_object
from smolmoe.core.progress import Progress
from smolmoe.core.provenance import command
from smolmoe.data.same_tokenizer import tokenizer_hash
from smolmoe.data.targets import (
    ABOUT,
    FORMAT,
    REQUEST,
    TOKENIZER,
    describe_cache,
    digest_documents,
    open_cache,
    shard_array,
    text_hash,
)
from smolmoe.data.tokens import end_of_text
from smolmoe.distillation.folder import TEXT, check_room, nothing_left, open_folder, writing
from smolmoe.distillation.options import CacheOptions
from smolmoe.distillation.shards import plan_shards, shard_name, write_shard
from smolmoe.distillation.teacher import Teacher, longest_window, vocabulary_of
from smolmoe.distillation.text import open_text, read_text, write_text
from smolmoe.errors import OutputError, SourceError
from smolmoe.moe.loading import Skeleton, load_config, load_model, load_tokenizer
from smolmoe.results.distillation import CacheForecast, CacheResult


@dataclass(frozen=True)
class Job:
    """A cache that is being written: what its processes must agree on."""

    folder: Path
    teacher: Path
    options: CacheOptions
    dtype: str
    finished: bool = False


def forecast(teacher: str, data: Sequence[str], out: Path, options: CacheOptions, *, report: Progress) -> CacheForecast:
    """What the cache would contain: the text is tokenised, the teacher's weights are not read."""
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
    """Check the request, and write the tokenised text into the folder; one process does it.

    Args:
        stored_dtype: the teacher computes in the dtype of its files, else in float32.

    Raises:
        SmolmoeError: teacher, text or options cannot be used; OutputError: the folder contains something else, or a
            cache that was started with another request.
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
        "options": asdict(options),
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
    """Write this process's missing shards; returns the number of those that existed."""
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
    """Describe the shards in cache.json, which completes the cache; one process does it when all shards exist.

    Raises:
        OutputError: a shard is missing, or is not of this text.
    """
    tokenizer = load_tokenizer(job.teacher)
    store = read_text(job.folder / TEXT, tokenizer)
    names = [shard_name(number) for number in range(len(plan_shards(store, job.options.shard_tokens)))]
    absent = [name for name in names if not (job.folder / name).is_dir()]
    digests = [shard_array(job.folder / name, "documents") for name in names if name not in absent]
    text = text_hash(digest_documents(store.documents()))
    if absent or text_hash(np.concatenate(digests)) != text:
        raise OutputError(
            f"{absent[0]} is missing." if absent else "the shards there are from a different text.",
            field="out",
            value=str(job.folder),
            fix="Start over with `overwrite=True`.",
        )
    request = read_object(job.folder / REQUEST)
    about = describe_cache(
        [job.folder / name for name in names],
        kind=job.options.kind,
        size=job.options.size,
        vocabulary=vocabulary_of(tokenizer, load_config(job.teacher).get_text_config().vocab_size),
        text=text,
        temperature=job.options.temperature,
        teacher=request["teacher"],
        request=request,
        command=command(),
        made=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    with writing(job.folder):
        write_json(job.folder / ABOUT, about)
        shutil.rmtree(job.folder / TEXT)


def describe(job: Job, *, reused: int, seconds: float) -> CacheResult:
    """The result, read from the written cache."""
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
    """The dtype that most numbers are stored in."""
    return str(Skeleton(checkpoint.folder).stored_dtype()).removeprefix("torch.")
