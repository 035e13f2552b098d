"""JSON of any origin in a model folder ends in an error that names file and key, never in a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests import zoo

from smolmoe import upcycle
from smolmoe.core.checkpoint import open_checkpoint
from smolmoe.core.json_text import parse_json
from smolmoe.core.model_config import check_counts
from smolmoe.core.provenance import read_provenance
from smolmoe.errors import CheckpointError, OutputError, SmolmoeError, SourceError
from smolmoe.hub.card_writer import finish_model
from smolmoe.hub.push import push
from smolmoe.inference.generate import generate
from smolmoe.moe.loading import Skeleton, load_tokenizer
from smolmoe.reports.run import report
from smolmoe.surgery.experts.moe_files import read_moe
from smolmoe.surgery.export.gguf.run import _check_out
from smolmoe.surgery.inspection import inspect
from smolmoe.verification.doctor import doctor

TEXTS: dict[str, bytes] = {
    "deep list": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "a list": b"[]",
    "null": b"null",
    "a number": b"5",
    "nothing": b"",
    "cut": b'{"model_type": "llama"',
    "not UTF-8": b"\xff\xfe{}",
    "with a BOM": b"\xef\xbb\xbf{}",
    "a key twice": b'{"a": 1, "a": 2}',
    "half a pair": b'{"a": "\\ud800"}',
    "too many digits": b'{"a": ' + b"9" * 5000 + b"}",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`dense`, the same in `shards`, and its MoEs `mixtral` and `generic`."""
    work = tmp_path_factory.mktemp("json")
    shutil.copytree(zoo.folder("llama"), work / "dense")
    zoo.build("llama").save_pretrained(work / "shards", max_shard_size="30KB")
    for target in ("mixtral", "generic"):
        upcycle(work / "dense", work / target, experts=4, top_k=2, target=target, verify="none")
    return work


@pytest.fixture
def copy(models: Path, tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(models / name, tmp_path / name))


def change(path: Path, **values: Any) -> None:
    found = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not ...}))


@pytest.mark.parametrize("text", TEXTS)
def test_text_that_is_no_object(text: str) -> None:
    if text in ("a list", "null", "a number"):
        assert not isinstance(parse_json(TEXTS[text]), dict)
    else:
        with pytest.raises(ValueError, match=r"\w"):
            parse_json(TEXTS[text])


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(
    "file",
    [
        "config.json",
        "generation_config.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "model.safetensors.index.json",
        "smolmoe.json",
    ],
)
def test_a_file_that_is_no_object_is_named(file: str, text: str, copy: Callable[[str], Path]) -> None:
    folder = copy("shards" if file.startswith("model") else "mixtral")
    (folder / file).write_bytes(TEXTS[text])
    read = read_provenance if file == "smolmoe.json" else open_checkpoint
    with pytest.raises((SourceError, CheckpointError)) as caught:
        read(folder)
    assert file in str(caught.value)


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("tokenizer_config.json", "model_max_length", [1, 2]),
        ("tokenizer_config.json", "chat_template", 5),
        ("tokenizer_config.json", "padding_side", 1),
        ("generation_config.json", "eos_token_id", "</s>"),
        ("generation_config.json", "eos_token_id", [300]),
        ("generation_config.json", "repetition_penalty", 0.0),
        ("generation_config.json", "temperature", "hot"),
        ("generation_config.json", "do_sample", "yes"),
    ],
)
def test_a_setting_beside_the_config_is_named(file: str, key: str, value: object, copy: Callable[[str], Path]) -> None:
    folder = copy("dense")
    change(folder / file, **{key: value})
    with pytest.raises(SourceError, match=file) as caught:
        open_checkpoint(folder)
    assert caught.value.field == key


@pytest.mark.parametrize("text", TEXTS)
def test_a_tokenizer_that_is_no_object(text: str, copy: Callable[[str], Path]) -> None:
    folder = copy("dense")
    (folder / "tokenizer.json").write_bytes(TEXTS[text])
    with pytest.raises(SourceError, match="tokenizer"):
        load_tokenizer(folder)


