// Ask two versions the same question at the same time.
import { call, tell } from "./desk.js";
import { showApart } from "./diff.js";

const form = document.querySelector("[data-ask]");
const place = document.querySelector(".answered");

async function ask(model, question) {
  const messages = [{ role: "user", content: question }];
  const answer = await call("POST", "/v1/chat/completions", { model, messages, temperature: 0, seed: 1, max_tokens: 256 });
  return answer.choices[0].message.content;
}

function side(name, text) {
  const box = document.createElement("div");
  box.className = "side";
  const title = document.createElement("span");
  title.className = "side-name shown";
  title.textContent = name;
  const words = document.createElement("p");
  words.textContent = text;
  box.append(title, words);
  return box;
}

form?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector("button");
  const question = form.querySelector("textarea").value.trim();
  button.disabled = true;
  try {
    const [first, second] = await Promise.all(JSON.parse(form.dataset.ask).map((model) => ask(model, question)));
    const [one, other] = JSON.parse(form.dataset.names);
    const changed = side(other, second);
    showApart(changed.querySelector("p"), first, second);
    place.replaceChildren(side(one, first), changed);
  } catch (error) {
    tell(error.message, true);
  } finally {
    button.disabled = false;
  }
});
