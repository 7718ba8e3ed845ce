"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const trials = new Map(data.trials.map((trial) => [trial.number, trial]));
  const tip = document.getElementById("tip");
  const details = document.getElementById("details");
  const charts = [];
  let kept = null; // numbers that the brushes leave; null: all

  const node = (name, attributes, parent, text) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    if (parent) parent.appendChild(made);
    return made;
  };
  const brief = (value) => (typeof value === "number" ? String(Number(value.toPrecision(4))) : value === null ? "none" : String(value));
  const label = (key) => key.replace(/^method\.|^optimizer\./, "");
  const kind = (trial) => (trial.number === data.baseline ? " base" : trial.number === data.best ? " best" : "") + (trial.state === "stopped" ? " stopped" : "");
  const lines = (trial) => [
    `trial ${trial.number}${trial.arm ? " " + trial.arm : ""}: ${trial.state}, ${trial.epochs} epochs`,
    `${data.metric} ${trial.value === null ? "none" : brief(trial.value)}`,
    ...Object.entries(trial.params).map(([key, value]) => `${label(key)} ${brief(value)}`),
  ];

  function mark(number) {
    document.querySelectorAll(".on").forEach((each) => each.classList.remove("on"));
    if (number !== null) document.querySelectorAll(`svg [data-n="${number}"]`).forEach((each) => each.classList.add("on"));
  }
  function hover(number, x, y) {
    mark(number);
    tip.hidden = number === null;
    if (number === null) return;
    show(lines(trials.get(number)).join("\n"), x, y);
  }
  function show(text, x, y) {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(4, Math.min(x + 14, innerWidth - box.width - 4)) + "px";
    tip.style.top = Math.max(4, y + 14 + box.height > innerHeight ? y - box.height - 10 : y + 14) + "px";
  }
  function open(number) {
    const trial = trials.get(number);
    document.getElementById("details-text").textContent = [
      ...lines(trial), `seed ${trial.seed}`, `seconds ${brief(trial.wall_s)}`,
      ...(trial.taps.length ? ["taps:", ...trial.taps.map((tap) => "  " + tap)] : []), ...(trial.error ? [trial.error] : []),
    ].join("\n");
    hover(null);
    details.showModal();
  }

  const spread = (values) => {
    let low = Math.min(...values), high = Math.max(...values);
    if (low === high) { low -= Math.abs(low) * 0.05 || 0.5; high += Math.abs(high) * 0.05 || 0.5; }
    return [low, high];
  };
  const round = (low, high, most, isWhole) => { // so many round numbers at most
    const least = (high - low) / most, power = 10 ** Math.floor(Math.log10(least));
    const step = Math.max(isWhole ? 1 : 0, power * [1, 2, 5, 10].find((each) => power * each >= least));
    const first = Math.ceil(low / step - 1e-9);
    return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, at) => Number(((first + at) * step).toPrecision(12)));
  };
  function frame(holder, points, names, ticks) {
    const width = holder.clientWidth, height = 320, left = 54, bottom = 40;
    const svg = node("svg", { width, height, role: "img", "aria-label": holder.dataset.label });
    holder.replaceChildren(svg);
    const [x0, x1] = spread(points.map((p) => p[0])), [y0, y1] = spread(points.map((p) => p[1]));
    const x = (value) => left + 8 + ((value - x0) / (x1 - x0)) * (width - left - 24);
    const y = (value) => height - bottom - 8 - ((value - y0) / (y1 - y0)) * (height - bottom - 40);
    node("path", { class: "axis", d: `M${left},8V${height - bottom}H${width - 8}` }, svg);
    for (const value of round(y0, y1, 7)) node("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, svg, brief(value));
    for (const value of ticks ? [] : round(x0, x1, width > 500 ? 8 : 4, names[0] === "epoch")) node("text", { x: x(value), y: height - bottom + 16, "text-anchor": "middle" }, svg, brief(value));
    for (const [at, text, from] of ticks || []) node("text", { x: x(at), y: height - bottom + 16, "text-anchor": from }, svg, text);
    node("text", { x: (left + width) / 2, y: height - 6, "text-anchor": "middle" }, svg, names[0]);
    node("text", { x: 4, y: 12 }, svg, names[1]);
    const placed = points.map((p) => [x(p[0]), y(p[1]), p[2]]);
    const near = (event) => {
      const box = svg.getBoundingClientRect(), px = event.clientX - box.left, py = event.clientY - box.top;
      let best = null, least = 20 * 20;
      for (const [a, b, number] of placed) {
        const distance = (a - px) ** 2 + (b - py) ** 2;
        if (distance < least && (kept === null || kept.has(number))) { least = distance; best = number; }
      }
      return best;
    };
    svg.addEventListener("pointermove", (event) => hover(near(event), event.clientX, event.clientY));
    svg.addEventListener("pointerleave", () => hover(null));
    svg.addEventListener("click", (event) => { const number = near(event); if (number !== null) open(number); });
    return { svg, x, y };
  }
  const last = (one, other) => Number(one.number === data.best) - Number(other.number === data.best) || Number(one.number === data.baseline) - Number(other.number === data.baseline);

  function curves(holder) {
    const shown = data.trials.filter((trial) => trial.curve.length).sort(last);
    const points = shown.flatMap((trial) => trial.curve.map(([epoch, value]) => [epoch, value, trial.number]));
    if (!points.length) return;
    const { svg, x, y } = frame(holder, points, ["epoch", data.metric]);
    for (const trial of shown) {
      const at = trial.curve.map(([epoch, value]) => `${x(epoch).toFixed(1)},${y(value).toFixed(1)}`);
      node("polyline", { class: "mark" + kind(trial), points: at.join(" "), "data-n": trial.number }, svg);
      const [epoch, value] = trial.curve[trial.curve.length - 1];
      if (trial.state === "stopped") node("text", { x: x(epoch), y: y(value) + 4, "text-anchor": "middle" }, svg, "\u00d7");
      else if (trial.curve.length === 1) node("circle", { class: "dot" + kind(trial), r: 4, cx: x(epoch), cy: y(value), "data-n": trial.number }, svg);
    }
  }
  function rungs(holder) {
    const place = new Map(data.rungs.map((each, at) => [each.epoch, at]));
    const shown = data.trials.map((trial) => [trial, trial.curve.filter(([epoch]) => place.has(epoch))]).filter(([, there]) => there.length).sort((a, b) => last(a[0], b[0]));
    const points = shown.flatMap(([trial, there]) => there.map(([epoch, value]) => [place.get(epoch), value, trial.number]));
    const isWide = holder.clientWidth / data.rungs.length > 150, final = data.rungs.length - 1;
    const ticks = data.rungs.map((each, at) => [at, isWide ? `epoch ${each.epoch}: ${each.came - each.stopped} of ${each.came} went on` : `${each.epoch}: ${each.came - each.stopped}/${each.came}`, final === 0 ? "middle" : at === 0 ? "start" : at === final ? "end" : "middle"]);
    const { svg, x, y } = frame(holder, points, [isWide ? "rung" : "epoch of the rung: went on / came", data.metric], ticks);
    for (const [trial, there] of shown) {
      if (there.length > 1) node("polyline", { class: "mark" + kind(trial).replace(" stopped", ""), points: there.map(([epoch, value]) => `${x(place.get(epoch)).toFixed(1)},${y(value).toFixed(1)}`).join(" "), "data-n": trial.number }, svg);
      for (const [epoch, value] of there) {
        const at = [x(place.get(epoch)), y(value)], isStopped = trial.state === "stopped" && trial.arm === null && trial.epochs === epoch;
        node("circle", { class: "dot" + kind(trial).replace(" stopped", "") + (isStopped ? " ended" : ""), r: isStopped ? 5.5 : 4.5, cx: at[0], cy: at[1], "data-n": trial.number }, svg);
        if (isStopped) node("path", { class: "cross", d: `M${at[0] - 3},${at[1] - 3}l6,6m0,-6l-6,6`, "data-n": trial.number }, svg);
      }
    }
  }
  function scatter(holder) {
    const chart = data.scatters[Number(holder.dataset.chart)];
    const { svg, x, y } = frame(holder, chart.points, [chart.x, chart.y]);
    const order = [...chart.points].sort((a, b) => last(trials.get(a[2]), trials.get(b[2])));
    for (const [a, b, number] of order) {
      const isFront = chart.front.includes(number);
      node("circle", { class: "dot" + kind(trials.get(number)) + (isFront ? " front" : ""), r: isFront ? 7 : 5, cx: x(a), cy: y(b), "data-n": number }, svg);
    }
  }

  const brushes = new Map(); // by axis: bounds from 0 (bottom) to 1
  function coordinates(holder) {
    const shown = data.trials.filter((trial) => trial.arm === null && trial.value !== null);
    const keys = [...new Set(shown.flatMap((trial) => Object.keys(trial.params)))];
    // Without what all the paths have before it: "placement" says as much as "standard.placement" where there is no other.
    const last = (key) => key.split(".").pop();
    const short = (key) => (keys.filter((other) => last(other) === last(key)).length === 1 ? last(key) : label(key));
    const axes = [...keys, null].map((key) => axis(key, shown.map((trial) => (key === null ? trial.value : trial.params[key])), short));
    const width = Math.max(holder.clientWidth, axes.length * 88), height = 340, top = 34, foot = 24, span = height - top - foot;
    const svg = node("svg", { width, height, role: "group", "aria-label": "parallel coordinates" });
    holder.replaceChildren(svg);
    const gap = (width - 104) / Math.max(1, axes.length - 1), most = Math.max(9, Math.floor(gap / 7) - 1);
    const across = (place) => 52 + place * gap;
    const down = (part) => top + span * (1 - part);
    const scores = spread(shown.map((trial) => trial.value));
    const paths = shown.map((trial, row) => {
      const d = axes.map((each, place) => `${place ? "L" : "M"}${across(place).toFixed(1)},${down(each.parts[row]).toFixed(1)}`).join("");
      const share = (trial.value - scores[0]) / (scores[1] - scores[0]);
      return node("path", { class: "mark" + (trial.state === "stopped" ? " stopped" : ""), d, "data-n": trial.number, style: `stroke:${colour(share)}` }, svg);
    });
    const apply = () => {
      const ranges = [...brushes].filter(([place]) => place < axes.length);
      kept = ranges.length ? new Set(shown.filter((_, row) => ranges.every(([place, [low, high]]) => axes[place].parts[row] >= low && axes[place].parts[row] <= high)).map((trial) => trial.number)) : null;
      paths.forEach((path, row) => path.classList.toggle("off", kept !== null && !kept.has(shown[row].number)));
      filter();
    };
    axes.forEach((each, place) => {
      const x = across(place), group = node("g", { tabindex: 0, role: "slider", "aria-label": `${each.name}: arrow up and down move the lower bound, with shift the upper bound, escape clears`, "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": 0 }, svg);
      node("path", { class: "axis", d: `M${x},${top}V${top + span}` }, group);
      node("text", { x, y: 14, "text-anchor": "middle" }, group, each.name.length > most ? each.name.slice(0, most - 1) + "\u2026" : each.name).appendChild(node("title", {}, null, each.name));
      for (const [part, text] of each.ticks) node("text", { x: x + 5, y: down(part) + 4 }, group, text);
      const brush = node("rect", { class: "brush", x: x - 8, width: 16, y: top, height: 0 }, group);
      const grip = node("rect", { class: "grip", x: x - 16, width: 32, y: top - 6, height: span + 12 }, group);
      const draw = () => {
        const [low, high] = brushes.get(place) || [0, 0];
        brush.setAttribute("y", down(high));
        brush.setAttribute("height", Math.max(0, down(low) - down(high)));
        group.setAttribute("aria-valuenow", Math.round(low * 100));
        group.setAttribute("aria-valuetext", brushes.has(place) ? `${Math.round(low * 100)} to ${Math.round(high * 100)} percent of the axis` : "all");
        apply();
      };
      const part = (event) => Math.min(1.02, Math.max(-0.02, 1 - (event.clientY - svg.getBoundingClientRect().top - top) / span));
      let from = null;
      grip.addEventListener("pointerdown", (event) => { from = part(event); grip.setPointerCapture(event.pointerId); });
      grip.addEventListener("pointermove", (event) => {
        if (from === null) return;
        const to = part(event);
        brushes.set(place, [Math.min(from, to), Math.max(from, to)]);
        draw();
      });
      grip.addEventListener("pointerup", (event) => {
        if (from !== null && Math.abs(part(event) - from) < 0.015) brushes.delete(place);
        from = null;
        draw();
      });
      group.addEventListener("keydown", (event) => {
        const step = { ArrowUp: 0.05, ArrowDown: -0.05 }[event.key];
        if (event.key === "Escape") brushes.delete(place);
        else if (step) {
          const [low, high] = brushes.get(place) || [0, 1];
          brushes.set(place, event.shiftKey ? [low, Math.max(low, Math.min(1, high + step))] : [Math.max(0, Math.min(high, low + step)), high]);
        } else return;
        event.preventDefault();
        draw();
      });
      if (brushes.has(place)) draw();
    });
    apply();
  }
  function axis(key, values, short) {
    const name = key === null ? data.metric : short(key), missing = values.some((value) => value === undefined);
    const there = values.filter((value) => value !== undefined), bottom = missing ? 0.14 : 0;
    if (there.every((value) => typeof value === "number")) {
      const isLog = Math.min(...there) > 0 && Math.max(...there) / Math.min(...there) > 50;
      const scaled = (value) => (isLog ? Math.log(value) : value), [low, high] = spread(there.map(scaled));
      const ticks = [0, 0.5, 1].map((part) => { const at = low + part * (high - low); return [bottom + part * (1 - bottom), brief(Number((isLog ? Math.exp(at) : at).toPrecision(3)))]; });
      return { name, ticks: missing ? [[0, "not set"], ...ticks] : ticks, parts: values.map((value) => (value === undefined ? 0 : bottom + ((scaled(value) - low) / (high - low)) * (1 - bottom))) };
    }
    const names = [...new Set(there.map(brief))].sort();
    if (missing) names.unshift("not set");
    const at = (value) => (names.length === 1 ? 0.5 : names.indexOf(value) / (names.length - 1));
    return { name, ticks: names.map((each) => [at(each), each]), parts: values.map((value) => at(value === undefined ? "not set" : brief(value))) };
  }
  function colour(share) { // viridis between five of its stops: even in lightness, told apart by the colour-blind
    const isDark = matchMedia("(prefers-color-scheme:dark)").matches; // its dark end would not be seen there
    const stops = [isDark ? [160, 125, 225] : [68, 1, 84], isDark ? [95, 145, 215] : [59, 82, 139], [33, 145, 140], [94, 201, 98], [225, 210, 40]];
    const at = Math.min(3, Math.floor(share * 4)), part = share * 4 - at;
    return `rgb(${stops[at].map((low, channel) => Math.round(low + part * (stops[at + 1][channel] - low))).join()})`;
  }

  const body = document.querySelector("#trials tbody");
  // The table is one stop for the Tab key, at the row that had the focus or the first one; arrows go from row to row.
  const stop = (at) => { for (const row of body.rows) row.tabIndex = row === at ? 0 : -1; };
  const first = () => [...body.rows].find((row) => !row.hidden);
  function filter() {
    const all = [...body.rows];
    all.forEach((row) => { row.hidden = kept !== null && !kept.has(Number(row.dataset.n)); });
    document.getElementById("count").textContent = kept === null ? `${all.length} trials` : `${all.filter((row) => !row.hidden).length} of ${all.length} trials, by the ranges chosen above`;
    document.querySelectorAll("svg .mark, svg .dot").forEach((each) => each.classList.toggle("off", kept !== null && !kept.has(Number(each.dataset.n))));
    stop(first());
  }
  document.querySelectorAll("#trials th button").forEach((button) => button.addEventListener("click", () => {
    const head = button.parentElement, column = head.cellIndex, isUp = head.getAttribute("aria-sort") === "descending";
    document.querySelectorAll("#trials th").forEach((each) => each.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", isUp ? "ascending" : "descending");
    const value = (row) => row.cells[column].textContent, isNumber = head.classList.contains("n");
    const sorted = [...body.rows].sort((a, b) => {
      const one = value(a), other = value(b);
      if (one === "" || other === "") return Number(one === "") - Number(other === ""); // what is missing stays last
      return (isUp ? 1 : -1) * (isNumber ? parseFloat(one) - parseFloat(other) : one.localeCompare(other));
    });
    body.append(...sorted);
    stop(first());
  }));
  const rowOf = (event) => event.target.closest("tr[data-n]");
  body.addEventListener("pointermove", (event) => hover(Number(rowOf(event).dataset.n), event.clientX, event.clientY));
  body.addEventListener("pointerleave", () => hover(null));
  body.addEventListener("click", (event) => open(Number(rowOf(event).dataset.n)));
  const step = (row, towards) => { let next = row; do next = next[towards]; while (next && next.hidden); if (next) next.focus(); };
  body.addEventListener("focusin", (event) => stop(rowOf(event)));
  body.addEventListener("keydown", (event) => {
    const towards = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    if (towards) { event.preventDefault(); step(rowOf(event), towards); return; }
    if (event.key !== "Enter") return;
    event.preventDefault(); // the same key would press the dialog's button, which takes the focus
    open(Number(rowOf(event).dataset.n));
  });
  document.getElementById("close").addEventListener("click", () => details.close());

  const network = document.getElementById("layers");
  if (network) {
    const layers = [...network.querySelectorAll("[data-layer]")], told = document.getElementById("layer-words");
    const choose = (place) => {
      layers.forEach((each, at) => each.classList.toggle("on", at === place));
      told.textContent = place === null ? "" : layers[place].dataset.words.replaceAll("\n", "; ");
      return place;
    };
    let at = null;
    network.addEventListener("pointermove", (event) => {
      const found = event.target.closest("[data-layer]");
      at = choose(found ? Number(found.dataset.layer) : null);
      if (found) show(found.dataset.words, event.clientX, event.clientY); else tip.hidden = true;
    });
    network.addEventListener("pointerleave", () => { at = choose(null); tip.hidden = true; });
    network.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (event.key === "Escape") at = choose(null);
      else if (step) at = choose(at === null ? (step > 0 ? 0 : layers.length - 1) : Math.max(0, Math.min(layers.length - 1, at + step)));
      else return;
      event.preventDefault();
      if (at !== null) layers[at].scrollIntoView({ block: "nearest", inline: "nearest" });
    });
  }

  const makers = { curves, scatter, coordinates, rungs };
  document.querySelectorAll("[data-draw]").forEach((holder) => charts.push([makers[holder.dataset.draw], holder]));
  const draw = () => charts.forEach(([make, holder]) => make(holder));
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; draw(); } });
  draw();
  document.documentElement.dataset.ready = "yes";
})();