BAD_SETTINGS: list[tuple[str, object]] = [
    ("hidden_size", "many"),
    ("hidden_size", None),
    ("hidden_size", -1),
    ("hidden_size", 0),
    ("hidden_size", 32.0),
    ("hidden_size", True),
    ("hidden_size", [32]),
    ("hidden_size", 10**30),
    ("vocab_size", {}),
    ("num_hidden_layers", "3"),
    ("num_hidden_layers", 10**9),
    ("num_attention_heads", 0),
    ("num_key_value_heads", 3),
    ("num_key_value_heads", "2"),
    ("head_dim", "8"),
    ("intermediate_size", -48),
    ("max_position_embeddings", "long"),
    ("rms_norm_eps", "small"),
    ("rms_norm_eps", float("nan")),
    ("rms_norm_eps", -1e-5),
    ("head_dim", 0),
    ("initializer_range", -1.0),
    ("attention_dropout", 1.5),
    ("partial_rotary_factor", -0.5),
    ("rope_parameters", "default"),
    ("rope_parameters", {"rope_type": "default", "rope_theta": "big"}),
    ("rope_parameters", {"rope_type": "default", "rope_theta": 0}),
    ("rope_parameters", {"rope_type": "banana", "rope_theta": 1e4}),
    ("rope_scaling", [8]),
    ("rope_theta", "x"),
    ("rope_theta", 0),
    ("rope_theta", -1.0),
    ("eos_token_id", "</s>"),
    ("eos_token_id", [None]),
    ("eos_token_id", 300),
    ("eos_token_id", [1, 300]),
    ("pad_token_id", 300),
    ("bos_token_id", {}),
    ("tie_word_embeddings", "yes"),
    ("attention_bias", 1),
    ("hidden_act", 5),
    ("hidden_act", "banana"),
    ("dtype", "float99x"),
    ("dtype", "auto"),
    ("torch_dtype", 16),
    ("layer_types", ["full_attention"]),
    ("layer_types", "full_attention"),
    ("architectures", "LlamaForCausalLM"),
    ("architectures", [5]),
    ("model_type", ["llama"]),
    ("auto_map", 5),
    ("sliding_window", "wide"),
    ("quantization_config", 4),
    ("quantization_config", {}),
]


@pytest.mark.parametrize(("key", "value"), BAD_SETTINGS)
def test_a_setting_of_another_kind_is_named(key: str, value: object, copy: Callable[[str], Path]) -> None:
    folder = copy("dense")
    change(folder / "config.json", **{key: value})
    calls: list[Callable[[], object]] = [
        lambda: upcycle(folder, folder.parent / "out", verify="none"),
        lambda: inspect(folder),
        lambda: Skeleton(folder),
    ]
    for call in calls:
        with pytest.raises(SourceError) as caught:
            call()
        assert caught.value.field == key
    assert not (folder.parent / "out").exists()


@pytest.mark.parametrize(
    ("key", "value"), [("hidden_act", None), ("attention_bias", None), ("layer_types", ["banana"] * 3)]
)
def test_what_only_the_class_can_refuse_is_refused_before_a_conversion(
    key: str, value: object, copy: Callable[[str], Path]
) -> None:
    folder = copy("dense")
    change(folder / "config.json", **{key: value})
    with pytest.raises(SourceError, match=r"cannot be used: .*: \w"):
        upcycle(folder, folder.parent / "out", verify="none")
    assert not (folder.parent / "out").exists()


@pytest.mark.parametrize(("key", "value"), [("n_group", 3), ("topk_group", 2)])
def test_groups_that_do_not_fit_the_experts_are_named(key: str, value: int) -> None:
    settings = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
    check_counts(settings)
    check_counts({**settings, "topk_method": "greedy", key: value})
    with pytest.raises(SourceError, match=key):
        check_counts({**settings, key: value})


@pytest.mark.parametrize(
    ("target", "key", "value"),
    [
        ("mixtral", "num_experts_per_tok", 9),
        ("mixtral", "num_experts_per_tok", "2"),
        ("mixtral", "num_local_experts", 4.0),
        ("mixtral", "num_local_experts", [[4]]),
        ("generic", "text_config", None),
        ("generic", "text_config", []),
        ("generic", "moe_layers", ...),
        ("generic", "moe_layers", ["0"]),
        ("generic", "layers_module", 5),
        ("generic", "mlp_module", ...),
        ("generic", "num_experts", "4"),
        ("generic", "gated", "yes"),
        ("generic", "scoring_func", 3),
    ],
)
def test_a_setting_of_an_moe_is_named(target: str, key: str, value: object, copy: Callable[[str], Path]) -> None:
    folder = copy(target)
    change(folder / "config.json", **{key: value})
    for call in (lambda: doctor(folder), lambda: generate(folder, ["a"], max_new_tokens=1)):
        with pytest.raises(SourceError) as caught:
            call()
        assert caught.value.field == key


def test_settings_of_the_dense_model_inside_are_named_with_their_place(copy: Callable[[str], Path]) -> None:
    folder = copy("generic")
    text = json.loads((folder / "config.json").read_text())["text_config"] | {"hidden_size": "many"}
    change(folder / "config.json", text_config=text)
    with pytest.raises(SourceError, match=r"text_config\.hidden_size='many'"):
        read_moe(folder)


def weight_map(values: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**values, "weight_map": {**values["weight_map"], **changes}}


