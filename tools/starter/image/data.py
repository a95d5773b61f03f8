"""The pictures the image starter learns from: emoji in freely licensed styles, on white, with captions.

Everything comes from npm packages fetched by name and version; nothing is kept in this repository. Concepts
that people ask for first (`FIRST`, `COMMON`) are seen far more often than the rest: the model is small and its
training short, and a picture that it has seen many hundreds of times is one that it can draw.
"""

import json
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tools.starter import data as drawings
from tools.starter.data import Concept

from .prompts import PROMPTS

SIZE = 128  # pixels a side, as kept

PACKAGES = {
    "names": "emojibase-data@17.0.0",  # MIT
    "noto": "@iconify-json/noto@1.2.9",  # Apache-2.0
    "fluent3d": "@lobehub/fluent-emoji-3d@1.1.0",  # MIT
    "twemoji": "@iconify-json/twemoji@1.2.5",  # CC-BY 4.0 (Twemoji)
    "fluentflat": "@iconify-json/fluent-emoji-flat@1.2.6",  # MIT
    "notoblob": "@iconify-json/noto-v1@1.2.5",  # Apache-2.0
}
STYLES = ("noto", "fluent3d", "twemoji", "fluentflat", "notoblob")

# How often the denoiser sees a style, and the words that ask for it; no words at all means Noto's.
DRAWN_STYLES = {"noto": 0.9, "fluent3d": 0.1}
STYLE_WORDS = {
    "noto": ("", "", "", "", "noto emoji", "emoji"),
    "fluent3d": ("3d", "3d render", "glossy 3d"),
}

SKIPPED_GROUPS = {"people-body", "flags", "component", "symbols"}
SHEET_WEIGHT, FIRST_WEIGHT, COMMON_WEIGHT = 300.0, 30.0, 5.0  # the forty of the sheet: four draws of five

COMMON = frozenset(
    """
    red apple; green apple; banana; pizza; hamburger; strawberry; watermelon; grapes; pineapple; cherries; lemon;
    peach; pear; avocado; carrot; broccoli; tomato; eggplant; mushroom; bread; croissant; cheese wedge; egg;
    french fries; hot dog; taco; sushi; ice cream; soft ice cream; doughnut; cookie; birthday cake; cupcake;
    chocolate bar; candy; lollipop; hot beverage; teapot; wine glass; beer mug; cocktail glass; glass of milk;
    popcorn; pancakes; dog face; dog; cat face; cat; fox; lion; tiger face; tiger; bear; panda; koala;
    monkey face; monkey; rabbit face; rabbit; mouse face; pig face; pig; cow face; cow; horse face; horse;
    unicorn; zebra; elephant; giraffe; frog; turtle; snake; dragon; crocodile; whale; spouting whale; dolphin;
    fish; tropical fish; shark; octopus; crab; lobster; snail; butterfly; honeybee; lady beetle; spider; penguin;
    owl; duck; swan; eagle; parrot; flamingo; peacock; rooster; chicken; hatching chick; baby chick; bird; wolf;
    hedgehog; kangaroo; camel; bat; raccoon; ewe; goat; tulip; rose; sunflower; hibiscus; cherry blossom;
    bouquet; cactus; palm tree; evergreen tree; deciduous tree; four leaf clover; maple leaf; seedling;
    potted plant; grinning face; face with tears of joy; smiling face with sunglasses;
    smiling face with heart-eyes; crying face; angry face; sleeping face; winking face; thinking face; skull;
    ghost; alien; robot; clown face; pile of poo; red heart; blue heart; green heart; broken heart; house; castle;
    tent; bus; automobile; taxi; police car; fire engine; ambulance; tractor; bicycle; motorcycle; airplane;
    helicopter; rocket; flying saucer; sailboat; ship; train; locomotive; anchor; sun; full moon; crescent moon;
    star; rainbow; cloud; fire; snowflake; snowman; umbrella; high voltage; droplet; volcano; mountain; globe
    showing Europe-Africa; ringed planet; tornado; water wave; alarm clock; watch; hourglass done; soccer ball;
    basketball; baseball; american football; tennis; balloon; wrapped gift; Christmas tree; jack-o-lantern;
    trophy; teddy bear; kite; crown; top hat; ring; gem stone; glasses; sunglasses; t-shirt; jeans; dress;
    running shoe; high-heeled shoe; backpack; guitar; violin; trumpet; drum; bell; camera; mobile phone; laptop;
    television; light bulb; candle; open book; books; envelope; pencil; paintbrush; scissors; key; locked;
    hammer; axe; bomb; crossed swords; shield; magnet; telescope; microscope; magnifying glass tilted left;
    chair; bed; door; toothbrush; soap; broom; money bag; artist palette; umbrella with rain drops; lipstick;
    musical note; headphone; microphone; game die; puzzle piece; bow and arrow; nesting dolls; fountain; handbag
    """.replace("\n", " ").split(";")
)
COMMON_NAMES = frozenset(" ".join(name.split()).lower() for name in COMMON)

