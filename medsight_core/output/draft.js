"use strict";
// The key images of the page, and one dialog that shows any of them large.
const keys = [...document.querySelectorAll(".key")];
const viewer = document.getElementById("viewer");
const stage = viewer.querySelector(".stage");
const bare = document.getElementById("bare");
let at = 0;

function show(place) {
  at = (place + keys.length) % keys.length;
  const key = keys[at];
  stage.replaceChildren(...[...key.querySelectorAll("img")].map((image) => image.cloneNode()));
  stage.style.setProperty("--ratio", key.dataset.ratio);
  viewer.querySelector("nav span").textContent = key.querySelector("small").textContent;
  if (!viewer.open) viewer.showModal();
}

function hide(masks) {
  document.body.classList.toggle("bare", masks);
  bare.setAttribute("aria-pressed", String(masks));
}

keys.forEach((key, place) => key.addEventListener("click", () => show(place)));
document.getElementById("before").addEventListener("click", () => show(at - 1));
document.getElementById("after").addEventListener("click", () => show(at + 1));
document.getElementById("close").addEventListener("click", () => viewer.close());
bare.addEventListener("click", () => hide(!document.body.classList.contains("bare")));
viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
viewer.addEventListener("close", () => hide(false));
document.addEventListener("keydown", (event) => {
  if (!viewer.open || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "ArrowLeft") show(at - 1);
  if (event.key === "ArrowRight") show(at + 1);
  if (event.key === "m" || event.key === "M") hide(!document.body.classList.contains("bare"));
});