INDEXES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no map": (lambda v: {}, "no weight_map"),
    "null": (lambda v: {**v, "weight_map": None}, "no weight_map"),
    "empty": (lambda v: {**v, "weight_map": {}}, "no weight_map"),
    "list": (lambda v: {**v, "weight_map": ["a"]}, "no weight_map"),
    "null shard": (lambda v: weight_map(v, **{"model.norm.weight": None}), "None as the shard of tensor model.norm"),
    "list shard": (lambda v: weight_map(v, **{"model.norm.weight": ["a"]}), "as the shard of tensor model.norm"),
    "outside": (lambda v: weight_map(v, **{"model.norm.weight": "../x.safetensors"}), "outside the folder"),
    "absolute": (lambda v: weight_map(v, **{"model.norm.weight": "/etc/passwd"}), "outside the folder"),
    "parent": (lambda v: weight_map(v, **{"model.norm.weight": ".."}), "missing"),
    "missing": (lambda v: weight_map(v, **{"model.norm.weight": "x.safetensors"}), "missing"),
    "null byte": (lambda v: weight_map(v, **{"model.norm.weight": "a\0b"}), "missing"),
    "not there": (
        lambda v: weight_map(v, other=next(iter(v["weight_map"].values()))),
        "lists tensor other in ",
    ),
    "not named": (
        lambda v: {**v, "weight_map": {k: s for k, s in v["weight_map"].items() if k != "model.norm.weight"}},
        "does not list tensor model.norm.weight",
    ),
    "metadata": (lambda v: {**v, "metadata": 5}, "metadata"),
}


@pytest.mark.parametrize("name", INDEXES)
def test_an_index_that_does_not_fit_is_refused_by_name(name: str, copy: Callable[[str], Path]) -> None:
    folder = copy("shards")
    edit, says = INDEXES[name]
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps(edit(json.loads(index.read_text()))))
    with pytest.raises(CheckpointError, match=says):
        open_checkpoint(folder)


def test_a_tensor_in_two_shards_is_refused(copy: Callable[[str], Path]) -> None:
    from safetensors.torch import load_file, save_file

    folder = copy("shards")
    first, second = sorted(folder.glob("model-*.safetensors"))[:2]
    name, tensor = next(iter(load_file(first).items()))
    save_file({**load_file(second), name: tensor}, second, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{name} is in two shards"):
        open_checkpoint(folder)


@pytest.mark.slow
def test_every_default_config_of_transformers_is_taken() -> None:
    """Kinds of settings are as the classes of causal language models have them."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from smolmoe.core.model_config import CONFIG, _check

    for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            config = json.loads(CONFIG_MAPPING[kind]().to_json_string(use_diff=False))
        except Exception:  # a class without defaults, or one that needs another package
            continue
        _check(config, CONFIG)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"kind": "step", "step": "one"}', "line 2.*step is 'one'"),
        ("[]", "line 2.*no object with a kind"),
        ('{"step": 1}', "line 2.*no object with a kind"),
        ('{"kind": "step", "kind": "x"}', "line 2.*given twice"),
        ("[" * 100_000, "line 2.*deeply"),
        ("{", "line 2"),
    ],
)
def test_a_broken_row_of_a_run_is_named(line: str, says: str, copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.move(copy("mixtral"), folder / "model")
    row = '{"kind": "held_out", "step": 0, "loss": 4.0, "tokens": 0}'
    (folder / "run.json").write_text(json.dumps({"schema_version": 1, "recipe": {}}))
    (folder / "metrics.jsonl").write_text(f"{row}\n{line}\n{row}\n")
    for call in (lambda: finish_model(folder / "model", {}), lambda: report([folder], tmp_path / "page.html")):
        with pytest.raises(SmolmoeError, match=says):
            call()


def test_an_adapter_whose_settings_cannot_be_read_is_one_all_the_same(copy: Callable[[str], Path]) -> None:
    folder = copy("dense")
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "peft_type": "LORA"}')
    with pytest.raises(SourceError, match="a PEFT adapter, not a model"):
        open_checkpoint(folder)


@pytest.mark.parametrize("text", TEXTS)
def test_a_file_beside_an_export_that_nobody_can_read_is_not_replaced(text: str, tmp_path: Path) -> None:
    (tmp_path / "out.json").write_bytes(TEXTS[text])
    with pytest.raises(OutputError, match="was not written by an export"):
        _check_out(tmp_path / "out.gguf", overwrite=True)
    assert (tmp_path / "out.json").read_bytes() == TEXTS[text]


def test_push_names_what_it_cannot_read(copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy("mixtral")
    (folder / "smolmoe.json").write_bytes(TEXTS["deep object"])
    with pytest.raises(CheckpointError, match=r"smolmoe\.json.*deeply"):
        push(folder, f"file:{tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()
