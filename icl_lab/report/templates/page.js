"use strict";

// Filters, and the overview's keys. Without this script every claim is shown.
(() => {
  const form = document.querySelector(".filters");
  if (!form) return;
  const claims = [...document.querySelectorAll(".claim")];
  const groups = [...document.querySelectorAll(".group")];
  const text = document.getElementById("text");
  const paper = document.getElementById("paper");
  const count = document.getElementById("count");
  const nothing = document.getElementById("nothing");
  const unfold = document.getElementById("unfold");
  const contents = new Map(claims.map((claim) => [claim, claim.textContent.toLowerCase()]));

  const filter = () => {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const status = form.elements.status.value;
    let shown = 0;
    for (const claim of claims) {
      const matches =
        (!paper.value || claim.dataset.paper === paper.value) &&
        (!status || claim.dataset.status === status) &&
        words.every((word) => contents.get(claim).includes(word));
      claim.hidden = !matches;
      shown += matches;
    }
    for (const group of groups) group.hidden = !group.querySelector(".claim:not([hidden])");
    count.textContent = `${shown} of ${claims.length} claims`;
    nothing.hidden = shown > 0;
  };

  form.hidden = false;
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("reset").addEventListener("click", () => {
    form.reset();
    filter();
    text.focus();
  });
  unfold.addEventListener("click", () => {
    const open = unfold.getAttribute("aria-pressed") !== "true";
    unfold.setAttribute("aria-pressed", String(open));
    unfold.textContent = open ? "Close all" : "Open all";
    for (const claim of claims) claim.open = open;
  });

  const visit = (id) => {
    const claim = document.getElementById(id);
    if (!claim || !claim.matches(".claim")) return;
    if (claim.hidden) {
      form.reset();
      filter();
    }
    claim.open = true;
    claim.scrollIntoView({ block: "start" });
    claim.querySelector("summary").focus({ preventScroll: true });
  };
  const visitAddress = () => visit(decodeURIComponent(location.hash.slice(1)));
  window.addEventListener("hashchange", visitAddress);
  visitAddress();

  // The overview is one stop of the Tab key; arrows go from dot to dot, and up and down from paper to paper.
  const strips = document.getElementById("strips");
  const readout = document.getElementById("readout");
  const rows = [...strips.querySelectorAll(".plot")].map((plot) => [...plot.querySelectorAll("circle")]).filter((row) => row.length);
  const help = readout.textContent;
  let row = 0;
  let place = 0;
  let current = null;
  const show = (dot) => {
    current?.classList.remove("current");
    current = dot;
    current?.classList.add("current");
    readout.textContent = dot ? dot.querySelector("title").textContent : help;
  };
  const step = {
    ArrowRight: () => (place += 1),
    ArrowLeft: () => (place -= 1),
    ArrowDown: () => (row += 1),
    ArrowUp: () => (row -= 1),
    Home: () => (place = 0),
    End: () => (place = Infinity),
  };
  const between = (value, last) => Math.max(0, Math.min(value, last));
  if (rows.length) {
    strips.tabIndex = 0;
    readout.hidden = false;
    strips.addEventListener("keydown", (event) => {
      if (!(event.key in step) && !(event.key === "Enter" && current)) return;
      event.preventDefault(); // also so that Enter does not close what it has just opened
      if (event.key === "Enter") return visit(current.dataset.claim);
      if (current) step[event.key]();
      row = between(row, rows.length - 1);
      place = between(place, rows[row].length - 1);
      show(rows[row][place]);
    });
    strips.addEventListener("blur", () => show(null));
    strips.addEventListener("pointerover", (event) => {
      if (event.target.matches("circle")) show(event.target);
    });
    strips.addEventListener("pointerleave", () => show(null));
    strips.addEventListener("click", (event) => {
      if (event.target.matches("circle")) visit(event.target.dataset.claim);
    });
  }
})();
