"""What a source's files and config say against each other: what is carried, and what is refused by the true name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import zoo
from tests.helpers import edit_tensors, random_moe, save
from tests.surgery.test_request import plan

from smolmoe.errors import RequestError, SmolmoeError
from smolmoe.surgery.convert import convert
from smolmoe.surgery.experts.run import prune
from smolmoe.surgery.export.run import export
from smolmoe.surgery.inspection import inspect

HEAD = "lm_head.weight"
Tensors = dict[str, torch.Tensor]


def changed(
    folder: Path, edit: Callable[[Tensors], Any] | None = None, drop: tuple[str, ...] = (), **config: Any
) -> Path:
    """The folder with other tensors and settings."""
    if edit is not None:
        edit_tensors(folder, edit)
    path = folder / "config.json"
    values = {key: value for key, value in json.loads(path.read_text()).items() if key not in drop}
    path.write_text(json.dumps(values | config))
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(zoo.folder(name), tmp_path / "source"))


def logits(folder: Path) -> torch.Tensor:
    import smolmoe

    smolmoe.register()
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(2, 40)[None]).logits
    return found


def difference(one: Path, other: Path) -> float:
    return (logits(one) - logits(other)).abs().max().item()


# -- heads that the config ties ----------------------------------------------------------------------------------


def own_head(tensors: Tensors) -> None:
    embedding = next(name for name in tensors if name.endswith(("embed_tokens.weight", "wte.weight")))
    torch.manual_seed(5)
    tensors[HEAD] = tensors[embedding] + 0.05 * torch.randn_like(tensors[embedding])


def equal_head(tensors: Tensors) -> None:
    tensors[HEAD] = next(
        t for name, t in tensors.items() if name.endswith(("embed_tokens.weight", "wte.weight"))
    ).clone()


def head_alone(tensors: Tensors) -> None:
    tensors[HEAD] = tensors.pop(next(n for n in tensors if n.endswith(("embed_tokens.weight", "wte.weight"))))


def without_prefix(tensors: Tensors) -> None:
    for name in [name for name in tensors if not name.startswith("lm_head.")]:
        tensors[name.split(".", 1)[1]] = tensors.pop(name)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {}),
        ("llama", {"shared": "full"}),
        ("llama", {"shared": "full", "target": "qwen2_moe"}),
        ("llama", {"shared": "full", "target": "glm4_moe"}),
        ("llama", {"target": "generic"}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("olmo2", {}),
        ("gpt2", {}),
        ("gpt2 bare", {}),
        ("starcoder2", {}),
    ],
)
def test_a_head_with_numbers_of_its_own_is_carried_untied(source: Any, tmp_path: Path, name: str, options: Any) -> None:
    folder = changed(source(name.split()[0]), own_head, tie_word_embeddings=True)
    if "bare" in name:
        edit_tensors(folder, without_prefix)
    made = plan(source=folder, experts=4, **options)
    assert "has tie_word_embeddings: false" in " ".join(made.warnings)
    assert not inspect(str(folder)).tied
    out = convert(made, rows=None)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    assert difference(folder, out) < 3e-5
    shutil.rmtree(out)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # `plan` writes to a relative folder


@pytest.mark.parametrize("edit", [equal_head, head_alone])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_one_of_the_two_serves_as_both(source: Any, name: str, edit: Any) -> None:
    folder = changed(source(name), edit, tie_word_embeddings=True)
    made = plan(source=folder, experts=4)
    assert made.warnings == ()
    out = convert(made, rows=None)
    assert not any(HEAD in tensor.name for tensor in made.tensors)
    assert difference(folder, out) < 3e-5
    assert difference(folder, zoo.folder(name)) == 0


def test_specialists_are_tied_as_the_base_is(source: Any) -> None:
    folder = changed(source("llama"), own_head)
    with pytest.raises(RequestError, match="head is a separate tensor, but the base's is tied"):
        plan(expert={"a": str(folder)}, top_k=1)
    assert plan(source=folder, expert={"a": str(folder)}, top_k=1).config["tie_word_embeddings"] is False


def test_a_mixture_whose_head_is_its_own_is_loaded_trained_and_taken_apart_untied(tmp_path: Path) -> None:
    from smolmoe.moe.loading import load_model

    folder = save(random_moe("mixtral", tie_word_embeddings=True), tmp_path / "moe")
    edit_tensors(folder, own_head)
    model = load_model(folder)
    assert model.config.tie_word_embeddings is False
    model.tie_weights()  # as who prepares a model for training does
    model.save_pretrained(tmp_path / "trained")
    assert difference(folder, tmp_path / "trained") == 0
    prune(folder, tmp_path / "pruned", keep=[0, 1, 2])
    export(folder, tmp_path / "exported", "generic")
    for made in ("pruned", "exported"):
        assert json.loads((tmp_path / made / "config.json").read_text())["tie_word_embeddings"] is False
    assert difference(folder, tmp_path / "exported") < 3e-5


# -- configs that name no class ----------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"drop": ("architectures",)}, {"architectures": []}, {"architectures": None}])
@pytest.mark.parametrize("name", ["llama", "gpt2", "starcoder2"])
def test_the_class_follows_from_the_model_type(source: Any, name: str, change: Any) -> None:
    folder = changed(source(name), **change)
    assert plan(source=folder).config == plan(name).config  # and so no path in it
    assert inspect(str(folder)).architecture == inspect(str(zoo.folder(name))).architecture


def test_a_mixture_without_a_class_is_pruned_and_reported(tmp_path: Path) -> None:
    from smolmoe.hub.model_facts import ModelFacts

    folder = changed(save(random_moe("mixtral"), tmp_path / "moe"), drop=("architectures",))
    assert prune(folder, tmp_path / "pruned", keep=[0, 1]).architecture == "MixtralForCausalLM"
    assert json.loads((tmp_path / "pruned" / "config.json").read_text())["architectures"] == ["MixtralForCausalLM"]
    assert ModelFacts.read(folder).target.name == "mixtral"


# -- refusals name what is there ---------------------------------------------------------------------------------


def prefixed(prefix: str) -> Callable[[Tensors], None]:
    def edit(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[prefix + name] = tensors.pop(name)

    return edit


def cast(dtype: torch.dtype, part: str = "") -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({n: t.to(dtype) for n, t in tensors.items() if part in n})


def without_layer(tensors: Tensors) -> None:
    for name in [name for name in tensors if ".2." in name]:
        del tensors[name]


def one_layer_more(tensors: Tensors) -> None:
    tensors.update({name.replace(".2.", ".3."): t.clone() for name, t in tensors.items() if ".2." in name})


LORA = "model.layers.0.self_attn.q_proj.lora_A.default.weight"


@pytest.mark.parametrize(
    ("name", "edit", "config", "says"),
    [
        *(("llama", prefixed(p), {}, p) for p in ("_orig_mod.", "module.", "base_model.model.", "model.", "wrapped.")),
        *(("gpt2", prefixed(p), {}, p) for p in ("_orig_mod.", "module.", "base_model.model.", "model.")),
        (
            "llama",
            lambda t: [t.update({n.replace("mlp.", "mlp._orig_mod."): t.pop(n)}) for n in list(t)],
            {},
            "_orig_mod",
        ),
        ("llama", lambda t: t.update({LORA: torch.zeros(4, 32)}), {}, f"{LORA} is of an adapter"),
        ("llama", without_layer, {}, "config.json says 3 layers; the files have 2"),
        ("llama", one_layer_more, {}, "config.json says 3 layers; the files have 4"),
        ("gpt2", without_layer, {}, "missing: transformer.h.2."),
        ("gpt2", one_layer_more, {}, "not in the model: transformer.h.3."),
        ("llama", None, {"vocab_size": 200}, "embed_tokens.weight has shape (300, 32), but the config says (200, 32)"),
        ("gpt2", None, {"n_inner": 20}, "the config says [20]"),
        ("llama", lambda t: t.update({"model.extra.weight": torch.ones(3)}), {}, "model.extra.weight"),
        ("gpt2", lambda t: t.update({"transformer.extra.weight": torch.ones(3)}), {}, "transformer.extra.weight"),
        ("llama", cast(torch.int8, "down_proj"), {}, "mlp.down_proj.weight has dtype I8"),
        ("llama", cast(torch.float8_e4m3fn, "down_proj"), {}, "mlp.down_proj.weight has dtype F8_E4M3"),
        *(
            ("llama", None, {"quantization_config": q}, f"quantization_config='{n}'")
            for n, q in (
                ("gptq", {"quant_method": "gptq", "bits": 4}),
                ("awq", {"quant_method": "awq"}),
                ("fp8", {"quant_method": "fp8"}),
                ("bitsandbytes", {"load_in_4bit": True}),
            )
        ),
        ("llama", None, {"compression_config": {"quant_method": "compressed-tensors"}}, "'compressed-tensors'"),
        ("llama", None, {"model_type": "llava"}, "composite model (text_config, vision_config)"),
        ("llama", None, {"num_local_experts": 4}, "num_local_experts=4"),
    ],
)
def test_refusals(source: Any, name: str, edit: Any, config: dict[str, Any], says: str) -> None:
    with pytest.raises(SmolmoeError) as caught:
        plan(source=changed(source(name), edit, **config))
    assert says in str(caught.value)


@pytest.mark.parametrize("with_config", [True, False])
def test_adapters_name_their_base(source: Any, with_config: bool) -> None:
    folder = source("llama")
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/base", "peft_type": "LORA"}')
    if not with_config:
        (folder / "config.json").unlink()
    with pytest.raises(SmolmoeError, match=r"PEFT adapter.*Merge it into someone/base first"):
        plan(source=folder)


@pytest.mark.parametrize(
    ("file", "says"), [("x.Q4_0.gguf", "GGUF"), ("tf_model.h5", "TensorFlow"), ("weights.npz", "MLX")]
)
def test_weights_of_other_formats_are_named(source: Any, file: str, says: str) -> None:
    folder = source("llama")
    (folder / "model.safetensors").rename(folder / file)
    with pytest.raises(SmolmoeError, match=says):
        plan(source=folder)
    with pytest.raises(SmolmoeError, match="is a file, not a model folder"):
        plan(source=folder / file)


# -- what is legal -----------------------------------------------------------------------------------------------


def test_float64_is_read_as_the_config_says(source: Any) -> None:
    folder = changed(source("llama"), cast(torch.float64))
    made = plan(source=folder, experts=4)
    assert {tensor.dtype for tensor in made.tensors} == {"float32"}
    assert "float64" in made.warnings[0]
    assert difference(folder, convert(made, rows=None)) < 3e-5
    assert plan(source=changed(folder, dtype="bfloat16"), experts=4).tensors[0].dtype == "bfloat16"


BOOL = torch.ones(1, 1, 8, 8, dtype=torch.bool)


@pytest.mark.parametrize(
    ("name", "stem", "buffers"),
    [
        ("llama", "model.layers.{}.self_attn.", {"rotary_emb.inv_freq": torch.ones(4)}),
        ("gpt2", "transformer.h.{}.attn.", {"bias": BOOL, "masked_bias": torch.tensor(-1e4)}),
        ("gpt2", "transformer.h.{}.attn.", {"causal_mask": BOOL}),
        ("gpt_neox", "gpt_neox.layers.{}.attention.", {"bias": BOOL, "masked_bias": torch.tensor(-1e4)}),
    ],
)
def test_buffers_of_older_versions_are_left_out(source: Any, name: str, stem: str, buffers: Tensors) -> None:
    folder = source(name)
    before = plan(source=folder, experts=4)
    changed(
        folder,
        lambda t: t.update({stem.format(i) + key: value.clone() for i in range(3) for key, value in buffers.items()}),
    )
    after = plan(source=folder, experts=4)
    assert [tensor.name for tensor in after.tensors] == [tensor.name for tensor in before.tensors]