FIRST = frozenset(
    """
    red apple; banana; pizza; hamburger; strawberry; watermelon; carrot; mushroom; ice cream; birthday cake; cat; dog;
    fox; lion; panda; penguin; owl; frog; fish; crab; octopus; butterfly; elephant; turtle; tulip; sunflower; cactus;
    evergreen tree; red heart; grinning face; robot; ghost; house; rocket; airplane; automobile; sailboat; sun; guitar;
    umbrella; green apple; grapes; pineapple; cherries; lemon; egg; doughnut; cookie; hot beverage; teapot; wine glass;
    tiger face; bear; monkey face; rabbit face; pig face; cow face; horse; unicorn; whale; shark; snail; honeybee;
    lady beetle; duck; chicken; rose; palm tree; four leaf clover; skull; alien; smiling face with sunglasses;
    blue heart; green heart; castle; bus; bicycle; crescent moon; star; rainbow; cloud; fire; snowflake; snowman;
    soccer ball; basketball; balloon; wrapped gift; Christmas tree; jack-o-lantern; crown; t-shirt; running shoe;
    handbag; chair; candle; light bulb; bell; key; open book
    """.replace("\n", " ").split(";")
)
SHEET_NAMES = frozenset(prompt.split(",")[0] for prompt in PROMPTS)
FIRST_NAMES = frozenset(" ".join(name.split()).lower() for name in FIRST)


def weight(label: str) -> float:
    """How often the denoiser sees a concept, against those that nobody asks for."""
    if label in SHEET_NAMES:
        return SHEET_WEIGHT
    if label in FIRST_NAMES:
        return FIRST_WEIGHT
    return COMMON_WEIGHT if label in COMMON_NAMES else 1.0


@dataclass(frozen=True)
class Pictures:
    """Every concept in every style that has it.

    `pixels` is uint8 [picture, SIZE, SIZE, 4] with transparency; `concept` and `style` say what each shows.
    """

    concepts: list[Concept]
    pixels: NDArray[np.uint8]
    concept: NDArray[np.int64]
    style: NDArray[np.int64]


def find(work: Path) -> list[Concept]:
    places = drawings.fetch(work, PACKAGES)
    entries = json.loads((places["names"] / "en/data.json").read_text())
    messages = json.loads((places["names"] / "en/messages.json").read_text())
    groups = {g["order"]: g["key"] for g in messages["groups"]}
    concepts = []
    for entry in entries:
        label, group = entry["label"].lower(), groups.get(entry.get("group", -1), "component")
        if group in SKIPPED_GROUPS or "o’clock" in label or "-thirty" in label:
            continue
        code, name = entry["hexcode"].lower(), drawings.slug(label)
        pictures = {
            style: f"svg:{places[style]}:{name}"
            for style in STYLES
            if style != "fluent3d" and name in drawings.icons(places[style])["icons"]
        }
        for spelling in (code, f"{code}-fe0f", code.replace("-fe0f", "")):
            path = places["fluent3d"] / f"assets/{spelling}.webp"
            if path.exists():
                pictures["fluent3d"] = str(path)
        tags = tuple(t.lower() for t in entry.get("tags", ()) if t.lower() != label)
        if pictures:
            concepts.append(Concept(code, label, tags, group, pictures))
    return concepts


def load(work: Path) -> Pictures:
    """Drawn once (a few minutes), then read from the work folder."""
    concepts = find(work)
    path = work / f"pictures-{SIZE}.npz"
    if not path.exists():
        pixels, concept, style = [], [], []
        for i, entry in enumerate(concepts):
            for j, name in enumerate(STYLES):
                if name in entry.pictures:
                    drawn = drawings.picture(entry.pictures[name]).resize(
                        (SIZE, SIZE), Image.Resampling.LANCZOS
                    )
                    pixels.append(np.asarray(drawn))
                    concept.append(i)
                    style.append(j)
            if i % 100 == 0:
                print(f"drawn {i} of {len(concepts)} concepts", flush=True)
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, pixels=np.stack(pixels), concept=np.array(concept), style=np.array(style))
        partial.replace(path)
    stored = np.load(path)
    return Pictures(concepts, stored["pixels"], stored["concept"], stored["style"])


def on(background: tuple[int, int, int], pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures with transparency (uint8 [..., 4]) on one colour (uint8 [..., 3])."""
    alpha = pixels[..., 3:].astype(np.float32) / 255
    mixed = pixels[..., :3] * alpha + np.array(background, np.float32) * (1 - alpha)
    return np.rint(mixed).astype(np.uint8)


class Captions:
    """Names, unambiguous keywords and style words for each concept."""

    def __init__(self, concepts: list[Concept]) -> None:
        words = Counter(w for c in concepts for w in {c.label, *c.tags, c.label.split()[-1]})
        labels = {c.label for c in concepts}
        self.names: list[tuple[str, ...]] = []
        for c in concepts:
            short = [c.label.removesuffix(" face"), c.label.split()[-1]]
            others = [w for w in dict.fromkeys([*short, *c.tags]) if words[w] <= 2 and w not in labels]
            self.names.append((c.label, *others[:3]))

    def write(self, concept: int, style: str, chance: random.Random) -> str:
        names = self.names[concept]
        name = names[0] if len(names) == 1 or chance.random() < 0.85 else chance.choice(names[1:])
        words = chance.choice(STYLE_WORDS[style])
        return f"{name}, {words}" if words else name
