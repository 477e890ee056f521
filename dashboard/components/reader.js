// See reader.py. The parts of the Feature page share one reader, which holds the features and the unsaved edits.
const DRAFTS = ["label", "note", "tags"];
const EMPTY = { label: "", note: "", tags: [], lists: [] };
const STAR = "starred";

class Reader {
  constructor() {
    this.features = new Map();  // number → what Python drew for it
    this.ready = new Map();  // HTML → its element, built ahead for the neighbours of the current feature
    this.parts = (globalThis.saescopeParts ??= new Map());  // name → element; other parts may arrive before the bar
    this.data = null;
    this.current = null;
    this.n = 0;  // number of the last message to Python
    this.outbox = [];  // edits that Python hasn't acknowledged
    this.conflict = null;
    this.said = "";
  }

  // -- what Python sends

  mount({ data, parentElement, setTriggerValue }) {
    const bar = parentElement.querySelector(".sx-reader"), anew = this.parts.get("bar") !== bar;
    if (anew) {  // messages from an earlier visit are never answered
      clearTimeout(this.sending);
      this.n = this.sending = 0;
    }
    this.parts.set("bar", bar);
    this.take(data, setTriggerValue);
    this.drawAll();
    this.fill();
    if (anew && this.outbox.length) this.filling ||= setTimeout(() => this.send(null), 60);
    return () => clearTimeout(this.filling);
  }

  take(data, setTriggerValue) {
    this.trigger = setTriggerValue;
    if (data === this.data) return;
    if (this.data?.session !== data.session) this.n = 0;  // another server, or a restarted one
    if (this.data?.stamp !== data.stamp) this.features.clear();
    for (const one of data.features) this.features.set(one.feature, one);
    for (const [feature, written] of Object.entries(data.written)) {
      const one = this.features.get(Number(feature));
      if (one) one.written = written;
    }
    const before = this.current, left = this.data && this.data.whose !== data.whose;
    this.data = data;
    // keys get ahead of Python: use its state only once it has received the last message
    if (data.n >= this.n || left || this.current === null) this.current = data.feature;
    if (data.n >= this.n || !this.view) this.view = { ...data.view };
    for (const answer of data.saved) this.answered(answer);
    if (before !== this.current) this.turned();
  }

  // no message is pending in either direction
  get quiet() { return !this.part("bar") || (!this.filling && !this.sending && this.data.n >= this.n && !this.outbox.length); }

  // the URL of the current feature, while the page is open
  get reading() { return this.part("bar") && this.data ? this.address() : null; }

  // a link goes elsewhere: drop pending messages about this page, but keep edits
  left(url) {
    if (!this.sending || this.outbox.length || url.searchParams.get("page") === "feature") return;
    clearTimeout(this.sending);
    this.sending = 0;
    this.n = this.data.n;
  }

  // request missing features around the current one
  fill() {
    clearTimeout(this.filling);
    this.filling = 0;
    const { walk, wait } = this.data, at = walk.indexOf(this.current);
    const missing = !this.features.has(this.current) ||
      (this.data.tab === "examples" && walk.slice(Math.max(0, at - 2), at + 7).some((f) => !this.features.has(f)));
    if (wait) this.filling = setTimeout(() => this.send(null), 1500);
    else if (missing && this.data.n >= this.n) this.filling = setTimeout(() => this.send(null), 60);
    else if (missing) this.filling = setTimeout(() => this.fill(), 500);
  }

  send(to) {
    if (to === null && this.sending) to = this.address();  // it was about to be sent
    clearTimeout(this.sending);
    clearTimeout(this.filling);
    this.sending = this.filling = 0;
    this.stepping = false;
    this.n = Math.max(this.n, this.data.n) + 1;
    this.trigger("to", {
      to, n: this.n, stamp: this.data.stamp, have: [...this.features.keys()].slice(-400), saves: this.outbox,
    });
  }

