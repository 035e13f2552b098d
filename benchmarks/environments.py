"""An environment for each tool that smolmoe is compared with, made on the first run, kept in the cache folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Name -> version, of the first line of its requirements: NAME==VERSION.
PEERS = {path.stem: path.read_text().split("==")[1].split()[0] for path in sorted((HERE / "peers").glob("*.txt"))}


def environment(peer: str) -> Path:
    """The bin folder of the environment of `peers/PEER.txt`; torch first, chosen as by `make setup`."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "smolmoe" / "peers" / peer
    if not (folder / ".ready").exists():
        print(f"making an environment for {peer} in {folder}", file=sys.stderr)
        python = folder / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, HERE.parent / "scripts" / "install_torch.py"], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "--requirement", HERE / "peers" / f"{peer}.txt"]
        subprocess.run(install, check=True)
        (folder / ".ready").touch()
    return folder / "bin"


def version_in(bin_folder: Path, package: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    done = subprocess.run([bin_folder / "python", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()
