"""The page on the experts: in a real browser, offline, whole, escaped, and with what was measured and no more."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest
from probe_json import interval, make_probe, probed, write_metrics, write_probe

from smolmoe.errors import DataError, OutputError, RequestError
from smolmoe.reports.probe_page import write_page
from smolmoe.reports.probe_sentences import sentences
from smolmoe.reports.tokens import COLOURS, UNDERLINES, script_json, visible
from smolmoe.results.probe import ProbeResult

ALWAYS = {"routing", "token-types", "separation", "accuracy", "accuracy-domains", "load", "similarity"} | {
    "similarity-layers"
}
TRAINING = {"training-loss", "training-domains", "training-terms", "training-balance"}
ALL = ALWAYS | TRAINING | {"coactivation", "losses", "saturation"}
SMALL: dict[str, Any] = {"experts": 4, "layers": 3, "length": 24}
HOSTILE = ("<b>a&b</b>", "$x_1$ </script>")
# What a reader does: drags the slider to the first layer, goes to the first token, one on with the arrow key, away from
# it, and points at another one.
READER = """<script>
(function () {
  const slider = document.getElementById("layer");
  slider.value = "0";
  slider.dispatchEvent(new Event("input", { bubbles: true }));
  const first = document.querySelector(".text .t");
  first.focus();
  document.body.dataset.tip = document.getElementById("tip").textContent;
  first.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
  document.body.dataset.focused = document.activeElement.dataset.at;
  document.activeElement.blur();
  document.body.dataset.hidden = String(document.getElementById("tip").hidden);
  const over = document.querySelectorAll(".text .t")[5];
  over.dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
  document.body.dataset.hover = String(!document.getElementById("tip").hidden);
})();
</script></body>"""


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a page with all that there can be, before and after, with runs."""
    root = tmp_path_factory.mktemp("full")
    after = write_probe(root / "after", **SMALL)
    before = write_probe(root / "before", **SMALL, sharpness=0.1, seed=1)
    sizes = {"layers": 3, "experts": 4}
    runs = {"stage A": write_metrics(root / "a", **sizes), "dense": write_metrics(root / "d", layers=3, experts=0)}
    write_page(root / "page", after, before=before, runs=runs)
    return root / "page"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of the least that there can be, with text that tries to break it, over an earlier page of ours."""
    folder = tmp_path_factory.mktemp("plain")
    probe = make_probe(HOSTILE, nulls=True, names=False, top_k=1, experts=2, layers=2, length=5)
    probe["text"][0]["tokens"][0] = "</script><script>document.body.id='broken'</script>"
    (folder / "probe.json").write_text(json.dumps(probe))
    (folder / "index.html").write_text('<meta name="generator" content="smolmoe">an earlier page')
    return write_page(folder, folder / "probe.json")


@pytest.fixture(scope="module")
def loaded(full: Path, tmp_path_factory: pytest.TempPathFactory) -> browser.Loaded:
    """The page as a reader leaves it."""
    root = tmp_path_factory.mktemp("browser")
    page = root / "index.html"
    page.write_text((full / "index.html").read_text(encoding="utf-8").replace("</body>", READER), encoding="utf-8")
    return browser.load(page, root / "profile")


def test_the_probe_of_these_tests_is_what_a_probe_writes() -> None:
    for options in ({}, {"nulls": True, "names": False, "top_k": 1}):
        assert ProbeResult.from_json(make_probe(**SMALL, **options)).domains == ["math", "code", "web"]


def test_a_browser_finds_every_figure(loaded: browser.Loaded) -> None:
    figures = {attributes["id"] for tag, attributes in loaded.elements if tag == "figure" and "id" in attributes}
    assert figures == ALL
    assert len(loaded.ids) == len(set(loaded.ids)), "an id is there twice"
    shown = [attributes for tag, attributes in loaded.elements if attributes.get("role") == "img"]
    assert len(shown) > 10
    assert all(len(attributes["aria-label"]) > 40 for attributes in shown)


def test_the_matrix_and_three_sentences_come_first(loaded: browser.Loaded) -> None:
    assert order(loaded.dom)[0] == "routing"
    sections = [attributes["id"] for tag, attributes in loaded.elements if tag == "section"]
    assert sections == ["experts", "tokens", "details"]
    first = loaded.dom[loaded.dom.index('id="experts"') : loaded.dom.index('id="tokens"')]
    assert re.findall(r"<dt>([^<]*)</dt>", first) == ["What the experts do", "How sure this is", "What is not there"]


def without_scripts(page: Path) -> str:
    return re.sub(r"<script>.*?</script>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def order(page: str) -> list[str]:
    """Names of the figures as they come."""
    return re.findall(r'<figure class="chart" id="([^"]+)"', page)


def test_no_error_and_nothing_from_outside(loaded: browser.Loaded, full: Path) -> None:
    assert loaded.console == []
    assert browser.outside(without_scripts(full / "index.html")) == []


def test_what_would_come_from_outside_is_seen(full: Path, tmp_path: Path) -> None:
    """The control of the test above."""
    page = tmp_path / "index.html"
    text = without_scripts(full / "index.html")
    broken = '<img src="https://example.org/a.png"><script>nowhere.at.all</script></body>'
    page.write_text(text.replace("</body>", broken), encoding="utf-8")
    assert browser.outside(page.read_text(encoding="utf-8")) == ["https://example.org/a.png"]
    console = "\n".join(browser.load(page, tmp_path / "profile").console)
    assert "Content Security Policy" in console
    assert "nowhere is not defined" in console


def test_the_script_colours_the_tokens_of_the_chosen_layer(loaded: browser.Loaded) -> None:
    view = next(attributes for _, attributes in loaded.elements if attributes.get("id") == "token-view")
    assert view["data-ready"] == "true"
    assert view["data-layer"] == "0"
    experts = [token[0] for part in make_probe(**SMALL)["text"] for token in part["experts"][0]]
    tokens = [attributes["class"] for _, attributes in loaded.elements if "data-at" in attributes]
    assert tokens == [f"t e{expert}" for expert in experts]
    subs = re.findall(r'data-at="\d+"[^>]*>.*?<sub>(\d+)</sub>', loaded.dom, flags=re.DOTALL)
    assert subs == [str(expert) for expert in experts]


def test_every_layer_is_in_the_tip_by_keyboard_and_by_mouse(loaded: browser.Loaded) -> None:
    body = next(attributes for tag, attributes in loaded.elements if tag == "body")
    part = make_probe(**SMALL)["text"][0]
    names = make_probe(**SMALL)["model"]["names"]
    for layer in range(3):
        chosen = zip(part["experts"][layer][0], part["gates"][layer][0], strict=True)
        row = str(layer) + "".join(
            f"{expert} {names[expert] or ''}".rstrip() + f" {gate:.2f}" for expert, gate in chosen
        )
        assert row in body["data-tip"]
    assert body["data-focused"] == "1"
    assert body["data-hidden"] == "true"
    assert body["data-hover"] == "true"


def test_tokens_can_be_read_without_the_script_and_without_colour(full: Path) -> None:
    """The layer with the highest separation is shown at first; the expert's number stands at each token."""
    page = (full / "index.html").read_text(encoding="utf-8")
    part = make_probe(**SMALL)["text"][0]
    expert = part["experts"][2][0][0]
    assert f'<span class="t e{expert}" tabindex="0" data-at="0">Solve<sub>{expert}</sub></span>' in page
    looks = {(COLOURS[e % len(COLOURS)], UNDERLINES[e % len(UNDERLINES)]) for e in range(40)}
    assert len(looks) == 40


