// What every page does: times and numbers in the reader's own way, calls of the API, and what happens as it happens.
const body = document.body;
const said = JSON.parse(body.dataset.said);
const language = document.documentElement.lang;

export const words = (key, values = {}) => (said[key] ?? key).replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");

// --- times

const UNITS = [["year", 31536000], ["month", 2592000], ["week", 604800], ["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
const relative = new Intl.RelativeTimeFormat(language, { numeric: "auto" });
const STYLES = {
  day: { month: "short", day: "numeric", timeZone: "UTC" }, // a day of UTC: by a clock west of it, it begins the day before
  week: { month: "short", day: "numeric", timeZone: "UTC" },
  hour: { hour: "2-digit", minute: "2-digit" },
  full: { dateStyle: "medium", timeStyle: "short" },
};

export function ago(then) {
  const seconds = (then - Date.now()) / 1000;
  const [unit, size] = UNITS.find(([, each]) => Math.abs(seconds) >= each) ?? UNITS.at(-1);
  return relative.format(Math.trunc(seconds / size), unit);
}

export function lasting(seconds) {
  const unit = seconds >= 5400 ? ["hour", 3600] : seconds >= 90 ? ["minute", 60] : ["second", 1];
  return new Intl.NumberFormat(language, { style: "unit", unit: unit[0], unitDisplay: "long", maximumFractionDigits: 0 }).format(seconds / unit[1]);
}

function tellTimes(root = document) {
  for (const time of root.querySelectorAll("time[data-when]")) {
    const at = new Date(time.dateTime);
    const style = STYLES[time.dataset.when];
    time.textContent = style ? new Intl.DateTimeFormat(language, style).format(at) : ago(at);
    time.title = new Intl.DateTimeFormat(language, { ...STYLES.full, timeZone: style?.timeZone }).format(at) + (style?.timeZone ? " UTC" : "");
  }
  for (const option of root.querySelectorAll("option[data-at]")) { // which holds no element
    const [, ...rest] = option.textContent.split(" · ");
    option.textContent = [new Intl.DateTimeFormat(language, STYLES.full).format(new Date(option.dataset.at)), ...rest].join(" · ");
  }
}

// --- what is told for a moment

export function tell(sentence, bad = false) {
  const line = document.createElement("p");
  line.textContent = sentence;
  line.className = bad ? "bad" : "";
  document.querySelector("#told").append(line);
  setTimeout(() => line.remove(), bad ? 12000 : 5000);
}

export function sure(sentence) {
  const dialog = document.querySelector("#sure");
  dialog.querySelector("p").textContent = sentence;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((done) => dialog.addEventListener("close", () => done(dialog.returnValue === "yes"), { once: true }));
}

// --- calls of the API

export async function call(method, path, sent) {
  const asked = { method, headers: { Accept: "application/json" } };
  if (sent !== undefined) {
    asked.headers["Content-Type"] = "application/json";
    asked.body = JSON.stringify(sent);
  }
  let answer;
  try {
    answer = await fetch(path, asked);
  } catch {
    throw new Error(words("offline"));
  }
  const told = await answer.json().catch(() => ({}));
  if (answer.status === 401) location.assign(`/sign-in?next=${encodeURIComponent(location.pathname + location.search)}`);
  if (!answer.ok) throw new Error(told.error?.message ?? words("failed"));
  return told;
}

async function pressed(button) {
  const { call: asked, body: sent, sure: question, done, then } = button.dataset;
  if (question && !(await sure(question))) return;
  const [method, path] = asked.split(" ");
  button.disabled = true;
  button.setAttribute("aria-busy", "true");
  try {
    await call(method, path, sent ? JSON.parse(sent) : undefined);
    tell(done ?? words("done"));
    if (then) location.assign(then);
    else if ("reload" in button.dataset) location.reload();
    else moved();
  } catch (error) {
    tell(error.message, true);
  } finally {
    button.disabled = false;
    button.removeAttribute("aria-busy");
  }
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-call], [data-cookie], [data-theme-switch]");
  if (!button) return;
  if (button.dataset.call) pressed(button);
  else if (button.dataset.cookie) keep(button.dataset.cookie);
  else {
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const now = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
    keep(`comfyloop_theme=${now === "dark" ? "light" : "dark"}`);
  }
});

