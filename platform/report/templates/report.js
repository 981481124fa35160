"use strict";
(() => {
  const specs = JSON.parse(document.getElementById("figures").textContent);
  const config = {
    displaylogo: false,
    responsive: true,
    displayModeBar: "hover",
    // Named one by one: the default bar of this release offers to send the data to a web service.
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
  };
  const plots = Object.entries(specs).map(([id, spec]) => {
    const element = document.getElementById(id);
    const image = { format: "svg", filename: spec.name };
    return Plotly.newPlot(element, spec.data, spec.layout, { ...config, toImageButtonOptions: image });
  });
  Promise.all(plots).then((drawn) => { document.body.dataset.figures = String(drawn.length); });

  // Paper is narrower than the screen, and a drawn figure keeps its width in pixels until told otherwise.
  const inner = 182 / 25.4 * 96; // A4 less the page margins, in CSS pixels
  const folds = Array.from(document.querySelectorAll("details.fold"));
  let open = [];
  window.addEventListener("beforeprint", () => {
    open = folds.map((fold) => fold.open);
    folds.forEach((fold) => { fold.open = true; });
    for (const id of Object.keys(specs)) {
      const element = document.getElementById(id);
      const wide = element.closest("figure").classList.contains("wide");
      const width = (wide ? inner : (inner - 12) / 2) - 36;
      Plotly.relayout(element, { autosize: false, width });
    }
  });
  window.addEventListener("afterprint", () => {
    folds.forEach((fold, i) => { fold.open = open[i]; });
    for (const id of Object.keys(specs)) {
      Plotly.relayout(document.getElementById(id), { width: null, autosize: true });
    }
  });

  const links = new Map(Array.from(document.querySelectorAll(".contents a"), (a) => [a.hash.slice(1), a]));
  const sections = Array.from(document.querySelectorAll("main > section"));
  const mark = () => {
    const line = window.innerHeight * 0.3;
    let here = sections[0];
    for (const section of sections) {
      if (section.getBoundingClientRect().top <= line) here = section;
    }
    links.forEach((link, id) => link.classList.toggle("here", Boolean(here) && id === here.id));
  };
  document.addEventListener("scroll", mark, { passive: true });
  mark();
})();
