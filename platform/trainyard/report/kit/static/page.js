// Behavior of a page: sort, filter and download tables, draw figures, fetch updates.
"use strict";
(() => {
  const state = {
    sort: {}, filter: {}, choice: {}, chosen: {}, log: {}, smooth: {}, drawn: {}, hash: null, pressed: false, paused: false,
  };
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  function element(tag, properties, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  function tool(text, label, act) {
    const made = element("button", { type: "button", className: "tool", textContent: text });
    made.setAttribute("aria-label", label);
    made.addEventListener("click", () => act(made));
    return made;
  }

  function download(name, suffix, text, type) {
    const url = URL.createObjectURL(new Blob([text], { type }));
    element("a", { href: url, download: `${name.replace(/[^\w-]+/g, "-").slice(0, 60)}.${suffix}` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  }

  function csv(rows) {
    const quoted = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
    return rows.map((row) => row.map((value) => quoted(String(value ?? ""))).join(",")).join("\r\n") + "\r\n";
  }

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

  // Rows that hold every word, and the chosen value of each column of choices.
  function filter(holder) {
    const words = (state.filter[holder.id] ?? "").toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = Object.entries(state.choice[holder.id] ?? {}).filter(([, value]) => value);
    let shown = 0;
    for (const row of holder.querySelector("tbody").rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word))
        || !chosen.every(([column, value]) => row.cells[column].textContent === value);
      shown += !row.hidden;
    }
    holder.querySelector("output").textContent = words.length || chosen.length ? `${shown} shown` : "";
  }

  function choice(holder, th, column) {
    const values = [...holder.querySelector("tbody").rows].map((row) => row.cells[column].textContent);
    const box = element("select", { id: `${holder.id}-choice-${column}` }, new Option("All", ""));
    box.append(...[...new Set(values)].sort().map((value) => new Option(value, value)));
    const chosen = (state.choice[holder.id] ??= {});
    box.value = chosen[column] ?? "";
    box.addEventListener("change", () => { chosen[column] = box.value; filter(holder); });
    return element("label", {}, th.textContent, box);
  }

  // Check boxes in the first column, and a link to the page about the chosen rows.
  function selectable(holder, bar) {
    const chosen = (state.chosen[holder.id] ??= new Set());
    const go = tool("Compare", "Compare the chosen rows", () => {
      const query = new URLSearchParams([...chosen].map((name) => ["run", name]));
      location.href = `${holder.dataset.select}?${query}`;
    });
    const most = Number(holder.dataset.most);
    const hint = element("span", {});
    const count = () => {
      go.disabled = chosen.size < 2 || chosen.size > most;
      go.textContent = chosen.size ? `Compare ${chosen.size}` : "Compare";
      hint.textContent = chosen.size > most ? `At most ${most} can be compared at once.` : "";
    };
    hint.setAttribute("role", "status");
    for (const row of holder.querySelector("tbody").rows) {
      const name = row.dataset.run;
      const box = element("input", { type: "checkbox", checked: chosen.has(name), id: `${holder.id}-${name}` });
      box.setAttribute("aria-label", `Choose ${(row.querySelector("th a") ?? row.cells[0]).textContent.trim()}`);
      box.addEventListener("change", () => { chosen[box.checked ? "add" : "delete"](name); count(); });
      row.cells[0].prepend(box);
    }
    count();
    bar.append(go, hint);
  }

  function table(holder) {
    const heads = all("thead th", holder);
    heads.forEach((th, i) => th.firstElementChild.addEventListener("click", () => {
      const first = th.classList.contains("number") ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      sort(holder, i, th.getAttribute("aria-sort") === first ? other : first);
    }));
    const bar = element("div", { className: "tools" });
    const choices = heads.flatMap((th, i) => (th.dataset.choice === undefined ? [] : [choice(holder, th, i)]));
    if (choices.length || holder.querySelector("tbody").rows.length >= 12) {
      const input = element("input", { type: "search", autocomplete: "off", spellcheck: false,
        id: `${holder.id}-filter`, value: state.filter[holder.id] ?? "" });
      input.addEventListener("input", () => { state.filter[holder.id] = input.value; filter(holder); });
      bar.append(element("label", {}, "Filter", input), ...choices, element("output"));
    }
    if (holder.dataset.select) selectable(holder, bar);
    bar.append(element("span", { className: "end" },
      tool("CSV", "Download this table as CSV", () => download(holder.dataset.name, "csv", tableCsv(holder), "text/csv"))));
    bar.classList.toggle("corner", bar.children.length === 1);
    holder.prepend(bar);
    if (state.sort[holder.id]) sort(holder, ...state.sort[holder.id]);
    if (bar.querySelector("output")) filter(holder);
  }

  // Numbers in full precision, and the small print of a cell in a column of its own.
  function tableCsv(holder) {
    const rows = [...holder.querySelector("tbody").rows].filter((row) => !row.hidden);
    const columns = all("thead th", holder).flatMap((th, i) => {
      const name = th.textContent;
      const note = (cell) => cell.querySelector("small")?.textContent ?? "";
      const value = (cell) => {
        if (th.classList.contains("number")) return cell.dataset.sort === "nan" ? "" : cell.dataset.sort ?? cell.textContent;
        const copy = cell.cloneNode(true);
        copy.querySelector("small")?.remove();
        return copy.textContent.trim();
      };
      const notes = rows.some((row) => note(row.cells[i])) ? [[`${name} (note)`, ...rows.map((row) => note(row.cells[i]))]] : [];
      return [[name, ...rows.map((row) => value(row.cells[i]))], ...notes];
    });
    return csv([0, ...rows].map((_, i) => columns.map((column) => column[i])));
  }

  function figureCsv(spec) {
    const rows = Object.entries(spec.datasets ?? {}).flatMap(([name, found]) => found.map((row) => ({ data: name, ...row })));
    const names = [...new Set(rows.flatMap(Object.keys))];
    return csv([names, ...rows.map((row) => names.map((name) => row[name]))]);
  }

  // An SVG file has no page to take the colors from: the CSS variables are replaced by their values.
  async function figureSvg(view) {
    const style = getComputedStyle(document.documentElement);
    return (await view.toSVG()).replace(/var\((--[\w-]+)\)/g, (_, name) => style.getPropertyValue(name).trim());
  }

  function logarithmic(spec) {
    const { zero, domainMin, ...scale } = spec.encoding.y.scale; // a logarithm has no zero
    const y = { ...spec.encoding.y, scale: { ...scale, type: "log" } };
    return { ...spec, encoding: { ...spec.encoding, y } };
  }

  // Moving average of each series with exponentially decreasing weights, without a bias to its start.
  function smoothed(spec, weight) {
    const { y, series } = spec.usermeta.smooth;
    const sums = {};
    const average = (row) => {
      const kept = (sums[row[series]] ??= { value: 0, total: 0 });
      kept.value = weight * kept.value + row[y];
      kept.total = weight * kept.total + 1;
      return { ...row, [y]: kept.value / kept.total };
    };
    const datasets = Object.fromEntries(Object.entries(spec.datasets).map(([name, rows]) => [name, rows.map(average)]));
    return { ...spec, datasets };
  }

  function smoothing(figure, bar) {
    const box = element("select", { id: `${figure.id}-smooth` });
    box.append(new Option("None", ""), new Option("Light", "0.6"), new Option("Strong", "0.9"));
    box.value = state.smooth[figure.id] ?? "";
    box.addEventListener("change", () => {
      state.smooth[figure.id] = box.value;
      bar.remove();
      draw(figure, true);
      figure.querySelector("select").focus();
    });
    return element("label", {}, "Smoothing", box);
  }

  // Signals of the visible domains, by scale. A signal is null where all data are visible.
  function domains(view) {
    const fields = view.signal("zoom_tuple_fields");
    return Object.fromEntries(fields.map(({ channel, field }) => [channel, `zoom_${field.replace(/\W/g, "_")}`]));
  }

  function zoomOf(view) {
    return Object.fromEntries(Object.entries(domains(view)).map(([channel, name]) => [channel, view.signal(name)]));
  }

  function setZoom(figure, view, zoom) {
    for (const [channel, name] of Object.entries(domains(view))) view.signal(name, zoom?.[channel] ?? null);
    figure.classList.toggle("zoomed", Boolean(zoom?.x));
    return view.runAsync();
  }

  // Scale the visible part by `factor` around its center, and move it by shares of its size.
  function zoomBy(figure, view, factor, right = 0, up = 0) {
    const moved = { x: right, y: up };
    const zoom = {};
    for (const channel of Object.keys(domains(view))) {
      const scale = view.scale(channel);
      const [start, end] = scale.range();
      const center = (start + end) / 2 + moved[channel] * (end - start);
      zoom[channel] = [start, end].map((at) => scale.invert(center + (at - (start + end) / 2) * factor));
    }
    return setZoom(figure, view, zoom);
  }

  // Keys work on each control below a chart, and the buttons by touch.
  function zooming(figure, drawn, bar) {
    // One after the other: Vega loses a signal that is set while it draws.
    const next = (act) => () => { drawn.turn = drawn.turn.then(() => drawn.view && act(drawn.view)); };
    const by = (...change) => next((view) => zoomBy(figure, view, ...change));
    const acts = {
      "+": by(0.5), "-": by(2), 0: next((view) => setZoom(figure, view, null)),
      ArrowLeft: by(1, -0.2), ArrowRight: by(1, 0.2), ArrowUp: by(1, 0, 0.2), ArrowDown: by(1, 0, -0.2),
    };
    bar.addEventListener("keydown", (event) => {
      const act = acts[event.key];
      if (!act || event.target.tagName === "SELECT" || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      act();
    });
    bar.append(
      element("span", { className: "zoom" }, tool("−", "Zoom out", acts["-"]), tool("+", "Zoom in", acts["+"]),
        tool("Reset", "Reset the zoom", acts[0])),
      element("span", { className: "hint" },
        "Zoom: + and -, or Ctrl and wheel. Pan: arrow keys, or drag. Reset: 0, or double-click."));
  }

  function figureTools(figure, drawn, spec) {
    const name = figure.dataset.name;
    const bar = element("div", { className: "tools" });
    const end = element("span", { className: "end" });
    if (spec.usermeta?.log) {
      const log = tool("Log scale", "Logarithmic scale", () => {
        state.log[figure.id] = !state.log[figure.id];
        bar.remove();
        draw(figure, true);
        figure.querySelector("[aria-pressed]").focus();
      });
      log.setAttribute("aria-pressed", String(Boolean(state.log[figure.id])));
      end.append(log);
    }
    if (spec.usermeta?.smooth) bar.append(smoothing(figure, bar));
    if (spec.usermeta?.zoom) zooming(figure, drawn, bar);
    end.append(
      tool("SVG", "Download this figure as SVG", async () => download(name, "svg", await figureSvg(drawn.view), "image/svg+xml")),
      tool("CSV", "Download the data of this figure as CSV", () => download(name, "csv", figureCsv(spec), "text/csv")));
    bar.append(end);
    figure.querySelector("script").before(bar);
  }

  // Colors are CSS variables inside the SVG: light, dark and print need no second drawing.
  function draw(figure, again = false) {
    const chart = figure.querySelector(".chart");
    const source = figure.querySelector("script").textContent;
    const kept = state.drawn[figure.id];
    const spec = JSON.parse(source);
    if (kept?.source === source && !again) {
      chart.replaceWith(kept.chart);
      if (kept.view && spec.usermeta?.zoom) figure.classList.toggle("zoomed", Boolean(zoomOf(kept.view).x));
      figureTools(figure, kept, spec);
      return;
    }
    // A new drawing of the same figure keeps the part that the reader looks at.
    const zoom = spec.usermeta?.zoom && kept?.view ? zoomOf(kept.view) : kept?.zoom;
    kept?.view?.finalize();
    const own = { source, chart, zoom };
    state.drawn[figure.id] = own;
    if (kept) chart.style.minHeight = `${kept.chart.offsetHeight}px`;
    figureTools(figure, own, spec);
    const even = state.smooth[figure.id] ? smoothed(spec, Number(state.smooth[figure.id])) : spec;
    own.turn = vegaEmbed(chart, state.log[figure.id] ? logarithmic(even) : even, {
      actions: false, renderer: "svg", ast: true, tooltip: { theme: "custom" }, logLevel: 1, // errors
    })
      .then(({ view }) => {
        own.view = view;
        chart.style.minHeight = "";
        if (!zoom?.x) return undefined;
        const drawable = !state.log[figure.id] || Math.min(...zoom.y) > 0;
        return setZoom(figure, view, drawable ? zoom : { x: zoom.x, y: view.scale("y").domain() });
      })
      .catch((error) => { chart.textContent = `This figure could not be drawn: ${error.message}`; });
  }

  function copyable(pre) {
    const box = element("div", { className: "copy" });
    pre.replaceWith(box);
    box.append(pre, tool("Copy", "Copy this text", async (button) => {
      try {
        await navigator.clipboard.writeText(pre.textContent);
        button.textContent = "Copied";
      } catch { // an address that is not secure has no clipboard
        getSelection().selectAllChildren(pre);
        button.textContent = "Selected";
      }
    }));
  }

  // A figure is drawn when it comes near the screen: a page with many opens at once.
  const near = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting) { near.unobserve(target); draw(target); }
    }
  }, { rootMargin: "600px" });
  function settle(root) {
    all(".table", root).forEach(table);
    all("pre", root).forEach(copyable);
    all("figure", root).forEach((figure) => (state.drawn[figure.id] ? draw(figure) : near.observe(figure)));
  }
  addEventListener("beforeprint", () => all("figure").forEach((f) => { if (!state.drawn[f.id]) draw(f); }));

  async function refresh() {
    const reply = await fetch(location.href, { headers: state.hash ? { "If-None-Match": state.hash } : {} });
    const text = await reply.text();  // also of a 304: an unread reply counts as aborted
    if (reply.status === 304) return;
    if (!reply.ok) throw new Error(`the server answered ${reply.status}`);
    // A click is lost when its element is replaced under the pointer. An update that was in flight
    // when the reader paused is not shown either.
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
      if (!seconds) { news.textContent = "Nothing is running"; pause.hidden = true; return; }
      if (!busy && !document.hidden && !state.paused) {
        busy = true;
        try { await refresh(); say(""); } catch (error) { say(`No update: ${error.message}`); }
        busy = false;
      }
      setTimeout(tick, seconds * 1000);
    };
    setTimeout(tick, Number(document.body.dataset.refresh) * 1000);
  }

  // A link into a folded section opens it.
  function unfold() {
    const found = document.getElementById(location.hash.slice(1)); // ids are ASCII
    const folded = found && found.querySelector("details");
    if (folded) folded.open = true;
  }
  addEventListener("hashchange", unfold);

  for (const kind of ["pointerdown", "pointerup", "pointercancel"]) {
    addEventListener(kind, () => { state.pressed = kind === "pointerdown"; }, { capture: true });
  }
  settle(document);
  unfold();
  live();
})();
