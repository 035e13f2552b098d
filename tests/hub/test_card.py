"""The model card: in every checkpoint that is written, with metadata that the hub takes, and text that stays text."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import dense_llama, save
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from reports.overview_folder import EXAMPLES

from smolmoe.core.checkpoint import fingerprint, open_checkpoint
from smolmoe.core.provenance import PROVENANCE_FILE, read_provenance
from smolmoe.errors import CheckpointError
from smolmoe.families import MOE_TARGETS
from smolmoe.families.engines import ENGINES, support
from smolmoe.hub.card import MARK, prose
from smolmoe.hub.card_writer import card_text, finish_model, write_card
from smolmoe.hub.model_facts import ModelFacts, places, without_places
from smolmoe.surgery.run import upcycle

SOURCE_CARD = """---
license: apache-2.0
language: [en, fr]
datasets: [me/tiny]
tags: [secret-tag]
---
# A dense model
Its own words.
"""


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An upcycled tiny Llama whose source has a card."""
    root = tmp_path_factory.mktemp("card")
    dense = save(dense_llama(), root / "dense")
    (dense / "README.md").write_text(SOURCE_CARD)
    upcycle(dense, root / "moe", experts=4, top_k=2)
    return root / "moe"


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    """Metadata as the hub's own library reads them, and the text."""
    card = ModelCard.load(folder / "README.md")
    return card.data.to_dict(), card.text


