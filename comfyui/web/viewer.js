// Pictures one at a time, as large as the page: keys pick and rate, the wheel zooms, dragging moves.
import { imageUrl } from "./api.js";
import { button, el, keepEvents, stars } from "./parts.js";
import { t } from "./words.js";

const MOST = 8;

// `pick` is what the panel does with a picture: isPicked(image), toggle(image), rating(image), rate(image, stars), send().
export function view(images, start, pick) {
  let at = start;
  let beside = null; // the picture that this one is held against
  let zoom = 1;
  let x = 0;
  let y = 0;
  const before = document.activeElement;
  const picture = el("img", { alt: "", draggable: false });
  const place = el("span");
  const rated = el("span");
  const choose = button("Pick", () => act(() => pick.toggle(images[at])), "primary");
  const bar = el("div", { className: "cl-row cl-viewer-bar" }, place, choose, rated,
    button("Hold against", hold), button("Use these", done), el("span", { className: "cl-hint", textContent: t("← → turn, space picks, 1 to 5 rates, B holds two against each other, wheel zooms, Esc closes") }), button("Close", close));
  const stage = el("div", { className: "cl-viewer-stage" }, picture);
  const dialog = keepEvents(el("dialog", { className: "cl-viewer", "aria-label": t("Pictures") }, stage, bar));

  function show() {
    const image = images[at];
    picture.src = imageUrl(image);
    place.textContent = `${at + 1} / ${images.length}`;
    const picked = pick.isPicked(image);
    choose.textContent = t(picked ? "Picked" : "Pick");
    choose.setAttribute("aria-pressed", String(picked));
    picture.classList.toggle("picked", picked);
    rated.replaceChildren(stars((value) => act(() => pick.rate(image, value)), pick.rating(image)));
    move();
  }

  function move() {
    picture.style.transform = `translate(${x}px, ${y}px) scale(${zoom})`;
  }

  function act(work) {
    work();
    show();
  }

  function turn(by) {
    at = (at + by + images.length) % images.length;
    show(); // the zoom stays: the same corner of the next picture
  }

  // The same place of two pictures, one after the other, is how a difference is seen.
  function hold() {
    if (beside === null || beside === at) {
      beside = at;
      at = (at + 1) % images.length;
    } else [at, beside] = [beside, at];
    show();
  }

  function done() {
    close();
    pick.send();
  }

  function close() {
    dialog.close();
  }

  const KEYS = { ArrowRight: () => turn(1), ArrowLeft: () => turn(-1), " ": () => act(() => pick.toggle(images[at])), b: hold, Enter: done,
    0: () => { zoom = 1; x = y = 0; move(); } };
  dialog.addEventListener("keydown", (event) => {
    if (event.target.matches("button") && (event.key === " " || event.key === "Enter")) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const work = /^[1-5]$/.test(key) ? () => act(() => pick.rate(images[at], Number(key))) : KEYS[key];
    if (!work || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    work();
  });
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    const next = Math.min(MOST, Math.max(1, zoom * (event.deltaY < 0 ? 1.2 : 1 / 1.2)));
    const box = stage.getBoundingClientRect();
    const [cx, cy] = [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2];
    x = next === 1 ? 0 : cx - ((cx - x) * next) / zoom; // what is under the pointer stays there
    y = next === 1 ? 0 : cy - ((cy - y) * next) / zoom;
    zoom = next;
    move();
  }, { passive: false });
  stage.addEventListener("pointerdown", (event) => {
    stage.setPointerCapture(event.pointerId);
    const from = [event.clientX - x, event.clientY - y];
    stage.onpointermove = (moved) => {
      if (zoom === 1) return;
      [x, y] = [moved.clientX - from[0], moved.clientY - from[1]];
      move();
    };
  });
  for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, () => (stage.onpointermove = null));
  stage.addEventListener("dblclick", () => act(() => pick.toggle(images[at])));
  dialog.addEventListener("close", () => {
    dialog.remove();
    before?.focus?.();
  });
  document.body.append(dialog);
  dialog.showModal();
  dialog.tabIndex = -1;
  dialog.focus();
  show();
}
