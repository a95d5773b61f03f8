// The sidebar tab: connection, project, live version, what waits, capture, history.
import { call } from "./api.js";
import { button, el, keepEvents, outcome } from "./parts.js";
import { pickPanel } from "./pick.js";
import { reviewPanel } from "./review.js";
import { t } from "./words.js";

export let lastState = null;

export async function refreshState() {
  lastState = await call("state").catch(() => lastState);
  return lastState;
}

export function renderSidebar(root) {
  const head = el("div");
  const body = el("div", { className: "cl-panel cl-side", style: "padding:0" });
  const line = outcome();
  const recent = el("div", { className: "cl-panel cl-side", style: "padding:0" });
  root.replaceChildren(keepEvents(el("div", { className: "cl-panel cl-side cl-sidebar" }, head, body, line, recent)));

  const act = async (path, data) => {
    try {
      await call(path, data);
      line.say("");
    } catch (error) {
      line.say(error.message, true);
    }
    await draw();
  };

  function settings(state, projects) {
    const project = el("select", { onchange: () => act("settings", { project: project.value }) },
      ...[...new Set([state.project, ...projects])].map((name) => el("option", { value: name, textContent: name, selected: name === state.project })));
    const capture = el("input", { type: "checkbox", checked: state.capturing, onchange: () => act("settings", { capturing: capture.checked }) });
    const url = el("input", { value: state.url, spellcheck: false });
    const token = el("input", { type: "password", placeholder: state.has_token ? "••••••" : "", autocomplete: "off" });
    const excluded = el("input", { value: state.excluded.join(", "), spellcheck: false });
    const save = button("Save", () => act("settings", {
      url: url.value.trim(),
      ...(token.value ? { token: token.value } : {}),
      excluded: excluded.value.split(",").map((name) => name.trim()).filter(Boolean),
    }));
    return [
      el("label", {}, t("Project"), project),
      el("div", { className: "cl-card" },
        el("label", { className: "cl-capture", style: "display:flex;gap:6px;align-items:center" }, capture, el("b", { textContent: t("Capture edits") })),
        el("span", { className: "cl-hint", textContent: `${t(state.capturing ? "on: edits between runs are kept" : "off: nothing is captured by itself")}. ${t("Everything stays on this machine and your service.")}` })),
      el("details", {}, el("summary", { textContent: t("Service") }),
        el("label", {}, "URL", url), el("label", {}, t("Token"), token), el("label", {}, t("Excluded node classes"), excluded), save),
    ];
  }

  function numbers(state, project) {
    const rows = [];
    if (project) {
      const version = project.version;
      rows.push(el("div", {}, `${t("Live version")}: `, el("b", { className: "cl-live", textContent: project.live ? `${state.project}@${project.live}` : t("base model") })));
      if (version?.gate?.reasons?.length) rows.push(el("div", { className: "cl-hint", textContent: `${t("What changed")}: ${version.gate.reasons.join(" ")}` }));
      rows.push(el("div", {}, `${t("New feedback for the next run")}: ${project.new}${project.new === 1000 ? "+" : ""}`));
      rows.push(el("div", {}, `${t("Loop")}: ${project.loop.state}`));
      if (project.live) rows.push(button("Roll back", () => confirm(t("Go back to the version before?")) && act("rollback", {})));
    }
    rows.push(el("div", { className: "cl-waiting" }, `${t("Waiting to be delivered")}: ${state.waiting}`));
    if (state.refused) rows.push(el("div", { className: "cl-row cl-bad" }, `${t("Refused by the service")}: ${state.refused}`, button("Try again", () => act("retry", {}))));
    if (state.problem) rows.push(el("div", { className: "cl-bad", textContent: state.problem }));
    return el("div", { className: "cl-card" }, ...rows);
  }

  async function draw() {
    const state = await refreshState();
    if (!state || !root.isConnected) return;
    head.replaceChildren(el("span", { className: `cl-dot ${state.connected ? "on" : ""}` }), t(state.connected ? "Connected" : "Not connected"),
      el("div", { className: "cl-hint", textContent: state.connected ? state.url : state.why }));
    let project = null;
    try {
      project = await call("project");
    } catch (error) {
      if (state.connected) line.say(error.message, true);
    }
    body.replaceChildren(numbers(state, project), ...settings(state, project?.projects ?? []));
  }

  async function history() {
    const found = await call("recent").catch(() => ({ answers: [], grids: [] }));
    const answers = found.answers.map((generation) => {
      const panel = reviewPanel();
      panel.show({ text: generation.answer, original: generation.answer, generation: generation.id, project: generation.project,
        about: "answer", version: `${generation.project}@${generation.version || "base"}` });
      return el("div", { className: "cl-card" }, panel);
    });
    const grids = found.grids.map((grid) => {
      const panel = pickPanel();
      panel.show({ ...grid, pause: "" });
      return el("div", { className: "cl-card" }, panel);
    });
    recent.replaceChildren(el("h3", { textContent: t("Last answers") }), ...(answers.length ? answers : [t("Nothing yet.")]),
      el("h3", { textContent: t("Last images") }), ...(grids.length ? grids : [t("Nothing yet.")]));
  }

  draw();
  history();
  return { draw, history };
}
