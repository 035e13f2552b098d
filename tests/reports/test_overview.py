"""The report: in a real browser, offline, whole, by keyboard, in light and dark, with what is missing said."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import pytest
import torch
from devtools import Reader
from markdown_it import MarkdownIt
from probe_json import make_probe
from safetensors.torch import save_file
from tests.reports.overview_folder import EXAMPLES, upcycled, write_all, write_model, write_run

from smolmoe.core.checkpoint import fingerprint, open_checkpoint
from smolmoe.errors import CheckpointError, DataError, OutputError, RequestError
from smolmoe.reports.blocks import show
from smolmoe.reports.figures import thinned
from smolmoe.reports.markdown import markdown, summary_figure
from smolmoe.reports.names import COLOURS, colour
from smolmoe.reports.overview import Overview, find
from smolmoe.reports.overview_sections import sections
from smolmoe.reports.overview_summary import answers
from smolmoe.reports.page import asset
from smolmoe.reports.run import report
from smolmoe.results.scaling_law import Sweep

SECTIONS = [
    *("boundary", "experts", "tokens", "details", "comparison", "losses", "training", "balance", "sweep", "speed"),
    *("claim", "samples", "provenance"),
]
TAB, ENTER, RIGHT, LEFT = ("Tab", 9), ("Enter", 13), ("ArrowRight", 39), ("ArrowLeft", 37)


@pytest.fixture(scope="module", autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Paths in the examples lead nowhere, also where a checkout holds runs of these names."""
    with contextlib.chdir(tmp_path_factory.mktemp("elsewhere")):  # before the page is written
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("full") / "pipeline")


@pytest.fixture(scope="module")
def page(folder: Path) -> Path:
    out = folder.parent / "report.html"
    report([folder], out)
    return out


