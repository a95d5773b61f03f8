"""What one snapshot has that another one has not, sample by sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comfyloop import formats
from comfyloop.curate.report import CurationReport
from comfyloop.errors import NotFound
from comfyloop.records import Record
from comfyloop.texts import in_a_line

LONGEST = 200


class Change(Record):
    """A sample that is on another side than before; an empty side: it is not there."""

    id: str
    kind: str
    was: str
    now: str
    question: str  # shortened, and so is the answer
    answer: str
    feedback: tuple[str, ...]


class SnapshotDiff(Record):
    """Samples that were added, removed, or moved between training and hold-out; what is replayed counts alone."""

    old: str
    new: str
    added: int
    removed: int
    moved: int
    same: int
    replay: tuple[int, int]
    kinds: dict[str, tuple[int, int]]  # kind -> samples before, and now
    dropped: dict[str, tuple[int, int]]  # reason -> pieces of feedback before, and now; where they differ
    changes: tuple[Change, ...]  # the first so many

    def text(self) -> str:
        """As a person reads it."""
        lines = [
            f"{self.old[:12]} -> {self.new[:12]}: {self.added} added, {self.removed} removed, {self.moved} moved "
            f"between training and hold-out, {self.same} as before.",
        ]
        lines += [f"  {kind}: {was} -> {now}" for kind, (was, now) in self.kinds.items() if was != now]
        if self.replay[0] != self.replay[1]:
            lines.append(f"  replayed: {self.replay[0]} -> {self.replay[1]}")
        lines += [f"  left out, {reason}: {was} -> {now}" for reason, (was, now) in self.dropped.items()]
        for change in self.changes:
            sign = "+" if not change.was else "-" if not change.now else "~"
            where = change.now or change.was
            moved = f"{change.was} -> {change.now}" if sign == "~" else where
            lines.append(f"{sign} {change.kind} ({moved})  {change.question} => {change.answer}")
        left = self.added + self.removed + self.moved - len(self.changes)
        return "\n".join([*lines, *([f"... and {left} more"] if left else [])]) + "\n"


def diff(old: Path, new: Path, most: int = 100) -> SnapshotDiff:
    """
    Args:
        old, new: Directories of snapshots.
        most: Changes that are listed.

    Raises:
        NotFound: One of them is gone.
        DataError: One of them was changed since it was written.
    """
    before, after = _samples(old), _samples(new)
    changes = [
        _change(sample, sample["side"], after[id]["side"] if id in after else "")
        for id, sample in before.items()
        if id not in after or after[id]["side"] != sample["side"]
    ]
    changes += [_change(sample, "", sample["side"]) for id, sample in after.items() if id not in before]
    kinds = [Counter(sample["kind"] for sample in side.values()) for side in (before, after)]
    dropped = [_dropped(path) for path in (old, new)]
    return SnapshotDiff(
        old=old.name,
        new=new.name,
        added=sum(not change.was for change in changes),
        removed=sum(not change.now for change in changes),
        moved=sum(bool(change.was and change.now) for change in changes),
        same=sum(id in after and after[id]["side"] == sample["side"] for id, sample in before.items()),
        replay=(_replayed(old), _replayed(new)),
        kinds={kind: (kinds[0][kind], kinds[1][kind]) for kind in sorted(kinds[0] | kinds[1])},
        dropped={
            reason: (dropped[0].get(reason, 0), dropped[1].get(reason, 0))
            for reason in sorted(dropped[0].keys() | dropped[1].keys())
            if dropped[0].get(reason, 0) != dropped[1].get(reason, 0)
        },
        changes=tuple(changes[:most]),
    )


def _samples(path: Path) -> dict[str, dict[str, Any]]:
    """What is not replayed, by its id, with the side on which it is; what is kept back to stop by is trained later."""
    if not (path / "train.jsonl").is_file():
        raise NotFound(
            f"The data of the snapshot {path.name} is gone.",
            "Old ones are removed: keep_runs says how many stay.",
        )
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(path.glob("*.jsonl")):
        side = file.name.partition(".")[0]
        for row in formats.objects(file):
            if not row["replay"]:
                found[row["id"]] = row | {"side": side}
    return found


def _replayed(path: Path) -> int:
    return sum(bool(row["replay"]) for row in formats.objects(path / "train.jsonl"))


def _dropped(path: Path) -> dict[str, int]:
    report = path / "report.json"
    return CurationReport.model_validate_json(report.read_bytes()).dropped if report.exists() else {}


def _change(row: dict[str, Any], was: str, now: str) -> Change:
    *before, last = row["messages"]
    asked = next((m for m in reversed(before) if m["role"] == "user"), None)
    return Change(
        id=row["id"],
        kind=row["kind"],
        was=was,
        now=now,
        question=_short(asked["content"]) if asked else "",
        answer=_short(last["content"]),
        feedback=tuple(row["feedback"]),
    )


def _short(content: str | Sequence[dict[str, Any]]) -> str:
    text = content if isinstance(content, str) else "".join(part.get("text", "<image>") for part in content)
    return in_a_line(text, LONGEST)
