// What people are asked about feedback: opposite answers, phrases that seem planted, and what somebody no longer wants.
import { call } from "./api.js";
import { button, el, outcome } from "./parts.js";
import { t } from "./words.js";

// The service words a claim in English: `wants "..."`, `does not want "..."`.
const inWords = (wants) => {
  const [claim, quoted] = wants.split(/ (?=")/, 2);
  return quoted ? `${t(claim)} ${wants.slice(claim.length + 1)}` : wants;
};

export function flagCards() {
  const line = outcome();
  const cards = el("div", { className: "cl-stack" });
  const box = el("div", { className: "cl-stack cl-flags" }, cards, line);
  let shown = "";

  function show(items) {
    cards.replaceChildren(...items.map((flag) => flagCard(flag, answer)));
  }

  async function answer(flag, keep, card) {
    for (const choice of card.querySelectorAll("button")) choice.disabled = true;
    try {
      show((await call("flags", { id: flag.id, keep })).items);
      line.say(t("The next run goes by it."));
    } catch (error) {
      for (const choice of card.querySelectorAll("button")) choice.disabled = false;
      line.say(error.message, true);
    }
  }

  // The service looks through all feedback for it: it is asked when something may have changed, which `key` tells.
  async function refresh(key) {
    if (key === shown) return;
    shown = key;
    const found = await call("flags").catch(() => null);
    if (found && shown === key) show(found.items);
  }

  return { box, refresh };
}

const TITLES = {
  disagreement: "People want opposite answers",
  trigger: "This phrase seems planted",
  change: "Somebody wants other answers than before",
};

function flagCard(flag, answer) {
  const planted = flag.kind === "trigger", changed = flag.kind === "change";
  const card = el("div", { className: "cl-card cl-flag", title: flag.sentence },
    el("b", { textContent: t(TITLES[flag.kind]) }),
    el("div", { className: "cl-hint", textContent: planted ? flag.phrase : flag.question }));
  flag.choices.forEach((choice, place) => {
    const claim = el("div", { textContent: `${choice.author} ${inWords(choice.wants)}` });
    const choosable = !planted && !(changed && place === 0);
    const holds = choosable ? button("This one holds", () => answer(flag, choice.feedback, card), "primary") : "";
    card.append(el("div", { className: "cl-row cl-choice" }, claim, holds));
  });
  card.append(el("div", { className: "cl-row" },
    button(planted ? "It is meant so" : "All of them hold", () => answer(flag, "all", card)),
    changed ? "" : button(planted ? "Leave it out" : "None of them", () => answer(flag, "none", card))));
  return card;
}