def test_an_upcycled_model_has_a_card_of_its_own(moe: Path) -> None:
    data, text = card_of(moe)
    assert data == {
        "license": "apache-2.0",
        "language": ["en", "fr"],
        "datasets": ["me/tiny"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["mixture-of-experts", "moe", "upcycled", "smolmoe"],
    }
    verification = read_provenance(moe)["verification"]
    assert f"the claim holds, {len(verification['checks'])} of {len(verification['checks'])} checks passed" in text
    assert f"| this model | {verification['logits']['loss']:.4f} |" in text
    assert f"| parameters | {ModelFacts.read(moe).total:,} |" in text
    for engine in ("transformers", "vLLM", "SGLang", "llama.cpp"):
        assert f"**{engine}**: yes" in text
    assert "Its own words" not in text
    assert str(moe.parent) not in text


def test_the_snippet_for_transformers_runs(moe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, text = card_of(moe)
    snippet = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert snippet is not None
    monkeypatch.chdir(moe.parent)
    (moe.parent / "path" / "to").mkdir(parents=True, exist_ok=True)
    (moe.parent / "path" / "to" / "moe").symlink_to(moe)
    exec(snippet[1].replace("max_new_tokens=40", "max_new_tokens=2"), {"print": lambda text: None})


def test_a_hub_id_is_the_base_model_and_is_handed_on(moe: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(moe, tmp_path / "moe"))
    values = json.loads((folder / PROVENANCE_FILE).read_text())
    values["origin"] = {"model": "HuggingFaceTB/SmolLM2-135M", "license": "mit"}
    (folder / PROVENANCE_FILE).write_text(json.dumps(values))
    write_card(folder)
    data, text = card_of(folder)
    assert data["base_model"] == "HuggingFaceTB/SmolLM2-135M"
    assert data["license"] == "mit"
    assert "https://huggingface.co/HuggingFaceTB/SmolLM2-135M" in text
    from smolmoe.surgery.experts.run import extract

    extract(folder, tmp_path / "one", [0])
    data, text = card_of(tmp_path / "one")
    assert (data["base_model"], data["license"]) == ("HuggingFaceTB/SmolLM2-135M", "mit")
    assert data["tags"] == ["smolmoe"]
    assert "one expert of an MoE as a standalone model" in text
    assert (
        read_provenance(tmp_path / "one")["measured"]["parameters"]["total"] == ModelFacts.read(tmp_path / "one").total
    )


def test_no_licence_is_made_up(moe: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(moe, tmp_path / "moe"))
    values = json.loads((folder / PROVENANCE_FILE).read_text())
    values["origin"] = {"model": None}
    (folder / PROVENANCE_FILE).write_text(json.dumps(values))
    write_card(folder)
    data, text = card_of(folder)
    assert "license" not in data
    assert "add one before publishing" in text


@pytest.mark.parametrize("name", sorted(MOE_TARGETS))
def test_every_class_says_where_it_does_not_run(name: str, moe: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(moe, tmp_path / "moe"))
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "architectures": [MOE_TARGETS[name].architecture],
        "model_type": name,
        "norm_topk_prob": name != "qwen2_moe",
    }
    (folder / "config.json").write_text(json.dumps(config))
    write_card(folder)
    _, text = card_of(folder)
    for engine, command in ENGINES.items():
        # llama.cpp's Dots1 has as many key heads as query heads, and this model has fewer.
        runs_there = support(engine, name) is not None and (engine, name) != ("llama.cpp", "dots1")
        assert f"**{engine}**: {'yes' if runs_there else 'no'}" in text
        assert (command.split("{model}")[0] in text) == runs_there
    assert ("trust_remote_code=True" in text.split("**vLLM**")[0]) == (name == "generic")


def test_hostile_words_stay_words(moe: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(moe, tmp_path / "moe"))
    hostile = "a`|b\n---\nlicense: evil\n<script>x</script> [y](javascript:z) ```"
    values = json.loads((folder / PROVENANCE_FILE).read_text())
    values["claim"]["reason"] = hostile
    values["sources"]["base"] |= {"name": hostile, "revision": hostile}
    values["sources"][f"expert {hostile}"] = {"name": "x", "sha256": hostile}
    values["versions"] |= {hostile: hostile}
    values["verification"]["text"] = hostile
    values["warnings"] = [hostile]
    values["measured"] = {"held_out": {"loss": 1.0, "by_domain": {hostile: 1.0, "a": 2.0}, "tokens": 5}}
    values["command"] = f"smolmoe upcycle {hostile}"
    values["origin"] |= {"license": hostile, "language": [hostile]}
    values["verification"]["checks"][0]["meaning"] = hostile
    (folder / PROVENANCE_FILE).write_text(json.dumps(values))
    config = json.loads((folder / "config.json").read_text()) | {"architectures": [hostile]}
    (folder / "config.json").write_text(json.dumps(config))
    write_card(folder, name=hostile)
    text = (folder / "README.md").read_text()
    head, body = text.split("---\n", 2)[1:]
    assert {"license", "language"}.isdisjoint(yaml.safe_load(head))
    tokens = MarkdownIt().enable("table").parse(body)
    inside = [child for token in tokens for child in (token.children or ())]
    assert [token.content.strip() for token in tokens if token.type == "html_block"] == [MARK]
    assert [token.content for token in inside if token.type == "html_inline"] == []
    links = [token.attrs["href"] for token in inside if token.type == "link_open"]
    assert links == []
    cells = [token.content for token in inside if token.type == "code_inline"]
    assert re.sub(r"\s+", " ", hostile) in cells
    assert f"smolmoe upcycle {hostile}\n" in [token.content for token in tokens if token.type == "fence"]
    rows = [token for token in tokens if token.type == "inline" and token.content.startswith("source, ")]
    assert len(rows) == 2
    assert len({token.type for token in tokens if token.type in ("hr", "heading_open")}) == 1  # no rule of its own
    headings = [tokens[place + 1].content for place, token in enumerate(tokens) if token.type == "heading_open"]
    assert headings[1:] == ["Size", "Claim and verification", "Losses", "Use", "How it was made"]
    widths = {line.count("|") - line.count("\\|") for line in body.splitlines() if line.startswith("| ")}
    assert widths <= {3, 4, 5}


def test_a_claim_that_fails_is_in_the_card(tmp_path: Path) -> None:
    dense = save(dense_llama(), tmp_path / "dense")
    moe = tmp_path / "moe"
    upcycle(dense, moe, experts=2, top_k=1, verify="none")
    assert "It was not verified when it was written" in (moe / "README.md").read_text()
    values = read_provenance(moe)
    check = {"name": "logits", "passed": False, "measured": 1.0, "limit": 0.1, "meaning": "Equal."}
    values["verification"] = {"passed": False, "checks": [check]}
    (moe / PROVENANCE_FILE).write_text(json.dumps(values))
    write_card(moe)
    text = (moe / "README.md").read_text()
    assert "**does not hold**" in text
    assert "| Equal. | 1 | 0.1 | **no** |" in text


def test_a_training_says_where_it_began_and_ended(moe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(moe, run / "model")
    rows = [{"kind": "held_out", "step": 0, "loss": 4.2}, {"kind": "held_out", "step": 9, "loss": 3.9}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    held = {"loss": 3.9, "by_domain": {"code": 3.5, "pro|se": 4.1}, "tokens": 1234, "documents": 5}
    finish_model(run / "model", {"steps": 9, "tokens": 99, "held_out": held, "samples": ["not kept"]})
    measured = read_provenance(run / "model")["measured"]
    assert measured == {"steps": 9, "tokens": 99, "held_out": held, "start": {"loss": 4.2}}
    text = (run / "model" / "README.md").read_text()
    assert "| before this training | 4.2000 | 1,234 held-out tokens |" in text
    assert "| … pro\\|se | 4.1000 |" in text
    assert "# run\n" in text


def test_a_comparison_beside_it_is_quoted(moe: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(moe, tmp_path / "moe"))
    values = json.loads((EXAMPLES / "compare.json").read_text()) | {"verdict": ["dense beats moe by 0.1."]}
    checkpoint = values["models"][-1]["checkpoints"][0]
    checkpoint |= {"path": str(folder), "sha256": fingerprint(open_checkpoint(folder))}
    (tmp_path / "verdict").mkdir()
    (tmp_path / "verdict" / "compare.json").write_text(json.dumps(values))
    write_card(folder)
    assert "- dense beats moe by 0.1." in (folder / "README.md").read_text()
    checkpoint["sha256"] = "ab" * 32  # another model was there
    (tmp_path / "verdict" / "compare.json").write_text(json.dumps(values))
    write_card(folder)
    assert "beats" not in (folder / "README.md").read_text()
    checkpoint |= {"path": str(tmp_path / "other"), "sha256": fingerprint(open_checkpoint(folder))}
    (tmp_path / "verdict" / "compare.json").write_text(json.dumps(values))
    write_card(folder)
    assert "beats" not in (folder / "README.md").read_text()
    for broken in ("{", json.dumps({**values, "schema_version": 7})):
        (tmp_path / "verdict" / "compare.json").write_text(broken)
        write_card(folder)
        assert "beats" not in (folder / "README.md").read_text()


# -- schemas and places ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"schema_version": 2, "claim": {}}, r"is of schema 2; this smolmoe \([\w.]+\) reads schema 1.*a later one"),
        ({"schema_version": 0, "claim": {}}, "is of schema 0.*no released version wrote"),
        ({"schema_version": "1", "claim": {}}, "is of schema '1'"),
        ({"schema_version": True, "claim": {}}, "is of schema True"),
        ({"name": "of another program"}, "was not written by smolmoe"),
        ([], "must hold a JSON object"),
    ],
)
def test_other_schemas_are_refused_by_name(values: Any, said: str, tmp_path: Path) -> None:
    (tmp_path / PROVENANCE_FILE).write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=said):
        read_provenance(tmp_path)