@pytest.fixture(scope="module")
def reader(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    with Reader(page, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def test_the_sweep_of_these_tests_is_what_a_sweep_writes() -> None:
    values = json.loads((EXAMPLES / "sweep.json").read_text())
    assert json.loads(json.dumps(Sweep.from_json(values).to_json())) == values


def test_every_section_is_there_in_order_with_its_figures(reader: Reader) -> None:
    """The loss across the conversion comes first, then the experts."""
    assert reader.js("Array.from(document.querySelectorAll('main > section')).map(s => s.id)") == SECTIONS
    assert reader.js("document.body.dataset.ready") == "true"
    charts = "Array.from(document.querySelectorAll('.chart'))"
    assert reader.js(f"{charts}[0].id") == "boundary-0"
    assert reader.js(f"{charts}.every(c => c.querySelector('.plot svg .series, table.heat td[style]'))")
    plots = f"{charts}.filter(c => c.querySelector('.plot'))"
    assert reader.js(f"{plots}.length") > 8
    assert reader.js(f"{plots}.every(c => c.querySelector('details.data table tbody tr'))")
    assert reader.js("Array.from(document.querySelectorAll('.plot')).every(p => p.ariaLabel.length > 40)")
    ids = reader.js("Array.from(document.querySelectorAll('[id]')).map(e => e.id)")
    assert len(ids) == len(set(ids))


def test_the_first_screen_is_the_verdict_and_the_picture(reader: Reader) -> None:
    verdict = reader.js("document.querySelector('.verdict').textContent")
    assert json.loads((EXAMPLES / "compare.json").read_text())["verdict"][0] in verdict
    assert reader.js("document.querySelector('#boundary-0 .plot').getBoundingClientRect().bottom + scrollY") < 900
    head = reader.js("Array.from(document.querySelectorAll('#boundary > .wide thead th')).map(t => t.textContent)")
    assert head[:3] == ["model", "final loss", "verdict"]


def test_the_nearest_point_is_named(reader: Reader) -> None:
    reader.js("document.getElementById('boundary-0').scrollIntoView()")
    found = reader.js(
        """(() => {
          const svg = document.querySelector('#boundary-0 .plot div > svg');
          const series = svg.querySelector('.series');
          const [x, y] = series.dataset.points.split(' ').at(-1).split(',').map(Number);
          const box = svg.getBoundingClientRect(), scale = box.width / svg.viewBox.baseVal.width;
          const at = { clientX: box.left + x * scale + 3, clientY: box.top + y * scale + 3, bubbles: true };
          svg.dispatchEvent(new PointerEvent('pointermove', at));
          return [document.getElementById('point').textContent, series.dataset.tips.split('|').at(-1)];
        })()"""
    )
    assert found[1] in found[0]


def test_no_error_and_nothing_from_outside(reader: Reader, page: Path) -> None:
    assert reader.console == []
    assert reader.requests == []
    assert browser.outside(re.sub(r"<script>.*?</script>", "", page.read_text(), flags=re.DOTALL)) == []
    assert page.stat().st_size < 600_000


def test_what_would_come_from_outside_is_seen(page: Path, tmp_path: Path) -> None:
    """The control of the test above, and of the content security policy."""
    broken = tmp_path / "broken.html"
    text = re.sub(r"<script>.*?</script>", "", page.read_text(), flags=re.DOTALL)  # a small page loads at once
    text = text.replace("</main>", '<img src="https://example.org/a.png"></main>')
    broken.write_text(text.replace("</body>", "<script>nowhere.at.all</script></body>"))
    with Reader(broken, tmp_path / "profile") as opened:
        said = "\n".join(opened.console)
    assert "Content Security Policy" in said
    assert "nowhere is not defined" in said


def test_by_keyboard(reader: Reader) -> None:
    reader.js("document.activeElement.blur(), scrollTo(0, 0)")
    reader.press(*TAB)
    assert reader.js("document.activeElement.className") == "skip"
    seen = []
    while reader.press(*TAB) or (reader.js("document.activeElement !== document.body") and len(seen) < 200):
        seen.append(
            reader.js(
                "(e => [e.id || e.className || e.tagName, getComputedStyle(e).outlineStyle, e.closest('section')?.id])"
                "(document.activeElement)"
            )
        )
    assert {outline for _, outline, _ in seen} <= {"solid", "auto"}, [s for s in seen if s[1] == "none"]
    assert seen[0][0] == "theme"
    assert {section for _, _, section in seen} >= set(SECTIONS) - {"samples"}  # text only
    assert {name for name, _, _ in seen} >= {"routing-0-layer", "layer", "SUMMARY"}
    reader.js("document.getElementById('routing-0-layer').focus()")
    cells = "Array.from(document.querySelectorAll('#routing-0 table.heat td[style]')).map(c => c.textContent).join()"
    before = reader.js(cells)
    reader.press(*LEFT)
    assert reader.js("document.querySelector('#routing-0 output').textContent") == "layer 1"
    assert reader.js(cells) != before
    reader.press(*RIGHT)
    reader.js("document.querySelector('#sweep summary').focus()")
    reader.press(*ENTER)
    assert reader.js("document.querySelector('#sweep details').open")


def test_dark_by_preference_and_by_button(page: Path, tmp_path: Path) -> None:
    with Reader(page, tmp_path, width=390, dark=True) as opened:
        paper = "getComputedStyle(document.body).backgroundColor"
        text = "getComputedStyle(document.querySelector('#losses .plot text')).fill"
        dark, dark_text = opened.js(paper), opened.js(text)
        assert opened.js("document.getElementById('theme').ariaPressed") == "true"
        opened.js("document.getElementById('theme').click()")
        light, light_text = opened.js(paper), opened.js(text)
        assert opened.console == []
    assert _lightness(dark) < 40 < 200 < _lightness(light)
    assert _lightness(dark_text) > 120 > _lightness(light_text)


OPEN = "document.querySelectorAll('details').forEach(d => { d.open = true; })"


def test_nothing_is_wider_than_a_telephone(page: Path, tmp_path: Path) -> None:
    """With all details open; what is wide scrolls inside, and a chart's letters stay legible."""
    with Reader(page, tmp_path, width=390) as opened:
        opened.js(OPEN)
        assert opened.js("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        small = """Array.from(document.querySelectorAll('.plot div > svg')).filter(s => s.clientWidth)
            .map(s => 12 * s.clientWidth / s.viewBox.baseVal.width)"""
        assert min(opened.js(small)) > 9.5, "pixels of a letter"
        assert opened.js(
            "Array.from(document.querySelectorAll('#routing-0 .wide')).every(w => w.scrollWidth <= w.clientWidth)"
        )
        wide = "Array.from(document.querySelectorAll('table')).filter(t => !t.closest('.wide') && t.scrollWidth > 390)"
        assert opened.js(f"{wide}.length") == 0


# The contrast of every visible text with what it stands on, in the page's own colours.
CONTRAST = """(() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  function rgba(colour) {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return Array.from(canvas.getImageData(0, 0, 1, 1).data);
  }
  const linear = (v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const luminance = (c) => c.slice(0, 3).map(v => linear(v / 255))
    .reduce((sum, v, at) => sum + v * [.2126, .7152, .0722][at], 0);
  function ground(element) {
    for (let e = element; e; e = e.parentElement) {
      const found = rgba(getComputedStyle(e).backgroundColor);
      if (found[3] > 250) return found;
    }
    return rgba('white');
  }
  const bad = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = Array.from(e.childNodes).some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length || e.closest('script, style, noscript')) continue;
    const look = getComputedStyle(e), text = rgba(e.closest('svg') ? look.fill : look.color);
    const [a, b] = [luminance(text), luminance(ground(e))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) bad.push([e.outerHTML.slice(0, 80), text, ground(e)]);
  }
  return bad;
})()"""


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_is_legible_in_light_and_dark(page: Path, tmp_path: Path, dark: bool) -> None:
    with Reader(page, tmp_path, dark=dark) as opened:
        opened.js(OPEN)
        assert opened.js(CONTRAST) == []
        opened.js(
            "document.querySelector('.headline').style.color = dark ? '#333' : '#ccc'".replace(
                "dark", str(dark).lower()
            )
        )
        assert opened.js(CONTRAST), "the control"


def _lightness(colour: str) -> float:
    return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3


def test_text_cannot_break_the_page(reader: Reader, page: Path) -> None:
    assert reader.js("document.querySelectorAll('main b').length") == reader.js(
        "document.querySelectorAll('.checks b').length"
    )
    assert reader.js("document.querySelectorAll('main i:not(.w)').length") == 0
    assert "</script⁄>" not in page.read_text()
    assert "dense, <b>same</b> tokens" in reader.js("document.querySelector('#boundary .plot').textContent")
    rows = "Array.from(document.querySelectorAll('#routing-0 tbody th')).map(t => t.textContent)"
    assert "<i>web</i></script>" in reader.js(rows)
    assert "Once <b>upon" in reader.js("document.getElementById('samples').textContent")
    assert "/home/somebody" not in page.read_text()


def test_samples_of_all_models_are_side_by_side(reader: Reader) -> None:
    said = (
        "Array.from(document.querySelectorAll('#samples .side div')).map(d => [d.children[0].textContent, d.offsetTop])"
    )
    (first, top), (second, other) = reader.js(said)
    assert (first, second) == ("dense", "trained")
    assert top == other


def test_ten_seconds(folder: Path) -> None:
    wins, made, costs = answers(find([folder]))
    assert made.headline == "4 experts, top-2"
    assert "verified, 2 of 2 checks" in made.sentence
    assert made.tone == "good"
    assert costs.headline == "1.6 M of 4.8 M"
    verdict = json.loads((EXAMPLES / "compare.json").read_text())["verdict"][0]
    assert (wins.headline, wins.sentence, wins.tone) == ("The MoE is better", verdict, "good")


def test_a_defeat_is_called_one(tmp_path: Path) -> None:
    values = json.loads((EXAMPLES / "compare.json").read_text())
    pairs = [pair for pair in values["pairs"] if (pair["first"], pair["second"]) == ("moe", "dense")]
    for pair in pairs:
        pair["loss"] |= {"value": 0.1, "documents": {"low": 0.05, "high": 0.15}}
    values["verdict"][0] = "dense beats moe."
    (tmp_path / "compare.json").write_text(json.dumps(values))
    wins = answers(find([tmp_path]))[0]
    assert (wins.headline, wins.sentence, wins.tone) == ("The dense model is better", "dense beats moe.", "bad")
    for pair in pairs:
        pair["loss"]["p"] = 0.5
    (tmp_path / "compare.json").write_text(json.dumps(values))
    assert answers(find([tmp_path]))[0].headline == "No difference beyond chance"


def _boundary_of(tmp_path: Path, folder: Path, **differences: tuple[float, float]) -> Overview:
    """The boundary of the example with these differences from the reference, in nats per token."""
    values = json.loads((folder / "boundary" / "report.json").read_text())
    row = values["after"].pop("MoE")
    for name, (low, high) in differences.items():
        gap = {"value": (low + high) / 2, "low": low, "high": high}
        values["after"][name] = row | {"final": 3.1 + gap["value"], "difference": gap}
    (tmp_path / "boundary").mkdir()
    (tmp_path / "boundary" / "report.json").write_text(json.dumps(values))
    return find([tmp_path])


def test_each_compared_run_has_its_verdict(tmp_path: Path, folder: Path) -> None:
    found = _boundary_of(tmp_path, folder, one=(-0.06, -0.04), two=(-0.03, 0.01), three=(0.01, 0.02))
    wins = answers(found)[0]
    assert wins.headline == "one is better than dense, <b>same</b> tokens"
    assert "two shows no difference; three is worse." in wins.sentence


def test_a_difference_inside_its_interval_is_no_finding(tmp_path: Path, folder: Path) -> None:
    """A run that ends lower, by less than chance, is nowhere called better."""
    found = _boundary_of(tmp_path, folder, one=(-0.06, 0.01))
    wins = answers(found)[0]
    assert wins.headline == "No difference beyond chance between one and dense, <b>same</b> tokens"
    assert wins.tone == "open"
    text, page = markdown(found, "null"), next(part.html for part in sections(found) if part.name == "boundary")
    for shown, cell in ((text, "| {} |"), (page, "<td>{}</td>")):
        assert cell.format("no difference seen") in shown
        assert cell.format("better") not in shown
        assert "better than" not in shown


def _losses_of(found: Overview) -> str:
    return next(part.html for part in sections(found) if part.name == "losses")


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"source": "cd" * 32}, "no common ancestor is on record"),
        ({"text": "another text"}, "they were measured on other held-out text"),
    ],
)
def test_runs_that_do_not_belong_together_are_not_compared(tmp_path: Path, other: dict[str, str], reason: str) -> None:
    write_run(tmp_path / "one")
    write_run(tmp_path / "two", seed=1)
    found = find([tmp_path])
    assert [[run.label for run in group] for group in found.groups] == [["one", "two"]]
    assert "above the lowest one here" in _losses_of(found)
    write_run(tmp_path / "three", seed=2, **other)
    found = find([tmp_path])
    assert [[run.label for run in group] for group in found.groups] == [["one", "two"], ["three"]]
    losses = _losses_of(found)
    assert f"three: {reason}." in losses
    assert "Final held-out loss: one, two<" in losses
    training = next(part.html for part in sections(found) if part.name == "training")
    assert training.count("Loss over training</h3>") == 2


def test_the_summary_says_what_runs_of_one_base_were_measured_at(tmp_path: Path) -> None:
    for seed, (name, nll) in enumerate({"one": 93.0, "two": 90.0}.items()):
        write_run(tmp_path / name, seed=seed)
        file = tmp_path / name / "held_out.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"nll": [nll] * 30}))
    wins = answers(find([tmp_path]))[0]
    assert wins.headline == "two ends below one"
    assert "after 123 K and 123 K training tokens, one minus two: " in wins.sentence
    assert "+0.1000 nats per token, 95% interval [+0.1000, +0.1000] over 30 documents" in wins.sentence
    model = write_model(tmp_path / "stranger", **upcycled() | {"sources": {}})
    assert answers(find([tmp_path]))[0].headline == "Not compared with a dense model"  # of that model
    assert model.is_dir()


def test_an_moe_is_measured_by_the_dense_model_that_it_was_made_of(tmp_path: Path) -> None:
    """Not by whatever dense model is in the folder: that once made "3.72 times" of 1.65."""
    stranger = write_dense(tmp_path / "a-stranger", width=4)
    moe = write_model(tmp_path / "moe", **upcycled())
    costs = answers(find([tmp_path]))[2].sentence
    assert "times" not in costs
    assert "no dense model here is its recorded source" in costs
    own = write_dense(tmp_path / "b-own", width=16)
    record = json.loads((moe / "smolmoe.json").read_text())
    record["sources"]["base"]["sha256"] = fingerprint(open_checkpoint(own))
    (moe / "smolmoe.json").write_text(json.dumps(record))
    found = find([tmp_path])
    assert f"{1_600_000 / 64:.2f} times those of b-own, the dense model it was made from" in answers(found)[2].sentence
    command = next(part.command for part in sections(found) if part.name == "comparison")
    assert str(own) in command
    assert str(stranger) not in command


def write_dense(folder: Path, width: int) -> Path:
    write_model(folder, stage="train")
    save_file({"model.embed_tokens.weight": torch.zeros(4, width)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    return folder


def test_a_comparison_of_other_models_is_no_answer(tmp_path: Path, folder: Path) -> None:
    stranger = write_model(tmp_path / "stranger", **upcycled() | {"sources": {}})
    wins = answers(find([stranger, folder / "compare"]))[0]
    assert wins.headline == "Not compared with a dense model"
    assert wins.sentence.startswith("The comparisons below are of other models.")


def test_without_a_report_stage_the_conversion_is_found_by_hashes(tmp_path: Path) -> None:
    """A dense run, the MoE made of its model, two trainings of it in a row, and the dense model trained on."""

    def trained(name: str, seed: int, source: Path | None, width: int) -> Path:
        run = write_run(tmp_path / name, seed=seed)
        record: dict[str, Any] = {"stage": "train"}
        if source is not None:
            record["source"] = {"folder": source.name, "sha256": fingerprint(open_checkpoint(source))}
        write_dense(run / "model", width=width)
        (run / "model" / "smolmoe.json").write_text(json.dumps({"schema_version": 1, **record}))
        return run

    dense = trained("dense", 1, None, 4)
    dense_hash = fingerprint(open_checkpoint(dense / "model"))
    moe = write_model(tmp_path / "moe", **upcycled() | {"sources": {"base": {"name": "dense", "sha256": dense_hash}}})
    first = trained("stage-a", 2, moe, 12)
    trained("stage-b", 3, first / "model", 16)
    trained("dense-on", 4, dense / "model", 20)
    (found,) = find([tmp_path]).boundaries
    starts = {name: points[0][0] for name, points in found.curves.items()}
    assert (found.before, found.at) == ("dense", 122_880)
    assert starts == {"dense": 0, "stage-a": 122_880, "stage-b": 245_760, "dense-on": 122_880}
    assert found.by_flops["stage-b"][0][0] == found.by_flops["stage-a"][-1][0] == 1e12
    page = tmp_path / "report.html"
    assert re.findall(r'<section id="(\w+)"', report([tmp_path], page) and page.read_text())[0] == "boundary"


def test_a_summary_to_paste(folder: Path, tmp_path: Path) -> None:
    made = report([folder], markdown=tmp_path / "notes" / "summary.md", png=tmp_path / "summary.png")
    text = (tmp_path / "notes" / "summary.md").read_text()
    assert text == made.markdown
    assert "](<../summary.png>)" in text
    assert (tmp_path / "summary.png").read_bytes().startswith(b"\x89PNG")
    html = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    assert html.count("<table>") == 2
    assert re.findall("<th>([^<]*)</th>", html)[:3] == ["model", "final loss", "verdict"]
    shown = re.sub("<[^>]+>", "", html)
    assert "dense, &lt;b&gt;same&lt;/b&gt; tokens" in shown
    assert "&lt;i&gt;web&lt;/i&gt;" in shown
    for question in ("What the experts do", "How sure this is", "What is not there"):
        assert f"{question}: " in shown
    report([folder], markdown=tmp_path / "notes" / "summary.md", png=tmp_path / "summary.png")  # files of ours
    (tmp_path / "summary.png").write_bytes(b"a photograph")
    with pytest.raises(OutputError, match="another file is there"):
        report([folder], png=tmp_path / "summary.png")
    with pytest.raises(RequestError, match="no output is named"):
        report([folder])
    with pytest.raises(RequestError, match="no conversion and no probe"):
        report([folder / "compare"], png=tmp_path / "new.png")


def test_records_and_the_points_of_a_sweep_are_no_runs(tmp_path: Path) -> None:
    (tmp_path / "line" / "stages").mkdir(parents=True)
    (tmp_path / "line" / "stages" / "probe.json").write_text("{}")  # the record of a stage of that name
    write_run(tmp_path / "line" / ".trial")
    write_run(tmp_path / "line" / "dense")
    write_run(tmp_path / "sweep" / "seed-0" / "trunk-1000")
    write_run(tmp_path / "sweep" / "seed-0" / "tokens-2000")
    found = find([tmp_path])
    assert [run.label for run in found.trainings] == ["line/dense"]
    assert not found.probes


def test_one_thing_has_one_name_and_one_colour(tmp_path: Path) -> None:
    write_run(tmp_path / "dense-long", experts=0, seed=1)
    write_run(tmp_path / "moe-long", seed=2)
    row = {"losses": {"0": 3.2, "9": 3.1}, "final": 3.1, "tokens": 9, "flops": 1e9}
    rows: dict[str, Any] = {name: dict(row) for name in ("A, b", "MoE")}
    report = {
        "documents": 30,
        "held_out_tokens": 900,
        "before": None,
        "after": rows,
        "boundary": 0,
        "reference": "A, b",
    }
    rows["MoE"]["difference"] = {"value": -0.1, "low": -0.2, "high": -0.05}
    (tmp_path / "growth").mkdir()
    runs = {"A, b": "dense-long", "MoE": "moe-long"}
    (tmp_path / "growth" / "report.json").write_text(json.dumps(report | {"runs": runs, "reference": "A, b"}))
    values = json.loads((EXAMPLES / "compare.json").read_text())
    for model, name in zip(values["models"], ("dense-long", "moe-long"), strict=False):
        model["checkpoints"][0]["path"] = f"../{name}"
    (tmp_path / "compare").mkdir()
    (tmp_path / "compare" / "compare.json").write_text(json.dumps(values))
    found = find([tmp_path])
    assert list(found.boundaries[0].curves) == ["dense-long", "moe-long"]
    _, said = found.comparisons[0]
    assert [model.name for model in said.models] == ["dense-long", "moe-long", "moe"]
    assert any("dense-long" in sentence for sentence in said.verdict)
    assert not any(re.search(r"\bbase\b", sentence) for sentence in said.verdict[:2])
    colours: dict[str, set[str]] = {}
    for part in sections(found):
        for look, name in re.findall(r'<g class="series" style="--c:([^"]*)" data-name="([^"]*)"', part.html):
            if name in ("dense-long", "moe-long"):
                colours.setdefault(name, set()).add(look)
    assert {name: len(looks) for name, looks in colours.items()} == {"dense-long": 1, "moe-long": 1}
    assert colours["dense-long"] != colours["moe-long"]
    picture = {one.name: one.place for panel in summary_figure(found).panels for one in getattr(panel, "series", ())}
    assert {name: {colour(place)} for name, place in picture.items()} == colours


def test_the_router_of_a_probe_has_the_colour_of_its_model(tmp_path: Path) -> None:
    write_dense(tmp_path / "dense", width=4)
    write_model(tmp_path / "moe", **upcycled())
    probe = make_probe(experts=4, layers=3, length=4)
    probe["model"]["folder"] = "moe"
    for name in ("probe", "again"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "probe.json").write_text(json.dumps(probe))
    found = find([tmp_path])
    page = next(part.html for part in sections(found) if part.name == "details")
    looks = set(re.findall(r'style="--c:([^"]*)" data-name="router"', page))
    assert looks == {colour(found.looks("moe"))} != {colour(found.looks("dense"))}


def test_page_and_pictures_have_the_same_colours() -> None:
    css = asset("page.css")
    for place, found in enumerate(COLOURS, start=1):
        assert f"--c{place}: light-dark({found}," in css


def test_what_is_missing_is_said_with_its_command(tmp_path: Path) -> None:
    write_model(tmp_path / "moe", **upcycled())
    write_run(tmp_path / "trained", finished=False)
    page = tmp_path / "report.html"
    found = report([tmp_path], page).found
    missing = {part.name: part.command for part in sections(found) if not part.html}
    assert set(missing) == set(SECTIONS) - {"claim", "training", "balance", "provenance"}
    text = page.read_text()
    assert f"smolmoe probe {tmp_path}/moe --data TAGGED.jsonl --out DIR" in text
    assert all(f'href="#{name}"' not in text for name in missing)
    assert "Not finished: trained." in text
    assert answers(found)[0].headline == "Not compared with a dense model"


def test_foreign_folders_and_schemas_are_refused(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    with pytest.raises(DataError, match="no such folder"):
        report([tmp_path / "nowhere"], page)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.json").write_text("{}")
    with pytest.raises(DataError, match="holds nothing that a report shows"):
        report([tmp_path / "foreign"], page)
    with pytest.raises(DataError, match="holds nothing that a report shows"):
        report([tmp_path / "foreign" / "notes.json"], page)
    write_model(tmp_path / "newer", schema_version=2)
    with pytest.raises(CheckpointError, match=r"is of schema 2; this smolmoe \([\w.]+\) reads schema 1"):
        report([tmp_path / "newer"], page)
    run = write_run(tmp_path / "run")
    (run / "run.json").write_text(json.dumps({"schema_version": 0, "recipe": {}}))
    with pytest.raises(CheckpointError, match="is of schema 0"):
        report([run], page)
    values = json.loads((EXAMPLES / "compare.json").read_text()) | {"schema_version": 7}
    (tmp_path / "compare.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="is of schema 7"):
        report([tmp_path / "compare.json"], page)
    assert not page.exists()


def test_another_file_is_kept(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("<h1>mine</h1>")
    with pytest.raises(OutputError, match="another file is there"):
        report([folder], page)
    assert page.read_text() == "<h1>mine</h1>"
    report([folder], page, overwrite=True)
    report([folder], page)  # an earlier page of ours
    with pytest.raises(OutputError, match="is a folder"):
        report([folder], tmp_path)


def test_numbers_and_lines_keep_what_matters() -> None:
    assert [show(value) for value in (None, float("nan"), 0.0, 12, 1e-9, True)] == [
        "–",
        "–",
        "0.0000",
        "12",
        "1e-09",
        "yes",
    ]
    points = [(float(x), 0.0) for x in range(1001)]
    assert len(thinned(points)) <= 241
    assert thinned(points)[-1] == points[-1]
