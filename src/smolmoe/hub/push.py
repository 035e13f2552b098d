"""Upload a checkpoint's files and card, and nothing else, to the hub, or write them into a folder."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from smolmoe.core.checkpoint import open_checkpoint
from smolmoe.core.files import expanded
from smolmoe.core.folders import whole_or_nothing
from smolmoe.core.hub_access import why_not
from smolmoe.core.json_text import read_object
from smolmoe.core.links import TEMPLATES, leads_out
from smolmoe.core.model_code import CODE_FILE, OURS, TOKENIZER_FILES, without_code
from smolmoe.core.model_folder import check_output, check_replaceable
from smolmoe.core.provenance import PROVENANCE_FILE
from smolmoe.errors import HubError, RequestError, SourceError
from smolmoe.hub.card import MARK
from smolmoe.hub.card_writer import CARD, card_text
from smolmoe.hub.model_facts import places, without_places
from smolmoe.recipe.words import DryRun, Overwrite

LOCAL = "file:"
_SENT = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "model.safetensors.index.json",
    *TOKENIZER_FILES,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.jinja",
    "LICENSE*",
    CODE_FILE,
    CARD,
    PROVENANCE_FILE,
)
_WITH_PLACES = (PROVENANCE_FILE, "config.json", "tokenizer_config.json")
_PLACES = ("_name_or_path", "name_or_path", "tokenizer_file", "vocab_file", "merges_file")
_REASONS = (
    (
        ("optimizer*", "scheduler*", "trainer_state*", "rng_state*", "training_args*"),
        "training state, not part of the model",
    ),
    (("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt"), "a pickle: loading it runs whatever code is in it"),
)


@dataclass(frozen=True)
class Push:
    """What `push` sent, or would send.

    Attributes:
        model: the folder.
        repo: a hub id, or the folder that was written.
        files: name -> bytes, as sent.
        refused: name -> why it is not sent.
        redacted: file -> keys whose absolute paths were reduced to their last part.
        replaced: file -> why it is sent in another form.
        url: of the commit on the hub; None for a folder, and for a dry run.
        dry_run: nothing was sent.
    """

    model: Path
    repo: str
    files: dict[str, int]
    refused: dict[str, str]
    redacted: dict[str, list[str]]
    replaced: dict[str, str]
    url: str | None
    dry_run: bool

    def to_json(self) -> dict[str, Any]:
        added = {"model": str(self.model), "bytes": sum(self.files.values())}
        return {"schema_version": 1, "kind": "push", **asdict(self), **added}


def push(
    model: Annotated[str | Path, Field(description="folder of a checkpoint")],
    repo: Annotated[str, Field(description="hub id such as me/my-moe, or file:DIR for a local folder")],
    *,
    private: Annotated[bool, Field(description="private repository, if it is created")] = False,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> Push:
    """Upload a checkpoint with its model card to the hub.

    The card is rewritten for the repository, unless it is not ours. Absolute paths of this machine are reduced to their
    last part in uploaded files; local files are not changed.

    Args:
        repo: a path that begins with `.`, `/` or `~` is a folder, too.

    Raises:
        SourceError, CheckpointError: MODEL is no checkpoint with safetensors, or has weights that are NaN or infinite.
        RequestError: REPO is neither an id nor a folder, or `private` was set for a folder.
        OutputError: the folder is not free.
        HubError: the hub refuses, or cannot be reached.
    """
    folder = expanded(model)
    _check_model(folder)
    local = _local(repo)
    if local is not None and private:
        raise RequestError("has no effect for a folder.", field="private", value=True, fix="Remove it.")
    sent, refused = _chosen(folder)
    contents, redacted = _contents(folder, sent, repo if local is None else local.name)
    replaced = _code(folder, sent, contents)
    sizes = {
        name: len(contents[name]) if name in contents else (folder / name).stat().st_size
        for name in sorted({*sent, *contents})
    }
    where = repo if local is None else str(local)
    url = None
    if local is not None:
        _write(folder, local, sizes, contents, overwrite=overwrite, dry_run=dry_run)
    elif not dry_run:
        url = _upload(folder, repo, sizes, contents, private=private)
    return Push(folder, where, sizes, refused, redacted, replaced, url, dry_run)


def _check_model(folder: Path) -> None:
    if not folder.is_dir():
        raise SourceError("no such model folder.", field="model", value=str(folder))
    if not (folder / "config.json").is_file() and (folder / "model" / "config.json").is_file():
        raise SourceError(
            "is the folder of a run.", field="model", value=str(folder), fix=f"Push its model: {folder / 'model'}."
        )
    open_checkpoint(folder, field="model").check_finite()  # NaN must not be published


def _local(repo: str) -> Path | None:
    """The folder that REPO names, or None for a hub id.

    Raises:
        RequestError: neither.
    """
    if repo.startswith(LOCAL):
        return expanded(repo.removeprefix(LOCAL))
    if repo.startswith((".", "/", "~")):
        return expanded(repo)
    if re.fullmatch(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*", repo) and "--" not in repo and ".." not in repo:
        return None
    raise RequestError(
        "is neither a hub id nor a folder.", field="repo", value=repo, fix="E.g. me/my-moe, or file:DIR for a folder."
    )


def _chosen(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Names to send, and the reasons why others are not sent."""
    sent, refused = [], {}
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            inside = sorted(path.glob("*.jinja")) if path.name == TEMPLATES else []
            sent += [f"{path.name}/{template.name}" for template in inside if not leads_out(template, folder)]
            if not inside:
                refused[f"{path.name}/"] = "not a folder of a model"
        elif leads_out(path, folder):
            refused[path.name] = "a link out of the folder"
        elif (reason := _refusal(path.name)) is not None:
            refused[path.name] = reason
        else:
            sent.append(path.name)
    return sent, refused