def test_a_file_from_before_versions_is_read(tmp_path: Path) -> None:
    assert read_provenance(tmp_path) == {}
    (tmp_path / PROVENANCE_FILE).write_text('{"layout": {"granularity": 2}}')
    assert read_provenance(tmp_path) == {"layout": {"granularity": 2}, "schema_version": 1}


def test_a_newer_schema_is_refused_wherever_it_is_read(moe: Path, tmp_path: Path) -> None:
    from smolmoe.core.claim import read_claim
    from smolmoe.surgery.experts.run import extract
    from smolmoe.surgery.moments import plan_of
    from smolmoe.training.models import parent_provenance
    from smolmoe.verification.verify import verify

    folder = Path(shutil.copytree(moe, tmp_path / "moe"))
    values = json.loads((folder / PROVENANCE_FILE).read_text())
    (folder / PROVENANCE_FILE).write_text(json.dumps(values | {"schema_version": 2}))
    readers = [
        lambda: read_claim(folder),
        lambda: verify(moe.parent / "dense", folder),
        lambda: plan_of(folder),
        lambda: parent_provenance(folder),
        lambda: extract(folder, tmp_path / "one", [0]),
        lambda: write_card(folder),
    ]
    for read in readers:
        with pytest.raises(CheckpointError, match="is of schema 2"):
            read()


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        (
            "smolmoe upcycle /home/me/dense runs/out --set data=/data/x.jsonl",
            "smolmoe upcycle …/dense runs/out --set data=…/x.jsonl",
        ),
        ("C:\\Users\\me\\dense", "…/dense"),
        ("~/models/dense/", "…/dense"),
        ("runs/dense", "runs/dense"),
        ("../shared/data", "../shared/data"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("tokens/s and 1/2", "tokens/s and 1/2"),
    ],
)
def test_places_of_this_machine_are_cut(text: str, cut: str) -> None:
    assert without_places({"a": [text]}) == {"a": [cut]}
    assert places({"a": [text]}) == ([] if text == cut else ["a[0]"])


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("claim", True, "claim is 'True'"),
        ("claim", {"reason": 5}, r"claim\.reason is '5'"),
        ("origin", "x", "origin is 'x'"),
        ("layout", [4], "layout is"),
        ("sources", {"base": {"name": None, "sha256": 7}}, r"sources\.base\.sha256 is '7'"),
        ("verification", {"checks": [{"name": "x"}]}, r"verification\.checks\[0\] is"),
        ("verification", {"checks": {"a": 1}}, r"verification\.checks is"),
        ("measured", {"held_out": {"loss": "low"}}, r"measured\.held_out\.loss is 'low'"),
        ("seed", True, "seed is 'True'"),
    ],
)
def test_values_that_smolmoe_does_not_write_are_refused_by_key(key: str, value: Any, said: str, tmp_path: Path) -> None:
    (tmp_path / PROVENANCE_FILE).write_text(json.dumps({"schema_version": 1, key: value}))
    with pytest.raises(CheckpointError, match=said):
        read_provenance(tmp_path)


def test_a_card_of_a_verification_that_failed_beyond_measure(tmp_path: Path) -> None:
    """What is infinite or no number is text in JSON, and upcycle writes its card after the verification."""
    folder = save(dense_llama(), tmp_path / "model")
    check = {"name": "logits", "passed": False, "measured": "inf", "limit": 1e-5, "meaning": "Equal."}
    found = {"passed": False, "checks": [check], "logits": {"dense_loss": 3.0, "loss": "nan"}}
    claim = {"kind": "exact", "reason": "Copies."}
    (folder / PROVENANCE_FILE).write_text(json.dumps({"schema_version": 1, "claim": claim, "verification": found}))
    text = card_text(folder)
    assert "| Equal. | inf | 1e-05 | **no** |" in text
    assert "| this model | nan |" in text


def test_commands_in_a_sentence_are_code_and_the_rest_is_escaped() -> None:
    said = "`smolmoe compare` of a*b*c and <i>; `x | y`"
    html = MarkdownIt().enable("table").render(prose(said))
    assert "<code>smolmoe compare</code> of a*b*c and &lt;i&gt;" in html
