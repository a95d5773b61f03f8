// Parses every script of the pages, and links the modules: what one imports of another must be there.
//
//     node --experimental-vm-modules tools/check_js.mjs [FOLDER ...]
//
// Nothing is run. What comes from outside (ComfyUI's own scripts) is taken to have what is asked of it.
import { readFileSync, readdirSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import vm from "node:vm";

const folders = process.argv.length > 2 ? process.argv.slice(2) : ["comfyui", "src"];
const scripts = folders.flatMap((folder) =>
  readdirSync(folder, { recursive: true, encoding: "utf-8" })
    .filter((name) => name.endsWith(".js") && !name.endsWith(".min.js") && !name.includes("node_modules"))
    .map((name) => resolve(folder, name)),
);
const modules = new Map();
const faults = [];

const tell = (path, error) => {
  const line = /:(\d+)\n/.exec(error.stack ?? "")?.[1];
  faults.push(`${relative(".", path)}${line ? `:${line}` : ""}: ${error.message}`);
};

// The names that a module asks of another one.
const asked = (source, specifier) => {
  const found = new Set();
  const quoted = specifier.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  for (const [, names] of source.matchAll(new RegExp(`import\\s+([^;"']*?)\\s*from\\s*["']${quoted}["']`, "g"))) {
    const [, braced] = /\{([^}]*)\}/.exec(names) ?? [];
    for (const name of (braced ?? "").split(",")) if (name.trim()) found.add(name.trim().split(/\s+as\s+/)[0]);
    if (/^[\w$]/.test(names)) found.add("default");
  }
  return [...found];
};

for (const path of scripts) {
  const source = readFileSync(path, "utf-8");
  try {
    if (/^\s*(import|export)\b/m.test(source)) modules.set(path, new vm.SourceTextModule(source, { identifier: path }));
    else new vm.Script(source, { filename: path });
  } catch (error) {
    tell(path, error);
  }
}
for (const [path, module] of modules) {
  if (module.status !== "unlinked") continue;
  try {
    await module.link((specifier, from) => {
      const place = resolve(dirname(from.identifier), specifier);
      if (modules.has(place)) return modules.get(place);
      if (specifier.startsWith("./")) throw new Error(`there is no ${join(dirname(relative(".", from.identifier)), specifier)}`);
      return new vm.SyntheticModule(asked(readFileSync(from.identifier, "utf-8"), specifier), () => {});
    });
  } catch (error) {
    tell(path, error);
  }
}
for (const fault of faults) console.error(fault);
console.log(`${scripts.length} scripts, ${faults.length} faults`);
process.exit(faults.length ? 1 : 0);
