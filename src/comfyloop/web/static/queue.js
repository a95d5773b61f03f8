// The review queue: one item at a time or many at once, by keys. What is typed is kept in this browser until it is
// sent, and what is decided until the service has it on its disk: a reload, or a service that is away, loses neither.
import { ago, call, tell } from "./desk.js";
import { showApart } from "./diff.js";

const root = document.querySelector("[data-queue]");
const said = JSON.parse(root.dataset.said);
const sentences = Object.entries(JSON.parse(root.dataset.sentences));
const project = document.body.dataset.project;
const PAGE = 200;
const AHEAD = 20;

const t = (key, values = {}) => (said[key] ?? key).replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
const translated = (sentence) => sentences.find(([form]) => form === sentence)?.[1] ?? sentence;
const find = (name) => root.querySelector(`[data-${name}]`);
const one = find("one");
const grid = find("grid");
const stateLinks = [...root.querySelectorAll("[data-go-state]")]; // found once: thousands of cells are looked through otherwise
const toggleButton = find("toggle");
const nothing = find("none");
const cells = new Map(); // item -> its cell in the grid

function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element && name !== "list") element[name] = value;
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// --- what this browser keeps

const place = (name) => `comfyloop.${name}.${project}`;
const load = (name, otherwise) => JSON.parse(localStorage.getItem(place(name)) ?? "null") ?? otherwise;
const keep = (name, value) => localStorage.setItem(place(name), JSON.stringify(value));
// Of what is kept now: another tab of this page may have written to it, too.
const change = (name, otherwise, how) => {
  const now = how(load(name, otherwise));
  keep(name, now);
  return now;
};
const without = (id) => (decisions) => decisions.filter((decision) => decision.id !== id);

let drafts = load("drafts", {}); // item -> text that is being written
let outbox = load("outbox", []); // decisions that the service does not have yet
let made = load("made", []); // the last decisions of this browser, for undo

function draft(id, text) {
  drafts = change("drafts", {}, ({ [id]: before, ...others }) => (text === null ? others : { ...others, [id]: text }));
}

// --- the items

let state = root.dataset.state;
let filter = root.dataset.filter;
let view = root.dataset.view;
let items = [];
let counts = {};
let more = null;
let at = 0;
let editing = false;
let fetching = null;
const chosen = new Set();
const gone = new Map(); // item -> what was decided here and is not in the list any more

async function fetchPage() {
  const query = new URLSearchParams({ project, state, limit: PAGE });
  if (filter) query.set("filter", filter);
  if (more) query.set("after", more);
  const told = await call("GET", `/v1/queue?${query}`);
  const here = new Set(items.map((item) => item.id));
  items.push(...told.items.filter((item) => !here.has(item.id) && !(state !== "decided" && gone.has(item.id))));
  more = told.next_after;
  counts = told.states;
  return told;
}

async function start(wanted = null) {
  items = [];
  more = null;
  at = 0;
  chosen.clear();
  grid.replaceChildren();
  cells.clear();
  try {
    const told = await fetchPage();
    const filters = find("filters");
    filters.replaceChildren(filters.options[0], ...Object.entries(told.filters).map(([name, n]) => el("option", { value: name, textContent: `${name} (${n})`, selected: name === filter })));
    if (wanted) at = Math.max(0, items.findIndex((item) => item.id === wanted));
  } catch (error) {
    tell(error.message, true);
  }
  show();
}

function ahead() {
  if (more && !fetching && at > items.length - AHEAD) fetching = fetchPage().then(grow).finally(() => (fetching = null));
}

// --- showing

function show() {
  for (const link of stateLinks) {
    const name = link.dataset.goState;
    link.toggleAttribute("aria-current", name === state);
    if (name === state) link.setAttribute("aria-current", "true");
    link.querySelector(".number").textContent = counts[name] ?? "";
  }
  toggleButton.setAttribute("aria-pressed", String(view === "grid"));
  nothing.hidden = items.length > 0;
  one.hidden = view !== "one" || !items.length;
  grid.hidden = view !== "grid" || !items.length;
  if (view === "grid" && !grid.children.length) grow();
  if (view === "one" && items.length) showOne();
  address();
}

