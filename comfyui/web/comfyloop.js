// The extension: widgets in our nodes, events from the server, the sidebar tab. Start reading here.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { call } from "./api.js";
import { el, keepEvents } from "./parts.js";
import { pickPanel } from "./pick.js";
import { reviewPanel } from "./review.js";
import { refreshState, renderSidebar } from "./sidebar.js";
import { addPicker } from "./versions.js";
import { t } from "./words.js";

function textPanel() {
  const text = el("div", { className: "cl-text cl-read cl-empty", textContent: t("Run the workflow to see something here.") });
  const hint = el("div", { className: "cl-hint" });
  const panel = keepEvents(el("div", { className: "cl-panel" }, text, hint));
  panel.write = (words) => {
    text.classList.remove("cl-empty");
    text.textContent = words;
    text.scrollTop = text.scrollHeight;
  };
  panel.version = (name) => (hint.textContent = name);
  return panel;
}

function notePanel() {
  const panel = el("div", { className: "cl-panel cl-hint cl-note" });
  panel.note = (text) => {
    panel.textContent = text;
    panel.title = text;
  };
  return panel;
}

const PANELS = {
  ComfyLoopAsk: [textPanel, 110, 320],
  ComfyLoopWritePrompt: [textPanel, 90, 320],
  ComfyLoopReview: [reviewPanel, 150, 360],
  ComfyLoopPickImages: [pickPanel, 230, 400],
};
const PANEL = [notePanel, 24, 320]; // of every other node of ours: it shows what the node notes (`comfyloop_note`)

// The panel of the node that an execution id means; ids inside subgraphs are paths like "12:3".
function panelOf(id) {
  let graph = app.rootGraph ?? app.graph;
  let node = null;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById?.(Number(part)) ?? null;
    graph = node?.subgraph;
  }
  return node?.comfyloopPanel;
}

// A pause of another workflow than the one that is open, or of none (a script's), is shown in the sidebar alone.
function showPause(pause) {
  const open = (app.rootGraph ?? app.graph)?.id;
  if (pause.workflow && pause.workflow === open) panelOf(pause.node)?.show?.(pause);
}

function onOutput(panel, output) {
  if (output?.comfyloop_text) panel.write(output.comfyloop_text[0]);
  if (output?.comfyloop_version) panel.version(output.comfyloop_version[0]);
  if (output?.comfyloop_review) panel.show(output.comfyloop_review[0]);
  if (output?.comfyloop_pick) panel.show(output.comfyloop_pick[0]);
  if (output?.comfyloop_note) panel.note(output.comfyloop_note[0]);
}

async function showPauses() {
  const state = await refreshState();
  for (const pause of state?.pauses ?? []) showPause(pause);
}

function toast(severity, detail) {
  app.extensionManager.toast?.add({ severity, summary: "ComfyLoop", detail, life: severity === "warn" ? 15_000 : 6_000 });
}

// Templates share ids, and a tab takes over the name of one that was closed: each workflow that is open has a name of
// its own here. The pack is told which one is queued; before it is, so that it knows then.
const names = new WeakMap();
function nameOf(workflow) {
  if (!workflow) return "";
  if (!names.has(workflow)) names.set(workflow, `${Date.now()} ${Math.random()}`);
  return names.get(workflow);
}

let told = "";
function tellWhatIsOpen() {
  const queuePrompt = api.queuePrompt;
  api.queuePrompt = async function (...request) {
    const workflow = nameOf(app.extensionManager?.workflow?.activeWorkflow);
    const client = api.clientId ?? "";
    if (`${client} ${workflow}` !== told) {
      await call("opened", { client, workflow }).then(() => (told = `${client} ${workflow}`), () => {});
    }
    return queuePrompt.apply(this, request);
  };
}

let sidebar = null;
let pending = null;
function redraw() {
  clearTimeout(pending);
  pending = setTimeout(() => {
    sidebar?.history();
    sidebar ? sidebar.draw() : refreshState();
  }, 300);
}

let lastProblem = "";
function onKept({ problem }) {
  if (problem && problem !== lastProblem) toast("warn", problem);
  lastProblem = problem;
  redraw();
}

app.registerExtension({
  name: "comfyloop",

  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("ComfyLoop")) return;
    addPicker(node);
    const [make, height, width] = PANELS[node.comfyClass] ?? PANEL;
    const panel = make();
    node.comfyloopPanel = panel;
    const widget = node.addDOMWidget("comfyloop", "comfyloop", panel, {
      serialize: false,
      getValue: () => "",
      setValue: () => {},
      getMinHeight: () => height,
      hideOnZoom: false,
    });
    widget.serialize = false; // the option above keeps it out of the prompt, this out of the saved workflow
    const executed = node.onExecuted;
    node.onExecuted = function (output) {
      executed?.call(this, output);
      onOutput(panel, output);
    };
    const size = node.computeSize();
    node.setSize([Math.max(size[0], width), size[1]]);
  },

  async setup() {
    document.head.append(el("link", { rel: "stylesheet", href: new URL("./style.css", import.meta.url).href }));
    const on = (event, work) => api.addEventListener(`comfyloop.${event}`, ({ detail }) => work(detail));
    on("text", ({ node, text }) => panelOf(node)?.write?.(text));
    for (const event of ["review", "pick"]) {
      on(event, (pause) => {
        showPause(pause);
        redraw();
      });
    }
    on("resumed", ({ node, pause }) => {
      panelOf(node)?.resume?.(pause);
      redraw();
    });
    on("live", () => {
      app.refreshComboInNodes?.();
      redraw();
    });
    on("event", (event) => {
      if (event.type === "version.promoted") toast("success", `${event.project}@${event.version || "base"} ${t("is live now")}`);
      if (event.type === "gate.verdict" && event.verdict !== "promote") {
        toast("warn", `${event.project}@${event.version} ${t("did not go live:")} ${event.reasons?.[0] ?? ""}`);
      }
      event.type === "run.progress" ? sidebar?.progress(event) : redraw();
    });
    on("waiting", onKept);
    on("connected", redraw);
    api.addEventListener("execution_success", () => sidebar?.history());
    app.extensionManager.registerSidebarTab({
      id: "comfyloop",
      icon: "pi pi-sync",
      title: "ComfyLoop",
      tooltip: "ComfyLoop",
      type: "custom",
      render: (root) => (sidebar = renderSidebar(root)),
      destroy: () => (sidebar = null),
    });
    tellWhatIsOpen();
    await showPauses();
  },

  afterConfigureGraph: showPauses,
});
