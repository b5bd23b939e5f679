"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const blocks = new Map(data.blocks.map((b) => [b.n, b]));
  const sizes = { ...data.sizes };
  const all = (query, root = document) => [...root.querySelectorAll(query)];
  const at = (id) => document.getElementById(id);
  const make = (tag, text, className) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (className) element.className = className;
    return element;
  };

  // Forms: sums of [factor, [atoms]]; an atom is a name or [op, form, form].
  const value = (form) => form.reduce((sum, [factor, atoms]) => atoms.reduce((p, a) => p * atom(a), factor) + sum, 0);
  function atom(a) {
    if (typeof a === "string") return sizes[a];
    const [x, y] = [value(a[1]), value(a[2])];
    return a[0] === "min" ? Math.min(x, y) : a[0] === "max" ? Math.max(x, y) : Math.floor(x / y);
  }
  function short(n) {
    for (const [unit, scale] of [["P", 1e15], ["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
      if (Math.abs(n) >= scale * 0.9995) {
        const x = n / scale;
        return `${x.toFixed(Math.abs(x) < 9.995 ? 2 : Math.abs(x) < 99.95 ? 1 : 0)} ${unit}`;
      }
    }
    return Number.isInteger(n) ? String(n) : n.toFixed(2);
  }
  const of = (block, name) => (block.forms[name] ? value(block.forms[name][1]) : 0);

  // Costs at the sizes given.
  function count() {
    const whole = of(blocks.get(0), "flops");
    for (const row of all(".tree [data-block]")) {
      const block = blocks.get(Number(row.dataset.block));
      const flops = of(block, "flops");
      const cells = row.querySelector(".row");
      cells.querySelector(".flops").textContent = flops ? short(flops) : "";
      const share = cells.querySelector(".share");
      share.replaceChildren();
      if (flops && whole) {
        const bar = make("i");
        bar.style.width = `${(100 * flops) / whole}%`;
        const percent = (100 * flops) / whole;
        share.append(bar, make("b", percent < 0.05 ? "< 0.1 %" : `${percent.toFixed(percent < 9.95 ? 1 : 0)} %`));
      }
    }
    if (chosen !== null) describe(blocks.get(chosen));
  }
  for (const name of Object.keys(sizes)) {
    const label = make("label", name);
    const input = make("input");
    Object.assign(input, { type: "number", min: 0, value: sizes[name], name });
    input.addEventListener("input", () => {
      sizes[name] = Math.max(0, Math.floor(Number(input.value) || 0));
      count();
    });
    label.append(input);
    at("sizes").append(label);
  }
  at("sizes").addEventListener("submit", (event) => event.preventDefault());

  // Panels
  function show(tab) {
    for (const link of all("nav a")) {
      if (link.dataset.tab === tab) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
    for (const panel of all(".panel")) panel.classList.toggle("shown", panel.id === `panel-${tab}`);
  }
  for (const link of all("nav a")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      show(link.dataset.tab);
    });
  }
  function showFlow(number) {
    for (const figure of all(".flow")) figure.classList.toggle("shown", figure.dataset.flow === String(number));
  }
  for (const figure of all(".flow:not(:first-of-type)")) {
    const back = make("a", "whole model", "crumbs");
    back.href = "#flow-0";
    back.addEventListener("click", (event) => {
      event.preventDefault();
      showFlow(0);
    });
    figure.prepend(back);
  }
  function showSource(number) {
    at("file").value = String(number);
    for (const source of all(".source")) source.classList.toggle("shown", source.dataset.source === String(number));
  }
  at("file").addEventListener("change", () => showSource(Number(at("file").value)));

  // Choosing a block
  let chosen = null;
  function choose(number, from) {
    chosen = number;
    const block = blocks.get(number);
    for (const marked of all(".picked")) marked.classList.remove("picked");
    const row = at(`b${number}`);
    for (let up = row.parentElement; up; up = up.parentElement) if (up.tagName === "DETAILS") up.open = true;
    (row.tagName === "DETAILS" ? row.firstElementChild : row).classList.add("picked");
    if (from !== "tree") row.scrollIntoView({ block: "nearest" });
    for (const drawn of all(`.drawing [data-block="${number}"]`)) drawn.classList.add("picked");
    mark(block, from !== "text");
    describe(block);
  }
  function mark(block, scroll) {
    for (const line of all(".l.site, .l.body")) line.classList.remove("site", "body");
    const put = (places, name) => {
      for (const [source, first, last] of places) {
        for (let i = first; i <= last; i++) at(`s${source}l${i}`)?.classList.add(name);
      }
    };
    put(block.body, "body");
    put(block.kind === "model" ? [] : block.site, "site");
    const place = block.site.at(-1) ?? block.body[0];
    if (!place || !scroll) return;
    showSource(place[0]);
    const pane = at("sources");
    const line = at(`s${place[0]}l${place[1]}`);
    pane.scrollTop += line.getBoundingClientRect().top - pane.getBoundingClientRect().top - pane.clientHeight / 4;
  }
  function describe(block) {
    const title = make("h3", block.label + (block.times ? ` × ${block.times}` : ""));
    const list = make("dl");
    const say = (name, text) => {
      if (text === "" || text === undefined) return;
      list.append(make("dt", name), text instanceof Node ? text : make("dd", text));
    };
    say("path", block.path);
    say("definition", block.calls);
    say("result", block.results.join("  "));
    say("ops", block.ops.join(" "));
    say("runs", value(block.runs) === 1 ? "" : short(value(block.runs)));
    say("parameters", block.parameters ? block.parameters.toLocaleString("en-US") : "");
    say("active", block.active !== block.parameters ? block.active.toLocaleString("en-US") : "");
    const names = { flops: "flops", other: "other operations", weight_bytes: "weight bytes", state_bytes: "bytes kept per token",
      recurrent_bytes: "bytes kept per row", constant_bytes: "bytes made once" };
    for (const [name, words] of Object.entries(names)) {
      if (block.forms[name]) {
        const total = short(of(block, name));
        say(words, block.forms[name][0] === total ? total : `${block.forms[name][0]} = ${total}`);
      }
    }
    for (const [path, times, size] of block.weights.slice(0, 12)) say("weight", `${path}  ${times} × ${size.toLocaleString("en-US")}`);
    const links = make("dd");
    for (const k of block.kernels) {
      const link = make("a", data.kernels[k]);
      link.href = `#k${k}`;
      link.addEventListener("click", () => {
        show("kernels");
        at(`k${k}`).open = true;
      });
      links.append(link, " ");
    }
    if (block.kernels.length) say("kernels", links);
    if (block.flow) {
      const cell = make("dd");
      const link = make("a", "show inside");
      link.href = `#flow-${block.n}`;
      link.addEventListener("click", (event) => {
        event.preventDefault();
        show("flow");
        showFlow(block.n);
      });
      cell.append(link);
      say("data flow", cell);
    }
    at("details").replaceChildren(title, list);
  }

  for (const row of all(".tree [data-block]")) {
    const number = Number(row.dataset.block);
    const target = row.tagName === "DETAILS" ? row.firstElementChild : row;
    if (target === row) row.tabIndex = 0;
    target.addEventListener("click", (event) => {
      if (event.target.closest("a")) event.preventDefault();
      else if (row.tagName === "DETAILS" && chosen !== number && row.open) event.preventDefault(); // the first click only chooses
      choose(number, "tree");
    });
    target.addEventListener("keydown", (event) => {
      if (target === row && (event.key === "Enter" || event.key === " ")) {
        event.preventDefault();
        choose(number, "tree");
      }
      if (event.key === "ArrowDown" || event.key === "ArrowUp") {
        const rows = all(".tree summary, .tree .leaf").filter((r) => r.offsetParent !== null);
        const next = rows[rows.indexOf(target) + (event.key === "ArrowDown" ? 1 : -1)];
        event.preventDefault();
        next?.focus();
        if (next) choose(Number((next.dataset.block ?? next.parentElement.dataset.block)), "tree");
      }
      if (row.tagName === "DETAILS" && event.key === "ArrowRight") row.open = true;
      if (row.tagName === "DETAILS" && event.key === "ArrowLeft") row.open = false;
    });
  }
  for (const drawn of all(".drawing [data-block]")) {
    drawn.addEventListener("click", (event) => {
      event.stopPropagation();
      choose(Number(drawn.dataset.block), "flow");
    });
    drawn.addEventListener("dblclick", (event) => {
      event.stopPropagation();
      if (blocks.get(Number(drawn.dataset.block)).flow) showFlow(Number(drawn.dataset.block));
    });
  }

  // From a line of the text to the blocks that it applies, then to those it is part of; again for the next.
  const covers = (places, source, line) => places.some(([s, first, last]) => s === source && first <= line && line <= last);
  for (const line of all(".l")) {
    line.addEventListener("click", () => {
      if (String(window.getSelection())) return;
      const [source, number] = line.dataset.at.split(":").map(Number);
      const near = data.blocks.filter((b) => b.n && covers(b.site.slice(-1), source, number));
      const made = data.blocks.filter((b) => b.n && covers(b.body, source, number));
      const length = (b) => (b.site.length ? b.site.at(-1)[2] - b.site.at(-1)[1] : 0);
      const found = [...near.sort((a, b) => length(a) - length(b)), ...made.filter((b) => !near.includes(b))];
      const next = found[(found.findIndex((b) => b.n === chosen) + 1) % found.length];
      if (next) {
        show("tree");
        choose(next.n, "text");
      }
    });
  }

  // Search: rows that have the words, with what is above them.
  const search = at("search");
  let hits = [];
  search.addEventListener("input", () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = all(".tree [data-block]");
    hits = [];
    for (const row of rows) row.classList.remove("hit", "hidden");
    if (words.length) {
      show("tree");
      const keep = new Set();
      for (const row of rows) {
        const b = blocks.get(Number(row.dataset.block));
        const text = [b.label, b.path, b.calls, b.ops.join(" "), b.results.join(" ")].join(" ").toLowerCase();
        if (!words.every((word) => text.includes(word))) continue;
        hits.push(b.n);
        row.classList.add("hit");
        for (let up = row; up; up = up.parentElement) if (up.dataset.block) keep.add(up);
      }
      for (const row of rows) {
        row.classList.toggle("hidden", !keep.has(row));
        if (keep.has(row) && row.tagName === "DETAILS") row.open = true;
      }
    }
    at("found").textContent = words.length ? `${hits.length} found` : "";
  });
  search.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && hits.length) choose(hits[(hits.indexOf(chosen) + 1) % hits.length], "search");
    if (event.key === "Escape") {
      search.value = "";
      search.dispatchEvent(new Event("input"));
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !event.target.closest("input, select")) {
      event.preventDefault();
      search.focus();
    }
  });

  document.body.classList.add("live");
  show("tree");
  showFlow(0);
  showSource(0);
  count();
})();
