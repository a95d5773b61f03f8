// The Review node: a text to edit, accept, reject or rate. The same panel serves the sidebar's history.
import { call } from "./api.js";
import { button, el, keepEvents, outcome, stars } from "./parts.js";
import { t } from "./words.js";

const NOTES = {
  timeout: "Time is over: it went on unchanged.",
  rejected: "Rejected: what follows was not run.",
  done: "Done",
};

export function reviewPanel() {
  const text = el("textarea", { className: "cl-text", placeholder: t("Run the workflow to see something here."), spellcheck: false });
  const hint = el("div", { className: "cl-hint" });
  const line = outcome();
  let shown = null;
  let rating = 0;
  const starRow = el("span");
  const accept = button("Accept", () => send("accept"), "primary");
  const reject = button("Reject", () => send("reject"));
  const panel = keepEvents(el("div", { className: "cl-panel cl-review" }, hint, text,
    el("div", { className: "cl-row" }, accept, reject, starRow), line));

  const enable = (on) => [text, accept, reject].forEach((part) => (part.disabled = !on));

  async function send(action) {
    enable(false);
    try {
      const answer = await call("review", { ...shown, action, text: text.value, rating });
      const was = shown;
      shown = { ...shown, pause: "" };
      hint.textContent = was.version ?? "";
      hint.classList.remove("cl-wait");
      line.say(`${t("Kept")}: ${answer.kept}`);
    } catch (error) {
      line.say(error.message, true);
      enable(true);
    }
  }

  panel.show = (data) => {
    shown = data;
    rating = 0;
    starRow.replaceChildren(stars((value) => (rating = value)));
    text.value = data.text;
    enable(true);
    hint.classList.toggle("cl-wait", Boolean(data.pause));
    hint.textContent = data.pause ? `${t("Waiting for you: the whole queue waits.")} ${until(data.seconds)}` : data.version ?? "";
    line.say(data.note ? t(NOTES[data.note]) : "");
  };
  panel.resume = (pause) => {
    if (shown?.pause === pause) shown = { ...shown, pause: "" };
    hint.classList.remove("cl-wait");
    hint.textContent = shown?.version ?? "";
  };
  enable(false);
  return panel;
}

export function until(seconds) {
  return `${t("Goes on by itself at")} ${new Date(Date.now() + seconds * 1000).toLocaleTimeString()}`;
}
