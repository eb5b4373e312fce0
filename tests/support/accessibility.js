// Accessibility faults of the page: the rules of WCAG 2.2 that a script can check.
() => {
  const faults = [];
  const all = (selector) => [...document.querySelectorAll(selector)];
  const seen = (e) => e.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true });
  const show = (e) => `${e.tagName.toLowerCase()} ${e.id || e.className} "${(e.textContent || "").trim().slice(0, 30)}"`;

  if (!document.documentElement.lang) faults.push("the page has no language");
  if (!document.title) faults.push("the page has no title");
  if (all("main").length !== 1) faults.push("the page needs one main part");

  let level = 0;
  for (const heading of all("h1, h2, h3, h4, h5, h6")) {
    const next = Number(heading.tagName[1]);
    if (next > level + 1) faults.push(`heading skips a level: ${show(heading)}`);
    if (!heading.textContent.trim()) faults.push("an empty heading");
    level = next;
  }
  if (all("h1").length !== 1) faults.push("the page needs one h1");

  const ids = all("[id]").map((e) => e.id);
  for (const id of new Set(ids)) if (ids.filter((other) => other === id).length > 1) faults.push(`id ${id} occurs twice`);

  const named = (e) => e.getAttribute("aria-label")?.trim()
    || (e.getAttribute("aria-labelledby") ?? "").split(" ").map((id) => document.getElementById(id)?.textContent ?? "").join("").trim()
    || [...(e.labels ?? [])].map((label) => label.textContent).join("").trim()
    || (e.matches("a, button, summary") && e.textContent.trim());
  for (const e of all("a[href], button, summary, input, select, textarea, [role=region], [role=group], [role=img]"))
    if (!named(e)) faults.push(`no name: ${show(e)}`);
  for (const e of all("img")) if (!e.hasAttribute("alt")) faults.push("an image without alt");
  for (const e of all("table")) {
    if (!e.caption?.textContent.trim()) faults.push(`no caption: ${show(e)}`);
    for (const th of e.querySelectorAll("th")) if (!th.scope) faults.push(`th without scope: ${show(th)}`);
  }
  for (const e of all("[aria-hidden=true] a, [aria-hidden=true] button")) faults.push(`focus inside hidden: ${show(e)}`);
  for (const e of all("dl > *")) if (!e.matches("div, dt, dd")) faults.push(`in a list of facts: ${show(e)}`);
  for (const e of all(".scroll, .pan, pre"))
    if (seen(e) && e.scrollWidth > e.clientWidth + 1 && e.tabIndex < 0) faults.push(`scrolls without focus: ${show(e)}`);

  const rgba = (text) => {
    const found = text.match(/[\d.]+/g)?.map(Number) ?? [0, 0, 0, 0];
    return found.length > 3 ? found : [...found.slice(0, 3), text === "transparent" ? 0 : 1];
  };
  const over = (top, under) => top.slice(0, 3).map((value, i) => value * top[3] + under[i] * (1 - top[3]));
  const ground = (e) => {
    const layers = [];
    for (let at = e; at; at = at.parentElement) layers.unshift(rgba(getComputedStyle(at).backgroundColor));
    return layers.reduce((under, layer) => over(layer, under), [255, 255, 255]);
  };
  const luminance = (color) => {
    const linear = color.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text = walker.nextNode(); text; text = walker.nextNode()) {
    const e = text.parentElement;
    if (!text.textContent.trim() || e.closest("script, style, [disabled], .skip") || !seen(e)) continue;
    const style = getComputedStyle(e);
    const drawn = e.closest("svg");
    const color = rgba(drawn ? style.fill : style.color);
    const under = ground(drawn ? drawn.parentElement : e);
    const [a, b] = [luminance(over(color, under)), luminance(under)].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < (large ? 3 : 4.5)) faults.push(`contrast ${ratio.toFixed(2)}: ${show(e)}`);
  }
  return [...new Set(faults)];
}
