"""The text head: from what the tower sees to a vector of multilingual-e5-small's space, for `sight/starter.py`.

    python -m tools.starter.text_head --work DIR [--write]

A ridge in closed form from the tower's mean features to what the drawing is called, in English and Chinese alike, on
the concepts and styles that the starter's own head is trained on; `held_out.txt` stays unseen. Needs `resvg_py` and
`comfyloop[scorer]`. What is chosen by trying, the penalty and the share of the words, is chosen on one half of the
unseen concepts; the other half, the style that is never trained on and the photographs are only measured. `--write`
puts the head beside the scorer.
"""

import argparse
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from comfyloop.sight import starter as sight

from . import data, photos
from .features import plain, varied

STYLES = ("fluent3d", "noto", "twemoji", "fluentflat")
VARIED = ("fluent3d", "noto")  # seen a second time: turned, moved, on other grounds
PENALTIES = (0.3, 1.0, 3.0, 10.0)
SHARES = (0.0, 0.5, 1.0, 2.0)
PHOTOS_IN_CHINESE = (
    "猫", "咖啡", "宇航员", "火箭", "照相机", "硬币", "月亮", "摩托车", "书页", "砖墙",
    "草地", "碎石", "宫殿", "花", "军官", "浣熊", "狮子", "大象", "马", "菠萝",
)  # fmt: skip
"""What the photographs of `photos.TEST` show."""

Array = np.ndarray[Any, np.dtype[np.float32]]


def for_choosing(code: str) -> bool:
    """Whether an unseen concept is one that something was chosen by: those are in no test."""
    return hashlib.sha256(code.encode()).digest()[0] % 2 == 0


def seen_features(work: Path) -> dict[str, Any]:
    """Of every drawing and photograph, the tower's features and the scores of its words; computed once."""
    file = work / "text_head_features.npz"
    if not file.exists():
        viewer = sight.Viewer(work)
        rows, features, scores = [], [], []
        for concept in data.concepts(work):
            held = concept.code in data.held_out_codes()
            styles = [*STYLES, data.TEST_STYLE] if held else STYLES
            for style in styles:
                if style not in concept.pictures:
                    continue
                drawn = data.picture(concept.pictures[style])
                views = [plain(drawn)]
                if style in VARIED and not held:
                    may_flip = concept.group != "symbols" and not {"left", "right"} & set(
                        concept.label.split()
                    )
                    views.append(varied(drawn, random.Random(f"{concept.code}/{style}"), may_flip))
                for view, image in enumerate(views):
                    feature = viewer.features(image)
                    rows.append((concept.code, style, view))
                    features.append(feature.numpy())
                    scores.append(viewer.of_features(feature))
        for photo in photos.TEST:
            feature = viewer.features(photos.load(photo, work))
            rows.append((photo.name, "photo", 0))
            features.append(feature.numpy())
            scores.append(viewer.of_features(feature))
        codes, drawn_in, view_numbers = (np.array(column) for column in zip(*rows, strict=True))
        np.savez(
            file,
            features=np.array(features),
            scores=np.array(scores),
            codes=codes,
            styles=drawn_in,
            views=view_numbers,
        )
    return dict(np.load(file))


def names(work: Path) -> dict[str, tuple[str, str]]:
    """Of each concept its name in English and in Chinese."""
    place = data.fetch(work, {"names": data.PACKAGES["names"]})["names"]
    chinese = {e["hexcode"]: e["label"] for e in json.loads((place / "zh/data.json").read_text())}
    english = json.loads((place / "en/data.json").read_text())
    return {
        e["hexcode"].lower(): (e["label"], chinese[e["hexcode"]]) for e in english if e["hexcode"] in chinese
    }


def unit(vectors: Any) -> Array:
    made: Array = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)
    return made


def fit(features: Any, wanted: Any, weights: Any, penalty: float) -> tuple[Array, Array]:
    """The ridge's matrix and its offset."""
    middle, spread = features.mean(0), features.std(0) + 1e-3
    scaled = (features - middle) / spread
    gram = scaled.T @ (scaled * weights[:, None])
    gram += penalty * np.trace(gram) / len(gram) * np.eye(len(gram))
    matrix = np.linalg.solve(gram, scaled.T @ (wanted * weights[:, None])) / spread[:, None]
    return matrix.astype(np.float32), (-middle @ matrix).astype(np.float32)


