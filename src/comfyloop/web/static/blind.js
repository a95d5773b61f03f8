// Which of two answers is better, without knowing whose they are: which one stands left is drawn anew each time.
import { call, moved, tell } from "./desk.js";

const root = document.querySelector("[data-blind]");
const { versions, names, models, sides } = JSON.parse(root.dataset.blind);
const said = JSON.parse(root.dataset.words);
const project = document.body.dataset.project;
const t = (key, values = {}) => (said[key] ?? key).replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
const one = root.querySelector("[data-one]");
const done = root.querySelector("[data-done]");
const cards = [...one.querySelectorAll("[data-side]")];

let waiting = shuffled(sides);
let total = waiting.length;
let swapped = false;
let sending = false;
const given = []; // the votes of this page: { id, side, chosen }

function chance(n) {
  return crypto.getRandomValues(new Uint32Array(1))[0] % n;
}

function shuffled(list) {
  const all = [...list];
  for (let i = all.length - 1; i > 0; i--) {
    const j = chance(i + 1);
    [all[i], all[j]] = [all[j], all[i]];
  }
  return all;
}

function show() {
  const [now] = waiting;
  one.hidden = !now;
  root.querySelector("[data-none]").hidden = Boolean(now) || total > 0;
  done.hidden = Boolean(now) || !total;
  one.querySelector("[data-undo]").hidden = !given.length;
  done.querySelector("[data-undo-last]").hidden = !given.length;
  if (!now) return total ? conclude() : undefined;
  swapped = chance(2) === 1;
  one.querySelector(".place").textContent = t("place", { at: total - waiting.length + 1, total });
  const asked = document.createElement("p");
  asked.className = "asked";
  asked.textContent = now.question;
  one.querySelector(".asked-about").replaceChildren(asked, ...now.images.map((sha) => {
    const image = document.createElement("img");
    image.className = "thumb";
    image.src = `/v1/images/${sha}`;
    image.alt = t("picture");
    return image;
  }));
  for (const [place, card] of cards.entries()) card.querySelector(".answer").textContent = now.answers[side(place)] || t("nothing");
}

const side = (place) => (swapped ? 1 - place : place);

function conclude() {
  const won = [0, 1].map((which) => given.filter((vote) => vote.chosen === versions[which]).length);
  done.querySelector(".said").textContent = t("done", { first: names[0], second: names[1], won: won[0], lost: won[1], equal: given.length - won[0] - won[1] });
}

async function vote(place) {
  if (!waiting.length || sending) return;
  sending = true;
  const chosen = place === null ? null : versions[side(place)];
  const id = `vote_${[...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
  try {
    await call("POST", "/v1/votes", { id, project, versions, chosen });
    given.push({ id, side: waiting.shift(), chosen });
    show();
    one.focus({ preventScroll: true });
    moved();
  } catch (error) {
    tell(error.message, true); // the question stays
  } finally {
    sending = false;
  }
}

async function undo() {
  const last = given.at(-1);
  if (!last || sending) return;
  sending = true;
  try {
    await call("DELETE", `/v1/votes/${last.id}?project=${encodeURIComponent(project)}`);
    given.pop();
    waiting.unshift(last.side);
    show();
    moved();
  } catch (error) {
    tell(error.message, true);
  } finally {
    sending = false;
  }
}

function skip() {
  if (!waiting.length) return;
  waiting.shift();
  total -= 1;
  show();
}

async function ask(event) {
  event.preventDefault();
  const field = event.target.querySelector("textarea");
  const button = event.target.querySelector("button");
  const question = field.value.trim();
  button.disabled = true;
  try {
    const answers = await Promise.all(models.map(async (model) => {
      const messages = [{ role: "user", content: question }];
      const answer = await call("POST", "/v1/chat/completions", { model, messages, temperature: 0, seed: 1, max_tokens: 256 });
      return answer.choices[0].message.content;
    }));
    if (answers[0].trim() === answers[1].trim()) return tell(t("same"));
    waiting.unshift({ question, images: [], wanted: "", answers });
    total += 1;
    field.value = "";
    show();
    one.focus();
  } catch (error) {
    tell(error.message, true);
  } finally {
    button.disabled = false;
  }
}

for (const [place, card] of cards.entries()) card.addEventListener("click", () => vote(place));
one.querySelector("[data-equal]").addEventListener("click", () => vote(null));
one.querySelector("[data-skip]").addEventListener("click", skip);
for (const button of [one.querySelector("[data-undo]"), done.querySelector("[data-undo-last]")]) button.addEventListener("click", undo);
done.querySelector("[data-again]").addEventListener("click", () => location.reload());
root.querySelector("[data-own]").addEventListener("submit", ask);

const KEYS = { 1: () => vote(0), ArrowLeft: () => vote(0), 2: () => vote(1), ArrowRight: () => vote(1), 0: () => vote(null), n: skip, u: undo };
document.addEventListener("keydown", (event) => {
  if (event.isComposing || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.target.matches("textarea, input, select") || document.querySelector("dialog[open]")) return;
  const work = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!work) return;
  event.preventDefault();
  work();
});
show();
