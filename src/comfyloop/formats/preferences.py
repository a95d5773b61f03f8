"""Reads which answer was wanted and which was not, in all supported formats.

A pair: ``rejected_response`` or ``rejected`` beside an answer, ``rejected_messages``, or ``chosen`` and
``rejected`` after a prompt (TRL, LLaMA-Factory), each a text, a message or a list of messages that may repeat the
prompt. A label: ``label`` or ``kto_tag``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfyloop.formats.conversations import format_of, take, with_system
from comfyloop.formats.messages import Said, answer
from comfyloop.formats.record import UnusableRow, only

_REJECTED = ("rejected_response", "rejected", "rejected_messages")
_LABEL = ("label", "kto_tag")


def take_judged(row: dict[str, Any]) -> tuple[list[Said], Said | None, bool | None]:
    """Remove and return the conversation with its wanted answer, the unwanted answer, and the label.

    Raises:
        UnusableRow: They cannot be used, or contradict each other.
    """
    chosen, rejected = row.pop("chosen", None), only(row, _REJECTED)
    label = only(row, _LABEL)
    if label is not None and not isinstance(label, bool):
        raise UnusableRow(f"its label is {label!r}, not true or false")
    if chosen is not None:
        if rejected is None:
            raise UnusableRow(
                "it has a chosen answer and no rejected one (a chosen picture is a file that ends in .png, .jpg, ...)"
            )
        said = _with_chosen(row, answer(chosen, "chosen"))
    else:
        said = take(row)
    if rejected is None:
        return said, None, label
    if label is False:
        raise UnusableRow("its label is false and it has a rejected answer: which one was wanted is not told")
    if said[-1].role != "assistant":
        raise UnusableRow("it has a rejected answer and no other one to compare it with")
    return said, _last(said[:-1], answer(rejected, "rejected answer")), label


def _with_chosen(row: dict[str, Any], chosen: list[Said]) -> list[Said]:
    if format_of(row) is None:  # the prompt is repeated in both answers
        return with_system(row, chosen)
    prompt = take(row)
    if prompt[-1].role == "assistant":
        raise UnusableRow("it has a chosen answer after one that its messages end with")
    return [*prompt, _last(prompt, chosen)]


def _last(prompt: Sequence[Said], said: list[Said]) -> Said:
    """The one answer of a list that may repeat the prompt before it."""
    *before, last = said
    spoken = [message for message in prompt if message.role != "system"]
    repeated = [message for message in before if message.role != "system"]
    same = [m.role for m in spoken] == [m.role for m in repeated] and all(
        a.text.strip() == b.text.strip() for a, b in zip(spoken, repeated, strict=True)
    )
    if last.role != "assistant" or (before and not same):
        raise UnusableRow("its chosen and rejected answers do not follow the same conversation")
    return last