function address() {
  const query = new URLSearchParams(location.search);
  const now = { state, view, filter, item: view === "one" ? items[at]?.id : "" };
  for (const [name, value] of Object.entries(now)) value ? query.set(name, value) : query.delete(name);
  history.replaceState(null, "", `${location.pathname}?${query}`);
}

const pictures = (item) => [...new Set([...item.messages.flatMap((m) => m.content.filter((p) => p.type === "image").map((p) => p.sha256)), ...(item.picked ? [item.picked] : [])])];
const words = (message) => message.content.filter((part) => part.type === "text").map((part) => part.text).join("");
const answerOf = (item) => words(item.messages.at(-1));

function showOne() {
  at = Math.min(Math.max(at, 0), items.length - 1);
  const item = items[at];
  const answer = answerOf(item);
  const before = item.messages.slice(0, -1).filter((message) => message.role !== "system");
  const shown = pictures(item);
  const text = el("textarea", { value: drafts[item.id] ?? answer, rows: 3, "aria-label": t("answer"), spellcheck: true });
  const change = el("p", { className: "made", "aria-live": "off" });
  const drawChange = () => {
    const differs = text.value !== answer;
    change.hidden = !differs;
    if (differs) showApart(change, answer, text.value);
    save.disabled = !differs || !text.value.trim();
  };
  const save = el("button", { className: "button first", textContent: t("save"), onclick: () => fix(text.value) });
  text.addEventListener("input", () => { draft(item.id, text.value === answer ? null : text.value); drawChange(); });
  const open = editing || drafts[item.id] !== undefined;
  const box = open ? el("div", { className: "stack" }, text, change, el("div", { className: "buttons" }, save, el("button", { className: "button", textContent: t("leave"), onclick: () => { editing = false; draft(item.id, null); showOne(); one.focus(); } })))
    : el("p", { className: "answer", textContent: answer || t("no_answer") });
  one.replaceChildren(
    el("p", { className: "dim place", textContent: t("place", { at: at + 1, total: state in counts ? counts[state] : items.length }) }),
    el("ul", { className: "why" }, ...item.reasons.map((reason) => el("li", {}, el("strong", { textContent: translated(reason.sentence) }), reason.detail ? el("span", { className: "soft", textContent: ` ${translated(reason.detail)}` }) : null))),
    el("div", { className: shown.length ? "looked-at pictured" : "looked-at" },
      shown.length ? el("div", { className: "large" }, ...shown.slice(0, 4).map((sha) => el("img", { src: `/v1/images/${sha}`, alt: t("picture"), loading: "eager" }))) : null,
      el("div", { className: "stack" },
        ...before.map((message) => el("p", { className: message.role === "user" ? "asked" : "soft", textContent: words(message) })),
        box,
        ...item.rejected.map((text) => el("p", { className: "soft" }, el("span", { className: "tag", textContent: t("over") }), ` ${text}`)),
        el("p", { className: "dim", textContent: facts(item) }))),
    el("div", { className: "buttons deciding" },
      ...(item.decided ? [el("button", { className: "button", textContent: t("undo"), onclick: () => takeBack(item.decided.id) })] : [
        el("button", { className: "button first", textContent: t("accept"), onclick: () => decide("accept") }),
        el("button", { className: "button", textContent: t("fix"), onclick: edit }),
        el("button", { className: "button bad", textContent: t("reject"), onclick: () => decide("reject") })])));
  if (open) {
    drawChange();
    text.focus();
    text.style.height = "";
  }
  ahead();
}

function facts(item) {
  const told = [item.author, t(`origin.${item.origin}`) === `origin.${item.origin}` ? item.origin : t(`origin.${item.origin}`), t(item.learned ? "learned" : "not_learned")];
  if (item.refused !== null) told.push(t("refused", { share: `${Math.round(100 * item.refused)}%` }));
  if (item.decided) told.push(`${t(`done.${item.decided.decision}`)} · ${item.decided.author} · ${ago(new Date(item.decided.at))}`);
  return told.join(" · ");
}

// --- many at once

