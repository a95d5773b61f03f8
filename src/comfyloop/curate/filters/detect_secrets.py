"""What the package detect-secrets knows of keys beside our own patterns (`secret`): Azure, Twilio, npm, Discord and
others. Its guesses by entropy and by words near a value are left out: a prompt has many words that look like chance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

from comfyloop.curate.rulings import KEEP, Filter, Ground, Options, Ruling
from comfyloop.curate.samples import Draft

_GUESSES = {"Base64HighEntropyString", "HexHighEntropyString", "KeywordDetector", "IPPublicDetector"}
MOST_CHARS = 20_000
"""Characters of a text that are looked through: its patterns are not ours, and one may take long."""


def judge(drafts: Sequence[Draft], ground: Ground, options: Options) -> Iterator[Ruling]:
    """The reason names the kind of secret, never the secret."""
    if find_spec("detect_secrets") is None:
        yield from (Ruling("unmeasured", "detect-secrets is not installed") for _ in drafts)
        return
    for kind in ground.measurements.of_samples("detect_secrets/1", drafts, _kinds):
        yield Ruling("drop", kind) if kind else KEEP


def _kinds(drafts: Sequence[Draft]) -> Iterator[str]:
    for draft in drafts:
        texts = [*(message.text for message in draft.sample.messages), draft.sample.rejected or ""]
        lines = "\n".join(texts)[:MOST_CHARS].splitlines()
        hits = (
            plugin.secret_type
            for plugin in _plugins()
            for line in lines
            if next(iter(plugin.analyze_string(line)), "")
        )
        yield next(hits, "")


@cache
def _plugins() -> list[Any]:
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class

    kinds = get_mapping_from_secret_type_to_class().values()
    return [kind() for kind in kinds if kind.__name__ not in _GUESSES and hasattr(kind, "analyze_string")]


FILTER = Filter("detect_secrets", "a scanner of secrets knows a key in it", judge, rank=51)
