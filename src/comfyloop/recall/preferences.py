"""The preferences of a project: derived by rules, with the person's changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field

from comfyloop.recall.words import Written
from comfyloop.records import Id, Record


class Preference(Record):
    """One preference in words."""

    id: Id = Field(description="The rule's name, e.g. `length`, or the one that a person gave.")
    text: str = Field(min_length=1, max_length=1000, description="The preference, as the person left it.")
    written: str = Field(default="", description="What the rule wrote; empty: it is the person's own.")
    of: int = Field(default=0, description="Edits that the rule looked at.")
    feedback: tuple[str, ...] = Field(default=(), description="Those of them that show it.")


def merged(rules_found: Sequence[Written], own: Mapping[str, str | None]) -> list[Preference]:
    """Replace the rules' texts by a person's own, without the preferences that they removed."""
    listed = []
    for each in rules_found:
        text = own.get(each.id, each.text)
        if text is not None:
            listed.append(
                Preference(id=each.id, text=text, written=each.text, of=each.of, feedback=each.feedback)
            )
    rules = {each.id for each in rules_found}
    listed += [Preference(id=id, text=text) for id, text in own.items() if text and id not in rules]
    return listed


def sentence(preferences: Sequence[Preference]) -> str:
    """All preferences as text for a system prompt; empty if there are none."""
    if not preferences:
        return ""
    return "How the answers should be: " + " ".join(preference.text for preference in preferences)
