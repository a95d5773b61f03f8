// A list of versions beside the field in which a node is told which one to ask.
import { call } from "./api.js";
import { t } from "./words.js";

const FIELDS = { ComfyLoopAsk: "model", ComfyLoopWritePrompt: "model", ComfyLoopLiveLora: "project" };
let names = [];
let asked = 0;

async function look() {
  if (Date.now() - asked < 5000) return;
  asked = Date.now();
  const told = await call("versions").catch(() => null);
  if (told) names = [told.project, ...told.versions.filter(({ state }) => state !== "withdrawn").map(({ number }) => `${told.project}@${number}`)];
}

// What is chosen is written into the field, which is what the workflow keeps; the list itself is kept nowhere.
export function addPicker(node) {
  const field = node.widgets?.find((widget) => widget.name === FIELDS[node.comfyClass]);
  if (!field) return;
  look();
  const live = () => t("live version of the sidebar's project");
  const values = () => {
    look();
    const base = node.comfyClass === "ComfyLoopLiveLora" || !names.length ? [] : [`${names[0]}@base`];
    return [live(), ...names, ...base];
  };
  const choose = (value) => {
    field.value = value === live() ? "" : value;
    field.callback?.(field.value);
    node.setDirtyCanvas?.(true, true);
  };
  const list = node.addWidget("combo", "comfyloop_version", field.value || live(), choose, { values, serialize: false });
  list.label = t("version");
  list.serialize = false;
}
