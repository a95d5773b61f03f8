// The sidebar tab: connection, project, live version, next run, capture, settings, history.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { call } from "./api.js";
import { flagCards } from "./flags.js";
import { piecesPart, refusedPart, versionsPart } from "./learnt.js";
import { button, el, keepEvents, keyed, outcome } from "./parts.js";
import { pickPanel } from "./pick.js";
import { reviewPanel } from "./review.js";
import { suggestCard } from "./suggest.js";
import { t } from "./words.js";

// Asked under the page's own name: a pause waits as long as some page is there that shows it.
export async function refreshState() {
  const page = api.clientId ?? api.initialClientId ?? "";
  const state = await call(`state?page=${encodeURIComponent(page)}`).catch(() => null);
  if (state) {
    for (const tab of document.querySelectorAll('.comfyloop-tab-button, button[aria-label="ComfyLoop"]')) {
      tab.toggleAttribute("data-cl-capturing", state.capturing); // the tab's own badge would not follow changes
    }
  }
  return state;
}

const card = (...parts) => el("div", { className: "cl-card" }, ...parts);
const hint = (text) => el("div", { className: "cl-hint", textContent: text });
const name = (project, number) => (number ? `${project}@${number}` : t("base model"));

export function renderSidebar(root) {
  const line = outcome();
  const act = async (path, data) => {
    try {
      await call(path, data);
      line.say("");
    } catch (error) {
      line.say(error.message, true);
    }
    await draw();
  };

  const dot = el("span", { className: "cl-dot" });
  const connection = el("span");
  const why = hint("");
  const launch = launchCard(act);
  const problem = el("div", { className: "cl-bad" });
  const pauses = el("div", { className: "cl-stack" });
  const projects = el("select", { onchange: () => act("settings", { project: projects.value }), "aria-label": t("Project") });
  const version = card();
  const next = card();
  const flags = flagCards();
  const capture = captureCard(act);
  const service = serviceCard(act);
  const versions = versionsPart(act);
  const pieces = piecesPart(act);
  const refused = refusedPart(act);
  const answers = el("div", { className: "cl-stack" });
  const grids = el("div", { className: "cl-stack" });
  root.replaceChildren(keepEvents(el("div", { className: "cl-sidebar" },
    el("div", { className: "cl-head" }, el("b", { textContent: "ComfyLoop" }), el("span", {}, dot, connection)),
    why, launch.box, problem, line, pauses, el("label", {}, t("Project"), projects), version, next, refused.box, versions.box, pieces.box, flags.box, suggestCard(), capture.box,
    service.box,
    el("h3", { textContent: t("Last answers") }), answers, el("h3", { textContent: t("Last images") }), grids)));

  let starting = 0;
  async function draw() {
    const state = await refreshState();
    if (!state || !root.isConnected) return;
    dot.classList.toggle("on", state.connected);
    connection.textContent = t(state.connected ? "Connected" : "Not connected");
    why.textContent = state.connected ? "" : state.why;
    launch.show(state);
    clearTimeout(starting);
    if (state.service.running && !state.connected) starting = setTimeout(draw, 1000);
    problem.textContent = state.problem;
    keyed(pauses, state.pauses.map((pause) => [pause.pause, pause]), (pause) => {
      const panel = pause.event === "comfyloop.pick" ? pickPanel() : reviewPanel();
      panel.show(pause);
      return card(panel);
    });
    let project = null;
    try {
      if (state.connected) project = await call("project");
    } catch (error) {
      line.say(error.message, true);
    }
    const names = [...new Set([state.project, ...(project?.projects ?? [])])];
    projects.replaceChildren(...names.map((value) => el("option", { value, textContent: value, selected: value === state.project })));
    version.replaceChildren(...versionRows(state, project, act));
    next.replaceChildren(...nextRows(state, project, act));
    if (project) flags.refresh(`${state.project} ${project.loop.state} ${project.loop.updated_at}`);
    capture.show(state);
    service.show(state);
    refused.refresh(state.refused);
    versions.refresh();
    pieces.refresh();
  }

  async function history() {
    const found = await call("recent").catch(() => null);
    if (!found || !root.isConnected) return;
    keyed(answers, found.answers.map((answer) => [`${answer.generation} ${answer.note}`, answer]), (answer) => {
      const panel = reviewPanel({ compact: true });
      panel.show(answer);
      return card(hint(answer.question), panel);
    });
    keyed(grids, found.grids.map((grid) => [`${grid.prompt_id} ${grid.shown} ${grid.note}`, grid]), (grid) => {
      const panel = pickPanel();
      panel.show({ ...grid, pause: "" });
      return card(panel);
    });
    for (const box of [answers, grids]) if (!box.children.length) box.replaceChildren(hint(t("Nothing yet.")));
  }

  function progress(event) {
    const bar = next.querySelector("progress") ?? next.appendChild(el("progress"));
    bar.max = event.total_steps || 1;
    bar.value = event.step;
    const words = next.querySelector(".cl-progress") ?? next.appendChild(el("div", { className: "cl-hint cl-progress" }));
    const loss = event.loss === null || event.loss === undefined ? "" : `, ${t("loss")} ${event.loss.toFixed(3)}`;
    words.textContent = `${t("step")} ${event.step} ${t("of")} ${event.total_steps}${loss}`;
  }

  draw();
  history();
  return { draw, history, progress };
}

