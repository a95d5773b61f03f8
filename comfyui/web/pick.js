// The Pick Images node: click to pick, stars to rate. The same panel serves the sidebar's history.
import { call, imageUrl } from "./api.js";
import { draftOf, dropDraft, keepDraft } from "./drafts.js";
import { button, el, hintLine, keepEvents, outcome, stars } from "./parts.js";
import { view } from "./viewer.js";
import { t } from "./words.js";

const NOTES = {
  timeout: "Time is over: it went on unchanged.",
  gone: "Not answered, as no page was open: it went on unchanged.",
  done: "Done",
};

// What the pictures were made from; where that is not known it is said, and nothing is learned as their prompt.
const told = (data) =>
  [data.prompt || (data.why ? `${t("The prompt of these images is not known:")} ${data.why}` : ""), data.taste].filter(Boolean).join(" · ");

export function pickPanel() {
  const grid = el("div", { className: "cl-grid" });
  const hint = hintLine();
  const reason = el("input", { className: "cl-text cl-reason", placeholder: t("Reason (optional)") });
  reason.addEventListener("input", () => shown && touched());
  const line = outcome();
  const go = button("Use these", send, "primary");
  const panel = keepEvents(el("div", { className: "cl-panel cl-pick" }, hint, grid, el("div", { className: "cl-row" }, reason, go), line));
  let shown = null;
  let picked = new Set();
  let ratings = {};

  const draft = () => `pick ${shown.prompt_id} ${shown.shown[0]}`;
  // What the person changes now is said anew, also where it was said before.
  const touched = () => {
    keepDraft(draft(), { picked: [...picked], ratings, reason: reason.value });
    if (shown?.note) shown = { ...shown, note: "" };
    line.say(t("Not kept yet"));
    label();
  };
  const label = () => {
    go.textContent = picked.size || !shown?.pause ? `${t("Use these")} (${picked.size})` : t("All go on");
    go.disabled = !shown || shown.note === "done" || !(shown.pause || picked.size || Object.values(ratings).some(Boolean));
  };

  async function send() {
    go.disabled = true;
    try {
      const { images, ...rest } = shown;
      const answer = await call("pick", { ...rest, picked: [...picked], ratings, reason: reason.value });
      dropDraft(draft());
      shown = { ...shown, note: "done" };
      panel.resume(shown.pause);
      line.kept(answer.kept);
    } catch (error) {
      line.say(error.message, true);
      go.disabled = false;
    }
  }

  function cell(image) {
    const picture = el("img", { className: "cl-image", src: imageUrl(image), draggable: false, tabIndex: 0, alt: "", role: "button" });
    const paint = () => picture.setAttribute("aria-pressed", String(picked.has(image.sha256)));
    const toggle = () => {
      picked.has(image.sha256) ? picked.delete(image.sha256) : picked.add(image.sha256);
      paint();
      touched();
    };
    picture.addEventListener("click", toggle);
    picture.addEventListener("keydown", (event) => (event.key === "Enter" || event.key === " ") && toggle());
    paint();
    const rate = (value) => {
      ratings[image.sha256] = value;
      touched();
    };
    const enlarge = el("button", { type: "button", className: "cl-large", title: t("Full screen"), "aria-label": t("Full screen"), onclick: () => large(image) }, el("i", { className: "pi pi-window-maximize" }));
    return el("div", { className: "cl-cell" }, picture, stars(rate, ratings[image.sha256]), enlarge);
  }

  // What is done there is drawn here, too.
  function large(image) {
    const changed = () => {
      grid.replaceChildren(...shown.images.map(cell));
      touched();
    };
    view(shown.images, shown.images.indexOf(image), {
      isPicked: ({ sha256 }) => picked.has(sha256),
      toggle: ({ sha256 }) => {
        picked.has(sha256) ? picked.delete(sha256) : picked.add(sha256);
        changed();
      },
      rating: ({ sha256 }) => ratings[sha256] ?? 0,
      rate: ({ sha256 }, value) => {
        ratings[sha256] = value;
        changed();
      },
      send: () => go.disabled || send(),
    });
  }

  panel.show = (data) => {
    shown = data;
    if (data.note === "done") dropDraft(draft());
    const kept = draftOf(draft());
    const said = kept ?? data;
    picked = new Set(said.picked ?? []);
    ratings = { ...said.ratings };
    reason.value = said.reason ?? "";
    grid.replaceChildren(...data.images.map(cell));
    hint.show(data, told(data));
    line.say([data.note && t(NOTES[data.note]), kept && t("Not kept yet")].filter(Boolean).join(" "));
    label();
  };
  panel.resume = (pause) => {
    if (!shown || shown.pause !== pause) return;
    shown = { ...shown, pause: "" };
    hint.show(shown, told(shown));
    label();
  };
  hint.show(null, t("Run the workflow to see something here."));
  label();
  return panel;
}
