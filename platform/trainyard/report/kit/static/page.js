// What a page does by itself: sort and filter tables, draw figures, and fetch its own news.
"use strict";
(() => {
  const state = { sort: {}, filter: {}, drawn: {}, hash: null, pressed: false, paused: false };
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  function key(row, column) {
    const cell = row.cells[column];
    const raw = cell.dataset.sort ?? cell.textContent.trim();
    const value = Number(raw);
    if (raw === "" || raw === "nan" || raw === "–") return null;
    return Number.isNaN(value) ? raw : value;
  }

  // Numbers before words, words as people order them, what is missing last in either direction.
  function compare(a, b, sign) {
    if (a === null || b === null) return (a === null) - (b === null);
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return sign * (typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));
  }

  function sort(holder, column, order) {
    const body = holder.querySelector("tbody");
    const sign = order === "descending" ? -1 : 1;
    all("thead th", holder).forEach((th, i) => th.setAttribute("aria-sort", i === column ? order : "none"));
    body.append(...[...body.rows].map((row) => [key(row, column), row])
      .sort((a, b) => compare(a[0], b[0], sign)).map(([, row]) => row));
    state.sort[holder.id] = [column, order];
  }

  function filter(holder, words) {
    const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of holder.querySelector("tbody").rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !wanted.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    holder.querySelector("output").textContent = words ? `${shown} shown` : "";
    state.filter[holder.id] = words;
  }

  function table(holder) {
    const heads = all("thead th", holder);
    heads.forEach((th, i) => th.firstElementChild.addEventListener("click", () => {
      const first = th.classList.contains("number") ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      sort(holder, i, th.getAttribute("aria-sort") === first ? other : first);
    }));
    if (holder.querySelector("tbody").rows.length >= 12) {
      const box = document.createElement("label");
      box.className = "find";
      box.innerHTML = 'Filter <input type="search" autocomplete="off" spellcheck="false"><output></output>';
      holder.prepend(box);
      const input = box.querySelector("input");
      input.id = `${holder.id}-filter`;
      input.addEventListener("input", () => filter(holder, input.value));
      input.value = state.filter[holder.id] ?? "";
      if (input.value) filter(holder, input.value);
    }
    if (state.sort[holder.id]) sort(holder, ...state.sort[holder.id]);
  }

  // Colors are CSS variables inside the SVG, so light, dark and print need no second drawing.
  function draw(figure) {
    const chart = figure.querySelector(".chart");
    const source = figure.querySelector("script").textContent;
    const kept = state.drawn[figure.id];
    if (kept?.source === source) {
      chart.replaceWith(kept.chart);
      return;
    }
    if (kept) kept.view?.finalize();
    const own = { source, chart };
    state.drawn[figure.id] = own;
    if (kept) chart.style.minHeight = `${kept.chart.offsetHeight}px`;
    vegaEmbed(chart, JSON.parse(source), {
      actions: false, renderer: "svg", ast: true, tooltip: { theme: "custom" }, logLevel: 1, // errors
    })
      .then(({ view }) => { own.view = view; chart.style.minHeight = ""; })
      .catch((error) => { chart.textContent = `This figure could not be drawn: ${error.message}`; });
  }

  // A figure is drawn when it comes near the screen: a page with many opens at once.
  const near = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting) { near.unobserve(target); draw(target); }
    }
  }, { rootMargin: "600px" });
  function settle(root) {
    all(".table", root).forEach(table);
    all("figure", root).forEach((figure) => (state.drawn[figure.id] ? draw(figure) : near.observe(figure)));
  }
  addEventListener("beforeprint", () => all("figure").forEach((f) => { if (!state.drawn[f.id]) draw(f); }));

  async function refresh() {
    const reply = await fetch(location.href, { headers: state.hash ? { "If-None-Match": state.hash } : {} });
    const text = await reply.text();  // also of a 304: a reply that is not read counts as aborted
    if (reply.status === 304) return;
    if (!reply.ok) throw new Error(`the server answered ${reply.status}`);
    // A click is lost when its element is replaced under the pointer; what was on its way when updates
    // were paused is not wanted either.
    if (state.pressed || state.paused) return;
    state.hash = reply.headers.get("ETag");
    const page = new DOMParser().parseFromString(text, "text/html");
    const open = new Set(all("details[open]").map((d) => d.parentElement.id));
    const focus = document.activeElement?.closest("main") ? path(document.activeElement) : null;
    const caret = document.activeElement?.selectionStart;
    const fresh = page.querySelector("main");
    all("details", fresh).forEach((d) => { if (open.has(d.parentElement.id)) d.open = true; });
    const scrolls = all(".scroll, .pan, pre").map((s) => [path(s), s.scrollLeft, s.scrollTop]);
    const main = document.querySelector("main");
    main.replaceChildren(...fresh.childNodes);
    document.body.dataset.refresh = page.body.dataset.refresh;
    settle(main);
    for (const [where, left, top] of scrolls) document.querySelector(where)?.scrollTo({ left, top });
    if (focus) {
      const again = document.querySelector(focus);
      again?.focus({ preventScroll: true });
      if (caret != null) again?.setSelectionRange?.(caret, caret);
    }
  }

  function path(element) {
    if (element.id) return `#${CSS.escape(element.id)}`;
    const siblings = [...element.parentElement.children];
    return `${path(element.parentElement)} > :nth-child(${siblings.indexOf(element) + 1})`;
  }

  function live() {
    const pause = document.getElementById("pause");
    const news = document.getElementById("news");
    if (!pause) return;
    let busy = false;
    const say = (text) => { news.textContent = state.paused ? "Updates are paused" : text; };
    pause.addEventListener("click", () => {
      state.paused = !state.paused;
      pause.setAttribute("aria-pressed", String(state.paused));
      pause.textContent = state.paused ? "Resume updates" : "Pause updates";
      say("");
    });
    const tick = async () => {
      const seconds = Number(document.body.dataset.refresh);
      if (!seconds) { news.textContent = "Nothing is running any more"; pause.hidden = true; return; }
      if (!busy && !document.hidden && !state.paused) {
        busy = true;
        try { await refresh(); say(""); } catch (error) { say(`No news: ${error.message}`); }
        busy = false;
      }
      setTimeout(tick, seconds * 1000);
    };
    setTimeout(tick, Number(document.body.dataset.refresh) * 1000);
  }

  for (const kind of ["pointerdown", "pointerup", "pointercancel"]) {
    addEventListener(kind, () => { state.pressed = kind === "pointerdown"; }, { capture: true });
  }
  settle(document);
  live();
})();
