// The sidebar's "Suggest the next edit": the model proposes, the person applies, and can take it back.
import { call } from "./api.js";
import { applyEdit, currentWorkflow, inWords, selectedIds, undo } from "./edit.js";
import { button, el, outcome } from "./parts.js";
import { t } from "./words.js";

// The workflow as a text, less what ComfyUI rolls by itself after a run.
const CHANCE = new Set(["seed", "noise_seed"]);
const look = (workflow) => JSON.stringify(workflow, (name, value) => (CHANCE.has(name) ? 0 : value));

export function suggestCard() {
  const aim = el("input", { className: "cl-text cl-aim", placeholder: t("What you are after (empty: the prompt)"), spellcheck: false });
  const ask = button("Suggest the next edit", suggest, "primary");
  const list = el("ul", { className: "cl-steps" });
  const said = el("div", { className: "cl-hint cl-said" });
  const choices = el("div", { className: "cl-row" });
  const line = outcome();
  const box = el("div", { className: "cl-card cl-suggest" }, el("b", { textContent: t("Next edit") }),
    el("div", { className: "cl-row" }, aim, ask), list, said, choices, line);
  let asked = "";

  const clear = () => [list, said, choices].forEach((part) => part.replaceChildren());

  async function suggest() {
    ask.disabled = true;
    clear();
    line.say(t("Asking…"));
    try {
      const workflow = await currentWorkflow();
      asked = look(workflow);
      const answer = await call("suggest", { workflow, near: selectedIds(), aim: aim.value });
      line.say("");
      show(answer);
    } catch (error) {
      line.say(error.message, true);
    } finally {
      ask.disabled = false;
    }
  }

  function show(answer) {
    said.textContent = answer.version + (answer.learned ? "" : ` · ${t("This service does not learn from edits of workflows: learn_graph_edits is off.")}`);
    if (!answer.steps) {
      line.say(answer.problem, true);
      if (answer.text.trim()) said.textContent += ` · ${t("It said:")} ${answer.text.trim().slice(0, 300)}`;
      return;
    }
    list.replaceChildren(...inWords(answer.steps).map((words) => el("li", { textContent: words })));
    choices.replaceChildren(
      button("Apply", () => apply(answer.steps), "primary"),
      button("Not this", () => {
        clear();
        line.say("");
      }),
    );
  }

  // The steps are of the workflow as it was asked about: another one, or one that was changed since, is left alone.
  async function apply(steps) {
    try {
      if (look(await currentWorkflow()) !== asked) throw new Error(t("The workflow was changed since: ask again."));
      await applyEdit(steps);
      choices.replaceChildren(button("Undo", async () => {
        await undo();
        clear();
        line.say(t("Taken back"));
      }));
      line.say(t("Applied. Ctrl+Z takes it back as well."));
    } catch (error) {
      choices.replaceChildren();
      line.say(error.message, true);
    }
  }

  return box;
}