function cell(item) {
  const [first] = pictures(item);
  const button = el("button", { className: "cell", "aria-pressed": String(chosen.has(item.id)), title: item.reasons.map((reason) => translated(reason.sentence)).join("\n") },
    first ? el("img", { src: `/v1/images/${first}`, alt: "", loading: "lazy", decoding: "async" }) : null,
    el("span", { textContent: answerOf(item).slice(0, 120) || t("no_answer") }));
  button.dataset.id = item.id;
  cells.set(item.id, button);
  return button;
}

function grow() {
  if (view !== "grid") return;
  const from = grid.children.length;
  grid.append(...items.slice(from, from + PAGE).map(cell));
}

new IntersectionObserver(([edge]) => {
  if (!edge.isIntersecting || view !== "grid") return;
  if (grid.children.length < items.length) grow();
  else if (more && !fetching) fetching = fetchPage().then(grow).finally(() => (fetching = null));
}, { rootMargin: "1200px" }).observe(find("end"));

let last = null;
grid.addEventListener("click", (event) => {
  const button = event.target.closest(".cell");
  if (!button) return;
  const on = !chosen.has(button.dataset.id);
  let reached = [button];
  if (event.shiftKey && last !== null) {
    const all = [...grid.children];
    const [here, from] = [all.indexOf(button), all.indexOf(last)];
    if (from >= 0) reached = all.slice(Math.min(from, here), Math.max(from, here) + 1);
  }
  for (const each of reached) {
    on ? chosen.add(each.dataset.id) : chosen.delete(each.dataset.id);
    each.setAttribute("aria-pressed", String(on));
  }
  last = button;
});
grid.addEventListener("dblclick", (event) => {
  const button = event.target.closest(".cell");
  if (!button) return;
  at = items.findIndex((item) => item.id === button.dataset.id);
  view = "one";
  show();
});

// --- deciding

const newId = () => `fb_${Date.now().toString(16).padStart(12, "0")}${[...crypto.getRandomValues(new Uint8Array(8))].map((b) => b.toString(16).padStart(2, "0")).join("")}`;

function decide(decision, more = {}) {
  const wanted = view === "grid" ? [...chosen] : items.length ? [items[at].id] : [];
  if (!wanted.length) return view === "grid" ? tell(t("choose")) : undefined;
  put({ id: newId(), project, decision, items: wanted, ...more });
  const out = new Set(wanted);
  const taken = items.filter((item) => out.has(item.id));
  for (const item of taken) gone.set(item.id, item);
  for (const id of wanted) draft(id, null);
  items = items.filter((item) => !out.has(item.id));
  if (counts[state] !== undefined) counts[state] -= taken.length;
  if (counts.decided !== undefined) counts.decided += taken.length;
  editing = false;
  for (const id of wanted) {
    cells.get(id)?.remove();
    cells.delete(id);
  }
  chosen.clear();
  last = null;
  show();
  if (view === "one") one.focus({ preventScroll: true });
}

function fix(text) {
  if (text.trim()) decide("fix", { text });
}

function edit() {
  if (view !== "one" || !items.length || items[at].decided) return;
  editing = true;
  showOne();
}

function put(decision) {
  outbox = change("outbox", [], (all) => [...all, decision]);
  made = [...made, { id: decision.id, items: decision.items }].slice(-200);
  keep("made", made);
  send();
}

function undo() {
  const lately = made.pop();
  if (!lately) return tell(t("nothing_to_undo"));
  keep("made", made);
  const back = lately.items.map((id) => gone.get(id)).filter(Boolean); // none after a reload
  const waiting = outbox.find((decision) => decision.id === lately.id);
  if (waiting && waiting.id !== sending?.id) {
    outbox = change("outbox", [], without(waiting.id));
  } else takeBack(lately.id, !back.length);
  for (const item of back) gone.delete(item.id);
  if (!back.length) return waiting ? start() : undefined;
  items.splice(at, 0, ...back);
  if (counts[state] !== undefined) counts[state] += back.length;
  if (counts.decided !== undefined) counts.decided -= back.length;
  grid.replaceChildren();
  show();
}

function takeBack(id, again = true) {
  const decision = { id: newId(), project, decision: "undo", undoes: id };
  outbox = change("outbox", [], (all) => [...all, decision]);
  send().then(() => again && start());
}

