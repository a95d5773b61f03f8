// SHA-256 of a file piece by piece: the browser's own takes only what fits into memory, and only on secure pages.
const K = new Uint32Array(64);
const FIRST = new Uint32Array(8);
{
  const isPrime = (n) => { for (let d = 2; d * d <= n; d++) if (n % d === 0) return false; return true; };
  const bits = (x) => Math.floor((x - Math.floor(x)) * 2 ** 32);
  for (let n = 2, found = 0; found < 64; n++) {
    if (!isPrime(n)) continue;
    if (found < 8) FIRST[found] = bits(Math.sqrt(n));
    K[found++] = bits(Math.cbrt(n));
  }
}

export class Sha256 {
  state = FIRST.slice();
  block = new Uint8Array(64);
  held = 0;
  length = 0;
  words = new Uint32Array(64);

  add(bytes) {
    this.length += bytes.length;
    for (let at = 0; at < bytes.length; ) {
      const part = bytes.subarray(at, at + 64 - this.held);
      this.block.set(part, this.held);
      this.held += part.length;
      at += part.length;
      if (this.held === 64) this.#mix();
    }
    return this;
  }

  hex() {
    const bits = BigInt(this.length) * 8n;
    const padding = new Uint8Array((this.length % 64 < 56 ? 56 : 120) - (this.length % 64) + 8);
    padding[0] = 0x80;
    new DataView(padding.buffer).setBigUint64(padding.length - 8, bits);
    this.add(padding);
    return [...this.state].map((word) => word.toString(16).padStart(8, "0")).join("");
  }

  #mix() {
    const { words, state } = this;
    const view = new DataView(this.block.buffer);
    for (let i = 0; i < 16; i++) words[i] = view.getUint32(i * 4);
    for (let i = 16; i < 64; i++) {
      const a = words[i - 15], b = words[i - 2];
      const s0 = ((a >>> 7) | (a << 25)) ^ ((a >>> 18) | (a << 14)) ^ (a >>> 3);
      const s1 = ((b >>> 17) | (b << 15)) ^ ((b >>> 19) | (b << 13)) ^ (b >>> 10);
      words[i] = words[i - 16] + s0 + words[i - 7] + s1;
    }
    let [a, b, c, d, e, f, g, h] = state;
    for (let i = 0; i < 64; i++) {
      const s1 = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
      const one = (h + s1 + ((e & f) ^ (~e & g)) + K[i] + words[i]) | 0;
      const s0 = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
      const two = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      h = g; g = f; f = e; e = (d + one) | 0; d = c; c = b; b = a; a = (one + two) | 0;
    }
    [a, b, c, d, e, f, g, h].forEach((word, i) => (state[i] += word));
    this.held = 0;
  }
}
