"""`register()` makes the generic model load through the Auto classes without remote code; importing alone does not."""

from __future__ import annotations

from tests.processes import run
from tests.surgery.test_request import plan

from smolmoe.surgery.convert import convert

_CODE = """
import sys
import smolmoe
from transformers import AutoConfig, AutoModelForCausalLM
try:
    AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=False)
    raise SystemExit("importing smolmoe must not change transformers")
except ValueError:
    pass
smolmoe.register()
smolmoe.register()
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(type(model).__module__)
"""


def test_register(tmp_path: object) -> None:
    made = plan("gpt2")
    object.__setattr__(made.recipe, "out", tmp_path / "moe")  # type: ignore[operator]
    folder = convert(made)
    assert run(_CODE, folder).strip() == "smolmoe.moe.generic"