def test_text_cannot_break_the_page(plain: Path, tmp_path: Path) -> None:
    loaded = browser.load(plain, tmp_path)
    assert loaded.console == []
    assert "broken" not in loaded.ids
    assert not [tag for tag, _ in loaded.elements if tag == "b"]
    assert html.escape(HOSTILE[0]) in loaded.dom


def test_a_missing_browser_is_no_success_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no browser"):
        browser.chromium()
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="no browser"):
        browser.chromium()


@pytest.mark.parametrize("folder", ["runs/maths", "runs/maths/model"])
def test_a_model_is_called_as_its_run(folder: str, tmp_path: Path) -> None:
    probe = make_probe()
    probe["model"]["folder"] = folder
    (tmp_path / "probe.json").write_text(json.dumps(probe))
    assert "What the experts of maths do" in write_page(tmp_path / "page", tmp_path).read_text()


def test_white_space_is_seen() -> None:
    assert visible(" a") == '<i class="w">·</i>a'
    assert visible("\n\t") == '<i class="w">↵</i><i class="w">⇥</i>'
    assert visible("<\x07") == '&lt;<i class="w">0x7</i>'
    assert json.loads(script_json({"a": "</script><!--&"})) == {"a": "</script><!--&"}
    assert "<" not in script_json("</script>")


