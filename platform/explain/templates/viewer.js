"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const [left, top, width, height] = data.picture;
  const size = data.source.Image.Size;
  const aspect = Number(size.Height) / Number(size.Width);
  const find = (id) => document.getElementById(id);
  const stage = find("stage");
  const viewer = OpenSeadragon({
    element: find("view"),
    tileSources: data.source,
    drawer: "canvas",
    showNavigationControl: false,
    showNavigator: true,
    navigatorAutoFade: false,
    navigatorPosition: "TOP_RIGHT",
    maxZoomPixelRatio: 8,
    visibilityRatio: 0.4,
    gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
    animationTime: matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 0.6,
  });
  // Level-0 pixels to OpenSeadragon's coordinates, where the picture is one wide; each axis by its own scale.
  const rect = (x, y, w, h) =>
    new OpenSeadragon.Rect((x - left) / width, ((y - top) / height) * aspect, w / width, (h / height) * aspect);
  let shown = data.maps[0];
  let chosen = null;
  let overlay = null;

  const show = (map) => {
    shown = map;
    chosen = null;
    viewer.clearOverlays();
    overlay = document.createElement("img");
    overlay.className = "overlay";
    overlay.id = "overlay";
    overlay.alt = "";
    overlay.src = map.overlay;
    overlay.style.opacity = find("opacity").value / 100;
    viewer.addOverlay({ element: overlay, location: rect(...map.rect) });
    for (const tile of map.top) frame(tile);
    const bar = find("bar");
    bar.style.background = `linear-gradient(to right, ${map.bar})`;
    bar.setAttribute("aria-label", `Colours from ${map.ticks[0]} (${map.away}) to ${map.ticks[2]} (${map.towards})`);
    document.querySelectorAll(".ticks span").forEach((place, at) => { place.textContent = map.ticks[at]; });
    find("away").textContent = map.away;
    find("towards").textContent = map.towards;
    find("unit").textContent = map.unit;
    find("verdict").textContent = map.verdict;
    find("checks").classList.toggle("failed", map.failed);
    find("checks").querySelector("ul").replaceChildren(...map.checks.map((check) => {
      const item = document.createElement("li");
      item.className = check.passed ? "" : "no";
      item.textContent = `${check.name}, ${check.passed ? "passed" : "failed"}: ${check.reason}`;
      return item;
    }));
    list("top", map.top, "highest");
    list("bottom", map.bottom, "lowest");
    find("lowest").hidden = map.bottom.length === 0;
    find("said").textContent = "";
  };

  const frame = (tile) => {
    tile.frame = document.createElement("div");
    tile.frame.className = "frame";
    viewer.addOverlay({ element: tile.frame, location: rect(tile.x, tile.y, shown.side, shown.side) });
  };

  const list = (id, tiles, end) => {
    find(id).replaceChildren(...tiles.map((tile, at) => {
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-label", `Zoom to tile ${at + 1} of the ${end} scores, ${tile.score}`);
      if (tile.crop) {
        const crop = document.createElement("img");
        crop.alt = "";
        crop.src = tile.crop;
        button.append(crop);
      }
      button.append(tile.score);
      button.addEventListener("click", () => choose(tile, button, at, end));
      const item = document.createElement("li");
      item.append(button);
      return item;
    }));
  };

  const choose = (tile, button, at, end) => {
    document.querySelectorAll(".tiles button").forEach((other) => other.setAttribute("aria-pressed", "false"));
    button.setAttribute("aria-pressed", "true");
    if (chosen) chosen.frame.classList.remove("chosen");
    if (!tile.frame) frame(tile);
    chosen = tile;
    chosen.frame.classList.add("chosen");
    const around = shown.side * 2;
    viewer.viewport.fitBounds(rect(tile.x - around, tile.y - around, shown.side + 2 * around, shown.side + 2 * around));
    find("said").textContent = `Tile ${at + 1} of the ${end} scores: ${tile.score}, level-0 pixel (${tile.x}, ${tile.y}).`;
  };

  const ruler = () => {
    const box = document.querySelector(".ruler");
    if (!data.mpp) return;
    const shownWidth = viewer.viewport.getBounds(true).width * width * data.mpp; // um across the view
    const perPixel = shownWidth / viewer.viewport.getContainerSize().x;
    const most = 160 * perPixel;
    const power = 10 ** Math.floor(Math.log10(most));
    const length = [5, 2, 1].find((step) => step * power <= most) * power;
    box.hidden = false;
    box.querySelector("i").style.width = `${length / perPixel}px`;
    box.querySelector("span").textContent = length >= 1000 ? `${length / 1000} mm` : `${length} µm`;
  };

  viewer.addHandler("open", () => {
    show(shown);
    ruler();
    viewer.canvas.setAttribute("role", "application"); // it has keys of its own
    viewer.canvas.setAttribute("aria-label", "Slide; arrows move, plus and minus zoom");
    document.documentElement.dataset.ready = "yes";
  });
  viewer.addHandler("open-failed", (event) => {
    find("said").textContent = `The picture of the slide cannot be opened: ${event.message}`;
    document.documentElement.dataset.ready = "failed";
  });
  viewer.addHandler("update-viewport", ruler);
  find("map").addEventListener("change", (event) => show(data.maps[event.target.value]));
  find("opacity").addEventListener("input", (event) => {
    overlay.style.opacity = event.target.value / 100;
    find("percent").textContent = `${event.target.value} %`;
  });
  const zoom = (factor) => { viewer.viewport.zoomBy(factor); viewer.viewport.applyConstraints(); };
  find("in").addEventListener("click", () => zoom(1.6));
  find("out").addEventListener("click", () => zoom(1 / 1.6));
  find("home").addEventListener("click", () => viewer.viewport.goHome());
  stage.viewer = viewer;
  stage.levelZero = rect;
})();
