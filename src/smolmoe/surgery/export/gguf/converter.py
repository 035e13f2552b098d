"""llama.cpp's own converter: finding it, and running it in a separate process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from smolmoe.core.files import expanded
from smolmoe.errors import RequestError
from smolmoe.surgery.export.gguf.vocabulary import Vocabulary

ENVIRONMENT = "SMOLMOE_LLAMA_CPP"
SCRIPT = "convert_hf_to_gguf.py"
PLACES = ("", "vendor/llama.cpp", "bin", "share/llama.cpp")
# The converter's modules whose classes write their own vocabulary for the models we export.
_MODULES = ("llama", "granite", "qwen", "glm", "olmo")


def find_converter(path: str | Path | None) -> Path:
    """The folder of llama.cpp's converter.

    Args:
        path: a checkout or installation of llama.cpp, the unpacked source package of llama-cpp-python, or the script;
            None for the environment variable SMOLMOE_LLAMA_CPP.

    Raises:
        RequestError: not found; states where to get it.
    """
    named = path or os.environ.get(ENVIRONMENT)
    fix = (
        f"Give `llama_cpp=PATH` or set {ENVIRONMENT}: a checkout of llama.cpp, or the source package of "
        "llama-cpp-python, unpacked (pip download --no-deps --no-binary :all: llama-cpp-python)."
    )
    if not named:
        raise RequestError("GGUF files are written by llama.cpp's own converter.", field="llama_cpp", fix=fix)
    root = expanded(named)
    if root.name == SCRIPT and root.is_file():
        return root.resolve().parent
    for place in PLACES:
        if (root / place / SCRIPT).is_file():
            return (root / place).resolve()
    raise RequestError(f"does not contain {SCRIPT}.", field="llama_cpp", value=str(named), fix=fix)


Types = Mapping[str, str]


def convert(converter: Path, model: Path, out: Mapping[str, Path], vocabulary: Vocabulary) -> dict[str, Types]:
    """Write a model folder as GGUF files; returns, by file type, each tensor's type ("F32", "F16", "Q8_0").

    Args:
        converter: from `find_converter`.
        out: the file of each type: "f32", "f16", "q8_0".
        vocabulary: how to write the tokenizer.

    Raises:
        RequestError: the converter failed; includes its last line of output.
    """
    job = {
        "converter": str(converter),
        "model": str(model),
        "out": {outtype: str(path) for outtype, path in out.items()},
        "vocabulary": asdict(vocabulary),
        "modules": [name for name in _MODULES if (converter / "conversion" / f"{name}.py").is_file()],
    }
    with TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        worker = Path(__file__).with_name("worker.py")
        # -P: keeps the worker's folder, whose other modules the converter must not import, off sys.path.
        # -B: leaves no bytecode in the converter's folder.
        command = [sys.executable, "-P", "-B", str(worker), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not all(path.is_file() for path in out.values()):
        words = [line for line in done.stderr.splitlines() if line.strip()]
        raise RequestError(
            f"llama.cpp's converter failed: {words[-1] if words else 'no output'}",
            field="llama_cpp",
            value=str(converter),
            fix="Use a llama.cpp of 2026 or later (that of llama-cpp-python 0.3.36 is known to work).",
        )
    types: dict[str, Types] = json.loads(done.stdout.splitlines()[-1])
    return types