def _refusal(name: str) -> str | None:
    found = next((why for patterns, why in _REASONS if any(fnmatch(name, pattern) for pattern in patterns)), None)
    if found is None and not any(fnmatch(name, pattern) for pattern in _SENT):
        found = "not a known file of a model"
    return found


def _contents(folder: Path, sent: Sequence[str], name: str) -> tuple[dict[str, bytes], dict[str, list[str]]]:
    """Files that are sent in another form: the card, and files with paths of this machine."""
    contents: dict[str, bytes] = {}
    redacted: dict[str, list[str]] = {}
    for file in _WITH_PLACES:
        values = read_object(folder / file) if file in sent else {}
        # Elsewhere than in our own file a slash may be text, of a chat template for example.
        asked = values if file == PROVENANCE_FILE else {key: values[key] for key in _PLACES if key in values}
        if found := places(asked):
            redacted[file] = found
            cut = values | without_places(asked)
            contents[file] = (json.dumps(cut, indent=2, ensure_ascii=False) + "\n").encode()
    here = folder / CARD
    if CARD not in sent or MARK in here.read_text(encoding="utf-8", errors="replace"):
        contents[CARD] = card_text(folder, name=name).encode()
    return contents, redacted


def _code(folder: Path, sent: Sequence[str], contents: dict[str, bytes]) -> dict[str, str]:
    """Remove from `contents` all code that this version did not write; returns the reason by file."""
    replaced = {}
    for file in ("config.json", "tokenizer_config.json"):
        values = read_object(folder / file) if file in sent else {}
        if without_code(values) != values:
            now = without_code(json.loads(contents[file]) if file in contents else values)
            contents[file] = (json.dumps(now, indent=2, ensure_ascii=False) + "\n").encode()
            replaced[file] = "it refers to code that smolmoe did not write"
    if CODE_FILE in sent and (folder / CODE_FILE).read_bytes() != OURS.read_bytes():
        contents[CODE_FILE] = OURS.read_bytes()
        replaced[CODE_FILE] = "it is not this version's code, which is sent instead"
    return replaced


def _write(
    folder: Path, out: Path, names: dict[str, int], contents: dict[str, bytes], *, overwrite: bool, dry_run: bool
) -> None:
    out = out.absolute()
    check_output(out, sum(names.values()), [folder], overwrite=overwrite)
    if dry_run:
        return
    check = partial(check_replaceable, out, overwrite=overwrite)
    with whole_or_nothing(out, overwrite=overwrite, check=check) as work:
        for name in names:
            (work / name).parent.mkdir(exist_ok=True)
            if name in contents:
                (work / name).write_bytes(contents[name])
            else:
                shutil.copyfile(folder / name, work / name)


def _upload(folder: Path, repo: str, names: dict[str, int], contents: dict[str, bytes], *, private: bool) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(library_name="smolmoe")
    operations = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=contents.get(name, str(folder / name))) for name in names
    ]
    try:
        made = api.create_repo(repo, private=private or None, exist_ok=True)
        commit = api.create_commit(made.repo_id, operations, commit_message="Upload model with smolmoe")
    except Exception as error:  # the hub client raises many kinds; each means that the model was not sent
        reason, fix = why_not(error)
        raise HubError(
            f"upload failed: {reason}.",
            field="repo",
            value=repo,
            fix=f"{fix} No local file was changed.",
        ) from error
    return str(commit.commit_url)
