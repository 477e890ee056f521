// See navigation.py. One instance per page. It listens until the next one takes over, as Streamlit leaves a gap in between.
export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  const dialog = parentElement.querySelector("dialog");
  const status = parentElement.querySelector("[role=status]");
  globalThis.saescopeRelease?.();  // this function runs again after every draw of the page
  // fast key presses get ahead of what the server has drawn
  const step = globalThis.saescopeStep, ahead = performance.now() - (step?.when ?? -1e9) < 2000 ? data.walk.indexOf(step.href) : -1;
  let at = ahead >= 0 ? ahead : data.at;

  const typing = (target) => target.closest && target.closest(
    "input, textarea, select, [contenteditable=true], [role=combobox], [role=listbox], [role=slider], [role=dialog]");
  const say = (text) => { status.textContent = text; };

  function go(href) {
    const url = new URL(href, location.href);
    globalThis.saescopeReader?.left(url);
    ask(url.search || "?");
  }

  // repeat the request for a URL until the page that answers it is drawn: messages sent while Streamlit replaces a page
  // may be lost
  function ask(search) {
    const id = `${Date.now()}-${Math.random()}`, page = pageOf(new URL(search, location.href));
    let idle = 0, times = 1;
    clearInterval(globalThis.saescopeAsking);
    setTriggerValue("to", { id, search });
    const done = () => globalThis.saescopeHeard === id && [location.href, globalThis.saescopeHere].every(
      (address) => pageOf(new URL(address, location.href)) === page);
    const check = globalThis.saescopeAsking = setInterval(() => {
      idle = app.dataset.testScriptState === "notRunning" ? idle + 1 : 0;
      if (done()) return clearInterval(check);
      if (idle < 4) return;
      idle = 0;
      times += 1;
      if (times <= 3) globalThis.saescopeTell({ id, search });
      else { clearInterval(check); location.assign(search); }
    }, 500);
  }

  // a late answer makes Streamlit overwrite the URL that Back went to
  function onBack() {
    const wanted = location.search, asked = new URLSearchParams(wanted), until = performance.now() + 10000;
    let idle = 0;
    stay();
    clearInterval(globalThis.saescopeAsking);
    const check = globalThis.saescopeBack = setInterval(() => {
      idle = app.dataset.testScriptState === "notRunning" ? idle + 1 : 0;
      if (performance.now() > until) clearInterval(check);
      if (idle < 2) return;
      const now = new URLSearchParams(location.search);
      if (["page", ...asked.keys()].every((key) => String(now.getAll(key)) === String(asked.getAll(key)))) return;
      clearInterval(check);
      history.replaceState(history.state, "", wanted);
      ask(wanted);
    }, 250);
  }

  // an action after Back supersedes it
  function stay() { clearInterval(globalThis.saescopeBack); }

  // -- the complete URL, and each page's last state

  const pageOf = (url) => url.searchParams.get("page") ?? "runs";

  function complete() {
    const url = new URL(location.href), here = new URL(data.here, location.href);
    if (pageOf(url) !== pageOf(here)) return;  // the user has left the page
    const open = Object.entries(data.settled).filter(([key]) => !url.searchParams.has(key));
    for (const [key, value] of open) url.searchParams.set(key, value);
    if (open.length) history.replaceState(history.state, "", url);
  }

  function leave() {
    const url = new URL(location.href), page = pageOf(url), own = [...url.searchParams].filter(
      ([key]) => key !== "page" && !data.selection.includes(key));
    sessionStorage.setItem(`saescope ${page}`, JSON.stringify(
      { run: url.searchParams.get("run"), f: url.searchParams.get("f"), own }));
  }

  // a page's last state with the current selection
  function resumed(href) {
    // a late answer may have put an older feature into the URL
    const reading = globalThis.saescopeReader?.reading;
    const url = new URL(href, location.href), page = pageOf(url), now = new URLSearchParams(reading ?? location.search);
    for (const key of data.selection) {
      url.searchParams.delete(key);
      for (const value of now.getAll(key)) url.searchParams.append(key, value);
    }
    if (page === "features" && now.get("f")) url.searchParams.set("p", "f");
    const left = JSON.parse(sessionStorage.getItem(`saescope ${page}`) ?? "null");
    const stale = [...(left?.run === now.get("run") ? [] : data.ofRun), ...(left?.f === now.get("f") ? [] : data.ofFeature)];
    if (left && !stale.length) url.searchParams.delete("p");  // the table's page is known
    const kept = (left?.own ?? []).filter(([key]) => !stale.includes(key));
    for (const [key] of kept) url.searchParams.delete(key);
    for (const [key, value] of kept) url.searchParams.append(key, value);
    return url.href;
  }

  function onReach(event) {
    const anchor = event.target.closest?.(".sx a[data-page]");
    if (!anchor) return;
    leave();
    anchor.href = anchor.ariaCurrent ? location.href : resumed(anchor.href);
  }

  // Plotly loads late and has its own click events
  function onPress(event) {
    stay();
    const plot = event.target.closest?.(".js-plotly-plot");
    if (!plot?.on || plot.leads) return;
    plot.leads = true;
    plot.on("plotly_click", ({ points }) => {
      const told = points[0]?.customdata;
      if (told !== undefined) globalThis.saescopeOpen?.(Array.isArray(told) ? told[0] : told);
    });
  }

  function onClick(event) {
    if (event.defaultPrevented || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    const copy = event.target.closest("[data-copy]"), png = event.target.closest("[data-png]");
    if (copy) return void copyText(copy);
    if (png) return void savePng(png);
    const example = event.target.closest("[data-at]");
    const anchor = event.target.closest(".sx a[href]");
    if (anchor) {
      const url = new URL(anchor.href, location.href);
      if (url.origin !== location.origin || url.pathname !== location.pathname || url.hash || anchor.target) return;
      event.preventDefault();
      go(anchor.href);
    } else if (example && !String(getSelection())) {
      widen(example);
    } else if (event.target.closest("thead th[data-token]")) {
      rank(event.target.closest("th[data-token]").dataset.token);
    }
  }

  function rank(token) {
    const url = new URL(location.href);
    if (url.searchParams.get("token") === token) url.searchParams.delete("token");
    else url.searchParams.set("token", token);
    go(url.href);
  }

  function widen(example) { example.classList.toggle("sx-wide"); }

  // letters typed while the search field is loading are meant for it
  const search = () => document.querySelector(".st-key-q input, .st-key-text textarea");
  const coming = (globalThis.saescopeComing ??= { text: null, until: 0 });

  function onKey(event) {
    stay();
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const target = event.target;
    if (coming.text !== null && !typing(target)) {
      if (event.key === "Escape") coming.text = null;
      else if (event.key === "Backspace") coming.text = coming.text.slice(0, -1);
      else if (event.key.length === 1) coming.text += event.key;
      return event.preventDefault();
    }
    if (event.key === "Escape") {
      if (dialog.open) dialog.close();
      else if (typing(target) && target.blur) target.blur();
      return;
    }
    if (typing(target) || dialog.open) return;
    const heat = target.closest && target.closest(".sx-heat");
    if (heat && token(event, target, heat)) return event.preventDefault();
    const step = { j: 1, ArrowRight: 1, k: -1, ArrowLeft: -1 }[event.key];
    if (step && data.walk.length) {
      const next = at + step;
      if (next < 0 || next >= data.walk.length) return say("There are no more features.");
      at = next;
      globalThis.saescopeStep = { href: data.walk[at], when: performance.now() };
      event.preventDefault();
      go(data.walk[at]);
    } else if (event.key === "?") {
      event.preventDefault();
      showKeys();
    } else if (event.key === "/") {
      const field = search();
      event.preventDefault();
      if (field) { field.focus(); field.select(); return; }
      if (!data.keys["/"]) return;
      coming.text = "";
      coming.until = performance.now() + 30000;
      enter();
      go(resumed(data.keys["/"]));
    } else if (data.keys[event.key]) {
      event.preventDefault();
      go(event.key === "b" ? resumed(data.keys.b) : data.keys[event.key]);
    }
  }

  function enter() {
    if (coming.text === null) return;
    const field = search();
    if (field) {
      const text = coming.text;
      coming.text = null;
      field.focus();
      if (text) document.execCommand("insertText", false, text);
    } else if (performance.now() > coming.until) coming.text = null;
    else requestAnimationFrame(enter);
  }

  function token(event, target, heat) {
    if (event.key === "Enter" && target.closest("[data-at]")) return widen(target.closest("[data-at]")), true;
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return false;
    const active = [...heat.querySelectorAll("[data-v]")], next = active[active.indexOf(target) + step];
    if (next) { next.tabIndex = 0; next.focus(); }
    return true;
  }

  function showKeys() {
    const list = document.createElement("dl");
    for (const [key, means] of Object.entries(data.help)) {
      const term = document.createElement("dt"), text = document.createElement("dd");
      term.textContent = key; text.textContent = means;
      list.append(term, text);
    }
    const close = document.createElement("button");
    close.textContent = "Close"; close.onclick = () => dialog.close();
    dialog.replaceChildren(list, close);
    dialog.showModal();
  }

  async function copyText(button) {
    const from = button.dataset.copy;
    const text = from === "link" ? new URL(data.here, location.href).href : document.querySelector(from)?.innerText ?? "";
    try { await navigator.clipboard.writeText(text); say("Copied."); flash(button, "copied"); }
    catch { say("The browser blocked copying."); flash(button, "not allowed"); }
  }

  function flash(button, text) {
    const before = button.textContent;
    button.textContent = text;
    setTimeout(() => { button.textContent = before; }, 1200);
  }

  function savePng(button) {
    const drawing = [...document.querySelectorAll(button.dataset.png)].find((one) => one.getBoundingClientRect().width);
    if (!drawing) return;
    const box = drawing.getBoundingClientRect(), style = getComputedStyle(drawing), copy = drawing.cloneNode(true);
    const ground = getComputedStyle(app).backgroundColor;
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    copy.setAttribute("width", box.width); copy.setAttribute("height", box.height);
    copy.setAttribute("style", `color:${style.color};font:11px ${style.fontFamily.replace(/"/g, "'")};background:${ground}`);
    for (const text of copy.querySelectorAll("text")) text.setAttribute("fill", style.color);
    const image = new Image();
    image.onload = () => {
      const canvas = document.createElement("canvas");
      canvas.width = 3 * box.width; canvas.height = 3 * box.height;
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      const link = document.createElement("a");
      link.download = button.dataset.name || "figure.png";
      link.href = canvas.toDataURL("image/png");
      link.click();
    };
    image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(new XMLSerializer().serializeToString(copy));
  }

  const app = document.querySelector("[data-testid=stApp]");
  document.documentElement.style.setProperty("--sx-ground", getComputedStyle(app).backgroundColor);
  const page = pageOf(new URL(location.href));
  // Streamlit keeps the previous page's scroll position
  if (globalThis.saescopePage !== page) document.querySelector("[data-testid=stMain]")?.scrollTo(0, 0);
  globalThis.saescopePage = page;
  complete();
  leave();
  globalThis.saescopeOpen = data.point ? (told) => go(data.point + told) : null;
  const run = new URL(location.href).searchParams.get("run");
  const tab = document.querySelector("nav.sx-pages a[aria-current]");
  if (tab) tab.parentElement.scrollLeft = tab.offsetLeft - 60;  // if the bar is wider than the screen
  document.title = [data.title, tab?.textContent, run, "Saescope"].filter(Boolean).join(" · ");
  globalThis.saescopeTell = (asked) => setTriggerValue("to", asked);
  globalThis.saescopeHeard = data.heard;
  globalThis.saescopeHere = data.here;
  const heard = { click: onClick, keydown: onKey, pointerover: onReach, focusin: onReach, pointerdown: onPress };
  for (const [kind, hear] of Object.entries(heard)) document.addEventListener(kind, hear);
  addEventListener("popstate", onBack);
  dialog.dataset.ready = "true";
  dialog.dataset.here = data.walk[data.at] ?? "";
  globalThis.saescopeRelease = () => {
    removeEventListener("popstate", onBack);
    for (const [kind, hear] of Object.entries(heard)) document.removeEventListener(kind, hear);
  };
}
