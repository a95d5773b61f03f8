// Edits of the open workflow in steps: what they are in words, and doing them as one change that can be undone.
import { app } from "../../scripts/app.js";
import { t } from "./words.js";

// Execution id -> node, subgraphs included: ids in these are paths like "12:3".
function nodesById() {
  const found = new Map();
  const walk = (graph, prefix) => {
    for (const node of graph.nodes ?? graph._nodes) {
      found.set(`${prefix}${node.id}`, node);
      if (node.subgraph) walk(node.subgraph, `${prefix}${node.id}:`);
    }
  };
  walk(app.rootGraph ?? app.graph, "");
  return found;
}

export function selectedIds() {
  const selected = new Set(Object.values(app.canvas?.selected_nodes ?? {}));
  return [...nodesById()].filter(([, node]) => selected.has(node)).map(([id]) => id);
}

export async function currentWorkflow() {
  return (await app.graphToPrompt()).output;
}

const shown = (value) => {
  const text = typeof value === "string" ? `“${value}”` : JSON.stringify(value);
  return text.length > 90 ? `${text.slice(0, 90)}…` : text;
};

// The steps as a person reads them, with the titles of the nodes.
export function inWords(steps) {
  const nodes = nodesById();
  const added = new Map(steps.filter((step) => step.do === "add").map((step) => [step.node, step.class_type]));
  const classOf = (id) => nodes.get(id)?.type ?? added.get(id);
  const title = (id) => {
    const name = nodes.get(id)?.title ?? window.LiteGraph.registered_node_types?.[added.get(id)]?.title ?? added.get(id);
    return added.has(id) ? `${name} (${t("new")})` : `${name} #${id}`;
  };
  const output = (id, slot) => {
    const names = nodes.get(id)?.outputs ?? window.LiteGraph.registered_node_types?.[classOf(id)]?.nodeData?.outputs ?? [];
    return names[slot]?.label ?? names[slot]?.name ?? slot;
  };
  const values = (all) => Object.entries(all ?? {}).map(([name, value]) => `${name} = ${shown(value)}`).join(", ");
  return steps.filter((step) => step.do !== "unset").map((step) => {
    if (step.do === "remove") return `${t("Remove")} ${title(step.node)}`;
    if (step.do === "add") return [`${t("Add")} ${title(step.node)}`, values(step.values)].filter(Boolean).join(": ");
    if (step.do === "disconnect") return `${t("Disconnect")} ${title(step.node)}.${step.input}`;
    if (step.do === "connect") return `${title(step.source)}.${output(step.source, step.slot)} → ${title(step.node)}.${step.input}`;
    const was = "was" in step ? `${shown(step.was)} → ` : "= ";
    return `${title(step.node)}.${step.input}: ${was}${shown(step.value)}`;
  });
}

// A place for a new node: below what it is linked with, left of what it goes to or right of what it comes from.
function placeFor(id, steps, nodes) {
  const links = steps.filter((step) => step.do === "connect");
  const targets = links.filter((step) => step.source === id).map((step) => nodes.get(step.node)).filter(Boolean);
  const sources = links.filter((step) => step.node === id).map((step) => nodes.get(step.source)).filter(Boolean);
  const near = [...targets, ...sources];
  if (!near.length) return { graph: app.canvas.graph, at: [80 - app.canvas.ds.offset[0], 160 - app.canvas.ds.offset[1]] };
  const below = Math.max(...near.map((node) => node.pos[1] + node.size[1])) + 60;
  const x = targets.length ? targets[0].pos[0] - 240 : sources[0].pos[0] + sources[0].size[0] + 40;
  return { graph: near[0].graph, at: [x, below] };
}

function inputSlot(node, name) {
  const slot = node.findInputSlot(name);
  if (slot < 0) throw new Error(`${node.title}: ${t("there is no input")} ${name}`);
  return slot;
}

// A value that a primitive holds for a node is set there.
function setValue(node, name, value) {
  const slot = node.inputs?.findIndex((input) => input.name === name) ?? -1;
  const link = slot < 0 ? null : node.inputs[slot].link;
  const origin = link === null || link === undefined ? null : node.getInputNode(slot);
  const holder = origin?.type === "PrimitiveNode" ? origin.widgets?.[0] : null;
  if (link !== null && link !== undefined && !holder) node.disconnectInput(slot);
  const widget = holder ?? node.widgets?.find((one) => one.name === name);
  if (!widget) throw new Error(`${node.title}: ${t("there is no value")} ${name}`);
  widget.value = value;
  widget.callback?.(value, app.canvas, holder ? origin : node);
}

function doStep(step, nodes, steps) {
  if (step.do === "add") {
    const node = window.LiteGraph.createNode(step.class_type);
    if (!node) throw new Error(`${t("There is no node")} ${step.class_type}`);
    const { graph, at } = placeFor(step.node, steps, nodes);
    node.pos = at;
    graph.add(node);
    nodes.set(step.node, node);
    for (const [name, value] of Object.entries(step.values ?? {})) setValue(node, name, value);
    return;
  }
  const node = nodes.get(step.node);
  if (!node) throw new Error(`${t("There is no node")} ${step.node}`);
  if (step.do === "remove") node.graph.remove(node);
  if (step.do === "disconnect") node.disconnectInput(inputSlot(node, step.input));
  if (step.do === "set") setValue(node, step.input, step.value);
  if (step.do === "connect") {
    const source = nodes.get(step.source);
    if (source?.graph !== node.graph) throw new Error(t("It links nodes of different subgraphs: do that by hand."));
    source.connect(step.slot, node, inputSlot(node, step.input));
  }
}

const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

// What the page would queue now, against what the steps say: ids of new nodes are known only here.
function undone(steps, nodes, output) {
  const ids = new Map([...nodesById()].map(([id, node]) => [node, id]));
  const id = (key) => ids.get(nodes.get(key));
  return steps.find((step) => {
    const inputs = output[id(step.node)]?.inputs;
    if (step.do === "remove") return inputs;
    if (step.do === "add") return !inputs;
    if (step.do === "set") return !same(inputs?.[step.input], step.value);
    if (step.do === "connect") return !same(inputs?.[step.input], [id(step.source), step.slot]);
    return false;
  });
}

// Does the steps as one change of the open workflow. What cannot be done whole is taken back, and an Error says why.
export async function applyEdit(steps) {
  const nodes = nodesById();
  const look = () => JSON.stringify((app.rootGraph ?? app.graph).serialize());
  const before = look();
  let problem = null;
  app.canvas.emitBeforeChange();
  try {
    for (const step of steps) doStep(step, nodes, steps);
    for (const graph of new Set([...nodes.values()].map((node) => node.graph))) graph?.updateExecutionOrder?.(); // else a later change
    const left = undone(steps, nodes, await currentWorkflow());
    if (left) throw new Error(`${t("This could not be done here:")} ${inWords([left])[0] ?? ""}`);
  } catch (error) {
    problem = error;
  }
  app.canvas.emitAfterChange();
  app.canvas.setDirty(true, true);
  if (problem) {
    if (look() !== before) await undo(); // else it would take back what the person did last
    throw problem;
  }
}

export const undo = () => app.extensionManager.command.execute("Comfy.Undo");