function versionRows(state, project, act) {
  const rows = [el("div", {}, `${t("Live version")}: `, el("b", { className: "cl-live", textContent: name(state.project, project?.live ?? state.live) }))];
  const version = project?.version;
  if (!version) return rows;
  const sides = [version.text && t("text"), version.image && t("image")].filter(Boolean).join(" + ");
  rows.push(hint([sides, `${version.samples} ${t("samples")}`, `${t("trained from")} ${name(state.project, version.parent)}`].join(" · ")));
  for (const m of version.measures) {
    const better = (m.candidate - m.live) * (m.higher_is_better ? 1 : -1) >= 0;
    rows.push(el("div", { className: `cl-hint ${better ? "cl-better" : "cl-worse"}`, title: `${m.low.toFixed(3)} … ${m.high.toFixed(3)}`,
      textContent: `${t(m.metric)}, ${t(m.slice)}: ${m.live.toFixed(2)} → ${m.candidate.toFixed(2)} (${m.items} ${t("items")})` }));
  }
  if (version.reasons.length) {
    rows.push(el("details", {}, el("summary", { textContent: t("What the gate said") }), ...version.reasons.map(hint)));
  }
  const back = () => confirm(t("Go back to the version before?")) && act("rollback", {});
  rows.push(el("div", { className: "cl-row" }, button("Roll back", back, "cl-rollback")));
  return rows;
}

function nextRows(state, project, act) {
  const rows = [];
  if (project) {
    const { waiting, trigger, state: at, error, reason } = project.loop;
    if (at === "idle") {
      rows.push(el("div", {}, `${t("Next run")}: `, el("b", { className: "cl-next", textContent: `${waiting} ${t("of")} ${trigger}` }), ` ${t("pieces of feedback")}`));
      rows.push(el("progress", { max: trigger, value: Math.min(waiting, trigger) }));
    } else rows.push(el("b", { textContent: t(at) }));
    if (error) rows.push(el("div", { className: "cl-bad", textContent: error }));
    if (reason) rows.push(el("div", { className: "cl-hint cl-verdict", textContent: reason }));
    if (project.loop.canary) rows.push(canaryRow(project.loop.canary));
  }
  rows.push(el("div", { className: "cl-hint cl-waiting", textContent: `${t("Waiting to be delivered")}: ${state.waiting}` }));
  return rows;
}

// A version that answers a share of the conversations beside the live one: how it does, or did, and why.
function canaryRow(canary) {
  const kind = { worse: "cl-worse", no_worse: "cl-better" }[canary.verdict] ?? "";
  const said = `${canary.canary_outcomes} ${t("of")} ${canary.canary_outcomes + canary.live_outcomes} ${t("judged answers")}`;
  return el("div", { className: "cl-canary" },
    el("div", {}, `${t("Canary")}: `, el("b", { textContent: name(canary.project, canary.version) }), ` ${Math.round(canary.share * 100)}% · `,
      el("span", { className: kind, textContent: t(canary.verdict) })),
    hint([said, canary.reason].filter(Boolean).join(" · ")));
}