  // this page's current URL with some changes
  address(changes = {}) {
    const url = new URLSearchParams(this.data.here.replace(/^[^?]*\?/, ""));
    const set = (key, value) => value === null || value === "" ? url.delete(key) : url.set(key, value);
    if (this.current !== this.data.feature) for (const key of this.data.ofFeature) url.delete(key);
    set("f", String(this.current));
    for (const [key, on] of Object.entries(this.view)) set(key, on === this.data.defaults[key] ? null : String(on));
    for (const [key, value] of Object.entries(changes)) set(key, value);
    return "?" + String(url).replace(/%7E/g, "~").replace(/\*/g, "%2A");  // as Python encodes it
  }

  // update the URL at once and Python a moment later; quick steps make one history entry
  later(ms) {
    clearTimeout(this.sending);
    this.n += 1;  // answers in flight are older than this step
    const search = this.address();
    if (this.stepping) history.replaceState({}, "", search); else history.pushState({}, "", search);
    this.stepping = true;
    this.sending = setTimeout(() => this.send(search), ms);
  }

  // -- from feature to feature

  go(feature) {
    if (feature === this.current) return;
    this.current = feature;
    this.turned();
    this.drawAll();
    this.later(this.features.has(feature) && this.data.tab === "examples" ? 180 : 20);
  }

  step(by) {
    const { walk } = this.data, at = walk.indexOf(this.current), next = walk[at < 0 ? 0 : at + by];
    if (next === undefined) return this.tell("There are no more features.");
    this.go(next);
  }

  // Back and Forward: drop pending messages and accept Python's next state
  back() {
    clearTimeout(this.sending);
    this.sending = 0;
    this.stepping = false;
    this.n = this.data.n;
    const now = new URLSearchParams(location.search), feature = Number(now.get("f"));
    if (!this.part("bar") || now.get("page") !== "feature" || now.get("run") !== this.data.run || !this.features.has(feature)) return;
    this.current = feature;
    this.turned();
    this.drawAll();
  }

