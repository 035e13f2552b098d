"""A source's own files and no others: what a link leads to outside of its folder is neither read nor copied."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import dense_llama, moe_of, save

from smolmoe.core.links import check_files, copy_files, leads_out
from smolmoe.errors import SourceError
from smolmoe.hub.push import push
from smolmoe.moe.loading import find_tokenizer, load_config, load_model, load_tokenizer
from smolmoe.surgery.experts.run import prune
from smolmoe.surgery.export.run import export
from smolmoe.surgery.run import upcycle

READ = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "additional_chat_templates",
    "additional_chat_templates/tool.jinja",
    "modeling_smolmoe.py",
    "smolmoe.json",
    "vocab.txt",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`dense` and `moe`."""
    folder = tmp_path_factory.mktemp("models")
    save(dense_llama(), folder / "dense")
    save(moe_of(dense_llama()), folder / "moe")
    return folder


def linked(model: Path, name: str, to: Path | str, where: Path) -> Path:
    """A copy of a model in which a file is a link."""
    folder = Path(shutil.copytree(model, where / "model"))
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(to)
    return folder


Command = Callable[[Path, Path, Path], object]
COMMANDS: dict[str, tuple[str, Command]] = {
    "upcycle": ("dense", lambda folder, models, out: upcycle(folder, out, verify="none")),
    "upcycle --dry-run": ("dense", lambda folder, models, out: upcycle(folder, out, dry_run=True)),
    "upcycle --expert": (
        "dense",
        lambda folder, models, out: upcycle(
            models / "dense", out, expert={"a": str(models / "dense"), "b": str(folder)}
        ),
    ),
    "prune": ("moe", lambda folder, models, out: prune(folder, out, keep=2)),
    "export": ("moe", lambda folder, models, out: export(folder, out, "qwen2_moe")),
    "push": ("moe", lambda folder, models, out: push(folder, str(out))),
    "load_model": ("moe", lambda folder, models, out: load_model(folder)),
    "load_config": ("dense", lambda folder, models, out: load_config(folder)),
    "load_tokenizer": ("dense", lambda folder, models, out: load_tokenizer(folder)),
    "find_tokenizer": ("dense", lambda folder, models, out: find_tokenizer(str(folder))),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_a_link_out_of_the_folder(command: str, models: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text('{"secret": "x"}')
    source, run = COMMANDS[command]
    folder = linked(models / source, "generation_config.json", "../secret", tmp_path)
    with pytest.raises(
        SourceError, match=rf"generation_config\.json is a link out of the folder, to {tmp_path}/secret"
    ):
        run(folder, models, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["model", "secret"]


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("to", ["/etc/passwd", "/", "../../secret", "/dev/zero", "/nowhere"])
def test_each_file_that_is_read(name: str, to: str, models: Path, tmp_path: Path) -> None:
    folder = linked(models / "dense", name, to, tmp_path)
    with pytest.raises(SourceError, match="is a link out of the folder"):
        check_files(folder)
    with pytest.raises(SourceError, match="is a link out of the folder"):
        copy_files(folder, tmp_path, ("*.*",))


def test_a_licence_is_copied_and_so_refused(models: Path, tmp_path: Path) -> None:
    for source, run in (COMMANDS["upcycle"], COMMANDS["upcycle --dry-run"], COMMANDS["prune"], COMMANDS["export"]):
        folder = linked(models / source, "LICENSE", "/etc/hostname", tmp_path)
        with pytest.raises(SourceError, match="LICENSE is a link out of the folder"):
            run(folder, models, tmp_path / "out")
        shutil.rmtree(folder)
    assert os.listdir(tmp_path) == []


def test_what_is_no_regular_file(models: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models / "dense", tmp_path / "model"))
    os.mkfifo(folder / "merges.txt")
    with pytest.raises(SourceError, match=r"merges\.txt is not a regular file"):  # reading it would never end
        load_tokenizer(folder)


def test_links_within_the_folder_and_to_the_folder(models: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models / "dense", tmp_path / "model"))
    (folder / "weights").mkdir()
    (folder / "model.safetensors").rename(folder / "weights" / "a")
    (folder / "model.safetensors").symlink_to("weights/a")
    (tmp_path / "link").symlink_to("model")
    upcycle(tmp_path / "link", tmp_path / "moe", verify="none")
    assert not any(path.is_symlink() for path in (tmp_path / "moe").iterdir())


def test_a_snapshot_of_a_hub_cache(models: Path, tmp_path: Path) -> None:
    """Its files are links to the blobs of its own repository; those of another one are none of its."""
    cache = tmp_path / "models--a--b"
    snapshot, blobs = cache / "snapshots" / "abc", cache / "blobs"
    (snapshot / "additional_chat_templates").mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted((models / "dense").iterdir())):
        shutil.copyfile(path, blobs / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    (blobs / "template").write_text("hello")
    template = snapshot / "additional_chat_templates" / "tool.jinja"
    template.symlink_to("../../../blobs/template")
    upcycle(snapshot, tmp_path / "moe", verify="none")
    assert (tmp_path / "moe" / "additional_chat_templates" / "tool.jinja").read_text() == "hello"
    assert "model.safetensors" in push(snapshot, str(tmp_path / "pushed")).files
    (tmp_path / "models--c--d" / "blobs").mkdir(parents=True)
    for to in ("../../../models--c--d/blobs/x", "../../refs/main", "../../blobs/../../x"):
        (snapshot / "chat_template.jinja").unlink(missing_ok=True)
        (snapshot / "chat_template.jinja").symlink_to(to)
        assert leads_out(snapshot / "chat_template.jinja", snapshot)
    (blobs / "template").unlink()
    (blobs / "template").symlink_to("/etc/passwd")  # the blob itself leads out
    assert leads_out(template, snapshot)


def test_a_card_elsewhere_says_nothing_of_the_model(models: Path, tmp_path: Path) -> None:
    from smolmoe.core.provenance import origin

    (tmp_path / "card.md").write_text("---\nlicense: mit\n---\n")
    folder = linked(models / "dense", "README.md", "../card.md", tmp_path)
    assert "license" not in origin("x", folder)
    (folder / "README.md").unlink()
    os.mkfifo(folder / "README.md")  # reading it would never end
    assert "license" not in origin("x", folder)