// The service on this machine: started from here, its log, and ended when told.
function launchCard(act) {
  const say = el("div");
  const reason = hint("");
  const log = el("pre", { className: "cl-read cl-log" });
  const told = el("details", {}, el("summary", { textContent: t("Log") }), log);
  const read = async () => {
    log.textContent = (await call("service/log").catch((error) => ({ text: error.message }))).text;
    log.scrollTop = log.scrollHeight;
  };
  told.addEventListener("toggle", () => told.open && read());
  const start = button("Start", () => act("service/start", {}), "primary cl-start");
  const stop = button("Stop", () => confirm(t("Stop ComfyLoop? A training run goes on.")) && act("service/stop", {}), "cl-stop");
  const box = card(say, reason, el("div", { className: "cl-row" }, start, stop), told);
  box.classList.add("cl-launch");
  const show = ({ connected, service: { running, ended, why_not } }) => {
    box.hidden = connected && !running;
    const away = ended === null ? t("ComfyLoop is not running.") : `${t("ComfyLoop was started and has ended.")} (${ended})`;
    say.textContent = connected ? t("Started from here; it goes on without ComfyUI.") : running ? t("ComfyLoop is starting…") : away;
    reason.textContent = running ? "" : why_not;
    start.hidden = running || Boolean(why_not);
    stop.hidden = !running;
    told.hidden = !running && ended === null;
    if (!told.hidden && !connected) told.open = true; // what it says while it starts, or why it did not
    if (told.open) read();
  };
  return { box, show };
}

function captureCard(act) {
  const capture = el("input", { type: "checkbox", onchange: () => act("settings", { capturing: capture.checked }) });
  const words = hint("");
  const box = card(el("label", { className: "cl-capture" }, capture, el("b", { textContent: t("Capture edits") })), words);
  const show = (state) => {
    capture.checked = state.capturing;
    const on = state.problem ? "Capture is paused." : "on: edits between runs are kept.";
    words.textContent = `${t(state.capturing ? on : "off: nothing is captured by itself.")} ${t("Everything stays on this machine and your service.")}`;
  };
  return { box, show };
}

// Its fields are written into only when nobody types in them.
function serviceCard(act) {
  const url = el("input", { spellcheck: false });
  const token = el("input", { type: "password", autocomplete: "off" });
  const author = el("input", { spellcheck: false });
  const excluded = el("textarea", { className: "cl-excluded", spellcheck: false, rows: 2 });
  const free = el("input", { type: "checkbox" });
  const classes = () => excluded.value.split(",").map((word) => word.trim()).filter(Boolean);
  const add = button("Add the selected nodes", () => {
    const selected = Object.values(app.canvas?.selected_nodes ?? {}).map((node) => node.comfyClass ?? node.type);
    excluded.value = [...new Set([...classes(), ...selected])].join(", ");
  });
  const save = button("Save", async () => {
    await act("settings", { url: url.value.trim(), ...(token.value ? { token: token.value } : {}), author: author.value.trim(), excluded: classes(), free_before_runs: free.checked });
    token.value = "";
  }, "primary");
  const box = el("details", { className: "cl-service" }, el("summary", { textContent: t("Service") }), el("div", { className: "cl-card" },
    el("label", {}, "URL", url), el("label", {}, t("Token"), token), el("label", {}, t("Your name, beside what you send"), author),
    el("label", {}, t("Node classes of which nothing is captured"), excluded),
    el("label", { className: "cl-capture" }, free, t("Before training, unload ComfyUI's models when the queue is empty")),
    el("div", { className: "cl-row" }, add, save)));
  const show = (state) => {
    if (box.contains(document.activeElement)) return;
    url.value = state.url;
    author.value = state.author;
    token.placeholder = state.has_token ? "••••••" : "";
    excluded.value = state.excluded.join(", ");
    free.checked = state.free_before_runs;
    if (!state.connected && !box.dataset.opened) box.open = box.dataset.opened = true;
  };
  return { box, show };
}
