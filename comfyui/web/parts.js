// Small DOM parts that the nodes and the sidebar share.
import { t } from "./words.js";

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export function button(label, onclick, kind = "") {
  return el("button", { type: "button", className: `cl-button ${kind}`, textContent: t(label), onclick });
}

// Five stars; `onchange` gets 0..5, a second click on a star takes it back.
export function stars(onchange, value = 0) {
  const row = el("span", { className: "cl-stars" });
  row.setAttribute("role", "radiogroup");
  const paint = () => [...row.children].forEach((star, i) => {
    star.textContent = i < value ? "★" : "☆";
    star.setAttribute("aria-checked", String(i + 1 === value));
  });
  for (let n = 1; n <= 5; n++) {
    const star = el("button", { type: "button", className: "cl-star", title: `${n} / 5` });
    star.setAttribute("role", "radio");
    star.addEventListener("click", (event) => {
      event.stopPropagation();
      value = value === n ? 0 : n;
      paint();
      onchange(value);
    });
    row.append(star);
  }
  paint();
  return row;
}

// A line that says what became of a click; errors in red, and the buttons usable again.
export function outcome() {
  const line = el("div", { className: "cl-outcome" });
  line.setAttribute("role", "status");
  line.say = (text, bad = false) => {
    line.textContent = text;
    line.classList.toggle("cl-bad", bad);
  };
  return line;
}

// Typing and scrolling in our elements must not move or delete nodes.
export function keepEvents(element) {
  for (const name of ["keydown", "keyup", "keypress", "pointerdown", "mousedown", "wheel", "paste", "copy", "cut"]) {
    element.addEventListener(name, (event) => event.stopPropagation());
  }
  return element;
}
