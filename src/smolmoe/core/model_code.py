"""Python code in model folders: this version's `modeling_smolmoe.py`, or none.

A checkpoint runs its code on every machine that loads it with `trust_remote_code`. Code that others wrote or changed
is therefore never copied: neither Python files nor settings that name one, here or in another repository.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

CODE_FILE = "modeling_smolmoe.py"
OURS = Path(__file__).parents[1] / "moe" / "generic.py"
GENERIC = "smolmoe"  # the model type of what runs with that file
AUTO_MAP = {
    "AutoConfig": "modeling_smolmoe.SmolMoeConfig",
    "AutoModel": "modeling_smolmoe.SmolMoeModel",
    "AutoModelForCausalLM": "modeling_smolmoe.SmolMoeForCausalLM",
}
# Files of a tokenizer by their names; `tokenizer*` would be code as well.
TOKENIZER_FILES = ("tokenizer*.json", "tokenizer.model", "tokenizer.model.v?")
NAMING_CODE = ("auto_map", "custom_pipelines")


def put_code(source: Path, out: Path) -> None:
    """Write this version's code into a folder of the generic model; reports if the source has a different one."""
    carried = source / CODE_FILE
    if carried.is_file() and carried.read_bytes() != OURS.read_bytes():
        logger.warning(
            "%s is not the code that this version of smolmoe writes. It is left where it is: the new folder gets this "
            "version's, which is what was run here.",
            carried,
        )
    shutil.copyfile(OURS, out / CODE_FILE)


def without_code(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a model or a tokenizer without those that name code to run; the generic model names ours."""
    kept = {key: without_code(value) if isinstance(value, dict) else value for key, value in config.items()}
    for key in NAMING_CODE:
        kept.pop(key, None)
    return kept | {"auto_map": dict(AUTO_MAP)} if config.get("model_type") == GENERIC else kept
