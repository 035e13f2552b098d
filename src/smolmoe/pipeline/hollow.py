"""Models without weights, which stand for those that earlier stages have not written yet."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]


def write_skeleton(folder: Path, model: Any) -> None:
    """The same of a model of transformers, which may be on the meta device."""
    config = json.loads(model.config.to_json_string(use_diff=False)) | {"architectures": [type(model).__name__]}
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    write_model(folder, config, {name: tuple(t.shape) for name, t in model.state_dict().items() if name not in tied})


def write_model(folder: Path, config: Mapping[str, Any], shapes: Shapes) -> None:
    """A checkpoint folder of float32 whose weights file is a header and a hole."""
    entries, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
