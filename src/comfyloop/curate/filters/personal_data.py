"""What tells who or where a private person is: numbers of cards, accounts and identity papers; addresses of mail and
telephone numbers, of which a person is asked, since a shop's own may be meant to be learned."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from comfyloop.curate.rulings import KEEP, Filter, Ground, Options, Ruling
from comfyloop.curate.samples import Draft

# Each takes time in proportion to the text: a part that repeats has a bound, or a beginning that it cannot hold.
_CARD = re.compile(r"(?<![\d.])\d(?:[ -]?\d){12,18}(?![\d.])")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?\b")
_CHINESE_ID = re.compile(
    r"(?<!\d)[1-9]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?!\d)"
)
_US_SOCIAL = re.compile(r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])")
_MAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,4}")
_TELEPHONE = re.compile(
    r"(?<![\w.])\+\d{1,3}[ -]?(?:\(?\d{1,5}\)?[ -]?){2,5}\d{2}\b|(?<!\d)1[3-9]\d{9}(?!\d)"
)
_EXAMPLE = re.compile(
    r"@(?:[\w-]{1,63}\.){0,3}(?:example|test|invalid|localhost)(?:\.\w{2,3})?$", re.IGNORECASE
)


def judge(drafts: Sequence[Draft], ground: Ground, options: Options) -> Iterator[Ruling]:
    """The reason names the kind, never what was found."""
    for says, kind in ground.measurements.of_samples("personal_data/1", drafts, _kinds):
        yield Ruling(says, kind) if kind else KEEP


def _kinds(drafts: Sequence[Draft]) -> Iterator[tuple[str, str]]:
    for draft in drafts:
        sample = draft.sample
        yield kind_of("\n".join([*(message.text for message in sample.messages), sample.rejected or ""]))


def kind_of(text: str) -> tuple[str, str]:
    """What to do, and the kind; both empty for a text without."""
    if _CHINESE_ID.search(text) and any(_is_chinese_id(found[0]) for found in _CHINESE_ID.finditer(text)):
        return "drop", "the number of an identity card"
    if any(_is_card(re.sub(r"\D", "", found[0])) for found in _CARD.finditer(text)):
        return "drop", "the number of a payment card"
    if any(_is_iban(found[0].replace(" ", "")) for found in _IBAN.finditer(text)):
        return "drop", "the number of a bank account"
    if _US_SOCIAL.search(text):
        return "unsure", "what looks like a social security number"
    if any(not _EXAMPLE.search(found[0]) for found in _MAIL.finditer(text)):
        return "unsure", "an address of mail"
    if _TELEPHONE.search(text):
        return "unsure", "what looks like a telephone number"
    return "", ""


def _is_card(digits: str) -> bool:
    """By Luhn's sum, and beginning as cards do."""
    if digits[0] not in "3456" or len(set(digits)) < 2:
        return False
    doubled = [int(digit) * (2 if place % 2 else 1) for place, digit in enumerate(reversed(digits))]
    return sum(number - 9 if number > 9 else number for number in doubled) % 10 == 0


def _is_iban(text: str) -> bool:
    turned = text[4:] + text[:4]
    return len(text) >= 15 and int("".join(str(int(char, 36)) for char in turned)) % 97 == 1


def _is_chinese_id(text: str) -> bool:
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    total = sum(int(digit) * weight for digit, weight in zip(text, weights, strict=False))
    return "10X98765432"[total % 11] == text[-1].upper()


FILTER = Filter("personal_data", "the text names a private person's data", judge, rank=52)
