// A version as a file for others: what would be in it, then the file itself.
import { call, tell } from "./desk.js";

const root = document.querySelector("[data-share]");
const said = JSON.parse(root.dataset.words);
const form = root.querySelector("form");
const list = root.querySelector("[data-files]");
const size = (bytes) => new Intl.NumberFormat(document.documentElement.lang, { style: "unit", unit: bytes < 1e6 ? "kilobyte" : "megabyte", maximumFractionDigits: 1 }).format(bytes < 1e6 ? bytes / 1e3 : bytes / 1e6);

const wanted = () => ({
  include: [...form.querySelectorAll("[name=include]:checked")].map((box) => box.value),
  licence: form.querySelector("[name=licence]").value.trim(),
});

async function look() {
  try {
    const { files } = await call("POST", root.dataset.share.replace("ACTION", "/contents"), wanted());
    list.replaceChildren(...Object.entries(files).map(([name, bytes]) => {
      const line = document.createElement("li");
      line.textContent = `${name} · ${size(bytes)}`;
      return line;
    }));
  } catch (error) {
    list.replaceChildren();
    tell(error.message, true);
  }
}

async function take(event) {
  event.preventDefault();
  const button = form.querySelector("button");
  button.disabled = true;
  try {
    const answer = await fetch(root.dataset.share.replace("ACTION", ""), { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(wanted()) });
    if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error?.message ?? said.failed);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await answer.blob());
    link.download = root.dataset.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    tell(said.done);
  } catch (error) {
    tell(error instanceof TypeError ? said.failed : error.message, true);
  } finally {
    button.disabled = false;
  }
}

form.addEventListener("submit", take);
form.addEventListener("change", (event) => event.target.matches("[name=include]") && look());
root.addEventListener("toggle", () => root.open && !list.children.length && look());
