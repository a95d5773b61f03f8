"""Keys, tokens and passwords: a model that has read one can say it to somebody else."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from comfyloop.curate.rulings import KEEP, Filter, Ground, Options, Ruling
from comfyloop.curate.samples import Draft
from comfyloop.records import Sample

# Each takes time in proportion to the text, whatever is in it: a part that repeats has a bound, or begins after
# something that the part before it cannot hold, so that no two tries go over the same characters.
PATTERNS: dict[str, re.Pattern[str]] = {
    "a private key": re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----"),
    "an OpenAI or Anthropic key": re.compile(r"\bsk-[A-Za-z0-9_-]{20}"),
    "a GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{40})"),
    "a GitLab token": re.compile(r"\bglpat-[A-Za-z0-9_-]{20}"),
    "an AWS access key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a Google key": re.compile(r"\bAIza[0-9A-Za-z_-]{35}"),
    "a Slack token": re.compile(r"\bxox[abeoprs]-[A-Za-z0-9-]{10}"),
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{30}"),
    "a Stripe key": re.compile(r"\b[rs]k_(?:live|test)_[A-Za-z0-9]{16}"),
    "a JSON web token": re.compile(r"[A-Za-z0-9_-]{11}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8}"),
    "a bearer token": re.compile(r"\b[Bb]earer\s{1,20}[A-Za-z0-9._~+/-]{20}"),
    "a URL with a password": re.compile(r"[a-z0-9+.-]://[^\s/:@]{1,500}:[^\s/@]{1,500}@", re.IGNORECASE),
    "a password": re.compile(
        r"(?:\b(?:pass(?:word|wd|phrase)?|pwd|secret|api[_-]?key|access[_-]?key|auth[_-]?token|access[_-]?token)"
        r"|密码|密钥|口令)[\"']?\s{0,20}[:=：]\s{0,20}[\"']?(?=[^\s\"']{0,100}[\d!@#$%^&*_+-])[^\s\"']{6}",
        re.IGNORECASE,
    ),
}


def judge(drafts: Sequence[Draft], ground: Ground, options: Options) -> Iterator[Ruling]:
    """The reason names the kind of secret, never the secret."""
    for kind in ground.measurements.of_samples("secret/1", drafts, _kinds):
        yield Ruling("drop", kind) if kind else KEEP


def _kinds(drafts: Sequence[Draft]) -> Iterator[str]:
    for draft in drafts:
        texts = _texts(draft.sample)
        hits = (name for name, pattern in PATTERNS.items() if any(pattern.search(text) for text in texts))
        yield next(hits, "")


def _texts(sample: Sample) -> list[str]:
    return [*(message.text for message in sample.messages), sample.rejected or ""]


FILTER = Filter("secret", "the text looks as if it held a key, token or password", judge, rank=50)
