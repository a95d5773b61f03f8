// The extension: widgets in our nodes, events from the server, the sidebar tab. Start reading here.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { el, keepEvents } from "./parts.js";
import { pickPanel } from "./pick.js";
import { reviewPanel } from "./review.js";
import { lastState, refreshState, renderSidebar } from "./sidebar.js";
import { t } from "./words.js";


function textPanel() {
  const text = el("div", { className: "cl-text cl-read", textContent: t("Run the workflow to see something here.") });
  const hint = el("div", { className: "cl-hint" });
  const panel = keepEvents(el("div", { className: "cl-panel" }, text, hint));
  panel.write = (words) => {
    text.textContent = words;
    text.scrollTop = text.scrollHeight;
  };
  panel.version = (name) => (hint.textContent = name);
  return panel;
}

function notePanel() {
  const panel = el("div", { className: "cl-panel cl-hint" });
  panel.note = (text) => (panel.textContent = text);
  return panel;
}

const PANELS = {
  ComfyLoopAsk: [textPanel, 110],
  ComfyLoopWritePrompt: [textPanel, 90],
  ComfyLoopReview: [reviewPanel, 150],
  ComfyLoopPickImages: [pickPanel, 230],
  ComfyLoopLiveLora: [notePanel, 24],
  ComfyLoopSaveSample: [notePanel, 24],
};

// The node that an execution id means; ids inside subgraphs are paths.
function nodeOf(id) {
  let graph = app.rootGraph ?? app.graph;
  let node = null;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById?.(Number(part)) ?? null;
    graph = node?.subgraph;
  }
  return node;
}

function panelOf(id) {
  return nodeOf(id)?.comfyloopPanel;
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
  for (const pause of state?.pauses ?? []) panelOf(pause.node)?.show(pause);
}

let sidebar = null;
let pending = null;
const later = (work) => {
  clearTimeout(pending);
  pending = setTimeout(work, 300);
};

app.registerExtension({
  name: "comfyloop",

  nodeCreated(node) {
    const known = PANELS[node.comfyClass];
    if (!known) return;
    const [make, height] = known;
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
    const width = node.comfyClass === "ComfyLoopPickImages" ? 400 : 320;
    const size = node.computeSize();
    node.setSize([Math.max(size[0], width), size[1]]);
  },

  async setup() {
    document.head.append(el("link", { rel: "stylesheet", href: new URL("./style.css", import.meta.url).href }));
    api.addEventListener("comfyloop.text", ({ detail }) => panelOf(detail.node)?.write?.(detail.text));
    api.addEventListener("comfyloop.review", ({ detail }) => panelOf(detail.node)?.show?.(detail));
    api.addEventListener("comfyloop.pick", ({ detail }) => panelOf(detail.node)?.show?.(detail));
    api.addEventListener("comfyloop.resumed", ({ detail }) => panelOf(detail.node)?.resume?.(detail.pause));
    api.addEventListener("comfyloop.live", () => {
      app.refreshComboInNodes?.();
      later(() => sidebar?.draw());
    });
    api.addEventListener("comfyloop.waiting", () => later(() => sidebar?.draw()));
    api.addEventListener("execution_success", () => later(() => sidebar?.history()));
    app.extensionManager.registerSidebarTab({
      id: "comfyloop",
      icon: "pi pi-sync",
      title: "ComfyLoop",
      tooltip: "ComfyLoop",
      type: "custom",
      iconBadge: () => (lastState?.capturing ? "●" : null),
      render: (root) => (sidebar = renderSidebar(root)),
      destroy: () => (sidebar = null),
    });
    await showPauses();
  },

  afterConfigureGraph: showPauses,
});