def auc(pictures: Array, texts: Array) -> float:
    """How often a picture is nearer to its own text than another pair's picture and text are to each other."""
    fits = pictures @ texts.T
    own, others = np.diag(fits), np.sort(fits[~np.eye(len(fits), dtype=bool)])
    below, upto = np.searchsorted(others, own, "left"), np.searchsorted(others, own, "right")
    return float((below + upto).mean() / 2 / len(others))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--write", action="store_true", help="put the head where the scorer reads it")
    asked = parser.parse_args()
    work = asked.work
    called = names(work)
    seen = seen_features(work)
    pairs = zip(seen["codes"], seen["styles"], strict=True)
    usable = np.array([code in called or style == "photo" for code, style in pairs])
    seen = {key: value[usable] for key, value in seen.items()}
    held = data.held_out_codes()
    codes, styles = seen["codes"], seen["styles"]
    photo = styles == "photo"
    unseen = np.array([code in held for code in codes]) & ~photo
    train = ~unseen & ~photo
    to_choose = np.array([for_choosing(code) for code in codes])

    everything = sorted(set(codes[~photo]))
    said = {
        language: dict(zip(everything, embedded([called[code][at] for code in everything]), strict=True))
        for at, language in enumerate(("English", "Chinese"))
    }
    known_codes = [code for code in everything if code not in held]
    middles = {language: np.mean([of[code] for code in known_codes], axis=0) for language, of in said.items()}
    for language, of in said.items():
        of |= {code: unit(vector - middles[language]) for code, vector in of.items()}
    own_names = [photo.name for photo in photos.TEST]
    for language, words in (
        ("English", [photo.words[0] for photo in photos.TEST]),
        ("Chinese", PHOTOS_IN_CHINESE),
    ):
        said[language] |= dict(zip(own_names, unit(embedded(words) - middles[language]), strict=True))

    wanted = np.array([unit(said["English"][code] + said["Chinese"][code]) for code in codes[train]])
    count = {code: int((codes[train] == code).sum()) for code in set(codes[train])}
    weights = np.array([1 / count[code] for code in codes[train]])  # each concept counts once
    by_words = np.stack([sight.vector_of_words(scores) for scores in seen["scores"]])
    by_words = unit(unit(by_words) - unit(by_words[train]).mean(0))

    def told(vectors: Array, which: Any) -> dict[str, float]:
        return {
            language: auc(vectors[which], np.array([of[code] for code in codes[which]]))
            for language, of in said.items()
        }

    choosing = unseen & to_choose & (styles != data.TEST_STYLE)
    best: tuple[float, Any, Any, Any, Any] = (0.0, None, None, None, None)
    for penalty in PENALTIES:
        matrix, offset = fit(seen["features"][train], wanted, weights, penalty)
        by_head = unit(seen["features"] @ matrix + offset)
        for share in SHARES:
            vectors = unit(by_head + share * by_words)
            found = [told(vectors, choosing & (styles == style)) for style in STYLES]
            mean = float(np.mean([value for one in found for value in one.values()]))
            print(f"penalty {penalty}, words {share}: {mean:.3f}", flush=True)
            best = max(best, (mean, penalty, share, (matrix, offset), vectors), key=lambda one: one[0])
    _, penalty, share, (matrix, offset), vectors = best
    print(
        f"\nchosen: penalty {penalty}, words {share}. On what nothing was chosen by, AUC (the words alone):"
    )
    for style in (*STYLES, data.TEST_STYLE):
        which = unseen & ~to_choose & (styles == style)
        now, before = told(vectors, which), told(by_words, which)
        print(f"{style} ({which.sum()}): " + ", ".join(f"{k} {now[k]:.3f} ({before[k]:.3f})" for k in now))
    now, before = told(vectors, photo), told(by_words, photo)
    print("photographs (20): " + ", ".join(f"{k} {now[k]:.3f} ({before[k]:.3f})" for k in now))
    if asked.write:
        words_middle = unit(np.stack([sight.vector_of_words(s) for s in seen["scores"][train]])).mean(0)
        np.savez(
            sight.HEAD,
            matrix=matrix.astype(np.float16),
            offset=offset.astype(np.float16),
            words_middle=words_middle.astype(np.float16),
            english=middles["English"].astype(np.float16),
            chinese=middles["Chinese"].astype(np.float16),
        )


def embedded(texts: Any) -> Array:
    return np.stack([np.asarray(sight.reader().query(text)).ravel() for text in texts])


if __name__ == "__main__":
    main()