def test_a_picture_of_every_figure_lies_beside_the_page(full: Path) -> None:
    assert {path.stem for path in full.glob("*.png")} == ALL
    for path in full.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG"), path
        assert path.stat().st_size > 8_000, path
    assert not list(full.glob(".*"))
    linked = set(re.findall(r'href="([^"#]+\.png)"', (full / "index.html").read_text(encoding="utf-8")))
    assert linked == {f"{name}.png" for name in ALL}


def said(probe: dict[str, Any]) -> list[str]:
    return [sentence.text for sentence in sentences(probed(probe))]


def test_the_sentences_say_what_was_measured(full: Path) -> None:
    text = html.unescape(re.sub(r"<[^>]+>", "", (full / "index.html").read_text(encoding="utf-8")))
    probe = make_probe(**SMALL)
    last = probe["last_third"]
    ends = ", ".join(f"{100 * last['interval'][end]:.1f}%" for end in ("low", "high"))
    assert f"gives away the domain of {100 * last['accuracy']:.1f}% of held-out tokens [{ends}], more than the" in text
    gap = 100 * (last["ceiling"] - last["accuracy"])
    shown = f"the router is below it, −{gap:.1f} points [−{gap + 2:.1f}, −{gap - 2:.1f}] over 90 documents"
    assert f"a linear probe on the same input reaches {100 * last['ceiling']:.1f}% ({shown})" in text
    assert f"(layer 2: {probe['layers'][2]['separation']:.2f} bits against 0.02)" in text
    assert "Dead experts, which no token reached: 1 at layer 1." in text
    assert probe["losses"]["summary"][0] in text
    assert probe["losses"]["flags"][0] in text


def chance(probe: dict[str, Any], room: float) -> dict[str, Any]:
    """The probe with shares by chance from 0.25 - room to 0.25 + room."""
    ends = {"low": 0.25 - room, "high": 0.25 + room}
    shape = np.array(probe["matrix"]).shape
    return probe | {"matrix_chance": {name: np.full(shape, end).tolist() for name, end in ends.items()}}


def test_shares_beyond_chance_are_named_and_framed(tmp_path: Path) -> None:
    probe = chance(make_probe(**SMALL), 0.1)
    values = np.array(probe["matrix"])
    count = int((abs(values - 0.25) > 0.1).sum())
    share, domain, expert = max((values[2][d][e], d, e) for d in range(3) for e in range(4))
    first = said(probe)[0]
    label = ["0 math", "1 code", "2 web", "3"][expert]
    where = f"{100 * share:.0f}% of {probe['domains'][domain]} (shuffled domains: 15–35%)"
    assert first.startswith(f"At layer 2, expert {label} takes {where}")
    assert f"{count} of {values.size} shares are beyond chance" in first
    (tmp_path / "probe.json").write_text(json.dumps(probe))
    page = write_page(tmp_path / "page", tmp_path).read_text()
    found = re.findall(r'<td class="(found|chance)" style="--v:\d+">', page[: page.index('id="tokens"')])
    assert found.count("found") == int((abs(values[2] - 0.25) > 0.1).sum())
    assert len(found) == values[2].size


def test_noise_is_no_finding(tmp_path: Path) -> None:
    """A probe in which all is within its range of chance: nothing is claimed, nothing is framed."""
    probe = chance(make_probe(**SMALL), 0.8)
    for row in probe["layers"]:
        row["separation_baseline"]["p95"] = row["mutual_information_baseline"]["p95"] = 0.9
    probe["last_third"] |= {"accuracy": 0.34, "interval": interval(0.34, 0.02)}
    first, second, _ = said(probe)
    assert first.startswith("No expert takes a share of a domain that differs beyond chance in any layer")
    assert "no difference beyond chance from the 33.3% of a guess" in second
    assert "Routing shows no difference beyond chance: 0 of 3 layers" in second
    (tmp_path / "probe.json").write_text(json.dumps(probe))
    assert '<td class="found"' not in write_page(tmp_path / "page", tmp_path).read_text().split('id="tokens"')[0]


@pytest.mark.parametrize(
    ("accuracy", "words"),
    [
        (0.83, "the router is above it, +3.0 points [+1.0, +5.0] over 90 documents"),
        (0.75, "the router is below it, −5.0 points"),
        (0.81, "no difference beyond chance, +1.0 points [−1.0, +3.0] over 90 documents"),
    ],
)
def test_a_router_and_its_ceiling(accuracy: float, words: str) -> None:
    probe = make_probe(**SMALL, nulls=True)
    probe["last_third"] |= {"accuracy": accuracy, "ceiling": 0.8, "interval": interval(accuracy, 0.02)}
    assert words in said(probe)[1]


