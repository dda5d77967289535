"use strict";
/* The report's script: table, matrix, curves and a section a category, from the data in the page.
   Everything is made of elements and texts, never of markup in a string. */
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
  const SVG = "http://www.w3.org/2000/svg";
  const FIRST = 50; // sections listed at once
  const HEADING = data.alone ? "h3" : "h4"; // of the parts of a section
  const OPEN_IN_PRINT = 60; // at most so many sections are opened to print them all

  function filled(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.filter((child) => child !== null));
    return element;
  }
  const make = (tag, attributes = {}, ...children) => filled(document.createElement(tag), attributes, children);
  const draw = (tag, attributes = {}, ...children) => filled(document.createElementNS(SVG, tag), attributes, children);

  function bytes(text) {
    const binary = atob(text);
    const found = new Uint8Array(binary.length);
    for (let i = 0; i < found.length; i++) found[i] = binary.charCodeAt(i);
    return found;
  }
  const sixteen = (text) => {
    const found = bytes(text);
    return Uint16Array.from({ length: found.length / 2 }, (_, i) => found[2 * i] | (found[2 * i + 1] << 8));
  };
  const percent = (share) => {
    const value = 100 * share;
    return `${value >= 10 || value === 0 ? value.toFixed(1) : value.toPrecision(2)} %`;
  };

  const anchor = (place) => `c-${data.units[place]}`;
  function thumb(number, alt = "") {
    if (number < 0 || number === undefined) return null;
    return make("img", { class: "thumb", alt, src: `data:${data.kind};base64,${data.thumbs[number]}` });
  }

  /* ---------- curves ---------- */

  const stages = data.stages.length;
  const curves = (() => {
    const told = data.curves, points = sixteen(told.points), found = [];
    let at = 0;
    told.levels.forEach((count, i) => {
      const kept = [], worth = [];
      for (let k = 0; k < count; k++, at++) {
        const height = points[2 * at + 1];
        kept.push(10 ** ((-points[2 * at] / 65535) * told.decades));
        worth.push(height === 65535 ? null : height / told.steps + told.lowest);
      }
      found.push({ kept, worth, chosen: told.chosen[i], threshold: told.threshold[i] });
    });
    return found;
  })();
  const curveOf = (place, stage) => curves[place * stages + stage];

  const FRAME = { width: 440, height: 250, left: 42, right: 20, top: 22, bottom: 38 };
  const scales = (() => {
    const least = data.stages.map((_, s) => {
      let low = 0.5;
      for (let c = 0; c * stages < curves.length; c++) for (const kept of curveOf(c, s).kept) low = Math.min(low, kept);
      return Math.max(low, 5e-6);
    });
    let bottom = 0, top = 1;
    for (const curve of curves) for (const value of curve.worth) if (value !== null) { bottom = Math.min(bottom, value); top = Math.max(top, value); }
    bottom = Math.max(bottom - 0.05, -0.25);
    top += 0.06;
    const inner = FRAME.width - FRAME.left - FRAME.right, tall = FRAME.height - FRAME.top - FRAME.bottom;
    return {
      least, bottom, top,
      x: (kept, s) => FRAME.left + (inner * -Math.log10(Math.min(kept, 1))) / -Math.log10(least[s]),
      y: (value) => FRAME.top + (tall * (top - Math.max(value, bottom))) / (top - bottom),
    };
  })();

  function line(place, stage) {
    const curve = curveOf(place, stage);
    let path = "", pen = "M";
    curve.kept.forEach((kept, i) => {
      if (curve.worth[i] === null) { pen = "M"; return; }
      path += `${pen}${scales.x(kept, stage).toFixed(1)} ${scales.y(curve.worth[i]).toFixed(1)}`;
      pen = "L";
    });
    return path;
  }

  function frame(stage) {
    const { width, height, left, right, top, bottom } = FRAME, parts = [];
    for (let decade = 0; 10 ** -decade >= scales.least[stage] * 0.999; decade++) {
      const x = scales.x(10 ** -decade, stage);
      parts.push(draw("line", { class: "rule", x1: x, x2: x, y1: top, y2: height - bottom }));
      parts.push(draw("text", { x, y: height - bottom + 15, "text-anchor": "middle" }, String(Number((10 ** -decade).toPrecision(1)))));
    }
    for (const value of [0, 0.25, 0.5, 0.75, 1]) {
      const y = scales.y(value);
      parts.push(draw("line", { class: "rule", x1: left, x2: width - right, y1: y, y2: y }));
      parts.push(draw("text", { x: left - 6, y: y + 4, "text-anchor": "end" }, String(value)));
    }
    parts.push(draw("text", { x: left, y: 13 }, `${data.stages[stage]} stage: ${data.height}`));
    parts.push(draw("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, "kept fraction of the stage's weights"));
    return parts;
  }

  function picked(place, stage) {
    const curve = curveOf(place, stage), colour = data.colours[stage], ends = data.curves.ends[place], parts = [];
    const across = { x1: FRAME.left, x2: FRAME.width - FRAME.right };
    const level = (value, attributes) => parts.push(draw("line", { ...across, y1: scales.y(value), y2: scales.y(value), ...attributes }));
    if (ends) {
      if (ends[0] !== null) level(ends[0], { class: "end", stroke: "var(--muted)" });
      if (ends[1] !== null) level(ends[1], { class: "end", stroke: "var(--mark)" });
    }
    if (curve.threshold !== null) level(curve.threshold, { class: "held", stroke: colour });
    parts.push(draw("path", { class: "picked", d: line(place, stage), stroke: colour }));
    const at = curve.chosen;
    if (at >= 0 && curve.worth[at] !== null) {
      parts.push(draw("circle", { cx: scales.x(curve.kept[at], stage), cy: scales.y(curve.worth[at]), r: 5, fill: colour, stroke: "var(--card)", "stroke-width": 1.5 }));
    }
    return parts;
  }

  function said(place) {
    const parts = [];
    data.stages.forEach((stage, s) => {
      const curve = curveOf(place, s), at = curve.chosen;
      if (!curve.kept.length) return;
      const where = at < 0 ? "no weight kept" : `${percent(curve.kept[at])} of the weights kept at the chosen level`;
      const worth = at < 0 || curve.worth[at] === null ? "" : `, ${data.height.split(",")[0]} ${curve.worth[at].toFixed(2)} there`;
      const held = curve.threshold === null ? "" : `, held to ${curve.threshold.toFixed(2)}`;
      parts.push(`${stage} stage: ${where}${worth}${held}`);
    });
    return parts.length ? `${parts.join("; ")}.` : "No curve: there is no circuit.";
  }

  const hasCurve = (place) => data.stages.some((_, s) => curveOf(place, s).kept.length);
  const panel = (stage, children, label) => draw("svg", { class: "plot", viewBox: `0 0 ${FRAME.width} ${FRAME.height}`, role: "img", "aria-label": label }, ...frame(stage), ...children);
  const ownCurves = (place) => make("div", { class: "panels" }, ...data.stages.map((stage, s) =>
    panel(s, picked(place, s), `${data.names[place]}, ${stage} stage. ${said(place)}`)));

  function curvesTogether(host) {
    const many = data.names.map((_, place) => place).filter(hasCurve);
    if (many.length < 2) return;
    const alpha = Math.max(0.06, Math.min(0.5, 12 / many.length));
    const select = make("select", { id: "picked-curve" }, ...many.map((place) => make("option", { value: place }, data.names[place])));
    const told = make("p", { class: "quiet", role: "status", id: "curve-said" });
    const near = make("p", { class: "quiet readout", "aria-hidden": "true" });
    const layers = data.stages.map(() => draw("g"));
    const marks = data.stages.map(() => draw("path", { class: "near", d: "" }));
    const panels = data.stages.map((stage, s) => {
      const faint = draw("g", { "stroke-opacity": alpha }, ...many.map((place) => draw("path", { class: "faint", d: line(place, s) })));
      const svg = panel(s, [faint, marks[s], layers[s]], `All circuits, ${stage} stage; the one picked stands out. What it says is told below.`);
      svg.addEventListener("pointermove", (event) => {
        const place = nearest(svg, event, s, many);
        marks.forEach((mark, other) => mark.setAttribute("d", place === null ? "" : line(place, other)));
        near.textContent = place === null ? "" : `Under the pointer: ${data.names[place]} (click to pick it)`;
        svg.dataset.near = place === null ? "" : place;
      });
      svg.addEventListener("pointerleave", () => { marks.forEach((mark) => mark.setAttribute("d", "")); near.textContent = ""; svg.dataset.near = ""; });
      svg.addEventListener("click", () => { if (svg.dataset.near) { select.value = svg.dataset.near; pick(); } });
      return svg;
    });
    const pick = () => {
      const place = Number(select.value);
      layers.forEach((layer, s) => layer.replaceChildren(...picked(place, s)));
      told.textContent = `${data.names[place]}. ${said(place)}`;
    };
    select.addEventListener("change", pick);
    host.append(
      make("div", { class: "tools" }, make("label", { for: "picked-curve" }, "Circuit picked out", select)),
      make("div", { class: "panels" }, ...panels), told, near);
    pick();
  }

  function nearest(svg, event, stage, many) {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * FRAME.width, y = ((event.clientY - box.top) / box.height) * FRAME.height;
    let best = null, least = 14;
    for (const place of many) {
      const curve = curveOf(place, stage);
      for (let i = 0; i + 1 < curve.kept.length; i++) {
        const x0 = scales.x(curve.kept[i], stage), x1 = scales.x(curve.kept[i + 1], stage);
        if (x < x0 || x > x1 || curve.worth[i] === null || curve.worth[i + 1] === null) continue;
        const share = x1 > x0 ? (x - x0) / (x1 - x0) : 0;
        const off = Math.abs(scales.y(curve.worth[i] + share * (curve.worth[i + 1] - curve.worth[i])) - y);
        if (off < least) { least = off; best = place; }
      }
    }
    return best;
  }

  /* ---------- the matrix ---------- */

  function matrix(host) {
    const told = data.matrix, size = told.order.length;
    const values = told.bytes === 2 ? sixteen(told.values) : bytes(told.values);
    const digits = told.bytes === 2 ? 3 : 2;
    const between = (i, j) => {
      if (i === j) return 1;
      const [a, b] = i < j ? [i, j] : [j, i];
      return values[a * size - (a * (a + 1)) / 2 + b - a - 1] / told.scale;
    };
    const canvas = make("canvas", {
      tabindex: 0, role: "application", "aria-roledescription": "overlap matrix", id: "matrix-canvas",
      "aria-label": `Overlap of ${size} circuits, ordered by clustering. Arrow keys move to another pair, plus and minus zoom, 0 shows all, Enter opens the circuit of the row.`,
    });
    const readout = make("div", { class: "readout" });
    const spoken = make("p", { role: "status", class: "quiet", id: "matrix-said" });
    const image = document.createElement("canvas");
    image.width = image.height = size;
    const largest = values.reduce((most, value) => Math.max(most, value), 0) / told.scale || 1;
    const end = make("span", {}, "1");
    function shade(top) {
      const pixels = image.getContext("2d").createImageData(size, size);
      for (let i = 0; i < size; i++) for (let j = 0; j < size; j++) pixels.data.set([59, 120, 194, Math.round(255 * (0.03 + 0.89 * Math.min(between(i, j) / top, 1)))], 4 * (i * size + j));
      image.getContext("2d").putImageData(pixels, 0, 0);
      end.textContent = String(Number(top.toFixed(digits)));
    }
    shade(1);

    const view = { x: 0, y: 0, cells: size }; // the first cell shown, and how many along a side
    const at = { row: 0, column: Math.min(1, size - 1) };
    const metrics = () => {
      const side = canvas.clientWidth, labelled = side / view.cells >= 13;
      const gutter = labelled ? Math.min(120, side * 0.24) : 0;
      return { side, gutter, cell: (side - gutter) / view.cells };
    };

    function paint() {
      const ratio = devicePixelRatio || 1, side = canvas.clientWidth;
      if (!side) return;
      canvas.width = canvas.height = Math.round(side * ratio);
      canvas.style.height = `${side}px`;
      const context = canvas.getContext("2d"), { gutter, cell } = metrics();
      const style = getComputedStyle(document.documentElement), ink = style.getPropertyValue("--ink"), mark = style.getPropertyValue("--mark");
      context.scale(ratio, ratio);
      context.imageSmoothingEnabled = cell * ratio < 1;
      context.drawImage(image, view.x, view.y, view.cells, view.cells, gutter, gutter, side - gutter, side - gutter);
      context.fillStyle = ink;
      context.textBaseline = "middle";
      const font = (px) => `${px}px system-ui, "DejaVu Sans", sans-serif`;
      if (gutter) {
        context.font = font(Math.max(9, Math.min(12, cell * 0.75)));
        for (let k = 0; k < Math.ceil(view.cells); k++) {
          const middle = gutter + (k + 0.5) * cell;
          label(context, told.order[view.y + k], gutter - 6, middle, gutter - 8, 0);
          label(context, told.order[view.x + k], middle, gutter - 6, gutter - 8, Math.PI / 2);
        }
      }
      if (cell >= 30) {
        context.font = font(Math.min(13, cell / 3));
        context.textAlign = "center";
        for (let i = 0; i < view.cells; i++) for (let j = 0; j < view.cells; j++) {
          const x = view.x + j, y = view.y + i;
          if (x < size && y < size) context.fillText(between(y, x).toFixed(2), gutter + (j + 0.5) * cell, gutter + (i + 0.5) * cell);
        }
      }
      context.strokeStyle = mark;
      context.lineWidth = 2;
      const grown = Math.max(cell, 5), pad = (grown - cell) / 2;
      context.strokeRect(gutter + (at.column - view.x) * cell - pad, gutter + (at.row - view.y) * cell - pad, grown, grown);
    }

    function label(context, place, x, y, room, turn) {
      if (place === undefined) return;
      let text = data.names[place];
      while (text.length > 2 && context.measureText(text).width > room) text = `${text.slice(0, -2).replace(/…$/, "")}…`;
      context.save();
      context.translate(x, y);
      context.rotate(turn);
      context.textAlign = "right";
      context.fillText(text, 0, 0);
      context.restore();
    }

    function tell(aloud) {
      const row = told.order[at.row], column = told.order[at.column];
      const value = at.row === at.column ? "the same circuit" : between(at.row, at.column).toFixed(digits);
      const pair = (place) => make("div", { class: "pair" }, thumb(data.own[place]), make("span", {}, data.names[place]));
      readout.replaceChildren(pair(row), pair(column), make("div", { class: "big" }, value));
      if (aloud) spoken.textContent = at.row === at.column ? `${data.names[row]}, with itself` : `${data.names[row]} and ${data.names[column]}: overlap ${value}`;
    }

    function zoom(factor) {
      const cells = Math.round(Math.max(Math.min(size, 4), Math.min(size, view.cells * factor)));
      view.cells = cells;
      centre(at.column - cells / 2, at.row - cells / 2);
    }
    function centre(x, y) {
      view.x = Math.round(Math.max(0, Math.min(size - view.cells, x)));
      view.y = Math.round(Math.max(0, Math.min(size - view.cells, y)));
      paint();
    }
    function follow() {
      const seen = (start, value) => (value < start ? value : value >= start + view.cells ? value - view.cells + 1 : start);
      centre(seen(view.x, at.column), seen(view.y, at.row));
    }

    const step = (row, column) => {
      at.row = Math.max(0, Math.min(size - 1, at.row + row));
      at.column = Math.max(0, Math.min(size - 1, at.column + column));
      follow();
      tell(true);
    };
    const keys = {
      ArrowUp: () => step(-1, 0), ArrowDown: () => step(1, 0), ArrowLeft: () => step(0, -1), ArrowRight: () => step(0, 1),
      PageUp: () => step(-10, 0), PageDown: () => step(10, 0), Home: () => step(0, -size), End: () => step(0, size),
      "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), 0: () => zoom(size), Enter: () => openCategory(told.order[at.row]),
    };
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
      event.preventDefault();
      keys[event.key]();
    });
    const under = (event) => {
      const box = canvas.getBoundingClientRect(), { gutter, cell } = metrics();
      const column = Math.floor(view.x + (event.clientX - box.left - gutter) / cell), row = Math.floor(view.y + (event.clientY - box.top - gutter) / cell);
      const inside = event.clientX - box.left >= gutter && event.clientY - box.top >= gutter;
      return inside && row >= 0 && row < size && column >= 0 && column < size ? { row, column } : null;
    };
    let held = null;
    canvas.addEventListener("pointermove", (event) => {
      if (held) {
        const { cell } = metrics();
        centre(held.x - (event.clientX - held.left) / cell, held.y - (event.clientY - held.top) / cell);
        return;
      }
      const found = under(event);
      if (!found) return;
      Object.assign(at, found);
      paint();
      tell(false);
    });
    canvas.addEventListener("pointerdown", (event) => {
      if (event.pointerType !== "mouse" || view.cells === size) return;
      held = { left: event.clientX, top: event.clientY, x: view.x, y: view.y };
      canvas.setPointerCapture(event.pointerId);
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { held = null; });
    canvas.addEventListener("click", (event) => { const found = under(event); if (found && !held) { Object.assign(at, found); paint(); tell(true); } });
    canvas.addEventListener("dblclick", () => zoom(0.5));
    canvas.addEventListener("wheel", (event) => {
      if (document.activeElement !== canvas && !event.ctrlKey) return; // the page scrolls on
      event.preventDefault();
      zoom(event.deltaY < 0 ? 0.8 : 1.25);
    }, { passive: false });
    canvas.addEventListener("focus", () => tell(true));

    const stretch = make("input", { type: "checkbox", id: "stretch", onchange: () => { shade(stretch.checked ? largest : 1); paint(); } });
    const button = (text, title, act) => make("button", { type: "button", title, "aria-label": title, onclick: act }, text);
    host.append(make("div", { class: "matrix" }, canvas, make("div", {},
      make("div", { class: "tools" }, button("+", "Zoom in", () => zoom(0.5)), button("−", "Zoom out", () => zoom(2)), button("all", "Show all", () => zoom(size))),
      readout, spoken,
      make("div", { class: "scale", "aria-hidden": "true" }, "0", make("i"), end),
      make("label", { class: "quiet" }, stretch, " colours up to the largest overlap of two"),
      make("p", { class: "quiet" }, `Pairs under the pointer, or under the arrow keys once the matrix has the focus; drag to move.${digits === 2 ? " Overlaps to within 0.002." : ""}`))));
    tell(false);
    if (!byId("matrix-canvas")) return;
    new ResizeObserver(paint).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  }

  /* ---------- table and sections ---------- */

  const plain = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();
  const table = byId("every");
  const rows = table ? [...table.tBodies[0].rows] : [];
  const order = { places: data.names.map((_, place) => place), listed: FIRST };
  const collator = new Intl.Collator(undefined, { numeric: true });
  const cellText = (cell) => (cell.firstChild ? cell.firstChild.textContent : "").trim();
  const number = (cell) => {
    const found = parseFloat(cell.textContent.trim().replaceAll(",", ""));
    return Number.isNaN(found) ? null : found;
  };

  function tableTools() {
    const heads = [...table.tHead.rows[0].cells];
    const search = make("input", { type: "search", id: "search", autocomplete: "off", spellcheck: "false" });
    const filter = make("select", { id: "filter" },
      make("option", { value: "all" }, "all"), make("option", { value: "circuit" }, "with a circuit"),
      make("option", { value: "none" }, "without a circuit"), make("option", { value: "random" }, "no better than random (=)"));
    const count = make("p", { role: "status", class: "quiet", id: "count" });
    const values = rows.map((row) => [...row.cells].map((cell, i) => (i ? number(cell) : null)));
    const kinds = rows.map((row, place) => ({ circuit: values[place][1] !== null, random: row.querySelector("strong") !== null }));
    const names = data.names.map(plain);
    const every = data.names.map((_, place) => place);
    let by = null, falling = false;

    function show() {
      const wanted = plain(search.value.trim()), kind = filter.value;
      const fits = (place) => names[place].includes(wanted) &&
        (kind === "all" || (kind === "circuit" && kinds[place].circuit) || (kind === "none" && !kinds[place].circuit) || (kind === "random" && kinds[place].random));
      rows.forEach((row, place) => { if (row.hidden === fits(place)) row.hidden = !row.hidden; });
      const places = every.filter(fits), same = places.length === order.places.length && places.every((place, i) => place === order.places[i]);
      const said = `${places.length} of ${rows.length} shown`;
      if (count.textContent !== said) count.textContent = said;
      if (same && byId("circuits-list").childElementCount) return;
      order.places = places;
      order.listed = FIRST;
      list();
    }
    function sort() {
      every.sort(compare);
      table.tBodies[0].append(...every.map((place) => rows[place]));
      show();
    }
    function compare(a, b) {
      if (by === 0) return (falling ? -1 : 1) * collator.compare(data.names[a], data.names[b]) || a - b;
      const x = values[a][by], y = values[b][by];
      if (x === null || y === null) return (x === null) - (y === null) || a - b;
      return (falling ? y - x : x - y) || a - b;
    }
    heads.forEach((head, column) => {
      const button = make("button", { type: "button", class: "sort" });
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      head.setAttribute("scope", "col");
      button.addEventListener("click", () => {
        falling = by === column ? !falling : column > 0;
        by = column;
        heads.forEach((other, i) => other.setAttribute("aria-sort", i !== by ? "none" : falling ? "descending" : "ascending"));
        sort();
      });
    });
    rows.forEach((row, place) => {
      const cell = row.cells[0];
      cell.setAttribute("role", "rowheader");
      cell.replaceChild(make("button", { type: "button", class: "open", title: "open its section", onclick: () => openCategory(place) }, data.names[place]), cell.firstChild);
    });
    search.addEventListener("input", show);
    filter.addEventListener("change", show);
    const box = make("div", rows.length > 30 ? { class: "scroll", tabindex: 0, role: "region", "aria-label": "A row a circuit" } : {});
    table.before(make("div", { class: "tools" },
      make("label", { for: "search" }, "Find by name", search), make("label", { for: "filter" }, "Show", filter), count), box);
    box.append(table);
    show();
  }

  const sections = new Map();
  function section(place) {
    if (sections.has(place)) return sections.get(place);
    const row = rows[place], pruned = row && number(row.cells[1]) !== null ? `${row.cells[1].textContent} pruned` : "no circuit";
    const details = make("details", { class: "one", id: anchor(place) },
      make("summary", {}, thumb(data.own[place]), make("h3", {}, data.names[place]), row ? make("span", { class: "quiet" }, pruned) : null));
    details.addEventListener("toggle", () => { if (details.open) fill(details, place); });
    sections.set(place, details);
    return details;
  }

  function fill(details, place) {
    if (details.querySelector(".inside")) return;
    details.append(make("div", { class: "inside" }, ...inside(place)));
  }

  function inside(place) {
    const parts = [], row = rows[place], heading = (text) => make(HEADING, {}, text);
    if (row) {
      const heads = [...table.tHead.rows[0].cells];
      const title = (cell) => { const button = cell.querySelector("button") || cell, sub = cell.querySelector(".sub"); return sub ? `${cellText(button)}, ${sub.textContent}` : button.textContent; };
      parts.push(make("dl", {}, ...heads.slice(1).map((cell, i) => make("div", {}, make("dt", {}, title(cell)), make("dd", {}, row.cells[i + 1].textContent)))));
    }
    if (hasCurve(place)) parts.push(heading("Along the sweep"), ownCurves(place), make("p", { class: "quiet" }, said(place)));
    const drawing = data.drawings[place];
    if (drawing) {
      const parsed = new DOMParser().parseFromString(drawing, "image/svg+xml").documentElement;
      if (parsed.nodeName === "svg") parts.push(heading("The circuit"), make("div", { class: "drawing" }, document.importNode(parsed, true)));
      parts.push(make("p", { class: "quiet" }, "Units of each layer by their place and share of what flows, and the ribbons that carry most; red: in no other circuit."));
    } else if (hasCurve(place) && data.seen[place]) {
      parts.push(make("p", { class: "quiet" }, "Not drawn yet: circuitcore show RUN, then circuitcore report RUN."));
    }
    parts.push(...seen(place));
    if (data.similar[place].length) parts.push(heading("Most similar circuits"), similar(place));
    return parts;
  }

  function seen(place) {
    const found = data.seen[place], parts = [];
    if (data.pages) parts.push(make("p", {}, make("a", { href: `${data.pages}${data.units[place]}.html` }, "Its own page")));
    if (!found) {
      if (data.aside) parts.push(make("p", { class: "quiet" }, data.aside));
      return parts;
    }
    for (const [kind, title] of [["hits", "Hits"], ["misses", "Misses"], ["alarms", "False alarms"]]) {
      const shown = found[kind].length, every = Math.max(found.counts[kind], shown);
      parts.push(make(HEADING, {}, `${title}: ${every}${shown < every ? `, ${shown} shown` : ""}`));
      if (!shown) continue;
      parts.push(make("ul", { class: "images" }, ...found[kind].map(([number, category, margin, unpruned]) => {
        const what = `${category}, ${signed(margin)}`, picture = thumb(number, `${title.toLowerCase().replace(/s$/, "")}: ${what}`);
        if (picture) picture.className = "";
        const same = (margin === null || margin > 0) === (unpruned === null || unpruned > 0);
        return make("li", { title: `margin of the circuit ${signed(margin)}, of the unpruned network ${signed(unpruned)}` },
          picture || make("span", { class: "lost", role: "img", "aria-label": `no picture: ${what}` }),
          kind === "alarms" ? `${category} ` : "", signed(margin), same ? "" : kind === "misses" ? "; unpruned: hit" : "; unpruned: not");
      })));
    }
    parts.push(make("p", { class: "quiet" }, "Held-out images, the surest first, with the margin in logits by which the circuit says so (above 0: it says the category). " + data.missing));
    return parts;
  }
  const signed = (value) => (value === null ? "∞" : `${value > 0 ? "+" : value < 0 ? "−" : ""}${Math.abs(value).toPrecision(2)}`);

  function similar(place) {
    return make("ul", { class: "similar" }, ...data.similar[place].map(([other, overlap]) => {
      const name = data.alone ? make("a", { href: `${data.units[other]}.html` }, data.names[other])
        : make("button", { type: "button", class: "open", onclick: () => openCategory(other) }, data.names[other]);
      return make("li", {}, thumb(data.own[other]), make("span", {}, name, ` ${overlap.toFixed(3)}`));
    }));
  }

  function list() {
    const host = byId("circuits-list");
    if (!host) return;
    const shown = order.places.slice(0, order.listed);
    host.replaceChildren(...shown.map(section));
    const more = order.places.length - shown.length;
    if (more > 0) host.append(make("div", { class: "tools" }, make("button", { type: "button", id: "more", onclick: () => {
      const next = shown.length;
      order.listed += FIRST;
      list();
      host.children[next].querySelector("summary").focus();
    } }, `Show ${Math.min(more, FIRST)} more of ${more}`)));
  }

  function openCategory(place) {
    const host = byId("circuits-list"), details = section(place);
    if (!details.isConnected) host.prepend(details);
    details.open = true;
    fill(details, place);
    details.scrollIntoView({ behavior: calm() ? "auto" : "smooth", block: "start" });
    details.querySelector("summary").focus({ preventScroll: true });
    if (location.hash !== `#${details.id}`) history.replaceState(null, "", `#${details.id}`);
  }

  function fromHash() {
    const place = data.units.findIndex((unit) => `#c-${unit}` === location.hash);
    if (place >= 0) openCategory(place);
  }

  function navigation() {
    const every = [...document.querySelectorAll("main > section")].filter((each) => each.querySelector("h2"));
    every.forEach((each, i) => {
      const head = each.querySelector("h2");
      each.id = each.id || `section-${i}`;
      head.id = head.id || `${each.id}-head`;
      each.setAttribute("aria-labelledby", head.id);
    });
    const links = every.map((each) => make("li", {}, make("a", { href: `#${each.id}` }, each.querySelector("h2").textContent)));
    const main = document.querySelector("main");
    main.id = main.id || "main";
    main.before(make("nav", { class: "sections", "aria-label": "Sections" }, make("ul", {}, ...links)));
    document.body.prepend(make("a", { class: "skip", href: `#${main.id}` }, "Skip to the content"));
  }

  function printing() {
    let opened = [];
    addEventListener("beforeprint", () => {
      if (data.names.length <= OPEN_IN_PRINT) { order.listed = data.names.length; list(); }
      opened = [...document.querySelectorAll("details:not([open])")].filter((each) => !each.classList.contains("one") || data.names.length <= OPEN_IN_PRINT);
      for (const each of opened) each.open = true;
      for (const [place, details] of sections) if (details.open) fill(details, place);
    });
    addEventListener("afterprint", () => { for (const each of opened) each.open = false; });
  }

  if (data.alone) {
    byId("circuit").append(...inside(0));
    return;
  }
  document.documentElement.classList.add("scripted");
  navigation();
  if (table) tableTools();
  const withCurves = byId("curves-together"), withMatrix = byId("matrix-by-script");
  if (withCurves) curvesTogether(withCurves);
  if (withMatrix && data.matrix) matrix(withMatrix);
  printing();
  addEventListener("hashchange", fromHash);
  fromHash();
})();
