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

// A button of one icon (PrimeIcons, as ComfyUI's own).
export function iconButton(icon, label, onclick) {
  const title = t(label);
  return el("button", { type: "button", className: "cl-icon", title, "aria-label": title, onclick }, el("i", { className: `pi ${icon}` }));
}

// Five stars; `onchange` gets 0..5, a second click on a star takes it back.
export function stars(onchange, value = 0) {
  const row = el("span", { className: "cl-stars", role: "radiogroup", "aria-label": t("Rate") });
  const paint = () => [...row.children].forEach((star, i) => {
    star.firstChild.className = `pi ${i < value ? "pi-star-fill" : "pi-star"}`;
    star.setAttribute("aria-checked", String(i + 1 === value));
  });
  for (let n = 1; n <= 5; n++) {
    const star = el("button", { type: "button", className: "cl-star", title: `${n} / 5`, role: "radio" }, el("i"));
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

// A line that says what became of a click.
export function outcome() {
  const line = el("div", { className: "cl-outcome", role: "status" });
  line.say = (text, bad = false) => {
    line.textContent = text;
    line.classList.toggle("cl-bad", bad);
  };
  line.kept = (count) => line.say(count ? `${t("Kept")}: ${count}` : t("Nothing to keep"));
  return line;
}

// The line over a panel: that the queue waits and until when, or a plain hint.
export function hintLine() {
  const line = el("div", { className: "cl-hint" });
  line.show = (data, otherwise) => {
    line.classList.toggle("cl-wait", Boolean(data?.pause));
    const left = () => {
      const seconds = Math.max(0, Math.round(data.until - Date.now() / 1000));
      return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
    };
    const at = () => new Date(data.until * 1000).toLocaleTimeString();
    const write = () => {
      line.textContent = data?.pause
        ? `${t("Waiting for you: the whole queue waits.")} ${t("Goes on by itself at")} ${at()} (${left()}). ${otherwise ?? ""}` : otherwise ?? "";
    };
    clearInterval(line.counting);
    write();
    if (data?.pause) line.counting = setInterval(() => (line.isConnected ? write() : clearInterval(line.counting)), 1000);
  };
  return line;
}

// Children by key: those that are there already stay as they are, with what a person typed into them.
export function keyed(box, items, make) {
  const known = new Map([...box.children].map((child) => [child.dataset.key, child]));
  box.replaceChildren(...items.map(([key, data]) => {
    const child = known.get(key) ?? make(data);
    child.dataset.key = key;
    return child;
  }));
}

// Typing and scrolling in our elements must not move or delete nodes.
export function keepEvents(element) {
  for (const name of ["keydown", "keyup", "keypress", "pointerdown", "mousedown", "wheel", "paste", "copy", "cut"]) {
    element.addEventListener(name, (event) => event.stopPropagation());
  }
  return element;
}
