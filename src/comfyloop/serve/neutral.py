"""Fields of a chat request that change nothing as they are sent.

Clients write out defaults (`tools: []`, `logit_bias: {}`, `repetition_penalty: 1`) and send back whole objects with
their nulls. Such a field is dropped; the same field with another value would change the answer, and is refused by
whoever cannot honour it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Values = tuple[Any, ...] | None
"""Besides null, the values of a field that change nothing; None: it never does, whatever its value."""

REQUEST: dict[str, Values] = {
    # OpenAI's
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": None,  # of calls that cannot be made
    "prediction": None,  # saves time, where it is known
    "presence_penalty": (0,),
    "prompt_cache_options": None,
    "prompt_cache_retention": None,
    "reasoning_effort": ("none",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
    # vLLM's and other servers'
    "add_generation_prompt": (True,),
    "add_special_tokens": (False,),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": ([],),
    "echo": (False,),
    "enable_thinking": (False,),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "ignore_eos": (False,),
    "include_reasoning": None,  # there is none
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "min_p": (0,),
    "min_tokens": (0,),
    "mm_processor_kwargs": ({},),
    "no_repeat_ngram_size": (0,),
    "priority": None,
    "prompt_embeds": (),
    "repetition_penalty": (1,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": None,  # none are written
    "stop_token_ids": ([],),
    "structured_outputs": (),
    "top_a": (0,),
    "top_k": (-1, 0),
    "typical_p": (1,),
    "use_beam_search": (False,),
}

MESSAGE: dict[str, Values] = {
    "annotations": ([],),
    "reasoning": ("",),
    "reasoning_content": ("",),
    "refusal": ("",),
    "tool_calls": ([],),
}
PART: dict[str, Values] = {"annotations": ([],), "cache_control": None, "prompt_cache_breakpoint": None}


def without(sent: Mapping[str, Any], known: Mapping[str, Values]) -> dict[str, Any]:
    """What was sent, but for the fields that change nothing; a null never does."""
    if sent.get("tool_choice") == "none":  # no tool is to be called, whichever there are
        sent = {name: value for name, value in sent.items() if name != "tools"}
    return {name: value for name, value in sent.items() if not changes_nothing(name, value, known)}


def changes_nothing(name: str, value: Any, known: Mapping[str, Values] = REQUEST) -> bool:
    if value is None:
        return True
    if name == "logit_bias" and isinstance(value, dict):
        return not any(value.values())
    values = known.get(name, ())
    return values is None or value in values
