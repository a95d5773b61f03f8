"""Answers that follow a JSON schema: before each token, those that would break it are taken away."""

from __future__ import annotations

import json
import threading
from typing import Any

import torch
from torch import Tensor

from comfyloop.errors import InvalidInput

LARGEST_SCHEMA = 64_000  # characters


class Structures:
    """Compiles schemas for one tokenizer. Any thread may call it; the tokenizer is read at the first call."""

    def __init__(self, tokenizer: Any, eos: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._eos = eos
        self._lock = threading.Lock()
        self._compiled: Any = None

    def of(self, response_format: Any) -> Structure | None:
        """What the answer to a request with this `response_format` must follow; None: nothing.

        Raises:
            InvalidInput: It is not a JSON schema that can be followed; the sentence says where it is not.
        """
        kind = "text" if response_format is None else response_format.type
        if kind == "text":
            return None
        schema = {"type": "object"} if kind == "json_object" else response_format.json_schema.schema_
        if len(json.dumps(schema)) > LARGEST_SCHEMA:
            raise InvalidInput(f"The JSON schema is longer than {LARGEST_SCHEMA} characters.", "Shorten it.")
        from llguidance import LLMatcher

        tokens = self._tokens()
        try:
            grammar = LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_flexible": False})
            problem = LLMatcher.validate_grammar(grammar, tokens)
        except (ValueError, TypeError, RecursionError) as error:  # a number of more than 64 bits, too deep
            problem = str(error)[:200]
        if problem:
            raise InvalidInput(f"The JSON schema cannot be followed: {problem}.")
        return Structure(LLMatcher(tokens, grammar), self._eos)

    def _tokens(self) -> Any:
        with self._lock:
            if self._compiled is None:
                import llguidance.hf

                self._compiled = llguidance.hf.from_tokenizer(self._tokenizer, eos_token=sorted(self._eos))
            return self._compiled


class Structure:
    """One answer's way through its schema. Owned by the model thread."""

    def __init__(self, matcher: Any, eos: frozenset[int]) -> None:
        self._matcher = matcher
        self._eos = eos

    def keep_allowed(self, logits: Tensor) -> Tensor:
        """`logits` (vocabulary,) with minus infinity where a token would break the schema."""
        allowed = torch.zeros(len(logits), dtype=torch.bool)
        bias = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)
        size = min(len(bias), len(logits))
        allowed[:size] = bias[:size] != 0
        return logits.masked_fill(~allowed.to(logits.device), float("-inf"))

    def push(self, token: int) -> None:
        if token not in self._eos:
            self._matcher.consume_token(token)

    @property
    def complete(self) -> bool:
        """Whether nothing may follow."""
        return bool(self._matcher.is_stopped())
