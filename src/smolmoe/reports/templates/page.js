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

// The report: figures drawn by plotly in the page's colours, light and dark, layers on a slider, commands copied.
(function () {
  "use strict";
  const root = document.documentElement;
  const toggle = document.getElementById("theme");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const probe = document.createElement("span");
  probe.hidden = true;
  document.body.appendChild(probe);

  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);

  // "@2" is the second colour of the page, "@2/0.15" the same with an opacity.
  function colour(name) {
    const [key, opacity] = name.slice(1).split("/");
    probe.style.color = "var(--" + (/^\d+$/.test(key) ? "c" + key : key) + ")";
    const found = getComputedStyle(probe).color;
    return opacity ? found.replace(/^rgb\((.*)\)$/, "rgba($1, " + opacity + ")") : found;
  }

  function coloured(value) {
    if (typeof value === "string") return /^@[a-z0-9]+(\/[\d.]+)?$/.test(value) ? colour(value) : value;
    if (Array.isArray(value)) return value.map(coloured);
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, coloured(inner)]));
  }

  function layout(given) {
    const font = { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: colour("@ink") };
    const made = coloured(given);
    for (const key of Object.keys(made)) {
      if (!/^[xy]axis\d*$/.test(key)) continue;
      const grid = made[key].showgrid === false ? {} : { gridcolor: colour("@line") };
      made[key] = {
        linecolor: colour("@line"), zeroline: false, exponentformat: "power", automargin: true, tickfont: { color: colour("@grey") },
        ...grid, ...made[key], title: { standoff: 10, ...made[key].title },
      };
    }
    const titles = (made.annotations || []).some((note) => note.yref === "paper" && note.yanchor === "bottom");
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font, hovermode: "closest",
      margin: { l: 60, r: 16, t: titles ? 44 : 16, b: 56 },
      legend: { orientation: "h", y: -0.2, yanchor: "top", x: 0, bgcolor: "rgba(0,0,0,0)" },
      hoverlabel: { bgcolor: colour("@paper"), bordercolor: colour("@grey"), font: { color: colour("@ink") } },
      dragmode: false,
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("@grey"), activecolor: colour("@ink") }, ...made,
    };
  }

  // Panels that are too narrow side by side go below one another.
  function stacked(given, width) {
    const panels = Object.keys(given).filter((key) => /^xaxis\d*$/.test(key) && given[key].domain);
    if (width > 620 || panels.length < 2) return { given, factor: 1 };
    const made = structuredClone(given);
    const rows = new Set(panels.map((key) => String((given["y" + key.slice(1)].domain || [])[0]))).size;
    const gap = 0.16, each = (1 - gap * (panels.length - 1)) / panels.length;
    panels.forEach(function (key, place) {
      const low = 1 - (place + 1) * each - place * gap;
      made[key].domain = [0, 1];
      Object.assign(made["y" + key.slice(1)], { domain: [low, low + each], showticklabels: true });
      Object.assign(made.annotations[place], { x: 0, y: low + each, yshift: 4 });
    });
    return { given: made, factor: (0.72 * panels.length) / rows };
  }

  const config = {
    displaylogo: false, displayModeBar: "hover", showTips: false, scrollZoom: false,
    // Named one by one: among the others is one that sends the figure to a server.
    modeBarButtons: [["toImage", "zoomIn2d", "zoomOut2d", "resetScale2d"]], plotlyServerURL: "",
  };

  function traces(spec, layer) {
    return spec.data.map(function (trace) {
      const made = coloured(trace);
      if (spec.layers.length) Object.assign(made, { z: trace.z[layer] }, trace.text && { text: trace.text[layer] });
      return made;
    });
  }

  function draw(figure) {
    const box = figure.querySelector(".plot");
    if (box.offsetParent === null) return;
    const spec = figure.spec || (figure.spec = JSON.parse(figure.querySelector(".chart-data").textContent));
    const slider = figure.querySelector("input[type=range]");
    const base = figure.base || (figure.base = parseInt(box.style.height, 10));
    const { given, factor } = stacked(spec.layout, box.clientWidth);
    box.style.height = Math.round(base * factor) + "px";
    const made = layout(given);
    Object.assign(made, { width: box.clientWidth, height: Math.round(base * factor) });
    made.legend.y = factor === 1 ? -62 / (base - 72) : -0.08;
    Plotly.react(box, traces(spec, slider ? Number(slider.value) : spec.start), made, config);
    figure.dataset.drawn = dark() ? "dark" : "light";
  }

  const figures = Array.from(document.querySelectorAll(".chart"));
  const drawAll = () => figures.forEach(draw);

  for (const figure of figures) {
    const slider = figure.querySelector("input[type=range]");
    if (!slider) continue;
    slider.addEventListener("input", function () {
      const words = figure.spec.layers[Number(slider.value)];
      figure.querySelector("output").textContent = words;
      slider.setAttribute("aria-valuetext", words);
      draw(figure);
    });
  }
  for (const part of document.querySelectorAll("details.more"))
    part.addEventListener("toggle", () => part.open && part.querySelectorAll(".chart").forEach(draw));

  function themed() {
    toggle.setAttribute("aria-pressed", String(dark()));
    drawAll();
  }
  toggle.addEventListener("click", function () {
    root.dataset.theme = dark() ? "light" : "dark";
    themed();
  });
  system.addEventListener("change", themed);

  const main = document.getElementById("main");
  let width = main.clientWidth;
  new ResizeObserver(function () {
    if (main.clientWidth === width) return;
    width = main.clientWidth;
    requestAnimationFrame(drawAll);
  }).observe(main);

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