  turned() {
    this.conflict = null;
    this.said = "";
    document.title = document.title.replace(/^#\d+/, `#${this.current}`);
    const main = document.querySelector("[data-testid=stMain]");
    if (main && main.scrollTop) main.scrollTo(0, 0);
  }

  dim(on) {
    for (const element of this.parts.values()) element.classList.toggle("sx-waiting", on);
  }

  // -- drawing

  drawAll() {
    for (const part of this.parts.keys()) this.draw(part);
    this.prepare();
  }

  draw(part) {
    const element = this.parts.get(part), one = this.features.get(this.current);
    if (!this.data || !element) return;
    if (!element.heard) { element.heard = true; this.listen(part, element); }
    if (part === "bar") this.drawBar(element, one);
    if (!one) return this.dim(true);
    element.classList.remove("sx-waiting");
    if (part === "side") {
      this.put(element, one.side);
      element.classList.toggle("sx-linear-x", !this.view.logx);
      element.classList.toggle("sx-log-y", this.view.logy);
      this.mark(element);
    } else if (part === "examples") {
      this.put(element, one.examples);
      element.classList.toggle("sx-numbers", this.view.numbers);
      element.classList.toggle("sx-flat", !this.view.breaks);
      this.filter(element);
    } else if (part === "try") this.drawTry(element, one);
  }

  put(element, html) {
    let place = element.querySelector(":scope > .sx-put");
    if (!place) { place = built(""); element.append(place); }
    if (place.drawn === html) return;
    const ready = this.ready.get(html) ?? built(html);
    this.ready.delete(html);
    place.replaceWith(ready);
  }

  // build the next steps' elements while idle, so that a step only inserts them
  prepare() {
    if (this.preparing) return;
    this.preparing = whenIdle(() => {
      this.preparing = 0;
      const { walk } = this.data, at = walk.indexOf(this.current);
      const near = [walk[at + 1], walk[at - 1]].map((f) => this.features.get(f)).filter((one) => at >= 0 && one);
      const wanted = near.flatMap((one) => [one.examples, one.side]);
      for (const html of this.ready.keys()) if (!wanted.includes(html)) this.ready.delete(html);
      const missing = wanted.find((html) => !this.ready.has(html));
      if (missing === undefined) return;
      this.ready.set(missing, built(missing));
      this.prepare();
    });
  }

  drawBar(element, one) {
    const { data } = this, find = (name) => element.querySelector(`[data-is=${name}]`);
    const root = element.querySelector(".sx-bar-row"), at = data.walk.indexOf(this.current);
    root.dataset.feature = one ? this.current : "";
    root.dataset.n = data.n;
    find("heading").textContent = `Feature ${this.current}`;
    if (document.activeElement !== find("number")) find("number").value = this.current;
    find("number").max = data.d_sae - 1;
    find("previous").disabled = at === 0;
    find("next").disabled = at === data.walk.length - 1;
    if (!find("every").matches(":hover, :focus")) find("every").href = data.every;
    const where = at < 0 ? "not in the list" : `${data.first + at + 1} of ${data.total} ${data.order}`;
    find("where").textContent = where;
    find("where").title = where;
    options(find("run"), data.runs, data.run);
    options(find("index"), data.indexes, data.index);
    find("index").hidden = data.indexes.length < 2;
    for (const tab of element.querySelectorAll("[data-tab]")) tab.setAttribute("aria-selected", tab.dataset.tab === data.tab);
    if (one) this.drawEdits(element, one, find);
  }

  drawEdits(element, one, find) {
    const { data } = this, draft = this.draft(one), fixed = data.fixed !== "";
    const now = draft ? { ...one.written, ...draft.after } : one.written;
    value(find("label"), draft ? now.label : one.written.label || one.automatic);
    find("label").placeholder = one.title || "what this feature fires on";
    value(find("note"), now.note);
    value(find("tags"), draft && draft.typed !== undefined ? draft.typed : now.tags.join(", "));
    for (const name of ["label", "note", "tags", "newlist"]) find(name).disabled = fixed;
    find("star").textContent = one.written.lists.includes(STAR) ? "★" : "☆";
    find("star").setAttribute("aria-pressed", one.written.lists.includes(STAR));
    find("star").disabled = fixed;
    find("verdict").innerHTML = one.verdict;
    find("save").hidden = find("discard").hidden = !draft;
    const pending = this.outbox.some((save) => save.feature === one.feature);
    find("said").textContent = data.fixed || (pending ? "saving …" : draft && !this.said ? "not saved" : this.said);
    const n = now.tags.length + one.written.lists.length + (now.note ? 1 : 0);
    find("more").textContent = `Notes and lists${n ? ` (${n})` : ""}`;
    this.drawLists(find("lists"), one, fixed);
    this.drawDrafts(find("drafts"));
    this.drawConflict(find("conflict"), one);
  }

  drawLists(place, one, fixed) {
    const names = [...new Set([STAR, ...this.data.lists, ...one.written.lists])];
    const key = JSON.stringify([names, one.written.lists, fixed]);
    if (place.drawn === key) return;
    place.drawn = key;
    place.replaceChildren(...names.map((name) => {
      const label = document.createElement("label"), box = document.createElement("input");
      box.type = "checkbox"; box.checked = one.written.lists.includes(name); box.disabled = fixed; box.dataset.list = name;
      label.append(box, document.createTextNode(` ${visible(name)}`));
      return label;
    }));
  }

  drawDrafts(place) {
    const others = Object.keys(this.drafts()).map(Number).filter((feature) => feature !== this.current);
    const key = others.join();
    if (place.drawn === key) return;
    place.drawn = key;
    place.replaceChildren(...(others.length ? [document.createTextNode("Not saved: ")] : []), ...others.map((feature) => {
      const button = document.createElement("button");
      button.textContent = `#${feature}`; button.dataset.go = feature;
      return button;
    }));
  }

  drawConflict(place, one) {
    const conflict = this.conflict?.feature === one.feature ? this.conflict : null;
    place.hidden = !conflict;
    if (!conflict) return;
    const rows = conflict.fields.map((field) => {
      const row = document.createElement("p"), mine = conflict.after[field], theirs = conflict.theirs[field];
      for (const [who, text] of [["Theirs", theirs], ["Yours", mine]]) {
        const strong = document.createElement("strong"), said = document.createElement("bdi");
        strong.textContent = `${who} (${field}): `;
        said.textContent = visible(text) || "nothing";
        row.append(strong, said, document.createElement("br"));
      }
      return row;
    });
    const said = document.createElement("p");
    said.textContent = "Somebody else has changed this since you opened it. Your edit was not saved.";
    place.replaceChildren(said, ...rows, ...[["mine", "Keep mine"], ["theirs", "Take theirs"]].map(([act, text]) => {
      const button = document.createElement("button");
      button.dataset.act = act; button.textContent = text;
      return button;
    }));
  }

  drawTry(element, one) {
    const field = element.querySelector("input"), { data } = this;
    if (document.activeElement !== field) field.value = data.text;
    element.querySelector("[data-is=tried]").classList.toggle("sx-flat", !this.view.breaks);
    const tried = data.wait ? "" : one.tried ?? "", place = element.querySelector("[data-is=tried]");
    if (place.drawn !== tried) { place.drawn = tried; place.innerHTML = tried; }
    element.querySelector("[data-is=wait]").textContent = data.wait || data.refused;
    element.querySelector("[data-is=clear]").hidden = !data.text;
  }

  // a part that is currently on the page
  part(name) {
    const element = this.parts.get(name);
    return element?.isConnected ? element : null;
  }

  tell(text) {
    this.said = text;
    const status = this.part("bar")?.querySelector("[data-is=status]");
    if (status) status.textContent = text;
  }

  // -- the histogram: selecting a range of values

  mark(element) {
    for (const old of element.querySelectorAll(".sx-chosen")) old.remove();
    for (const rect of element.querySelectorAll(".sx-brush")) {
      const place = scale(rect), range = this.range;
      if (range && range.side === place.side) rect.before(stretch(place, range.low, range.high));
    }
  }

  get range() {
    const parts = (this.dragged ?? (this.current === this.data.feature ? this.data.range : "")).split("~");
    return parts.length === 3 ? { side: parts[0], low: Number(parts[1]), high: Number(parts[2]) } : null;
  }

  filter(element) {
    const range = this.dragged ? this.range : null;
    for (const example of element.querySelectorAll(".sx-ex")) {
      const value = Number(example.dataset.value), size = Math.abs(value);
      example.hidden = !!range && !((value < 0 ? "-" : "+") === range.side && size >= range.low && size <= range.high);
    }
  }

  brush(event) {
    const rect = event.target.closest(".sx-brush");
    if (!rect || event.button) return;
    event.preventDefault();
    const place = scale(rect), from = event.clientX, side = this.parts.get("side");
    const move = (now) => {
      const ends = [place.value(from), place.value(now.clientX)].sort((a, b) => a - b);
      if (Math.abs(now.clientX - from) > 3) this.dragged = [place.side, ...ends.map((v) => v.toPrecision(5))].join("~");
      this.mark(side);
      const examples = this.part("examples");
      if (examples) this.filter(examples);
    };
    const up = () => {
      removeEventListener("pointermove", move);
      removeEventListener("pointerup", up);
      const range = this.dragged ?? null;
      if (range || this.data.range) this.send(this.address({ range, group: null, side: null, tab: null }));
      setTimeout(() => { this.dragged = undefined; }, 1000);
    };
    addEventListener("pointermove", move);
    addEventListener("pointerup", up);
  }

  // -- edits: drafts survive steps to other features and reloads, until they are saved or discarded

  drafts() {
    try { return JSON.parse(sessionStorage.getItem(`saescope drafts ${this.data.whose}`) ?? "{}"); } catch { return {}; }
  }

  keep(drafts) { sessionStorage.setItem(`saescope drafts ${this.data.whose}`, JSON.stringify(drafts)); }

  draft(one) {
    const draft = this.drafts()[one.feature];
    return draft && DRAFTS.some((field) => !same(draft.after[field], draft.before[field])) ? draft : null;
  }

  typed(field, text) {
    const one = this.features.get(this.current);
    if (!one) return;
    const drafts = this.drafts(), draft = drafts[one.feature] ?? { before: one.written, after: pick(one.written) };
    draft.after[field] = field === "tags" ? [...new Set(text.split(",").map((t) => t.trim()).filter(Boolean))].sort() : text;
    if (field === "tags") draft.typed = text;
    // an unchanged automatic label doesn't become the user's
    if (field === "label" && !draft.before.label && text.trim() === one.automatic) draft.after.label = "";
    if (DRAFTS.every((name) => same(draft.after[name], draft.before[name]))) delete drafts[one.feature];
    else drafts[one.feature] = draft;
    this.keep(drafts);
    this.said = "";
    this.draw("bar");
  }

  save() {
    const one = this.features.get(this.current), draft = one && this.draft(one);
    if (draft) this.post(one.feature, { ...pick(draft.before), lists: [] }, { ...draft.after, lists: [] });
  }

  discard() {
    const drafts = this.drafts();
    delete drafts[this.current];
    this.keep(drafts);
    this.conflict = null;
    this.draw("bar");
  }

  list(name, on) {
    const one = this.features.get(this.current);
    const without = one.written.lists.filter((other) => other !== name), lists = on ? [...without, name] : without;
    this.post(one.feature, { ...EMPTY, lists: one.written.lists }, { ...EMPTY, lists });
    one.written = { ...one.written, lists };
    this.draw("bar");
  }

  post(feature, before, after) {
    this.outbox = [...this.outbox, { id: `${Date.now()}-${Math.random()}`, feature, before, after }];
    this.conflict = null;
    this.said = "";
    this.draw("bar");
    this.send(this.current === this.data.feature ? null : this.address());
  }

  answered({ id, feature, written, fields, theirs, error }) {
    const save = this.outbox.find((one) => one.id === id);
    if (!save) return;
    this.outbox = this.outbox.filter((one) => one !== save);
    const one = this.features.get(feature), drafts = this.drafts(), draft = drafts[feature];
    if (error) this.said = error;
    else if (fields) this.conflict = { feature, fields, theirs, after: save.after };
    else {
      if (one) one.written = written;
      this.said = "Saved.";
      if (draft && DRAFTS.every((name) => same(draft.after[name], save.after[name]))) delete drafts[feature];
      else if (draft) draft.before = written;  // the user kept typing
      this.keep(drafts);
    }
    if (theirs && one) one.written = theirs;
  }

  resolve(mine) {
    const { feature, fields, theirs } = this.conflict, drafts = this.drafts(), draft = drafts[feature];
    if (!draft) return;
    const added = draft.after.tags.filter((tag) => !draft.before.tags.includes(tag));
    const gone = draft.before.tags.filter((tag) => !draft.after.tags.includes(tag));
    const tags = [...new Set([...theirs.tags.filter((tag) => !gone.includes(tag)), ...added])].sort();
    const text = (field) => fields.includes(field) ? (mine ? draft.after : theirs)[field]
      : same(draft.after[field], draft.before[field]) ? theirs[field] : draft.after[field];
    drafts[feature] = { before: theirs, after: { label: text("label"), note: text("note"), tags } };
    this.keep(drafts);
    this.conflict = null;
    if (mine) this.save(); else { this.said = ""; this.draw("bar"); }
  }

  // -- user input

  listen(part, element) {
    if (part === "bar") {
      this.release?.();
      const onKey = (event) => this.key(event);
      const onBack = () => this.back();
      document.addEventListener("keydown", onKey);
      addEventListener("popstate", onBack);
      this.release = () => { document.removeEventListener("keydown", onKey); removeEventListener("popstate", onBack); };
      const more = element.querySelector("details");
      more.open = sessionStorage.getItem("saescope more") === "true";
      more.addEventListener("toggle", () => sessionStorage.setItem("saescope more", more.open));
    }
    element.addEventListener("click", (event) => this.click(event));
    element.addEventListener("input", (event) => {
      const field = event.target.dataset.is;
      if (DRAFTS.includes(field)) this.typed(field, event.target.value);
    });
    element.addEventListener("change", (event) => this.change(event));
    element.addEventListener("keydown", (event) => this.typing(event));
    element.addEventListener("submit", (event) => {
      event.preventDefault();
      this.send(this.address({ text: event.target.querySelector("input").value.trim() || null }));
    });
    element.addEventListener("pointerdown", (event) => this.brush(event));
    element.addEventListener("copy", copyLines);
  }

  click(event) {
    if (event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    const on = (selector) => event.target.closest(selector);
    const link = on("a[data-f]"), act = on("[data-act]"), toggle = on("[data-toggle]");
    if (link) { event.preventDefault(); event.stopPropagation(); this.go(Number(link.dataset.f)); }
    else if (on("[data-go]")) this.go(Number(on("[data-go]").dataset.go));
    else if (on("[data-tab]")) this.tab(on("[data-tab]").dataset.tab);
    else if (toggle) this.toggle(toggle.dataset.toggle);
    else if (on("[data-set]")) this.send(this.address(Object.fromEntries(new URLSearchParams(on("[data-set]").dataset.set))));
    else if (act) this.act(act.dataset.act, act);
  }

  tab(tab) { this.send(this.address({ tab: tab === "examples" ? null : tab })); }

  toggle(name) {
    if (name === "wide") {
      const examples = this.part("examples"), on = !examples.querySelector(".sx-ex:not(.sx-wide)");
      for (const one of examples.querySelectorAll(".sx-ex")) one.classList.toggle("sx-wide", !on);
      return;
    }
    this.view[name] = !this.view[name];
    this.n += 1;  // Python's current state is older
    this.drawAll();
    clearTimeout(this.sending);
    this.sending = setTimeout(() => this.send(this.address()), 180);
  }

  act(act, button) {
    if (act === "previous") this.step(-1);
    else if (act === "next") this.step(1);
    else if (act === "save") this.save();
    else if (act === "discard") this.discard();
    else if (act === "mine") this.resolve(true);
    else if (act === "theirs") this.resolve(false);
    else if (act === "clear") this.send(this.address({ text: null }));
    else if (act === "star") {
      this.list(STAR, button.getAttribute("aria-pressed") !== "true");
    } else if (act === "random") this.send(this.address({ f: "random", ...Object.fromEntries(this.data.ofFeature.map((k) => [k, null])) }));
    else if (act === "link") copyLink(button, new URL(this.address(), location.href).href);
  }

  change(event) {
    const { target } = event, name = target.dataset.is;
    if (name === "number") {
      const feature = Number(target.value);
      if (target.value !== "" && Number.isInteger(feature) && feature >= 0 && feature < this.data.d_sae) this.go(feature);
      else { this.tell(`Features are numbered 0 to ${this.data.d_sae - 1}.`); target.value = this.current; }
    } else if (name === "run") this.send(this.data.runAddress + encodeURIComponent(target.value));
    else if (name === "index") this.send(this.address({ index: target.value, range: null }));
    else if (target.dataset.choose) {
      this.send(this.address({ range: null, [target.dataset.choose]: target.value === target.dataset.default ? null : target.value }));
    } else if (target.dataset.list) this.list(target.dataset.list, target.checked);
  }

  typing(event) {
    const name = event.target.dataset?.is;
    if (event.isComposing) return;
    if (event.key === "Enter" && name === "newlist" && event.target.value.trim()) {
      this.list(event.target.value.trim(), true);
      event.target.value = "";
    } else if (event.key === "Enter" && (["label", "tags"].includes(name) || (name === "note" && (event.ctrlKey || event.metaKey)))) {
      event.preventDefault();
      this.save();
    }
  }

  key(event) {
    if (!this.part("bar") || (globalThis.saescopeComing?.text ?? null) !== null || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const { target } = event;
    if (target.closest?.("input, textarea, select, [contenteditable=true], [role=combobox], [role=listbox], [role=slider], "
      + "[role=dialog], dialog") || document.querySelector("dialog[open]")) return;
    const step = { j: 1, ArrowRight: 1, k: -1, ArrowLeft: -1 }[event.key];
    if (step && event.key.startsWith("Arrow") && target.closest?.(".sx-heat, [role=tablist]")) return;
    if (step) { event.preventDefault(); this.step(step); }
    else if (event.key === "e") {
      event.preventDefault();
      const field = this.part("bar").querySelector("[data-is=label]");
      field.focus();
      field.select();
    } else if (event.key === "t" && this.part("try")) {
      event.preventDefault();
      this.part("try").querySelector("input").focus();
    } else if (event.key === "s") { event.preventDefault(); this.part("bar").querySelector("[data-is=star]").click(); }
    else if (event.key === "w" && this.part("examples")) { event.preventDefault(); this.toggle("wide"); }
    else if (event.key === "n") { event.preventDefault(); this.toggle("numbers"); }
    else if (event.key === "l") { event.preventDefault(); this.toggle("breaks"); }
  }
}

// Safari has no requestIdleCallback
function whenIdle(act) { return (globalThis.requestIdleCallback ?? ((later) => setTimeout(later, 100)))(act); }

function built(html) {
  const element = document.createElement("div");
  element.className = "sx-put";
  element.drawn = html;
  element.innerHTML = html;
  return element;
}

function pick(written) { return { label: written.label, note: written.note, tags: [...written.tags] }; }
function same(a, b) { return JSON.stringify(a) === JSON.stringify(b); }
function value(field, text) { if (field.value !== text) field.value = text; }

// write out bidi controls and invisible characters
function visible(text) {
  return text.replace(/[\u0000-\u001f\u007f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g,
    (c) => `⟨${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
}

function options(select, names, chosen) {
  const key = JSON.stringify(names);
  if (select.drawn !== key) {
    select.drawn = key;
    select.replaceChildren(...names.map((name) => new Option(visible(name), name)));
  }
  select.value = chosen;
}

// maps values to positions on a histogram panel
function scale(rect) {
  const { side, start, stop, log } = rect.dataset, low = Number(start), high = Number(stop);
  const left = Number(rect.getAttribute("x")), width = Number(rect.getAttribute("width"));
  const turned = (share) => side === "-" ? 1 - share : share;
  return {
    side, top: Number(rect.getAttribute("y")), height: Number(rect.getAttribute("height")), left, width,
    x: (size) => left + width * turned(Math.max(0, Math.min(1,
      log === "true" ? Math.log(Math.max(size, low) / low) / Math.log(high / low) : size / high))),
    value: (clientX) => {
      const box = rect.getBoundingClientRect(), share = turned(Math.max(0, Math.min(1, (clientX - box.left) / box.width)));
      return log === "true" ? low * (high / low) ** share : high * share;
    },
  };
}

function drawn(name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function stretch(place, low, high) {
  const [from, to] = [place.x(low), place.x(high)].sort((a, b) => a - b);
  return drawn("rect", { class: "sx-chosen", x: from, y: place.top, width: Math.max(1, to - from), height: place.height });
}

// copy line breaks even where lines are shown joined
function copyLines(event) {
  const selection = getSelection(), heat = event.target.closest?.(".sx-flat");
  if (!heat || !selection.rangeCount || !String(selection)) return;
  event.clipboardData.setData("text/plain", selection.getRangeAt(0).cloneContents().textContent);
  event.preventDefault();
}

async function copyLink(button, href) {
  const before = button.textContent;
  try { await navigator.clipboard.writeText(href); button.textContent = "copied"; }
  catch { button.textContent = "not allowed"; }
  setTimeout(() => { button.textContent = before; }, 1200);
}

export default function (component) {
  const reader = (globalThis.saescopeReader ??= new Reader());
  return reader.mount(component);
}
