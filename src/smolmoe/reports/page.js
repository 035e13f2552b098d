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
