// What a person began and did not send: it outlasts a time-out, a reload and a closed browser.
const PREFIX = "comfyloop.draft ";
const MOST = 100;

const keys = () => Object.keys(localStorage).filter((key) => key.startsWith(PREFIX));
const read = (key) => {
  try {
    return JSON.parse(localStorage.getItem(key));
  } catch {
    return null;
  }
};

export const draftOf = (key) => read(PREFIX + key)?.value ?? null;

export function keepDraft(key, value) {
  const old = keys().sort((one, other) => (read(one)?.at ?? 0) - (read(other)?.at ?? 0));
  for (const one of old.slice(0, Math.max(0, old.length - MOST + 1))) localStorage.removeItem(one);
  try {
    localStorage.setItem(PREFIX + key, JSON.stringify({ at: Date.now(), value }));
  } catch {
    // the browser's store is full or switched off: what is shown stays until the page is left
  }
}

export const dropDraft = (key) => localStorage.removeItem(PREFIX + key);
