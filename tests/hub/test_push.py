"""push: the same files to a folder and to a hub, none that does not belong there, no place of this machine."""

from __future__ import annotations

import json
import pickle
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from helpers import dense_llama, moe_of, save
from huggingface_hub import ModelCard

from smolmoe.core.provenance import PROVENANCE_FILE, read_provenance
from smolmoe.errors import CheckpointError, HubError, OutputError, RequestError, SourceError
from smolmoe.hub.card_writer import write_card
from smolmoe.hub.push import push


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as a user has it: with a card, absolute paths, a chat template, and what does not belong there."""
    folder = save(moe_of(dense_llama()), tmp_path_factory.mktemp("push") / "moe")
    values = {
        "schema_version": 1,
        "stage": "upcycle",
        "sources": {"base": {"name": "/home/somebody/secret/dense", "revision": None, "sha256": "00"}},
        "command": "smolmoe upcycle /home/somebody/secret/dense out",
    }
    (folder / PROVENANCE_FILE).write_text(json.dumps(values))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_name_or_path": "/home/somebody/secret/dense"}))
    (folder / "chat_template.jinja").write_text("{{ '/think' }}")
    write_card(folder)
    for name in ("optimizer.pt", "pytorch_model.bin", "rng_state.pth"):
        (folder / name).write_bytes(pickle.dumps({"a": 1}))
    (folder / "trainer_state.json").write_text("{}")
    (folder / "notes.txt").write_text("mine")
    (folder / ".env").write_text("TOKEN=1")
    (folder / "logs").mkdir()
    (folder / "LICENSE").symlink_to("/etc/hostname")
    return folder


KEPT = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} | {
    "chat_template.jinja",
    "README.md",
    PROVENANCE_FILE,
}


def test_a_folder_gets_the_model_and_nothing_else(moe: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    before = {path.name: path.stat().st_mtime_ns for path in moe.iterdir() if not path.is_symlink()}
    result = push(moe, f"file:{tmp_path}/out")
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == KEPT == set(result.files)
    assert {name: (out / name).stat().st_size for name in KEPT} == result.files
    assert result.refused == {
        ".env": "not a known file of a model",
        "LICENSE": "a link out of the folder",
        "logs/": "not a folder of a model",
        "notes.txt": "not a known file of a model",
        "optimizer.pt": "training state, not part of the model",
        "pytorch_model.bin": "a pickle: loading it runs whatever code is in it",
        "rng_state.pth": "training state, not part of the model",
        "trainer_state.json": "training state, not part of the model",
    }
    assert result.redacted == {"config.json": ["_name_or_path"], PROVENANCE_FILE: ["sources.base.name", "command"]}
    for name in KEPT - {"model.safetensors"}:
        assert "somebody" not in (out / name).read_text()
    assert read_provenance(out)["command"] == "smolmoe upcycle …/dense out"
    assert (out / "chat_template.jinja").read_text() == "{{ '/think' }}"
    assert (out / "model.safetensors").read_bytes() == (moe / "model.safetensors").read_bytes()
    assert {path.name: path.stat().st_mtime_ns for path in moe.iterdir() if not path.is_symlink()} == before
    AutoModelForCausalLM.from_pretrained(out)


def test_a_card_of_ones_own_is_kept(moe: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(moe, tmp_path / "moe", symlinks=True))
    push(folder, str(tmp_path / "one"))
    assert 'name = "one"' in (tmp_path / "one" / "README.md").read_text()
    (folder / "README.md").write_text("---\nlicense: mit\n---\nMine.\n")
    push(folder, str(tmp_path / "two"))
    assert ModelCard.load(tmp_path / "two" / "README.md").data.license == "mit"
    (folder / "README.md").unlink()
    assert "README.md" in push(folder, str(tmp_path / "three")).files


def test_a_dry_run_writes_nothing(moe: Path, tmp_path: Path) -> None:
    result = push(moe, f"file:{tmp_path}/out", dry_run=True)
    assert set(result.files) == KEPT
    assert list(tmp_path.iterdir()) == []
    assert set(push(moe, "me/my-moe", dry_run=True).files) == KEPT  # no network is asked
    assert json.loads(json.dumps(result.to_json()))["dry_run"] is True


def test_weights_that_are_no_numbers_are_not_published(moe: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(moe, tmp_path / "moe", symlinks=True))
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for dry_run in (True, False):
        with pytest.raises(CheckpointError, match="NaN") as caught:
            push(folder, f"file:{tmp_path}/out", dry_run=dry_run)
        assert caught.value.value == "model.norm.weight"
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_kept(moe: Path, tmp_path: Path) -> None:
    push(moe, str(tmp_path / "out"))
    with pytest.raises(OutputError, match="exists"):
        push(moe, str(tmp_path / "out"))
    push(moe, str(tmp_path / "out"), overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("a")
    with pytest.raises(OutputError, match="not a model folder"):
        push(moe, str(tmp_path / "mine"), overwrite=True)
    with pytest.raises(OutputError, match="inside the source"):
        push(moe, str(moe / "out"))


@pytest.mark.parametrize("repo", ["a/b/c", "me/my moe", "me/..", "-x", "me/a--b", ""])
def test_what_is_no_repository_is_refused(repo: str, moe: Path) -> None:
    with pytest.raises(RequestError, match="neither a hub id nor a folder"):
        push(moe, repo, dry_run=True)


def test_what_is_no_model_is_refused(moe: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such model folder"):
        push(tmp_path / "nowhere", "me/x", dry_run=True)
    shutil.copytree(moe, tmp_path / "run" / "model", symlinks=True)
    with pytest.raises(SourceError, match=r"folder of a run.*Push its model"):
        push(tmp_path / "run", "me/x", dry_run=True)
    (tmp_path / "run" / "model" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="pickled"):
        push(tmp_path / "run" / "model", "me/x", dry_run=True)
    with pytest.raises(RequestError, match="has no effect for a folder"):
        push(moe, str(tmp_path / "out"), private=True)
    folder = Path(shutil.copytree(moe, tmp_path / "newer", symlinks=True))
    (folder / PROVENANCE_FILE).write_text('{"schema_version": 2}')
    with pytest.raises(CheckpointError, match="is of schema 2"):
        push(folder, "me/x", dry_run=True)


# -- a hub -----------------------------------------------------------------------------------------------------------


class Hub(ThreadingHTTPServer):
    """As much of the hub as a push asks: makes repositories, takes small files in a commit and large ones by LFS."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.made: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.large: dict[str, bytes] = {}
        self.refuse = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answer(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _say(self, values: Any, status: int = 200) -> None:
        body = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        self.server.large[self.path.rsplit("/", 1)[-1]] = self._body()
        self._say({})

    def do_GET(self) -> None:
        self._say({"error": "not asked for"}, 404)

    def do_POST(self) -> None:
        body = self._body()
        if self.server.refuse:
            self._say({"error": "Forbidden"}, 403)
        elif self.path == "/api/repos/create":
            self.server.made.append(json.loads(body))
            self._say({"url": f"{self.server.url}/me/my-moe", "id": "me/my-moe"})
        elif self.path == "/api/validate-yaml":
            self._say({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            found = json.loads(body)["files"]
            kind = lambda name: "lfs" if name.endswith(".safetensors") else "regular"  # noqa: E731
            said = [{"path": f["path"], "uploadMode": kind(f["path"]), "shouldIgnore": False} for f in found]
            self._say({"files": said})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            to = [{"href": f"{self.server.url}/large/{found['oid']}", "header": {}} for found in objects]
            said = [{**found, "actions": {"upload": at}} for found, at in zip(objects, to, strict=True)]
            self._say({"transfer": "basic", "objects": said})
        elif "/commit/" in self.path:
            self._commit([json.loads(line) for line in body.splitlines()])
        else:
            self._say({"error": f"not asked for: {self.path}"}, 404)

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        import base64

        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.files[value["path"]] = self.server.large[value["oid"]]
        url = f"{self.server.url}/me/my-moe/commit/abc"
        self._say({"success": True, "commitOid": "abc", "commitUrl": url, "hookOutput": ""})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    served = Hub()
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", served.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # the address is of this machine
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield served
    served.shutdown()
    served.server_close()


def test_the_hub_gets_what_a_folder_gets(hub: Hub, moe: Path, tmp_path: Path) -> None:
    result = push(moe, "me/my-moe", private=True)
    assert result.url == f"{hub.url}/me/my-moe/commit/abc"
    assert hub.made[0]["name"] == "my-moe"
    assert hub.made[0]["visibility"] == "private"
    push(moe, str(tmp_path / "my-moe"))
    assert set(hub.files) == KEPT
    for name in KEPT - {"README.md"}:
        assert hub.files[name] == (tmp_path / "my-moe" / name).read_bytes(), name
    assert 'name = "me/my-moe"' in hub.files["README.md"].decode()


def test_a_hub_that_refuses_is_named(hub: Hub, moe: Path) -> None:
    hub.refuse = True
    with pytest.raises(HubError, match=r"repo='me/my-moe': upload failed: .*403.*hf auth login"):
        push(moe, "me/my-moe")
    assert hub.files == {}
