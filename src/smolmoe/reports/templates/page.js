// The token view: colours follow the chosen layer; a tip shows every layer's experts and gates of one token.
(function () {
  "use strict";
  const view = document.getElementById("token-view");
  if (!view) return;
  const data = JSON.parse(document.getElementById("token-data").textContent);
  const slider = document.getElementById("layer");
  const now = document.getElementById("layer-now");
  const tip = document.getElementById("tip");
  const tokens = Array.from(view.querySelectorAll(".text .t"));
  const place = (token) => [Number(token.parentElement.dataset.excerpt), Number(token.dataset.at)];

  function show(layer) {
    for (const token of tokens) {
      const [excerpt, at] = place(token);
      const expert = data.text[excerpt].experts[layer][at][0];
      token.className = "t e" + expert;
      token.lastElementChild.textContent = expert;
    }
    slider.value = layer;
    now.textContent = "layer " + data.layers[layer];
    slider.setAttribute("aria-valuetext", now.textContent);
    view.dataset.layer = data.layers[layer];
    hide();
  }

  function cell(row, kind, text) {
    const made = document.createElement(kind);
    made.textContent = text;
    row.appendChild(made);
    return made;
  }

  function fill(token) {
    const [excerpt, at] = place(token);
    const table = document.createElement("table");
    const head = table.createTHead().insertRow();
    cell(head, "th", "layer");
    cell(head, "th", "experts with their gates").colSpan = data.text[excerpt].experts[0][at].length;
    const body = table.createTBody();
    data.layers.forEach(function (name, layer) {
      const row = body.insertRow();
      if (String(name) === view.dataset.layer) row.className = "now";
      cell(row, "th", name);
      data.text[excerpt].experts[layer][at].forEach(function (expert, rank) {
        const gate = data.text[excerpt].gates[layer][at][rank].toFixed(2);
        const chip = document.createElement("span");
        chip.className = "t e" + expert;
        chip.textContent = expert;
        const named = data.names[expert] === null ? " " : " " + data.names[expert] + " ";
        cell(row, "td", "").append(chip, named + gate);
      });
    });
    tip.replaceChildren(table);
  }

  function open(token) {
    fill(token);
    tip.hidden = false;
    token.setAttribute("aria-describedby", "tip");
    const at = token.getBoundingClientRect();
    const size = tip.getBoundingClientRect();
    const left = Math.max(8, Math.min(at.left, document.documentElement.clientWidth - size.width - 8));
    const below = at.bottom + size.height + 12 < window.innerHeight;
    tip.style.left = left + window.scrollX + "px";
    tip.style.top = window.scrollY + (below ? at.bottom + 6 : Math.max(4, at.top - size.height - 6)) + "px";
  }

  function hide() {
    tip.hidden = true;
    for (const token of view.querySelectorAll("[aria-describedby=tip]")) token.removeAttribute("aria-describedby");
  }

  function token(event) {
    return event.target.closest ? event.target.closest(".text .t") : null;
  }

  function step(from, to) {
    if (!to) return;
    from.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  }

  view.addEventListener("mouseover", (event) => (token(event) ? open(token(event)) : hide()));
  view.addEventListener("mouseleave", hide);
  view.addEventListener("focusin", (event) => (token(event) ? open(token(event)) : hide()));
  view.addEventListener("focusout", hide);
  view.addEventListener("keydown", function (event) {
    const here = token(event);
    if (!here) return;
    const all = Array.from(here.parentElement.querySelectorAll(".t"));
    const at = all.indexOf(here);
    const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (event.key === "Escape") hide();
    if (next === undefined) return;
    event.preventDefault();
    step(here, all[next]);
  });
  slider.addEventListener("input", () => show(Number(slider.value)));
  show(Number(slider.defaultValue));
  view.dataset.ready = "true";
})();

// The page: what a point of a chart is, layers on a slider, the theme, commands to copy, the section in view.
(function () {
  "use strict";
  const root = document.documentElement;
  const toggle = document.getElementById("theme");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);

  function themed() {
    toggle.setAttribute("aria-pressed", String(dark()));
  }
  toggle.addEventListener("click", function () {
    root.dataset.theme = dark() ? "light" : "dark";
    themed();
  });
  system.addEventListener("change", themed);

  // The point of a chart that is nearest to the pointer, in the chart's units.
  function nearest(svg, x, y) {
    let best = null;
    for (const series of svg.querySelectorAll(".series[data-points]")) {
      const tips = series.dataset.tips.split("|");
      series.dataset.points.split(" ").forEach(function (pair, place) {
        const [px, py] = pair.split(",").map(Number);
        const far = Math.hypot(px - x, py - y);
        if (!best || far < best.far) best = { far, px, py, series, tip: tips[place] };
      });
    }
    return best && best.far < 40 ? best : null;
  }

  const tip = document.createElement("div");
  tip.id = "point";
  tip.hidden = true;
  document.body.appendChild(tip);

  function point(event) {
    const svg = event.target.closest ? event.target.closest(".plot div > svg:not(.inside)") : null;
    const box = svg && svg.getBoundingClientRect();
    const scale = svg && box.width / svg.viewBox.baseVal.width;
    const found = svg && nearest(svg, (event.clientX - box.left) / scale, (event.clientY - box.top) / scale);
    tip.hidden = !found;
    if (!found) return;
    tip.textContent = (found.series.dataset.name ? found.series.dataset.name + ": " : "") + found.tip;
    tip.style.borderColor = found.series.style.getPropertyValue("--c");
    const left = box.left + found.px * scale, width = tip.getBoundingClientRect().width;
    tip.style.left = Math.max(4, Math.min(left - width / 2, root.clientWidth - width - 4)) + window.scrollX + "px";
    tip.style.top = box.top + found.py * scale - 38 + window.scrollY + "px";
  }
  document.addEventListener("pointermove", point);
  document.addEventListener("pointerdown", point);

  for (const figure of document.querySelectorAll(".chart")) {
    const slider = figure.querySelector("input[type=range]");
    if (!slider) continue;
    const spec = JSON.parse(figure.querySelector(".slides").textContent);
    const tables = figure.querySelectorAll("table.heat");
    slider.addEventListener("input", function () {
      const layer = Number(slider.value);
      figure.querySelector("output").textContent = spec.layers[layer];
      slider.setAttribute("aria-valuetext", spec.layers[layer]);
      tables.forEach((table, panel) =>
        table.querySelectorAll("td").forEach(function (cell, at) {
          const [shade, text, look] = spec.panels[panel][layer][at];
          cell.style.setProperty("--v", shade || 0);
          cell.textContent = text;
          cell.className = look;
        }));
    });
  }

  for (const button of document.querySelectorAll(".copy"))
    button.addEventListener("click", async function () {
      const code = button.parentElement.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
      } catch (error) {
        const range = document.createRange();
        range.selectNodeContents(code);
        getSelection().removeAllRanges();
        getSelection().addRange(range);
        document.execCommand("copy");
      }
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });

  const links = new Map(Array.from(document.querySelectorAll("nav a")).map((a) => [a.hash.slice(1), a]));
  const seen = new IntersectionObserver(function (entries) {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      links.forEach((a) => a.classList.remove("here"));
      const link = links.get(entry.target.id);
      if (link) link.classList.add("here");
    }
  }, { rootMargin: "0px 0px -75% 0px" });
  document.querySelectorAll("main > section").forEach((part) => seen.observe(part));

  themed();
  document.body.dataset.ready = "true";
})();
