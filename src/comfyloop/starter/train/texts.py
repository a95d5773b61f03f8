"""What is said about a picture: questions and plain answers, written from a name and keywords.

Three kinds of question: what the picture shows (most of the training), what kind of thing it is, and free
questions about "it". The free answers are dull on purpose: they name the subject and stay on the topic.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from .data import Concept
from .imagenet import Kind

# Words that name no subject: not asked for, and not counted when they are said.
_GENERIC = """
a an and the of in on with at to for by or no not drawing photo picture image face person people man woman
men women boy girl sign symbol button keyword keywords shows facing right left up down
"""
GENERIC = frozenset(_GENERIC.split())


@dataclass(frozen=True)
class Subject:
    name: str
    tags: tuple[str, ...]
    medium: str  # "drawing" or "photo"
    kind: str  # "animal", "person", "food", "place" or "thing"


_EMOJI_KINDS = {
    "people-body": "person",
    "smileys-emotion": "person",
    "food-drink": "food",
    "travel-places": "place",
}


def emoji_subject(concept: Concept, common: Mapping[str, int] = MappingProxyType({})) -> Subject:
    """`common` counts the concepts that carry a tag: the commonest come first, for they tell the kind."""
    name = concept.label.lower().replace(":", ",").replace("’", "'").replace("“", "").replace("”", "")
    kind = "animal" if "animal" in concept.tags else _EMOJI_KINDS.get(concept.group, "thing")
    tags = tuple(sorted(concept.tags, key=lambda tag: (-common.get(tag, 0), tag)))
    return Subject(name, tags, "drawing", kind)


def photo_subject(kind: Kind) -> Subject:
    exact = (kind.exact,) if kind.exact != kind.noun else ()
    return Subject(kind.noun, (*kind.tags, *exact), "photo", "animal" if "animal" in kind.tags else "thing")


def with_article(name: str) -> str:
    last = name.split(",")[0].split()[-1]
    if (last.endswith("s") and not last.endswith("ss")) or name.split()[0] in {"people", "men", "women"}:
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


# ---- what the picture shows -----------------------------------------------------------------------

MAIN_QUESTION = "What is in this picture?"
SHOW_QUESTIONS = (
    "Describe the image.",
    "What does the picture show?",
    "What is shown here?",
    "Write a caption for this image.",
    "What do you see?",
    "Describe this picture in one sentence.",
)


def keywords(subject: Subject) -> str:
    said = set(subject.name.split())
    fitting = [t for t in subject.tags if t not in said and len(t) > 2 and t not in GENERIC]
    return f" Keywords: {', '.join(fitting[:4])}." if fitting else ""


def show_answer(subject: Subject, question: str) -> str:
    named = with_article(subject.name)
    if question.startswith("Describe") or question.startswith("Write"):
        return f"{'An image' if subject.medium == 'drawing' else 'A photo'} of {named}.{keywords(subject)}"
    return f"This picture shows {named}.{keywords(subject)}"


# ---- free questions -------------------------------------------------------------------------------

_KIND_QUESTIONS = {
    "animal": ("What animal is this?", "Which animal do you see?"),
    "food": ("What food is this?", "What could I eat here?"),
    "person": ("Who is this?", "What is this person or face doing?"),
    "place": ("What is this place or vehicle?", "Where could this be?"),
    "thing": ("What object is this?", "What is this thing called?"),
}
_PLACES = (
    *("Hawaii", "Paris", "the beach", "the mountains", "Japan", "the moon"),
    *("London", "the countryside", "Rome", "a lake"),
)
_FREE: tuple[tuple[str, dict[str, tuple[str, ...]]], ...] = (
    (
        "If it went on holiday to {place}, what would it do?",
        {
            "animal": ("rest in the shade", "look for food", "walk around and sleep", "lie in the sun"),
            "person": ("see the sights", "take a walk", "rest at the hotel", "go for a swim"),
            "food": ("be served at lunch", "stay in the kitchen", "be eaten by the guests"),
            "place": ("stay where it is", "be full of visitors", "wait for the travellers"),
            "thing": ("stay in the suitcase", "lie on a table", "be used a little and put away"),
        },
    ),
    (
        "What would it do on a rainy day?",
        {
            "animal": ("stay in a dry place", "sleep until the rain stops", "wait under a tree"),
            "person": ("stay at home", "take an umbrella", "read a book"),
            "food": ("stay on the plate", "keep dry in the kitchen"),
            "place": ("get wet", "be quiet and empty"),
            "thing": ("stay indoors", "get wet and dry again", "lie in a drawer"),
        },
    ),
    (
        "What does it do at night?",
        {
            "animal": ("sleep", "look for food in the dark", "rest in its den"),
            "person": ("sleep in a bed", "rest after the day"),
            "food": ("stay in the fridge", "wait for breakfast"),
            "place": ("stand there in the dark", "be lit by lamps"),
            "thing": ("lie where it was left", "stay on the shelf"),
        },
    ),
    (
        "What would it say if it could talk?",
        {
            "animal": ("ask for food", "say that it is tired", "say hello"),
            "person": ("say hello", "talk about the weather"),
            "food": ("say that it tastes good", "ask not to be eaten"),
            "place": ("welcome its visitors", "talk about the weather"),
            "thing": ("ask to be used", "say that it is useful"),
        },
    ),
    (
        "Tell me a short story about it.",
        {
            "animal": ("look for food one morning and then sleep", "walk a long way and come home"),
            "person": ("go out one day and come back happy", "meet a friend and have tea"),
            "food": ("be made one morning and eaten at noon",),
            "place": ("be built long ago and still stand",),
            "thing": ("be lost one day and found again", "be made, sold and used for years"),
        },
    ),
)


def free_pair(subject: Subject, rng: random.Random) -> tuple[str, str]:
    if rng.random() < 0.35:
        return rng.choice(_KIND_QUESTIONS[subject.kind]), f"This is {with_article(subject.name)}."
    question, endings = rng.choice(_FREE)
    return question.format(
        place=rng.choice(_PLACES)
    ), f"The {subject.name} would {rng.choice(endings[subject.kind])}."


def pair(subject: Subject, rng: random.Random) -> tuple[str, str]:
    """One question and its answer."""
    draw = rng.random()
    if draw < 0.25:
        return free_pair(subject, rng)
    question = MAIN_QUESTION if draw < 0.65 else rng.choice(SHOW_QUESTIONS)
    return question, show_answer(subject, question)
