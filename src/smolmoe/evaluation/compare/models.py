"""The models that are compared: found and checked before any of them is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolmoe.core.checkpoint import Checkpoint, fingerprint, open_checkpoint
from smolmoe.core.files import expanded
from smolmoe.data.same_tokenizer import tokenizer_hash
from smolmoe.data.tokens import end_of_text
from smolmoe.errors import RequestError, SourceError
from smolmoe.moe.loading import load_config, load_tokenizer

MODEL = "model"  # a run's folder within its own
FEWEST_MODELS = 2

Paths = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Contender:
    """One model to compare.

    Attributes:
        paths: as requested; several are seeds.
        checkpoints, sha256: of each path.
        tokenizer, tokenizer_hash: of all of them.
        positions: the longest context; None if the config does not say.
    """

    name: str
    paths: tuple[str, ...]
    checkpoints: tuple[Checkpoint, ...]
    sha256: tuple[str, ...]
    tokenizer: Any
    tokenizer_hash: str
    positions: int | None

    @property
    def disk(self) -> int:
        """Bytes of the weight files."""
        return sum(file.stat().st_size for file in self.checkpoints[0].files())

    def at(self, seed: int) -> int:
        """Its checkpoint for a seed; a single checkpoint is used for all seeds."""
        return seed if len(self.paths) > 1 else 0


def open_contenders(models: Mapping[str, Paths]) -> list[Contender]:
    """Find the models and check that they can be compared.

    A path is a model's folder, the folder of a run that wrote one, or a hub id.

    Raises:
        RequestError: fewer than two models, the same one twice, or different numbers of seeds.
        SourceError, CheckpointError, HubError: a model cannot be loaded, or has no tokenizer.
        DataError: a tokenizer has no end-of-text token.
    """
    asked = {name: _listed(name, paths) for name, paths in models.items()}
    if len(asked) < FEWEST_MODELS:
        raise RequestError(
            "there is nothing to compare with.",
            field="models",
            value=", ".join(asked) or "none",
            fix="Name at least two models, the base first.",
        )
    _check_seeds(asked)
    _check_once(asked, {name: [str(expanded(path).resolve()) for path in asked[name]] for name in asked})
    contenders = [_open(name, paths) for name, paths in asked.items()]
    _check_once(asked, {contender.name: contender.sha256 for contender in contenders})
    return contenders


def _listed(name: str, paths: Paths) -> tuple[str, ...]:
    listed = tuple(map(str, [paths] if isinstance(paths, str | Path) else paths))
    if not name.strip() or not listed or not all(listed):
        raise RequestError("must be NAME=PATH[,PATH...].", field="models", value=f"{name}={','.join(listed)}")
    return listed


def _check_seeds(asked: Mapping[str, Sequence[str]]) -> None:
    several = {name: len(paths) for name, paths in asked.items() if len(paths) > 1}
    if len(set(several.values())) > 1:
        raise RequestError(
            "the models have different numbers of seeds.",
            field="models",
            value=", ".join(f"{name}: {count}" for name, count in several.items()),
            fix="Name the same number of paths for each, in the order of seeds; a model may also have a single path.",
        )


def _check_once(asked: Mapping[str, Sequence[str]], keys: Mapping[str, Sequence[str]]) -> None:
    """Raise RequestError if two paths have the same key."""
    met: dict[str, str] = {}
    for name, paths in asked.items():
        for path, key in zip(paths, keys[name], strict=True):
            said = f"{name}={path}"
            if key in met:
                raise RequestError(
                    f"is the same model as {met[key]}.",
                    field="models",
                    value=said,
                    fix="Name each model once; seeds are different trainings.",
                )
            met[key] = said


def _open(name: str, paths: tuple[str, ...]) -> Contender:
    checkpoints = tuple(open_checkpoint(path, field=name) for path in paths)
    found = [load_tokenizer(checkpoint.folder) for checkpoint in checkpoints]
    for path, tokenizer in zip(paths, found, strict=True):
        if tokenizer is None:
            raise SourceError("the model has no tokenizer.", field=name, value=path, fix="Put its files there.")
        end_of_text(tokenizer)
    hashes = [tokenizer_hash(tokenizer) for tokenizer in found]
    shapes = [{key: info.shape for key, info in checkpoint.tensors.items()} for checkpoint in checkpoints]
    for what, values in (("another tokenizer", hashes), ("other tensors", shapes)):
        other = next((path for path, value in zip(paths, values, strict=True) if value != values[0]), None)
        if other is not None:
            raise RequestError(
                f"has {what} than {paths[0]}, so it is not another seed of the same model.",
                field=name,
                value=other,
                fix="Give it a separate name.",
            )
    positions = getattr(load_config(checkpoints[0].folder).get_text_config(), "max_position_embeddings", None)
    return Contender(name, paths, checkpoints, tuple(map(fingerprint, checkpoints)), found[0], hashes[0], positions)
