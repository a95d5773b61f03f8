// What people are asked about feedback before it is learned: opposite answers, and phrases that seem planted.
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

function flagCard(flag, answer) {
  const opposed = flag.kind === "disagreement";
  const card = el("div", { className: "cl-card cl-flag", title: flag.sentence },
    el("b", { textContent: t(opposed ? "People want opposite answers" : "This phrase seems planted") }),
    el("div", { className: "cl-hint", textContent: opposed ? flag.question : flag.phrase }));
  for (const choice of flag.choices) {
    const claim = el("div", { textContent: `${choice.author} ${inWords(choice.wants)}` });
    const holds = opposed ? button("This one holds", () => answer(flag, choice.feedback, card), "primary") : null;
    card.append(el("div", { className: "cl-row cl-choice" }, claim, holds ?? ""));
  }
  card.append(el("div", { className: "cl-row" },
    button(opposed ? "All of them hold" : "It is meant so", () => answer(flag, "all", card)),
    button(opposed ? "None of them" : "Leave it out", () => answer(flag, "none", card))));
  return card;
}
