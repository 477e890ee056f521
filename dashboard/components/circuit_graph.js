// A circuit's graph: SVG nodes over canvas edges. Hover, prune, pin, group, search and rename run here; Python gets the
// view (pins, groups, names, judgements, sliders) after each choice. Texts are only ever set as text, never as HTML.

const NS = "http://www.w3.org/2000/svg";
const STEP = 24, LINE = 30, PAD = 12, LEFT = 110, TOP = 14, BOTTOM = 34, PER_LINE = 8, BARS = 8;
const COLOURS = { pos: "#0072B2", neg: "#D55E00" };

export default function ({ data, parentElement, setTriggerValue }) {
  let root = parentElement.querySelector(".sx-cg");
  if (!root || root.dataset.graph !== data.graph.id) {
    parentElement.querySelectorAll(".sx-cg").forEach((old) => old.remove());
    root = el("div", { class: "sx sx-cg", "data-graph": data.graph.id });
    parentElement.append(root);
    root.page = new CircuitPage(root, data);
    root.page.scroll.scrollLeft = root.page.scroll.scrollWidth;  // most nodes are at the last token
  }
  root.page.tell = (view) => setTriggerValue("view", view);
  root.page.adopt(data);
}

function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function svg(name, attributes = {}) {
  const node = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

const short = (x) => (x === null || x === undefined ? "–" : Math.abs(x) >= 1000 || (x && Math.abs(x) < 0.001) ? x.toExponential(1) : String(+x.toPrecision(3)));
const count = (n) => n.toLocaleString("en");

class CircuitPage {
  constructor(root, data) {
    this.root = root;
    this.graph = data.graph;
    this.n = data.graph.nodes.name.length;
    this.at = new Map(data.graph.nodes.name.map((name, i) => [name, i]));
    this.inputs = Array.from({ length: this.n }, () => []);
    this.outputs = Array.from({ length: this.n }, () => []);
    const { source, target } = data.graph.edges;
    for (let e = 0; e < source.length; e++) {
      this.outputs[source[e]].push(e);
      if (target[e] >= 0) this.inputs[target[e]].push(e);
    }
    this.largest = data.graph.edges.weight.reduce((most, w) => Math.max(most, Math.abs(w ?? 0)), 1e-30);
    this.pins = new Set();
    this.groups = [];
    this.names = {};
    this.judged = {};
    this.clicked = null;
    this.shares = [1, 1];
    this.told = null;  // Python's last view
    this.sent = [];  // views sent to Python since
    this.found = null;
    this.hovered = null;
    this.marked = [];
    this.known = el("div", { class: "sx sx-cg-known" });  // Python's part of the open node card
    this.build();
  }

  // -- the view ------------------------------------------------------------------------------------------------------

  adopt(data) {
    this.links = data.links;
    this.about(data.card);
    const text = JSON.stringify(data.view), mine = this.sent.indexOf(text);
    if (mine >= 0) {  // an echo of our own choice; later ones are still in flight
      this.told = text;
      this.sent.splice(0, mine + 1);
    }
    if (text === this.told) return;
    this.told = text;
    this.sent = [];
    const v = data.view;
    this.pins = new Set((v.p ?? []).filter((name) => this.at.has(name)));
    this.groups = (v.g ?? []).map(([name, members]) => [name, members.filter((one) => this.at.has(one))]);
    this.names = { ...(v.l ?? {}) };
    this.judged = { ...(v.j ?? {}) };
    this.clicked = this.at.has(v.c) ? v.c : null;
    this.shares = [v.n ?? 1, v.e ?? 1];
    this.sliders.forEach((slider, k) => { slider.value = this.shares[k]; });
    this.refresh();
  }

  // trusted HTML from analysis.render, with all text escaped
  about(card) {
    if (card && card.html !== this.known.drawn) this.known.innerHTML = card.html;
    this.known.drawn = card?.html;
    this.known.dataset.node = card?.node ?? "";
    if (this.waits && this.waits.isConnected && this.waits.dataset.node === card?.node) this.waits.replaceWith(this.known);
  }

  commit() {
    const view = {};
    if (this.pins.size) view.p = [...this.pins];
    if (this.groups.length) view.g = this.groups;
    if (Object.keys(this.names).length) view.l = this.names;
    if (Object.keys(this.judged).length) view.j = this.judged;
    if (this.clicked) view.c = this.clicked;
    if (this.shares[0] < 1) view.n = this.shares[0];
    if (this.shares[1] < 1) view.e = this.shares[1];
    const text = JSON.stringify(view);
    if (text !== (this.sent.at(-1) ?? this.told)) this.sent.push(text);
    this.refresh();
    this.tell?.(text);
  }

  called(i) {
    const name = this.graph.nodes.name[i];
    return this.names[name] || this.graph.nodes.text[i] || name;
  }

  group(name) { return this.groups.findIndex(([, members]) => members.includes(name)); }

  // -- building ------------------------------------------------------------------------------------------------------

  build() {
    this.search = el("input", { type: "search", placeholder: "search nodes", "aria-label": "Search nodes" });
    this.search.addEventListener("input", () => this.refresh());
    this.search.addEventListener("keydown", (event) => event.stopPropagation());
    this.sliders = ["nodes", "edges"].map((what, k) => {
      const slider = el("input", { type: "range", min: 0.02, max: 1, step: 0.01, value: 1, "aria-label": `Share of the influence of ${what} to show` });
      slider.addEventListener("input", () => { this.shares[k] = +slider.value; this.refresh(); });
      slider.addEventListener("change", () => this.commit());
      return slider;
    });
    this.hidden = el("span", { class: "sx-quiet", role: "status" });
    const bar = el("div", { class: "sx-cg-bar" }, this.search,
      el("label", {}, "nodes ", this.sliders[0]), el("label", {}, "edges ", this.sliders[1]), this.hidden);
    this.scroll = el("div", { class: "sx-cg-scroll" });
    this.side = el("div", { class: "sx-cg-side", tabindex: -1 });
    const { nodes, edges } = this.graph, repeated = [...nodes.inclusion, ...edges.inclusion].some((share) => share !== null);
    const legend = el("p", { class: "sx-quiet" }, "Circles are features, diamonds errors, squares tokens and skip paths, rounded squares logits. " +
      "Blue edges are positive, orange dashed edges negative; width is magnitude." +
      (repeated ? " Dotted edges are in fewer than 90 % of the bootstraps, outlined nodes in at least as many." : ""));
    this.root.append(bar, el("div", { class: "sx-cg-both" }, el("div", {}, this.scroll, legend), this.side));
    this.tab = "node";
    this.layout();
    this.draw();
    this.root.addEventListener("keydown", (event) => this.key(event));
  }

  layout() {
    const { row, position, share } = this.graph.nodes;
    const cells = new Map();
    const order = [...Array(this.n).keys()].sort((a, b) => share[a] - share[b]);
    for (const i of order) {
      const key = `${row[i]}:${position[i]}`;
      if (!cells.has(key)) cells.set(key, []);
      cells.get(key).push(i);
    }
    const positional = position.some((p) => p >= 0);
    const columns = positional ? Math.max(this.graph.prompt.length, ...position.map((p) => p + 1)) : 1;
    const wide = Array(columns).fill(1), rows = [...new Set(row)].sort((a, b) => b - a), high = new Map();
    const perLine = positional ? PER_LINE : 28;
    for (const [key, cell] of cells) {
      const [r, p] = key.split(":").map(Number);
      wide[Math.max(p, 0)] = Math.max(wide[Math.max(p, 0)], Math.min(cell.length, perLine));
      high.set(r, Math.max(high.get(r) ?? 1, Math.ceil(cell.length / perLine)));
    }
    this.columns = [];
    let x = LEFT;
    for (const slots of wide) { const w = Math.max(46, STEP * slots + 10); this.columns.push([x, w]); x += w; }
    this.width = x + 10;
    this.rows = new Map();
    this.output = [this.columns.at(-1)[0] + this.columns.at(-1)[1] / 2, TOP];
    let y = TOP + 20;
    for (const r of rows) { const h = LINE * high.get(r) + PAD; this.rows.set(r, [y, h]); y += h; }
    this.height = y + BOTTOM;
    this.x = new Float64Array(this.n);
    this.y = new Float64Array(this.n);
    for (const [key, cell] of cells) {
      const [r, p] = key.split(":").map(Number);
      const [left, w] = this.columns[Math.max(p, 0)], [top] = this.rows.get(r);
      cell.forEach((i, k) => {
        const line = Math.floor(k / perLine), here = Math.min(cell.length - line * perLine, perLine);
        this.x[i] = left + w * ((k % perLine) + 0.5) / here;
        this.y[i] = top + PAD / 2 + LINE * (line + 0.5);
      });
    }
  }

  draw() {
    const size = { width: this.width, height: this.height };
    this.canvas = el("canvas", { "aria-hidden": "true" });
    this.over = el("canvas", { "aria-hidden": "true" });
    const scale = Math.min(globalThis.devicePixelRatio || 1, 16000 / Math.max(this.width, this.height));
    for (const canvas of [this.canvas, this.over]) {
      canvas.width = this.width * scale;
      canvas.height = this.height * scale;
      canvas.style.width = `${this.width}px`;
      canvas.style.height = `${this.height}px`;
      canvas.getContext("2d").setTransform(scale, 0, 0, scale, 0, 0);
    }
    const drawing = svg("svg", { ...size, viewBox: `0 0 ${this.width} ${this.height}`, role: "group", "aria-label": `${count(this.n)} nodes` });
    const rows = svg("svg", { width: LEFT - 4, height: this.height, class: "sx-cg-rows" });  // stays visible when the graph is scrolled
    for (const [r, [y, h]] of this.rows) {
      drawing.append(svg("line", { class: "sx-rule", x1: 0, x2: this.width, y1: y, y2: y }));
      this.words(rows, this.graph.rows[r], LEFT - 10, y + h / 2 + 4, "end", 17);
    }
    this.columns.forEach(([x, w], p) => {
      drawing.append(svg("line", { class: "sx-rule", x1: x, x2: x, y1: TOP + 8, y2: this.height - BOTTOM }));
      if (this.graph.prompt[p] !== undefined) this.words(drawing, this.graph.prompt[p], x + w / 2, this.height - BOTTOM + 16, "middle", Math.floor(w / 6.5));
    });
    this.nodes = this.graph.nodes.name.map((name, i) => {
      const g = svg("g", { class: `sx-cg-node sx-cg-${this.graph.nodes.kind[i]}`, "data-i": i, tabindex: -1, role: "button" });
      g.append(this.shape(i));
      drawing.append(g);
      return g;
    });
    // event delegation: one listener of each kind for all nodes
    drawing.addEventListener("pointerover", (event) => this.hover(this.index(event)));
    drawing.addEventListener("pointerleave", () => this.hover(null));
    drawing.addEventListener("focusin", (event) => this.hover(this.index(event)));
    drawing.addEventListener("click", (event) => {
      const i = this.index(event);
      if (i === null) return;
      if (event.ctrlKey || event.metaKey || event.shiftKey) this.pin(i); else this.choose(i);
    });
    this.drawing = drawing;
    const stack = el("div", { class: "sx-cg-stack" }, this.canvas, this.over, drawing, rows);
    stack.style.width = `${this.width}px`;
    stack.style.height = `${this.height}px`;
    this.scroll.append(stack);
  }

  words(drawing, text, x, y, anchor, limit) {
    const node = svg("text", { x, y, "text-anchor": anchor });
    node.textContent = text.length > limit ? `${text.slice(0, Math.max(limit - 1, 1))}…` : text;
    const title = svg("title");
    title.textContent = text;
    node.append(title);
    drawing.append(node);
  }

  shape(i) {
    const kind = this.graph.nodes.kind[i], x = this.x[i], y = this.y[i];
    const title = svg("title");
    title.textContent = this.called(i);
    let mark;
    if (kind === "error") mark = svg("path", { d: `M${x} ${y - 7}l7 7l-7 7l-7 -7z` });
    else if (kind === "skip" || kind === "token") mark = svg("rect", { x: x - 5.5, y: y - 5.5, width: 11, height: 11 });
    else if (kind === "logit") mark = svg("rect", { x: x - 7, y: y - 6, width: 14, height: 12, rx: 4 });
    else mark = svg("circle", { cx: x, cy: y, r: 6 });
    mark.append(title);
    return mark;
  }

  index(event) {
    const node = event.target.closest?.("[data-i]");
    return node ? Number(node.dataset.i) : null;
  }

  // -- what is shown ---------------------------------------------------------------------------------------------------

  shownNode(i) {
    const kind = this.graph.nodes.kind[i], name = this.graph.nodes.name[i];
    return kind === "token" || kind === "logit" || this.graph.nodes.share[i] <= this.shares[0] + 1e-9 || this.pins.has(name) || name === this.clicked;
  }

  shownEdge(e) {
    const { source, target, share } = this.graph.edges;
    return share[e] <= this.shares[1] + 1e-9 && this.visible[source[e]] && (target[e] < 0 || this.visible[target[e]]);
  }

  refresh() {
    const { name } = this.graph.nodes, wanted = this.search.value.trim().toLowerCase();
    this.visible = Array.from({ length: this.n }, (_, i) => this.shownNode(i));
    this.kept = [];
    for (let e = 0; e < this.graph.edges.source.length; e++) if (this.shownEdge(e)) this.kept.push(e);
    let matches = 0, first = null;
    for (let i = 0; i < this.n; i++) {
      const node = this.nodes[i], match = wanted && this.visible[i] && `${name[i]} ${this.called(i)} ${this.graph.prompt[this.graph.nodes.position[i]] ?? ""}`.toLowerCase().includes(wanted);
      if (match) { matches++; first ??= i; }
      const c = `sx-cg-node sx-cg-${this.graph.nodes.kind[i]}${this.visible[i] ? "" : " sx-cg-off"}${this.pins.has(name[i]) ? " sx-cg-pin" : ""}` +
        `${name[i] === this.clicked ? " sx-cg-on" : ""}${match ? " sx-cg-match" : ""}${this.judged[name[i]] ? " sx-cg-bad" : ""}` +
        `${(this.graph.nodes.inclusion[i] ?? 0) >= 0.9 ? " sx-cg-sure" : ""}`;
      if (node.getAttribute("class") !== c) node.setAttribute("class", c);
      const said = `${this.called(i)}${this.pins.has(name[i]) ? ", pinned" : ""}`;
      if (node.getAttribute("aria-label") !== said) node.setAttribute("aria-label", said);
    }
    this.nodes[this.at.get(this.clicked) ?? this.visible.indexOf(true)]?.setAttribute("tabindex", 0);
    const gone = this.n - this.visible.filter(Boolean).length, lost = this.graph.edges.source.length - this.kept.length;
    this.hidden.textContent = `${count(gone)} of ${count(this.n)} nodes and ${count(lost)} of ${count(this.graph.edges.source.length)} edges hidden` +
      (wanted ? `, ${count(matches)} found` : "");
    this.root.dataset.hidden = gone;
    if (wanted && matches && this.found !== wanted) this.nodes[first].scrollIntoView({ block: "nearest", inline: "nearest" });
    this.found = wanted;
    // drawing thousands of dashed curves is slow, and most choices don't change them
    if (this.kept.length !== this.painted?.length || this.kept.some((e, k) => e !== this.painted[k])) {
      this.paint(this.canvas, this.kept);
      this.painted = this.kept;
    }
    this.mark(this.hovered ?? this.at.get(this.clicked) ?? null);
    this.panel();
  }

  paint(canvas, edges, strong = false) {
    const pen = canvas.getContext("2d"), { source, target, weight, inclusion } = this.graph.edges;
    pen.clearRect(0, 0, this.width, this.height);
    for (const e of edges) {
      const w = weight[e] ?? 0, s = source[e], t = target[e];
      const [x1, y1] = t < 0 ? this.output : [this.x[t], this.y[t]], bend = Math.max((this.y[s] - y1) / 2, 12);
      pen.beginPath();
      pen.moveTo(this.x[s], this.y[s]);
      pen.bezierCurveTo(this.x[s], this.y[s] - bend, x1, y1 + bend, x1, y1);
      pen.strokeStyle = w < 0 ? COLOURS.neg : COLOURS.pos;
      pen.globalAlpha = strong ? 0.9 : 0.18 + 0.4 * Math.sqrt(Math.abs(w) / this.largest);
      pen.lineWidth = (strong ? 1 : 0.5) + 3 * Math.sqrt(Math.abs(w) / this.largest);
      // contingent edges (selected in few bootstraps) are dotted; negative ones dashed
      pen.setLineDash(inclusion[e] !== null && inclusion[e] < 0.9 ? [1.5, 3] : w < 0 ? [6, 3] : []);
      pen.stroke();
    }
    pen.globalAlpha = 1;
  }

  hover(i) {
    if (i === this.hovered) return;
    this.hovered = i;
    this.mark(i ?? this.at.get(this.clicked) ?? null);
  }

  // one node's edges and neighbours; the cost scales with their number, not the graph's
  mark(i) {
    for (const node of this.marked) node.classList.remove("sx-cg-near");
    this.marked = [];
    const edges = i === null || !this.visible?.[i] ? [] : [...this.inputs[i], ...this.outputs[i]].filter((e) => this.shownEdge(e));
    this.canvas.style.opacity = edges.length ? 0.25 : 1;
    this.paint(this.over, edges, true);
    for (const e of edges) {
      for (const end of [this.graph.edges.source[e], this.graph.edges.target[e]]) {
        if (end >= 0 && end !== i) { this.nodes[end].classList.add("sx-cg-near"); this.marked.push(this.nodes[end]); }
      }
    }
    this.root.dataset.marked = i === null ? "" : this.graph.nodes.name[i];
  }

  // -- choices ---------------------------------------------------------------------------------------------------------

  choose(i) {
    this.clicked = this.graph.nodes.name[i];
    this.tab = "node";
    this.all = null;  // the list that is shown in full
    this.commit();
  }

  pin(i) {
    const name = this.graph.nodes.name[i];
    if (this.pins.has(name)) {
      this.pins.delete(name);
      this.groups = this.groups.map(([called, members]) => [called, members.filter((one) => one !== name)]).filter(([, members]) => members.length > 1);
    } else this.pins.add(name);
    this.commit();
  }

  makeGroup(members, called) {
    this.groups = this.groups.map(([name, old]) => [name, old.filter((one) => !members.includes(one))]).filter(([, old]) => old.length > 1);
    this.groups.push([called || `group ${this.groups.length + 1}`, members]);
    this.commit();
  }

  key(event) {
    if (event.target.matches?.("input, textarea")) { event.stopPropagation(); return; }
    const i = this.index(event) ?? this.at.get(this.clicked);
    if (event.key === "p" && i !== undefined) this.pin(i);
    else if ((event.key === "Enter" || event.key === " ") && this.index(event) !== null) this.choose(this.index(event));
    else if (event.key === "Escape") { this.clicked = null; this.commit(); }
    else if (event.key.startsWith("Arrow") && this.index(event) !== null) this.step(this.index(event), event.key);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  step(i, key) {
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
    let best = null, least = Infinity;
    for (let k = 0; k < this.n; k++) {
      if (!this.visible[k] || k === i) continue;
      const along = (this.x[k] - this.x[i]) * dx + (this.y[k] - this.y[i]) * dy, off = Math.abs((this.x[k] - this.x[i]) * dy) + Math.abs((this.y[k] - this.y[i]) * dx);
      if (along > 1 && along + 3 * off < least) { least = along + 3 * off; best = k; }
    }
    if (best !== null) { this.nodes[best].setAttribute("tabindex", 0); this.nodes[best].focus(); }
  }

  // -- the panel -------------------------------------------------------------------------------------------------------

  panel() {
    const tabs = el("div", { class: "sx-cg-tabs", role: "tablist" });
    for (const [key, title] of [["node", "Node"], ["subgraph", `Subgraph (${this.pins.size})`]]) {
      const button = el("button", { role: "tab", "aria-selected": this.tab === key }, title);
      button.addEventListener("click", () => { this.tab = key; this.panel(); });
      tabs.append(button);
    }
    const held = this.side.contains(document.activeElement);
    this.side.replaceChildren(tabs, this.tab === "node" ? this.card() : this.subgraph());
    if (held && !this.side.contains(document.activeElement)) this.side.focus({ preventScroll: true });  // keep key events in the graph
  }

  card() {
    const i = this.at.get(this.clicked);
    if (i === undefined) return el("p", { class: "sx-quiet" }, "Click a node to open its card; Ctrl-click it or press p to pin it. Use the arrow keys to move.");
    const { name, kind, position, value, effect, low, high, inclusion, row, feature } = this.graph.nodes;
    const label = el("input", { class: "sx-cg-name", value: this.called(i), "aria-label": "Name of the node", maxlength: 80 });
    label.addEventListener("change", () => {
      if (label.value.trim() && label.value !== (this.graph.nodes.text[i] || name[i])) this.names[name[i]] = label.value.trim(); else delete this.names[name[i]];
      this.commit();
    });
    const facts = [["node", name[i]], ["kind", kind[i]], ["token", position[i] >= 0 ? `${this.graph.prompt[position[i]] ?? ""} (${position[i]})` : "all"],
      ["value", short(value[i])], ["effect", short(effect[i]) + (low[i] === null ? "" : ` (${short(low[i])} to ${short(high[i])})`)],
      ...(inclusion[i] === null ? [] : [["in bootstraps", `${Math.round(100 * inclusion[i])} %`]])];
    const list = el("dl", { class: "sx-facts" }, ...facts.map(([k, v]) => el("div", {}, el("dt", {}, k), el("dd", {}, v))));
    const pin = this.button(this.pins.has(name[i]) ? "unpin" : "pin", () => this.pin(i));
    const buttons = el("div", { class: "sx-cg-buttons" }, pin);
    if (kind[i] === "feature") {
      for (const [text, yes] of [["spurious", true], ["relevant", false]]) {
        const on = this.judged[name[i]] === yes;
        buttons.append(this.button(text, () => { if (on) delete this.judged[name[i]]; else this.judged[name[i]] = yes; this.commit(); }, on));
      }
      const link = this.links?.[row[i]];
      if (link) buttons.append(el("a", { href: `${link}&f=${feature[i]}` }, "examples"));
    }
    const known = this.known.dataset.node === name[i] ? this.known : el("p", { class: "sx-quiet", "data-node": name[i] });
    if (known !== this.known) { this.waits = known; known.textContent = "Loading examples …"; }
    return el("div", {}, label, list, buttons, el("h3", {}, "Inputs"), this.bars(this.inputs[i], "source"), el("h3", {}, "Outputs"),
      this.bars(this.outputs[i], "target"), ...(kind[i] === "feature" ? [known] : []));
  }

  button(text, act, pressed = null) {
    const button = el("button", pressed === null ? {} : { "aria-pressed": pressed }, text);
    button.addEventListener("click", act);
    return button;
  }

  bars(edges, end) {
    const { weight } = this.graph.edges, sorted = [...edges].sort((a, b) => Math.abs(weight[b] ?? 0) - Math.abs(weight[a] ?? 0));
    const order = this.all === end ? sorted : sorted.slice(0, BARS);
    const most = Math.max(...order.map((e) => Math.abs(weight[e] ?? 0)), 1e-30);
    const out = el("ol", { class: "sx-cg-bars" });
    for (const e of order) {
      const other = this.graph.edges[end][e], text = other < 0 ? this.graph.metric : this.called(other);
      const name = el(other < 0 ? "span" : "button", {}, text);
      if (other >= 0) {
        name.addEventListener("click", () => this.choose(other));
        name.addEventListener("pointerenter", () => this.hover(other));
        name.addEventListener("pointerleave", () => this.hover(null));
      }
      const bar = el("i", { class: (weight[e] ?? 0) < 0 ? "sx-bar sx-bar-n" : "sx-bar sx-bar-p" });
      bar.style.width = `${(100 * Math.abs(weight[e] ?? 0)) / most}%`;
      out.append(el("li", {}, name, el("span", { class: "sx-num" }, short(weight[e])), bar));
    }
    if (edges.length > order.length) {
      out.append(el("li", {}, this.button(`${count(edges.length - order.length)} smaller ones`, () => { this.all = end; this.panel(); })));
    }
    return edges.length ? out : el("p", { class: "sx-quiet" }, "none");
  }

  subgraph() {
    const box = el("div", {});
    if (!this.pins.size) return el("p", { class: "sx-quiet" }, "Pinned nodes are listed here. Tick some to group them.");
    const scores = this.graph.scored ? this.scores() : null;
    if (scores) box.append(el("p", { class: "sx-cg-scores" }, `replacement ${short(scores[0])}, completeness ${short(scores[1])} of the pinned subgraph`));
    for (const [k, [called, members]] of this.groups.entries()) {
      const title = el("input", { class: "sx-cg-name", value: called, "aria-label": "Name of the group", maxlength: 60 });
      title.addEventListener("change", () => { this.groups[k][0] = title.value.trim() || called; this.commit(); });
      box.append(el("div", { class: "sx-cg-group" }, title,
        this.button("dissolve", () => { this.groups.splice(k, 1); this.commit(); }), this.list(members, false), this.sum(members)));
    }
    const free = [...this.pins].filter((name) => this.group(name) < 0);
    const ticks = [];
    box.append(this.list(free, true, ticks));
    const called = el("input", { placeholder: "group name", "aria-label": "Name of the new group", maxlength: 60 });
    const preview = el("p", { class: "sx-quiet" });
    const make = this.button("group", () => this.makeGroup(ticks.filter((tick) => tick.checked).map((tick) => tick.value), called.value.trim()));
    make.disabled = true;
    box.addEventListener("change", () => {
      const some = ticks.filter((tick) => tick.checked).map((tick) => tick.value);
      make.disabled = some.length < 2;
      preview.replaceChildren(...(some.length < 2 ? [] : [this.sum(some)]));
    });
    if (free.length > 1) box.append(el("div", { class: "sx-cg-buttons" }, called, make), preview);
    return box;
  }

  list(names, ticked, ticks = []) {
    return el("ul", { class: "sx-cg-list" }, ...names.map((name) => {
      const go = this.button(this.called(this.at.get(name)), () => this.choose(this.at.get(name)));
      const off = this.button("×", () => this.pin(this.at.get(name)));
      off.setAttribute("aria-label", `unpin ${name}`);
      if (!ticked) return el("li", {}, go, off);
      const tick = el("input", { type: "checkbox", value: name, "aria-label": `group ${name}` });
      ticks.push(tick);
      return el("li", {}, tick, go, off);
    }));
  }

  // total input and output of a group of nodes
  sum(members) {
    const inside = new Set(members.map((name) => this.at.get(name)));
    let into = 0, out = 0;
    for (const i of inside) {
      for (const e of this.inputs[i]) if (!inside.has(this.graph.edges.source[e])) into += this.graph.edges.weight[e] ?? 0;
      for (const e of this.outputs[i]) if (!inside.has(this.graph.edges.target[e])) out += this.graph.edges.weight[e] ?? 0;
    }
    return el("span", { class: "sx-quiet" }, `${inside.size} nodes: ${short(into)} in, ${short(out)} out`);
  }

  // as analysis.circuits.attribution.influence.subgraph_scores: unpinned features count as errors
  scores() {
    const { kind, name } = this.graph.nodes, { source, target, weight } = this.graph.edges;
    const unknown = kind.map((k, i) => k === "error" || k === "skip" || (k === "feature" && !this.pins.has(name[i])));
    const total = new Float64Array(this.n), influence = new Float64Array(this.n), start = new Float64Array(this.n);
    for (let e = 0; e < source.length; e++) {
      if (target[e] < 0) start[source[e]] += Math.abs(weight[e] ?? 0);
      else if (!unknown[target[e]]) total[target[e]] += Math.abs(weight[e] ?? 0);
    }
    // nodes are in causal order: a node's output is known once all downstream nodes are
    let tokens = 0, errors = 0, known = 0, all = 0;
    for (let i = this.n - 1; i >= 0; i--) {
      const here = influence[i] + start[i];
      if (kind[i] === "token") tokens += influence[i];
      if (unknown[i]) errors += influence[i];
      let lost = 0;
      if (!unknown[i] && total[i] > 0) {
        for (const e of this.inputs[i]) {
          const share = Math.abs(weight[e] ?? 0) / total[i];
          influence[source[e]] += share * here;
          if (unknown[source[e]]) lost += share;
        }
      }
      known += (1 - lost) * here;
      all += here;
    }
    return [tokens / Math.max(tokens + errors, 1e-300), known / Math.max(all, 1e-300)];
  }
}
