// Drop files or a folder: they are sent in pieces, checked by their hash, and looked at on the data set's own page.
import { call, tell } from "./desk.js";
import { Sha256 } from "./sha256.js";

const PIECE = 8 * 2 ** 20;

async function hashOf(file) {
  const hash = new Sha256();
  for (let at = 0; at < file.size; at += PIECE) hash.add(new Uint8Array(await file.slice(at, at + PIECE).arrayBuffer()));
  return hash.hex();
}

// What was dropped, folders opened: pairs of path and file.
async function filesIn(entry, folder = "") {
  if (entry.isFile) return [[folder + entry.name, await new Promise((good, bad) => entry.file(good, bad))]];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((good, bad) => reader.readEntries(good, bad));
    if (!some.length) return found;
    for (const inner of some) found.push(...(await filesIn(inner, `${folder}${entry.name}/`)));
  }
}

async function sendFile(id, project, path, file, sent) {
  const sha256 = await hashOf(file);
  const address = `/v1/datasets/${id}/files/${path.split("/").map(encodeURIComponent).join("/")}`;
  let offset = 0;
  do {
    const piece = file.slice(offset, offset + PIECE);
    const query = new URLSearchParams({ project, size: file.size, sha256, offset });
    const answer = await fetch(`${address}?${query}`, { method: "PUT", body: piece, headers: { "Content-Type": "application/octet-stream" } });
    if (!answer.ok) throw new Error((await answer.json()).error?.message ?? answer.statusText);
    offset += piece.size;
    sent(piece.size);
  } while (offset < file.size);
}

document.addEventListener("alpine:init", () => {
  window.Alpine.data("upload", () => ({
    state: "",
    doing: "",
    done: 0,
    get idle() { return this.doing === ""; },
    over() { this.state = "over"; },
    away() { this.state = ""; },
    async dropped(event) {
      this.state = "";
      const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
      const found = [];
      for (const entry of entries) found.push(...(await filesIn(entry)));
      await this.send(found);
    },
    async chosen(event) {
      await this.send([...event.target.files].map((file) => [file.webkitRelativePath || file.name, file]));
      event.target.value = "";
    },
    async send(files) {
      const { project, next, words } = this.$root.dataset;
      const said = JSON.parse(words);
      if (!files.length) return tell(said.nothing, true);
      const total = files.reduce((sum, [, file]) => sum + file.size, 0) || 1;
      const name = files[0][0].includes("/") ? files[0][0].split("/")[0] : files.length === 1 ? files[0][0] : `${files[0][0]} +${files.length - 1}`;
      const key = files.map(([path, file]) => `${path} ${file.size} ${file.lastModified}`).join("\n");
      let came = 0;
      try {
        this.doing = said.reading;
        const short = new Sha256().add(new TextEncoder().encode(key)).hex();
        const made = await call("POST", "/v1/datasets", { project, name: name.slice(0, 300), key: short });
        for (const [path, file] of files) {
          this.doing = `${said.sending} ${path}`;
          await sendFile(made.id, project, path, file, (bytes) => { came += bytes; this.done = came / total; });
        }
        const address = new URL(next, location.href);
        address.pathname += made.id;
        location.assign(address);
      } catch (error) {
        tell(error.message, true);
        this.doing = "";
        this.done = 0;
      }
    },
  }));
});
