// What was learnt, and how it is taken back: versions with what changed, pieces of feedback, what the service refused.
import { call } from "./api.js";
import { button, el } from "./parts.js";
import { locale, t } from "./words.js";

const hint = (text) => el("div", { className: "cl-hint", textContent: text });
const when = (at) => new Date(at).toLocaleString(locale(), { dateStyle: "medium", timeStyle: "short" });
const named = (number) => (number ? `v${number}` : t("base model"));

// Drawn anew only when what it tells has changed: what a person has opened stays open.
function part(title, kind, load, draw) {
  const inside = el("div", { className: "cl-stack" });
  const box = el("details", { className: `cl-learnt ${kind}` }, el("summary", { textContent: t(title) }), inside);
  let shown = "";
  const refresh = async () => {
    if (!box.open) return;
    try {
      const told = await load();
      const now = JSON.stringify(told);
      if (now !== shown) inside.replaceChildren(...draw(told));
      shown = now;
    } catch (error) {
      shown = "";
      inside.replaceChildren(el("div", { className: "cl-bad", textContent: error.message }));
    }
  };
  box.addEventListener("toggle", refresh);
  return { box, refresh };
}

// Every word that changed between two texts, as marks.
function apart(before, after) {
  const old = new Map();
  for (const word of before.match(WORDS) ?? []) old.set(word, (old.get(word) ?? 0) + 1);
  return (after.match(WORDS) ?? []).map((word) => {
    const left = old.get(word) ?? 0;
    if (left) old.set(word, left - 1);
    return left || !word.trim() ? document.createTextNode(word) : el("ins", { textContent: word });
  });
}
const WORDS = /[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+|\s+/g;

function changed(examples) {
  return examples.map((one) => el("div", { className: "cl-example" },
    el("b", { textContent: one.question }),
    el("div", { className: "cl-was" }, `${t("before")}: `, one.before || t("(nothing)")),
    el("div", {}, `${t("now")}: `, ...apart(one.before, one.after)),
    hint(`${t("you wanted")}: ${one.wanted}`)));
}

function versionLine(version, told, act) {
  const { number, state } = version;
  const forward = state === "retired" && number > told.live;
  const refused = state === "rejected";
  const question = refused ? "The gate found it worse. Make it live all the same?" : "Make this version live? You can go back.";
  const live = state === "live" || state === "withdrawn" ? null
    : button(forward ? "Go forward to it" : refused ? "Make live all the same" : "Make live",
      () => confirm(t(question)) && act("promote", { version: number, force: refused }), "cl-promote");
  const sentence = [version.reason, state === "live" ? "" : version.next_step].filter(Boolean).join(" ");
  return el("div", { className: "cl-version" },
    el("div", { className: "cl-row" }, el("b", { textContent: named(number) }), el("span", { className: `cl-tag ${state}`, textContent: t(state) }), hint(when(version.at)), live),
    sentence ? hint(sentence) : null);
}

function drawVersions(told, act) {
  const page = el("a", { href: `${told.url}/versions?project=${encodeURIComponent(told.project)}`, target: "_blank", rel: "noopener", textContent: t("Open in the dashboard") });
  if (!told.versions.length) return [hint(t("No version yet: the first comes of the first run."))];
  const [newest] = told.versions;
  const parts = [];
  if (newest.number > told.live && newest.verdict && newest.verdict !== "promote") {
    parts.push(el("div", { className: "cl-stayed" }, el("b", { textContent: `${named(newest.number)}: ${t("why it did not go live")}` }), el("div", { textContent: newest.reason }), newest.next_step ? el("div", { textContent: newest.next_step }) : null));
  }
  if (told.changed.length) parts.push(el("h4", { textContent: `${t("What changed with")} ${named(told.live)}` }), ...changed(told.changed));
  return [...parts, el("h4", { textContent: t("All versions") }), ...told.versions.map((version) => versionLine(version, told, act)), page];
}

export function versionsPart(act) {
  return part("Versions, and what changed", "cl-versions", () => call(`versions?language=${encodeURIComponent(locale())}`), (told) => drawVersions(told, act));
}

export function piecesPart(act) {
  const line = (piece) => el("div", { className: "cl-piece" },
    el("div", { className: "cl-row" }, el("span", { className: "cl-tag", textContent: t(piece.kind) }), hint([when(piece.at), piece.author, "★".repeat(piece.rating)].filter(Boolean).join(" · ")),
      button("Take back", () => confirm(t("Take this back? Versions that learnt from it are withdrawn.")) && act("forget", { feedback: piece.id }), "cl-forget")),
    piece.question ? el("b", { textContent: piece.question }) : null,
    piece.after ? el("div", {}, ...apart(piece.before, piece.after)) : piece.before ? hint(piece.before) : null);
  return part("What you did", "cl-pieces", () => call("pieces"), ({ items }) => (items.length ? items.map(line) : [hint(t("Nothing yet."))]));
}

// Why the service refused something, with what can be done about it.
export function refusedPart(act) {
  const draw = ({ items }) => [
    ...[...new Set(items)].map((why) => el("div", { className: "cl-bad", textContent: `${why}${items.filter((one) => one === why).length > 1 ? ` (×${items.filter((one) => one === why).length})` : ""}` })),
    el("div", { className: "cl-row" }, button("Try again", () => act("retry", {})),
      button("Discard", () => confirm(t("Throw these away? They are not learnt from.")) && act("discard", {}), "cl-discard")),
  ];
  const made = part("Refused by the service", "cl-refused", () => call("refused"), draw);
  const title = made.box.querySelector("summary");
  return {
    box: made.box,
    refresh: (refused) => {
      made.box.hidden = !refused;
      title.textContent = `${t("Refused by the service")}: ${refused}`;
      made.refresh();
    },
  };
}
