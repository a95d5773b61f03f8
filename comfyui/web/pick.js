// The Pick Images node: click to pick, stars to rate. The same panel serves the sidebar's history.
import { call, imageUrl } from "./api.js";
import { button, el, keepEvents, outcome, stars } from "./parts.js";
import { until } from "./review.js";
import { t } from "./words.js";

export function pickPanel() {
  const grid = el("div", { className: "cl-grid" });
  const hint = el("div", { className: "cl-hint", textContent: t("Run the workflow to see something here.") });
  const reason = el("input", { className: "cl-text", placeholder: t("Reason (optional)"), style: "flex:1;min-height:0" });
  const line = outcome();
  const go = button("Use these", send, "primary");
  const panel = keepEvents(el("div", { className: "cl-panel cl-pick" }, hint, grid, el("div", { className: "cl-row" }, reason, go), line));
  let shown = null;
  let picked = new Set();
  let ratings = {};

  const label = () => (go.textContent = picked.size || !shown?.pause ? `${t("Use these")} (${picked.size})` : t("All go on"));

  async function send() {
    go.disabled = true;
    try {
      const { images, ...rest } = shown;
      const answer = await call("pick", { ...rest, picked: [...picked], ratings, reason: reason.value });
      shown = { ...shown, pause: "" };
      hint.classList.remove("cl-wait");
      hint.textContent = "";
      line.say(`${t("Kept")}: ${answer.kept}`);
    } catch (error) {
      line.say(error.message, true);
      go.disabled = false;
    }
  }

  function cell(image, isPicked) {
    const picture = el("img", { className: "cl-image", src: imageUrl(image), draggable: false, tabIndex: 0, alt: "" });
    picture.setAttribute("role", "button");
    const paint = () => picture.setAttribute("aria-pressed", String(picked.has(image.sha256)));
    const toggle = () => {
      picked.has(image.sha256) ? picked.delete(image.sha256) : picked.add(image.sha256);
      paint();
      label();
    };
    if (isPicked) picked.add(image.sha256);
    picture.addEventListener("click", toggle);
    picture.addEventListener("keydown", (event) => (event.key === "Enter" || event.key === " ") && toggle());
    paint();
    return el("div", { className: "cl-cell" }, picture, stars((value) => (ratings[image.sha256] = value)));
  }

  panel.show = (data) => {
    shown = data;
    picked = new Set();
    ratings = {};
    grid.replaceChildren(...data.images.map((image) => cell(image, data.picked?.includes(image.sha256))));
    go.disabled = data.note === "done";
    hint.classList.toggle("cl-wait", Boolean(data.pause));
    hint.textContent = data.pause ? `${t("Waiting for you: the whole queue waits.")} ${until(data.seconds)}` : data.prompt ?? "";
    line.say(data.note === "timeout" ? t("Time is over: it went on unchanged.") : data.note === "done" ? t("Done") : "");
    label();
  };
  panel.resume = (pause) => {
    if (shown?.pause === pause) shown = { ...shown, pause: "" };
    hint.classList.remove("cl-wait");
    label();
  };
  go.disabled = true;
  return panel;
}
