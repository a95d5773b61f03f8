// The Review node: a text to edit, accept, reject or rate. The same panel serves the sidebar's history.
import { call } from "./api.js";
import { draftOf, dropDraft, keepDraft } from "./drafts.js";
import { button, el, hintLine, iconButton, keepEvents, outcome, stars } from "./parts.js";
import { t } from "./words.js";

const NOTES = {
  timeout: "Time is over: it went on unchanged.",
  gone: "Not answered, as no page was open: it went on unchanged.",
  rejected: "Rejected: what follows was not run.",
  done: "Done",
};

// `compact`: thumbs instead of words, as the sidebar has little room.
export function reviewPanel({ compact = false } = {}) {
  const text = el("textarea", { className: "cl-text", placeholder: t("Run the workflow to see something here."), spellcheck: false });
  const hint = hintLine();
  const line = outcome();
  const accept = compact ? iconButton("pi-thumbs-up", "Good", () => send("accept")) : button("Accept", () => send("accept"), "primary");
  const reject = compact ? iconButton("pi-thumbs-down", "Bad", () => send("reject")) : button("Reject", () => send("reject"));
  const starRow = el("span");
  const panel = keepEvents(el("div", { className: "cl-panel cl-review" }, hint, text,
    el("div", { className: "cl-row" }, accept, reject, starRow, line)));
  let shown = null;
  let rating = 0;

  const draft = () => `review ${shown.generation} ${shown.original}`;
  const touched = () => {
    keepDraft(draft(), { text: text.value, rating });
    line.say(t("Not kept yet"));
    label();
  };

  const enable = (on) => [text, accept, reject].forEach((part) => (part.disabled = !on));
  const label = () => {
    const edited = Boolean(shown) && text.value.trim() !== shown.original.trim();
    if (compact) accept.replaceChildren(el("i", { className: `pi ${edited ? "pi-check" : "pi-thumbs-up"}` }));
    else accept.textContent = t(edited ? "Use my text" : "Accept");
    accept.title = t(edited ? "Use my text" : compact ? "Good" : "Accept");
  };
  text.addEventListener("input", touched);

  async function send(action) {
    enable(false);
    try {
      const answer = await call("review", { ...shown, action, text: text.value, rating });
      dropDraft(draft());
      panel.resume(shown.pause);
      line.kept(answer.kept);
    } catch (error) {
      line.say(error.message, true);
      enable(true);
    }
  }

  panel.show = (data) => {
    shown = data;
    if (data.note === "done" || data.note === "rejected") dropDraft(draft());
    const kept = draftOf(draft());
    rating = kept?.rating ?? data.rating ?? 0;
    starRow.replaceChildren(stars((value) => {
      rating = value;
      touched();
    }, rating));
    text.value = kept?.text ?? data.text;
    enable(true);
    hint.show(data, data.version);
    line.say([data.note && t(NOTES[data.note]), kept !== null && t("Not kept yet")].filter(Boolean).join(" "));
    label();
  };
  panel.resume = (pause) => {
    if (!shown || shown.pause !== pause) return;
    shown = { ...shown, pause: "" };
    hint.show(shown, shown.version);
  };
  enable(false);
  return panel;
}
