"use strict";
// Words, table rows and masks share region numbers (data-regions); `kept` is what was clicked, `seen` what is pointed at.
const figure = document.getElementById("figure");
const stage = document.getElementById("stage");
const layers = [...document.querySelectorAll(".layer, .mark")];
const buttons = [...document.querySelectorAll("[data-regions]")];
const bare = document.getElementById("bare");
let kept = null;

const numbers = (button) => button.dataset.regions.split(" ");

function show(chosen) {
  figure.classList.toggle("solo", chosen !== null);
  for (const layer of layers) layer.classList.toggle("on", chosen !== null && chosen.includes(layer.dataset.region));
}

function keep(chosen) {
  kept = chosen;
  for (const button of buttons) {
    button.setAttribute("aria-pressed", String(chosen !== null && numbers(button).join() === chosen.join()));
  }
  show(chosen);
}

function hide(masks) {
  figure.classList.toggle("bare", masks);
  bare.setAttribute("aria-pressed", String(masks));
}

for (const button of buttons) {
  const chosen = numbers(button);
  button.addEventListener("mouseenter", () => { hide(false); show(chosen); });
  button.addEventListener("focus", () => { hide(false); show(chosen); });
  button.addEventListener("mouseleave", () => show(kept));
  button.addEventListener("blur", () => show(kept));
  button.addEventListener("click", () => keep(kept !== null && kept.join() === chosen.join() ? null : chosen));
}
document.getElementById("all").addEventListener("click", () => { hide(false); keep(null); });
bare.addEventListener("click", () => hide(!figure.classList.contains("bare")));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") { hide(false); keep(null); }
  if (event.key === "m" || event.key === "M") hide(!figure.classList.contains("bare"));
});

// A click on the picture keeps the smallest region under the pointer: a lesion lies on top of its organ.
stage.addEventListener("click", (event) => {
  const box = stage.getBoundingClientRect();
  let best = null;
  for (const image of document.querySelectorAll("img.layer")) {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 1;
    const x = (event.clientX - box.left) / box.width * image.naturalWidth;
    const y = (event.clientY - box.top) / box.height * image.naturalHeight;
    const pen = canvas.getContext("2d");
    pen.drawImage(image, -Math.floor(x), -Math.floor(y));
    const area = Number(image.dataset.area);
    if (pen.getImageData(0, 0, 1, 1).data[3] > 40 && (best === null || area < best.area)) best = { area, region: image.dataset.region };
  }
  hide(false);
  const word = best && buttons.find((button) => numbers(button).includes(best.region));
  keep(best === null ? null : word ? numbers(word) : [best.region]);
});
