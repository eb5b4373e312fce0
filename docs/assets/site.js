/* The theme wraps wide tables and adds buttons to blocks of code after the page is loaded. Let the keyboard
 * reach what scrolls, and give each of these landmarks a name of its own. */
function nameAndReach() {
  document.querySelectorAll(".md-typeset__scrollwrap").forEach((wrap, i) => {
    const scrolls = wrap.scrollWidth > wrap.clientWidth;
    if (scrolls === (wrap.tabIndex === 0)) return;
    wrap.tabIndex = scrolls ? 0 : -1;
    wrap.setAttribute("role", scrolls ? "group" : "presentation");
    wrap.setAttribute("aria-label", `Table ${i + 1}`);
  });
  document.querySelectorAll(".md-code__nav").forEach((nav, i) => {
    if (!nav.hasAttribute("aria-label")) nav.setAttribute("aria-label", `Code ${i + 1}`);
  });
}
addEventListener("load", () => {
  new MutationObserver(nameAndReach).observe(document.body, { childList: true, subtree: true });
  addEventListener("resize", nameAndReach);
  nameAndReach();
});
