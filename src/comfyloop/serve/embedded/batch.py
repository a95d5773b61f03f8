"""The decoder: prompts are filled chunk by chunk, then every row of the batch gains one token a step.

Rows are ragged. A row's places count from 0 whatever its neighbours do, so there is no padding on the left
and positions are places; what lies beyond a row's own length is masked. An answer is therefore the same in a
batch as alone, up to the rounding of differently shaped products, and alone it is the same bit for bit every
time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from comfyloop.serve.embedded.continuations import Pass
from comfyloop.serve.embedded.kv import Decode, KvRows, Prefill, Prefixes, RowsCache, causal_mask
from comfyloop.serve.embedded.llama import READ_ROWS, STEADY_ROWS, LlamaStep, TextPass
from comfyloop.serve.embedded.loading import LoadedModel
from comfyloop.serve.embedded.lora import Adapter, LoraRows
from comfyloop.serve.embedded.packed import Packer
from comfyloop.serve.embedded.prompts import Prompt
from comfyloop.serve.embedded.sequence import CHUNK, DecodeSequence, embed_prompt
from comfyloop.serve.embedded.vision import Embedded, Vision


class BatchDecoder:
    """Decodes all rows in one pass: through the model's own forward, or a faster one that agrees with it."""

    def __init__(
        self, loaded: LoadedModel, lora: LoraRows, vision: Vision | None, prefix_bytes: int, packed_bytes: int
    ) -> None:
        self._model, self._lora, self.vision = loaded.model, lora, vision
        self._device, self._dtype = loaded.device, loaded.dtype
        self._kv = KvRows()
        layers = len(DynamicCache(config=loaded.model.config).layers)
        self._cache = RowsCache(self._kv, layers)
        self.prefixes = Prefixes(prefix_bytes)
        self._seated: list[
            DecodeSequence
        ] = []  # by row: first those that decode, then those that are being filled
        self._decoding = 0
        self.fast: LlamaStep | None = None
        fast = LlamaStep.of(loaded.model, self._kv, Packer(packed_bytes))
        if fast is not None and self._agrees(fast):
            self.fast = fast

    @property
    def bytes(self) -> int:
        return self._kv.bytes + self.prefixes.bytes + (self.vision.bytes if self.vision else 0)

    def admit(self, sequence: DecodeSequence) -> None:
        self._kv.reserve(len(self._seated) + 1, len(sequence.prompt.ids))
        sequence.row = len(self._seated)
        self._seated.append(sequence)
        self._lora.select([sequence.adapter])
        sequence.embedded = embed_prompt(self.vision, sequence, self._device)
        if sequence.embedded is None or sequence.embedded.whole is None:
            sequence.digests = _digests(sequence)
            self._reuse(sequence)

    def _reuse(self, sequence: DecodeSequence) -> None:
        """Take what an earlier prompt that began alike has computed, leaving at least the last token."""
        if sequence.all_logits:
            return
        for digest in sequence.digests:
            chunk = self.prefixes.get(sequence.adapter_name, digest)
            if chunk is None or sequence.filled + CHUNK >= len(sequence.prompt.ids):
                break
            self._kv.copy_in(sequence.row, sequence.filled, chunk)
            sequence.filled += CHUNK
        sequence.reused = sequence.filled

    def prefill(self, sequence: DecodeSequence) -> Tensor:
        start, total = sequence.filled, len(sequence.prompt.ids)
        embedded = sequence.embedded
        whole = embedded is not None and embedded.whole is not None
        stop = total if whole else min(start + CHUNK, total)
        self._kv.pass_ = Prefill(sequence.row, start, stop - start)
        if self.fast is not None and self.fast.knows(sequence.adapter) and _in_one_dimension(embedded):
            logits = self._fast_fill(self.fast, sequence, start, stop)
        else:
            logits = self._own_fill(sequence, start, stop)
        sequence.filled = stop
        self._remember(sequence, start, stop)
        if sequence.ready:
            self._promote(sequence)
        return logits

    def _own_fill(self, sequence: DecodeSequence, start: int, stop: int) -> Tensor:
        self._lora.select([sequence.adapter])
        embedded = sequence.embedded
        places = torch.arange(start, stop, device=self._device)[None]
        common: dict[str, Any] = {
            "past_key_values": self._cache,
            "use_cache": True,
            "logits_to_keep": 0 if sequence.all_logits else 1,
        }
        if embedded is not None and embedded.whole is not None:
            ids = torch.tensor([sequence.prompt.ids], device=self._device)
            output = self._model(input_ids=ids, **embedded.whole, **common)
        else:
            common["attention_mask"] = causal_mask(places, stop, self._dtype)
            if embedded is None:
                ids = torch.tensor([sequence.prompt.ids[start:stop]], device=self._device)
                output = self._model(input_ids=ids, position_ids=places, **common)
            else:
                at = places if embedded.positions is None else embedded.positions[..., start:stop]
                output = self._model(inputs_embeds=embedded.embeds[:, start:stop], position_ids=at, **common)
        return output.logits[0]  # type: ignore[no-any-return]

    def _fast_fill(self, fast: LlamaStep, sequence: DecodeSequence, start: int, stop: int) -> Tensor:
        places = torch.arange(start, stop, device=self._device)
        if sequence.embedded is None:
            ids = torch.tensor(sequence.prompt.ids[start:stop], device=self._device)
            x = self._model.get_input_embeddings()(ids)
        else:
            x = sequence.embedded.embeds[0, start:stop]
        mask = causal_mask(places[None], stop, self._dtype)
        return fast.fill(x, places[:, None], mask, sequence.adapter, sequence.all_logits)

    def _remember(self, sequence: DecodeSequence, start: int, stop: int) -> None:
        number = start // CHUNK
        if stop - start == CHUNK and number < len(sequence.digests):
            digest = sequence.digests[number]
            if not self.prefixes.has(sequence.adapter_name, digest):
                self.prefixes.put(sequence.adapter_name, digest, self._kv.copy_out(sequence.row, start, stop))

    def read_on(self, sequence: DecodeSequence, further: Pass) -> Tensor:
        size, start = len(sequence.prompt.ids), len(sequence.prompt.ids) + further.behind
        self._kv.reserve(len(self._seated), start + len(further.tokens))
        self._kv.pass_ = Prefill(sequence.row, start, len(further.tokens))
        tokens = torch.tensor(further.tokens, device=self._device)
        places = torch.tensor(further.offsets, device=self._device) + size + sequence.shift
        mask = further.mask(size, self._dtype).to(self._device)
        sequence.filled = start + len(further.tokens)  # what moves with its row: the next part may need it
        if self.fast is not None and self._knows(sequence):
            x = self._model.get_input_embeddings()(tokens)
            return self.fast.fill(x, places[:, None], mask, sequence.adapter, all_logits=True)
        self._lora.select([sequence.adapter])
        output = self._model(
            input_ids=tokens[None],
            position_ids=places[None],
            attention_mask=mask,
            past_key_values=self._cache,
            use_cache=True,
        )
        return output.logits[0]  # type: ignore[no-any-return]

    def reads_whole(self, sequence: DecodeSequence, further: int) -> bool:
        return self._knows(sequence) and len(sequence.prompt.ids) + further <= READ_ROWS

    def read_whole(self, texts: Sequence[tuple[DecodeSequence, Pass]]) -> list[Tensor]:
        assert self.fast is not None
        return self.fast.read([self._text(sequence, further) for sequence, further in texts])

    def _text(self, sequence: DecodeSequence, further: Pass) -> TextPass:
        self._lora.select([sequence.adapter])  # the adapter may change how pictures are seen
        size, embed = len(sequence.prompt.ids), self._model.get_input_embeddings()
        embedded = embed_prompt(self.vision, sequence, self._device)
        if not _in_one_dimension(embedded):
            raise RuntimeError("The fast pass reads positions in one dimension only.")
        own = sequence.prompt.ids if embedded is None else []
        x = embed(torch.tensor([*own, *further.tokens], dtype=torch.long, device=self._device))
        return TextPass(
            x=x if embedded is None else torch.cat((embedded.embeds[0], x)),
            positions=torch.tensor([*range(size), *(size + o for o in further.offsets)], device=self._device),
            mask=further.mask(size, self._dtype, with_prompt=True).to(self._device),
            first_asked=size - 1,
            adapter=sequence.adapter,
        )

    def _promote(self, sequence: DecodeSequence) -> None:
        """Seat a filled sequence behind the last one that decodes."""
        first = self._seated[self._decoding]
        if first is not sequence:
            self._kv.swap(first.row, sequence.row, max(first.filled, sequence.filled))
            self._seated[first.row], self._seated[sequence.row] = sequence, first
            first.row, sequence.row = sequence.row, first.row
        self._decoding += 1
        if sequence.embedded is not None:  # only its shift is needed from here on
            sequence.embedded = Embedded(sequence.embedded.embeds[:, :0], sequence.embedded.positions, None)

    def step(self, sequences: Sequence[DecodeSequence]) -> Tensor:
        rows = self._seated[: self._decoding]
        if set(map(id, rows)) != set(map(id, sequences)):
            raise RuntimeError("A step must take every filled row.")
        self._kv.reserve(len(self._seated), max(s.filled for s in rows) + 1)
        passes = [self._pass(together) for together in self._together(rows)]
        logits = passes[0] if len(passes) == 1 else torch.cat(passes)
        order = [s.row for s in sequences]
        return logits if order == list(range(len(order))) else logits[order]

    def _knows(self, row: DecodeSequence) -> bool:
        """Whether the fast pass does."""
        return self.fast is not None and self.fast.knows(row.adapter)

    def _together(self, rows: list[DecodeSequence]) -> list[list[DecodeSequence]]:
        """Rows that follow one another, in passes. Those that are to be as alone share the fast pass's steady ones; one
        that it does not know has a pass of its own."""
        passes: list[list[DecodeSequence]] = []
        for row in rows:
            last = passes[-1] if passes else []
            if not last or row.alone != last[0].alone:
                joins = False
            elif row.alone:
                joins = len(last) < STEADY_ROWS and self._knows(row) and self._knows(last[0])
            else:
                joins = True
            if joins:
                last.append(row)
            else:
                passes.append([row])
        return passes

    def _pass(self, rows: list[DecodeSequence]) -> Tensor:
        places, first = [s.filled for s in rows], rows[0].row
        at = torch.tensor(places, device=self._device)
        numbers = torch.arange(first, first + len(rows), device=self._device)
        self._kv.pass_ = Decode(places, (numbers, at), first)
        if self.fast is not None and all(map(self._knows, rows)):
            logits = self._fast_logits(self.fast, rows, at)
        else:
            logits = self._own_logits(rows, at)
        for s in rows:
            s.filled += 1
        return logits

    def _own_logits(self, rows: Sequence[DecodeSequence], at: Tensor) -> Tensor:
        self._lora.select([s.adapter for s in rows])
        output = self._model(
            input_ids=torch.tensor([[s.answer[-1]] for s in rows], device=self._device),
            position_ids=torch.tensor([[s.filled + s.shift] for s in rows], device=self._device),
            attention_mask=causal_mask(at[:, None], int(at.max()) + 1, self._dtype),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]  # type: ignore[no-any-return]

    def _fast_logits(self, fast: LlamaStep, rows: Sequence[DecodeSequence], at: Tensor) -> Tensor:
        tokens = torch.tensor([s.answer[-1] for s in rows], device=self._device)
        positions = torch.tensor([[s.filled + s.shift] for s in rows], device=self._device)
        adapters = [s.adapter for s in rows]
        if rows[0].alone:
            return fast.steady(tokens, positions, [s.filled + 1 for s in rows], adapters)
        level = len({s.filled for s in rows}) == 1
        mask = None if level else causal_mask(at[:, None], int(at.max()) + 1, self._dtype)
        return fast(tokens, positions, mask, adapters)

    @torch.inference_mode()
    def _agrees(self, fast: LlamaStep) -> bool:
        """Whether the fast pass gives the logits of the model's own forward, on a ragged sample."""
        samples = [DecodeSequence(Prompt([7 + i for i in range(n)]), None, 16) for n in (5, 3)]
        pairs = []
        for sample in samples:
            self.admit(sample)
            own = self.prefill(sample)
            self._kv.pass_ = Prefill(sample.row, 0, sample.filled)
            pairs.append((own, self._fast_fill(fast, sample, 0, sample.filled)))
            sample.answer.append(11)
        at = torch.tensor([s.filled for s in samples], device=self._device)
        self._kv.pass_ = Decode([s.filled for s in samples], (torch.arange(2, device=self._device), at))
        pairs.append((self._own_logits(samples, at), self._fast_logits(fast, samples, at)))
        for sample in reversed(samples):
            self.release(sample)
        self._kv.clear()
        # In half precision two right orders of rounding differ by a tenth on a sample of odd tokens, as much as
        # either differs from float32; a step that is wrong differs by the size of the logits themselves.
        bound = 1e-4 if self._dtype == torch.float32 else 0.3
        return all(float((own - quick).norm()) <= bound * float(own.norm()) for own, quick in pairs)

    def prepare(self, adapter: Adapter) -> None:
        if self.fast is not None:
            self.fast.prepare(adapter)

    def release(self, sequence: DecodeSequence) -> None:
        """Give up a row; the last rows move up, so that those that decode stay together."""
        hole = sequence.row
        if hole < self._decoding:
            self._decoding -= 1
            self._fill(hole, self._decoding)
            hole = self._decoding
        self._fill(hole, len(self._seated) - 1)
        self._seated.pop()
        sequence.row = -1
        if not self._seated and self._kv.capacity > 1024:
            self._kv.clear()  # a long conversation does not keep its memory for ever

    def _fill(self, hole: int, source: int) -> None:
        if hole != source:
            moved = self._seated[source]
            self._kv.move(source, hole, moved.filled)
            self._seated[hole], moved.row = moved, hole

    def forget(self, adapter: str) -> None:
        self.prefixes.forget(adapter)
        if self.fast is not None:
            self.fast.forget(adapter)
        if self.vision is not None:
            self.vision.forget(adapter)


def _digests(sequence: DecodeSequence) -> list[bytes]:
    """A hash of the prompt up to the end of each whole chunk: of its tokens, or of what is made of them."""
    digests, last = [], b""
    embedded = sequence.embedded
    for stop in range(CHUNK, len(sequence.prompt.ids) + 1, CHUNK):
        part = slice(stop - CHUNK, stop)
        hashed = hashlib.blake2b(last, digest_size=16)
        if embedded is None:
            hashed.update(repr(sequence.prompt.ids[part]).encode())
        else:
            hashed.update(embedded.embeds[:, part].contiguous().view(torch.uint8).cpu().numpy().tobytes())
            if embedded.positions is not None:
                hashed.update(embedded.positions[..., part].cpu().numpy().tobytes())
        digests.append(last := hashed.digest())
    return digests


def _in_one_dimension(embedded: Embedded | None) -> bool:
    """Whether a prompt is a row of embeddings whose positions are its places."""
    return embedded is None or (embedded.whole is None and embedded.positions is None)