let sending = null;
let pause = 1000;
async function send() {
  if (sending) return;
  while ((outbox = load("outbox", [])).length) {
    sending = outbox[0];
    told();
    let answer;
    try {
      answer = await fetch("/v1/queue/decisions", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(sending) });
    } catch {
      answer = null;
    }
    if (!answer || answer.status >= 500 || answer.status === 429) {
      sending = null;
      told();
      setTimeout(send, pause);
      pause = Math.min(pause * 2, 15000);
      return;
    }
    pause = 1000;
    if (answer.status === 401) { sending = null; return location.assign(`/sign-in?next=${encodeURIComponent(location.pathname + location.search)}`); }
    if (!answer.ok) {
      tell((await answer.json().catch(() => ({}))).error?.message ?? t("refused_by_service"), true);
      if (sending.text) draft(sending.items[0], sending.text);
    }
    outbox = change("outbox", [], without(sending.id));
  }
  sending = null;
  told();
}

function told() {
  find("outbox").textContent = outbox.length ? t("unsent", { n: outbox.length }) : made.length ? t("all_sent") : "";
}

// --- keys

function step(by) {
  if (!items.length) return;
  if (view === "grid") {
    const here = document.activeElement;
    const to = here.parentElement !== grid ? grid.firstElementChild : by > 0 ? here.nextElementSibling : here.previousElementSibling;
    return to?.focus();
  }
  editing = false;
  at = Math.min(Math.max(at + by, 0), items.length - 1);
  showOne();
  address();
}

const KEYS = {
  a: () => decide("accept"),
  e: edit,
  r: () => decide("reject"),
  u: undo,
  g: toggle,
  j: () => step(1), ArrowRight: () => step(1), n: () => step(1),
  k: () => step(-1), ArrowLeft: () => step(-1),
};

document.addEventListener("keydown", (event) => {
  if (event.isComposing || event.keyCode === 229) return; // the input method's own: Escape drops what it offers
  if (event.target.matches("textarea")) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); fix(event.target.value); }
    if (event.key === "Escape") { editing = false; event.target.blur(); one.focus(); }
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select") || document.querySelector("dialog[open]")) return;
  const work = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!work) return;
  event.preventDefault();
  work();
});

function toggle() {
  view = view === "grid" ? "one" : "grid";
  grid.replaceChildren();
  show();
}
toggleButton.addEventListener("click", toggle);
find("filters").addEventListener("change", (event) => { filter = event.target.value; start(); });
for (const link of stateLinks) {
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    state = link.dataset.goState;
    filter = "";
    start();
  });
}

// --- what people are asked: opposite answers, phrases that seem planted, and what somebody no longer wants

async function flags() {
  const section = find("flags");
  const asked = (await call("GET", `/v1/flags?project=${encodeURIComponent(project)}`).catch(() => ({ items: [] }))).items;
  section.hidden = !asked.length;
  section.querySelector(".stack").replaceChildren(...asked.map((flag) => {
    const answer = (text, value) => el("button", { className: "button", textContent: text, onclick: async () => {
      try {
        await call("POST", `/v1/flags/${flag.id}`, { project, keep: value });
        tell(t("flag.done"));
        flags();
      } catch (error) {
        tell(error.message, true);
      }
    } });
    return el("article", { className: "card stack" },
      el("h3", { textContent: t(`flag.${flag.kind}`) }),
      flag.question ? el("p", { className: "asked", textContent: flag.question }) : el("p", { textContent: flag.sentence }),
      flag.phrase ? el("p", {}, el("q", { textContent: flag.phrase })) : null,
      flag.kind === "change" ? el("p", { textContent: t("flag.outdated", { count: flag.outdated.length }) }) : null,
      ...flag.choices.map((choice, place) => el("div", { className: "choice" },
        el("p", {}, el("span", { className: "dim", textContent: `${choice.author}: ` }), choice.wants),
        flag.kind === "change" && place === 0 ? null : answer(t("flag.this"), choice.feedback))),
      el("div", { className: "buttons" }, answer(t("flag.all"), "all"), flag.kind === "change" ? null : answer(t("flag.none"), "none")));
  }));
}

document.body.addEventListener("desk:event", ({ detail }) => {
  if (detail.type === "events.lost" || (detail.type === "feedback.stored" && detail.kind !== "sample_reviewed")) flags();
});
start(new URLSearchParams(location.search).get("item"));
flags();
send();
told();
