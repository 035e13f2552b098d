"""The whole probe: on stock classes, on a real model and real text, by the command line, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from helpers import dense_llama, edit_tensors, moe_of, random_moe, save
from tests.moe.other_moes import other_moe
from typer.testing import CliRunner

from smolmoe.cli import probe as probe_command
from smolmoe.core.checkpoint import open_checkpoint
from smolmoe.data.text import Document, read_documents, write_documents
from smolmoe.errors import DataError, OutputError, RequestError, SmolmoeError, SourceError
from smolmoe.probing.measure import probe
from smolmoe.recipe import UpcycleRecipe, parse
from smolmoe.recipe.probe import ProbeOptions
from smolmoe.results.probe import ProbeResult, read_result
from smolmoe.surgery.convert import convert
from smolmoe.surgery.plan import make_plan
from smolmoe.verification.doctor import doctor

QUICK = ProbeOptions(permutations=20, length=32, probe_tokens=200, loss_tokens=40)


def letters(index: int) -> str:
    return "".join(chr(97 + (index * 7 + place * place) % 26) for place in range(40))


def write_text(path: Path, documents: int = 8) -> Path:
    """Domains that share no token: letters against digits."""
    numbers = [str(index * 7919**3)[::-1] * 3 for index in range(1, documents + 1)]
    words = [letters(index) for index in range(documents)]
    write_documents(path, [Document(t, "maths") for t in numbers] + [Document(t, "words") for t in words])
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_text(tmp_path / "text.jsonl")


@pytest.mark.parametrize("kind", ["mixtral", "olmoe", "granitemoeshared", "glm4_moe"])
def test_stock_classes(kind: str, tmp_path: Path, text: Path) -> None:
    folder = save(random_moe(kind), tmp_path / "moe")
    result = probe(folder, text, out=tmp_path / "out", against=folder, options=QUICK)
    layers, experts, domains = len(result.model.layers), 4, ["maths", "words"]
    assert result.domains == domains
    assert result.documents == {"maths": 8, "words": 8}
    assert torch.tensor(result.matrix).shape == (layers, 2, experts)
    assert torch.tensor(result.matrix).sum(-1).flatten().tolist() == pytest.approx([1] * 2 * layers)
    assert result.saturation == [1] * layers
    assert result.accuracy.owners_from == ["learned"] * layers
    assert min(result.accuracy.linear_probe_macro) > 0.7  # letters and digits are easily told
    assert result.losses is not None
    assert result.losses.labels[-2:] == ["experts of maths", "experts of words"]
    excerpt = result.text[0]
    assert (len(excerpt.experts), len(excerpt.experts[0]), len(excerpt.experts[0][0])) == (
        layers,
        len(excerpt.tokens),
        2,
    )
    assert read_result(tmp_path / "out").to_json() == result.to_json()


@pytest.mark.parametrize("kind", ["gpt_oss", "llama4_text"])
def test_routers_of_classes_not_known_by_heart(kind: str, tmp_path: Path, text: Path) -> None:
    """Losses with experts forced, too; the doctor reads such a router as well."""
    folder = save(other_moe(kind), tmp_path / "moe")
    result = probe(folder, text, options=QUICK.model_copy(update={"permutations": 3}))
    assert result.losses is not None
    assert result.losses.labels[:4] == [f"expert {index}" for index in range(4)]
    assert len({row[0] for row in result.losses.forced}) == 2
    assert {len(layer) for layer in result.similarity.cka} == {4}
    assert doctor(folder, sequences=2, length=16).vitals.layers


def test_losses_that_cannot_be_forced_are_left_out_and_why_is_said(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("smolmoe.probing.counting.Runner.why_not_restricted", lambda self: "router X goes its own way")
    result = probe(
        save(random_moe("mixtral"), tmp_path / "moe"), text, options=QUICK.model_copy(update={"permutations": 3})
    )
    assert result.losses is None
    assert "router X goes its own way. All else is measured" in caplog.text


def test_a_router_that_tells_digits_from_letters_is_found_out(tmp_path: Path, text: Path) -> None:
    """Rows of the router point at what digits and letters give: they are told, and beyond chance."""
    model = random_moe("mixtral", num_experts_per_tok=1)
    folder = save(model, tmp_path / "moe")
    before = probe(folder, text, options=QUICK)
    rows = _telling_rows(folder, text)
    edit_tensors(folder, lambda tensors: _set_router(tensors, rows))
    config = json.loads((folder / "config.json").read_text())
    config |= {"expert_names": ["maths", "words", None, None], "expert_layers": [0]}
    (folder / "config.json").write_text(json.dumps(config))
    result = probe(folder, text, options=QUICK)
    layer = result.layers[0]
    assert result.accuracy.owners_from == ["names", "learned"]
    assert result.accuracy.owner[0] == [0, 1, None, None]
    assert result.accuracy.macro[0] > 0.93 > before.accuracy.macro[0]
    assert result.accuracy.document_majority[0] == [1, 1]
    assert layer.separation > 0.7 > layer.separation_baseline.p95
    assert layer.contrast > 2 * layer.contrast_baseline.p95
    assert result.losses is not None
    assert result.losses.labels == ["maths", "words", "expert 2", "expert 3"]
    assert result.losses.own == [0, 1]


def _telling_rows(folder: Path, text: Path) -> torch.Tensor:
    from smolmoe.probing.inputs import router_tap, sample_inputs
    from smolmoe.probing.linear import fit_linear_probe
    from smolmoe.probing.setup import open_subject

    subject = open_subject(folder, QUICK, "cpu")
    documents = list(subject.documents(str(text), None))
    tap = router_tap(subject.model)
    sample = sample_inputs(tap, documents, ["maths", "words"], subject.windows, 500, 0)
    return fit_linear_probe(sample.inputs[0], sample.labels, 2).weight.T * 20


def _set_router(tensors: dict[str, Any], rows: torch.Tensor) -> None:
    (name,) = (name for name in tensors if "layers.0" in name and name.endswith("gate.weight"))
    tensors[name][:2] = rows
    tensors[name][2:] = 0


def test_saturation_is_nothing_where_the_other_checkpoint_chooses_the_rest(tmp_path: Path, text: Path) -> None:
    folder, other = save(random_moe("mixtral"), tmp_path / "moe"), save(random_moe("mixtral"), tmp_path / "other")

    def negate(tensors: dict[str, Any]) -> None:
        for name in tensors:
            if name.endswith("gate.weight"):
                tensors[name] = -tensors[name]

    edit_tensors(other, negate)  # the best two of four become the worst
    found = probe(folder, text, against=other, options=QUICK.model_copy(update={"losses": False})).saturation
    assert found is not None
    assert found[0] == 0


def test_dense_and_fit_data(tmp_path: Path, text: Path) -> None:
    dense = dense_llama()
    folder, source = save(moe_of(dense), tmp_path / "moe"), save(dense, tmp_path / "dense")
    more = write_text(tmp_path / "more.jsonl", documents=20)  # the first 8 are those of `text`
    result = probe(folder, text, fit_data=more, dense=source, options=QUICK)
    assert result.accuracy.documents == {"maths": 8, "words": 8}
    assert result.last_third.dense_ceiling is not None
    # An exact copy reads what the dense model reads.
    assert result.accuracy.dense_linear_probe_macro == pytest.approx(result.accuracy.linear_probe_macro, abs=0.02)
    assert result.losses is not None
    assert result.losses.dense == pytest.approx(result.losses.base, abs=1e-4)
    with pytest.raises(DataError, match="not in the data itself"):
        probe(folder, text, fit_data=text, options=QUICK)


def test_a_real_model_on_real_text(shared: Path, tmp_path: Path) -> None:
    source = shared / "models" / "stories260K"
    recipe = parse(UpcycleRecipe, {"source": str(source), "out": tmp_path / "moe", "dtype": "float32"})
    convert(make_plan(recipe, open_checkpoint(source)))
    found: dict[str, list[Document]] = {}
    for document in read_documents(shared / "data" / "mix" / "validation.jsonl"):
        found.setdefault(str(document.domain), []).append(document)
    write_documents(tmp_path / "few.jsonl", [document for own in found.values() for document in own[:6]])
    options = ProbeOptions(tokens=600, document_tokens=120, length=64, permutations=50, probe_tokens=200, losses=False)
    result = probe(tmp_path / "moe", tmp_path / "few.jsonl", dense=source, options=options)
    assert result.domains == ["chat", "code", "math", "stories", "web"]
    assert result.losses is None
    assert all(0 < layer.separation < 1 and layer.confidence >= 0.5 for layer in result.layers)
    assert result.last_third.ceiling > 0.3 > 1 / 5
    assert "".join(result.text[0].tokens).strip()
    assert result.similarity.cka[0][0][7] == pytest.approx(1, abs=1e-4)  # copies


def app() -> typer.Typer:
    app = typer.Typer()
    probe_command.COMMAND.add_to(app)
    app.callback()(lambda: None)
    return app


def test_command(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = save(random_moe("mixtral"), tmp_path / "moe"), tmp_path / "out"
    asked = ["probe", str(folder), "--data", str(text), "--out", str(out), "--length", "32", "--json"]
    asked += ["--loss-tokens", "40", "--permutations", "10", "--dense", str(save(dense_llama(), tmp_path / "dense"))]
    shown = CliRunner().invoke(app(), asked, catch_exceptions=False)
    result = ProbeResult.from_json(json.loads(shown.stdout))
    assert result.to_json() == json.loads((out / "probe.json").read_text())
    assert (out / "index.html").is_file()
    with pytest.raises(OutputError, match="already"):
        CliRunner().invoke(app(), asked, catch_exceptions=False)
    with pytest.raises(RequestError, match="there is no metrics"):
        CliRunner().invoke(app(), [*asked, "--run", f"training={tmp_path}"], catch_exceptions=False)
    capsys.readouterr()
    probe_command.show_probe(result, out)
    printed = capsys.readouterr().out
    for part in (
        "MixtralForCausalLM, 4 experts, top-2",
        "separation",
        "linear probe",
        "Held-out loss (nats per token)",
        "  ! ",
    ):
        assert part in printed


def untagged(path: Path) -> None:
    write_documents(path, [Document("one"), Document("two")])


def one_domain(path: Path) -> None:
    write_documents(path, [Document("one", "a"), Document("two", "a")])


def one_document(path: Path) -> None:
    write_documents(path, [Document("one", "a"), Document("two", "a"), Document("three", "b")])


@pytest.mark.parametrize(
    ("write", "message"),
    [(untagged, "no row has a domain"), (one_domain, "of one domain"), (one_document, "fewer than two documents")],
)
def test_text_that_tells_nothing(write: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    folder = save(random_moe("mixtral"), tmp_path / "moe")
    write(tmp_path / "text.jsonl")
    with pytest.raises(DataError, match=message):
        probe(folder, tmp_path / "text.jsonl", options=QUICK)
    assert not (tmp_path / "out").exists()


def test_rows_without_a_domain_are_left_out_and_counted(
    tmp_path: Path, text: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save(random_moe("mixtral"), tmp_path / "moe")
    data = tmp_path / "text.jsonl"
    data.write_text('{"text": "", "domain": "a"}\n{"text": "one", "domain": null}\n' + text.read_text())
    whole, found = (probe(folder, path, options=QUICK) for path in (text, data))
    assert found.documents == whole.documents
    assert f"rows without a domain skipped: 1 (the first: {data}, line 2)" in caplog.text


def test_another_column_by(tmp_path: Path) -> None:
    rows = [{"text": letters(index), "topic": "xy"[index % 2]} for index in range(8)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ProbeOptions(by="topic", length=32, permutations=5, losses=False)
    assert probe(save(random_moe("mixtral"), tmp_path / "moe"), tmp_path / "text.jsonl", options=options).domains == [
        "x",
        "y",
    ]


def refused(tmp_path: Path, text: Path, **asked: Any) -> SmolmoeError:
    with pytest.raises(SmolmoeError) as caught:
        probe(save(random_moe("mixtral"), tmp_path / "moe"), text, options=QUICK, **asked)
    return caught.value


def test_models_that_do_not_fit(tmp_path: Path, text: Path) -> None:
    dense = save(dense_llama(), tmp_path / "dense")
    with pytest.raises(SourceError, match="dense"):
        probe(dense, text, options=QUICK)
    other = save(random_moe("mixtral", num_local_experts=5), tmp_path / "other")
    assert isinstance(refused(tmp_path, text, against=other), RequestError)
    assert isinstance(refused(tmp_path, text, against=dense), SourceError)
    assert isinstance(refused(tmp_path, text, dense=other), RequestError)
    bare = save(random_moe("mixtral"), tmp_path / "bare", tokenizer=False)
    assert "tokenizer" in str(refused(tmp_path, text, against=bare))


def test_what_is_there_stays(tmp_path: Path, text: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    error = refused(tmp_path, text, out=tmp_path / "out", overwrite=True)
    assert isinstance(error, OutputError)
    with pytest.raises(DataError, match=r"cannot be read: .*No such file"):
        read_result(tmp_path / "out")


@pytest.mark.parametrize("field", ["length", "tokens", "probe_tokens", "loss_tokens", "permutations"])
def test_options_out_of_range(field: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(ProbeOptions, {field: 0})
    assert caught.value.field == field


def test_layers_whose_routers_cannot_be_read_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from helpers import hash_routed
    from tests import zoo

    from smolmoe.probing.setup import open_subject

    folder = tmp_path / "moe"
    hash_routed("hash_moe", "moe").save_pretrained(folder)
    for file in zoo.folder("llama").glob("tokenizer*"):
        shutil.copy(file, folder)
    assert open_subject(folder, QUICK, "cpu").layers == [1]
    assert "Layer 0 is left out: of its DeepseekV4HashRouter" in caplog.text