def test_of_few_documents_and_tokens_nothing_is_found() -> None:
    probe = chance(make_probe(**SMALL), 0.1)
    probe["documents"]["web"] = 4
    probe["accuracy"]["documents"] |= {"code": 3, "web": 2}
    probe["tokens"] = dict.fromkeys(probe["domains"], 8)
    first, second, third = said(probe)
    assert first.startswith("Nothing is claimed: too few documents for a finding (web 4; at least 6 of each domain).")
    assert "No accuracy is claimed: too few documents for a finding (code 3, web 2; at least 6 of each" in second
    assert "chance" not in second
    assert third.startswith("24 tokens are too few to find dead experts among 4.")
    assert not probed(probe).beyond.any()


def test_copies_come_first() -> None:
    probe = make_probe(**SMALL)
    assert "no two experts of a layer are copies" in said(probe)[2].lower()
    probe["similarity"]["output_cosine"] = np.ones((3, 4, 4)).tolist()
    first, _, third = said(probe)
    assert "shares" not in first
    assert first.startswith(
        "In every layer all 4 experts are copies of each other (cosine of their outputs at least 0.99999)"
    )
    assert "copies" not in third


def test_copies_in_one_layer_leave_the_other_layers_their_findings() -> None:
    """And findings of an earlier version on copies are not said twice."""
    probe = make_probe(**SMALL)
    probe["similarity"]["output_cosine"][1] = np.ones((4, 4)).tolist()
    probe["losses"]["flags"] = ["In every layer all 4 experts are copies: no specialisation is claimed for copies."]
    first, _, third = said(probe)
    assert first.startswith("In layer 1 all 4 experts are copies")
    assert "shares are beyond chance" in first
    assert "copies" not in third


def test_a_loss_that_does_not_change_is_not_there() -> None:
    """What the experts do names only domains whose loss without them is higher, beyond its interval."""
    probe = make_probe(**SMALL)
    probe["losses"]["knocked_out_gap"][1] = interval(0.01, 0.02)
    first, _, third = said(probe)
    each = "(+0.3400 [+0.2400, +0.4400], 30 documents)"
    assert f"the loss is higher for math {each} and web {each}." in first
    assert "no difference beyond chance for code (+0.0100 [−0.0100, +0.0300], 30 documents)" in third
    assert "code" not in first.split("the loss is higher")[1]


def test_a_domain_without_experts_of_its_own() -> None:
    probe = make_probe(**SMALL)
    probe["losses"]["own"] = [None, None, None]
    assert "No domain has experts that could be knocked out" in said(probe)[2]


def test_what_was_not_measured_is_left_out(plain: Path) -> None:
    text = plain.read_text(encoding="utf-8")
    assert set(order(text)) == ALWAYS
    assert "The effect on the loss was not measured" in text
    assert "an earlier page" not in text
    assert (plain.parent / "probe.json").is_file()


@pytest.mark.slow
def test_many_experts_and_layers_stay_small(tmp_path: Path) -> None:
    probe = write_probe(tmp_path / "probe", experts=16, layers=12, length=100)
    page = write_page(tmp_path / "out", probe)
    assert page.stat().st_size < 2_000_000


def test_another_page_is_kept(tmp_path: Path) -> None:
    probe = write_probe(tmp_path / "probe", **SMALL)
    (tmp_path / "index.html").write_text("<h1>mine</h1>")
    with pytest.raises(OutputError, match="another page is there"):
        write_page(tmp_path, probe)
    assert (tmp_path / "index.html").read_text() == "<h1>mine</h1>"
    assert not list(tmp_path.glob("*.png"))


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    probe = write_probe(tmp_path / "probe", **SMALL)
    with pytest.raises(DataError, match="cannot be read"):
        write_page(tmp_path / "out", tmp_path / "nowhere")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(DataError, match="is not the result of `smolmoe probe`"):
        write_page(tmp_path / "out", tmp_path / "other.json")
    other = write_probe(tmp_path / "other", experts=8, layers=3)
    with pytest.raises(RequestError, match="other experts"):
        write_page(tmp_path / "out", probe, before=other)
    with pytest.raises(DataError, match="no metrics of a run"):
        write_page(tmp_path / "out", probe, runs={"a": tmp_path})
    assert not (tmp_path / "out").exists()