// A form that goes to the API as JSON; what was typed stays where it is when that is refused.
document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (!form.dataset.send) return;
  event.preventDefault();
  const [method, path] = form.dataset.send.split(" ");
  const sent = {};
  for (const field of form.elements) if (field.name) sent[field.name] = field.type === "checkbox" ? field.checked : field.value;
  const button = event.submitter;
  if (button) button.disabled = true;
  try {
    await call(method, path, sent);
    tell(form.dataset.done ?? words("done"));
    if (form.dataset.then) location.assign(form.dataset.then.replace(/\{(\w+)\}/g, (_, name) => encodeURIComponent(sent[name])));
  } catch (error) {
    tell(error.message, true);
  } finally {
    if (button) button.disabled = false;
  }
});

function keep(cookie) {
  document.cookie = `${cookie}; path=/; max-age=31536000; samesite=lax`;
  location.reload();
}

document.addEventListener("change", (event) => {
  if (event.target.matches("[data-go]")) location.assign(event.target.value);
});

// --- what happens, as it happens

let pending = 0;
export function moved() {
  clearTimeout(pending);
  pending = setTimeout(() => body.dispatchEvent(new CustomEvent("desk:moved")), 250);
}

const service = document.querySelector("#service");
function connected(there) {
  service.classList.toggle("away", !there);
  service.lastElementChild.textContent = there ? service.dataset.there : service.dataset.away;
}

function happened(event) {
  body.dispatchEvent(new CustomEvent("desk:event", { detail: event }));
  if (event.type === "run.progress") {
    for (const line of document.querySelectorAll("[data-run-step]")) {
      const left = event.eta_seconds ? ` · ${words("left", { time: lasting(event.eta_seconds) })}` : "";
      line.textContent = event.total_steps ? words("step", { step: event.step, total: event.total_steps }) + left : "";
    }
    return;
  }
  if (event.type === "version.promoted") tell(event.version ? words("promoted", { version: event.version }) : words("base"));
  if (event.type === "gate.verdict" && event.verdict !== "promote") tell(`${words("rejected", { version: event.version })} ${event.reasons?.[0] ?? ""}`);
  if (event.type !== "gate.progress") moved();
}

let wait = 500;
function listen() {
  const address = new URL(body.dataset.live, location.href);
  address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  const socket = new WebSocket(address);
  let was = false;
  socket.onopen = () => {
    if (wait > 500) moved(); // it was away: what happened meanwhile was not heard
    was = true;
    wait = 500;
    connected(true);
  };
  socket.onmessage = ({ data }) => happened(JSON.parse(data));
  socket.onclose = () => {
    wait = Math.min(wait * (was ? 2 : 1.6), 8000);
    connected(false);
    setTimeout(listen, wait);
  };
}

// --- parts that are fetched again: what a person opened, or is typing in, stays

const open = (root) => [...root.querySelectorAll("details[open][id]")].map((part) => part.id);
let opened = [];
body.addEventListener("htmx:beforeSwap", (event) => {
  if (new URL(event.detail.xhr.responseURL).pathname === "/sign-in") return location.reload(); // the session is over
  const target = event.detail.target;
  if (target.contains(document.activeElement) && document.activeElement.matches("input, textarea, select")) event.detail.shouldSwap = false;
  opened = open(target);
});
body.addEventListener("htmx:afterSettle", () => {
  for (const id of opened) document.getElementById(id)?.setAttribute("open", "");
  tellTimes(document);
});

tellTimes();
setInterval(tellTimes, 30000);
listen();
