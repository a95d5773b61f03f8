// What changed between two texts, word by word (of Chinese and Japanese by characters), as web/diff.py says it.
const TOKENS = /[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[\p{L}\p{N}_]+(?:['’][\p{L}\p{N}_]+)*|\s+|[^\s\p{L}\p{N}_]/gu;
const MOST = 2000;

// Pieces [kind, text], of kinds "same", "out" and "in".
export function wordsApart(before, after) {
  const a = before.match(TOKENS) ?? [];
  const b = after.match(TOKENS) ?? [];
  if (a.length + b.length > MOST) return before === after ? [["same", before]] : [["out", before], ["in", after]];
  const longest = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      longest[i][j] = a[i] === b[j] ? longest[i + 1][j + 1] + 1 : Math.max(longest[i + 1][j], longest[i][j + 1]);
    }
  }
  const pieces = [];
  const put = (kind, text) => (pieces.at(-1)?.[0] === kind ? (pieces.at(-1)[1] += text) : pieces.push([kind, text]));
  let i = 0;
  let j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) put("same", a[i++]), j++;
    else if (j >= b.length || (i < a.length && longest[i + 1][j] >= longest[i][j + 1])) put("out", a[i++]);
    else put("in", b[j++]);
  }
  return pieces;
}

export function showApart(place, before, after) {
  place.replaceChildren(...wordsApart(before, after).map(([kind, text]) => {
    if (kind === "same") return document.createTextNode(text);
    const piece = document.createElement(kind === "out" ? "del" : "ins");
    piece.textContent = text;
    return piece;
  }));
}
