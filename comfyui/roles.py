"""Which text made a picture: a workflow in API form is followed by what each input is for, never by distance.

From the picture back over pictures and latents to the sampler; from there along what conditions *positively* (guiders,
chains of conditioning, nodes that take and give both sides) to the encoder; from its text input to the text itself,
through the nodes of ComfyUI that put texts together. What a run has really heard (`hear.py`) comes first, since only
that knows wildcards, language models and other people's nodes. Where a text cannot be known, there is none, and why.

Nothing of ComfyUI is imported: the service reads workflows by this module too, for the gate's drawings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .strings import LITERALS, MAKES
from .wiring import PIPE, Define, Graph, Wiring, type_in

Heard = Mapping[tuple[str, str], "str | None"]
"""(node, input) -> the text that arrived there in a run; None where it was not one text."""
Place = tuple[str, str]
"""A node and one of its inputs."""

SURE_PASS = 0.6
"""A second pass that keeps at least 40% of what it was given only refines: the first pass's text made the picture."""

DEEPEST = 60
"""How many times a way may branch before it ends."""

MOST_NAMED, LONGEST_NAMED = 4, 60
"""How many texts a sentence names, and how many characters of each."""

_NEGATIVE = re.compile(r"neg(?![a-z])|negative|uncond|empty_conditioning", re.IGNORECASE)
_POSITIVE = re.compile(r"pos(?![a-z])|positive", re.IGNORECASE)
_TEXT = re.compile(
    r"^(.*[._])?(text|prompt|positive|populated_text|positive_prompt|positive_text|prompt_text|text_positive|text_prompt"
    r"|user_prompt|text_[gl]|clip_[gl]|t5xxl|t5|llama|qwen\w*|gemma\w*|bert|mt5xl|wildcard_text|caption|description"
    r"|edit_instruction)"
    r"(_?\d+)?$",
    re.IGNORECASE,
)
_NO_PROMPT = re.compile(
    r"system|(?<!edit_)instruction|lyrics|file|path|url|model|_name$|separator|delimiter", re.IGNORECASE
)
_PREFERRED = ("populated_text", "t5xxl", "t5", "llama", "mt5xl", "prompt", "text")
_TAGS = re.compile(r"^(clip_[gl]|bert|wildcard_text)$", re.IGNORECASE)
"""Inputs beside which a sentence stands in another: of an encoder's several texts the sentence is the prompt."""
_PICTURES = frozenset({"IMAGE", "LATENT", "VIDEO"})
_MODEL = re.compile(r"model|ckpt|checkpoint|clip|pipe", re.IGNORECASE)
_SERVICE = re.compile(r"auth_token|api_?key", re.IGNORECASE)
"""What a node that asks a service is handed, by ComfyUI itself as hidden inputs."""


@dataclass(frozen=True)
class PictureText:
    """The text of a picture.

    Attributes:
        text: What reached the encoder; "" where no text conditions the picture; None where it cannot be known.
        why: Why it cannot be known, as a sentence.
        places: The literal texts that it is made of, by node and input.
        encoders: Where it enters encoders: a place for each of their positive texts.
        several: The texts of a picture that was put together from pictures of several, all of them; `text` is None.
    """

    text: str | None
    why: str = ""
    places: tuple[Place, ...] = ()
    encoders: tuple[Place, ...] = ()
    several: tuple[str, ...] = ()

    @property
    def holder(self) -> Place | None:
        """The one place in the workflow that holds it as it is; None where it is put together."""
        return self.places[0] if self.text and len({node for node, _ in self.places}) == 1 else None


NOTHING = PictureText("")


def text_of_picture(graph: Graph, node: str, input: str, define: Define, heard: Heard | None = None) -> PictureText:
    """The text that made the pictures which arrive at an input. An input without a link has none."""
    reader = _Reader(graph, define, heard or {})
    value = (graph.get(node) or {}).get("inputs", {}).get(input)
    return reader.picture(value) if reader.is_link(value) else NOTHING


def pictures_of(graph: Graph, node: str, define: Define) -> list[str]:
    """The inputs of a node at which pictures arrive."""
    reader = _Reader(graph, define, {})
    return [name for name, link in reader.links(node) if reader.type_of(node, name, link) in _PICTURES | {""}]


class _Reader(Wiring):
    def __init__(self, graph: Graph, define: Define, heard: Heard) -> None:
        super().__init__(graph, define)
        self.heard = heard
        self._known: dict[tuple[str, str, int], PictureText] = {}
        self._open: set[tuple[str, str, int]] = set()
        self._depth = 0

    def _follow(self, what: str, link: list[Any], step: Callable[[list[Any]], PictureText | list[Any]]) -> PictureText:
        """What is found behind a link. `step` gives it, or the one link to go on along: a chain may be of any length.

        What was found once is known; a circle, which ComfyUI would not run, holds nothing.
        """
        if self._depth > DEEPEST:
            return PictureText(None, "The workflow branches too often to be read.")
        passed: list[tuple[str, str, int]] = []
        found: PictureText | list[Any] = link
        self._depth += 1
        while isinstance(found, list):
            key = (what, found[0], found[1])
            if key in self._known or key in self._open:
                found = self._known.get(key, NOTHING)
                break
            self._open.add(key)
            passed.append(key)
            found = step(found)
        self._depth -= 1
        self._open -= set(passed)
        self._known.update(dict.fromkeys(passed, found))
        return found

    # --- from the picture to the sampler

    def picture(self, link: list[Any]) -> PictureText:
        return self._follow("picture", link, self._picture)

    def _picture(self, link: list[Any]) -> PictureText | list[Any]:
        node, slot = link
        if self.samples(node, slot):
            return self._sampled(node)
        own = self._of_own_texts(node, slot)
        if own is not None and own.text != "":
            return own
        before = self._given_pictures(node)
        return before[0] if len(before) == 1 else self._of_several(before)

    def _of_own_texts(self, node: str, slot: int) -> PictureText | None:
        """A node that makes pictures from a text by itself: a service's, or one that holds model and encoder."""
        if self.given_type([node, slot]) not in _PICTURES and self.define(node):
            return None
        if self.gives_conditioning(node):
            return None
        draws = re.compile("prompt|positive|instruction", re.IGNORECASE) if self._only_changes(node) else _TEXT
        places = [place for place in self._texts(node, 0) if draws.search(place[1]) or self._encodes(node)]
        return self._joined([self._text(*place) for place in places], places) if places else None

    def _only_changes(self, node: str) -> bool:
        """Whether it is given pictures and, by its definition, no model and no service that could make others: then
        a text is written on them."""
        told: Mapping[str, Any] = self.define(node).get("input") or {}
        named = [(name, type_in(spec)) for part in told.values() for name, spec in (part or {}).items()]
        makes = any(_MODEL.search(name) or _MODEL.search(kind) or _SERVICE.search(name) for name, kind in named)
        return bool(named) and not makes and bool(self._given_pictures(node))

    def _encodes(self, node: str) -> bool:
        """Whether it turns texts into conditioning itself, whatever they are called."""
        return any(type_in(self.spec(node, name)) == "CLIP" or name == "clip" for name in self.inputs(node))

    def _given_pictures(self, node: str) -> list[list[Any]]:
        """The links that bring a node its pictures."""
        if (chosen := self._chosen(node)) is not None:
            return [chosen] if self.is_link(chosen) else []
        found = []
        for name, link in self.links(node):
            kind = self.type_of(node, name, link)
            if kind in _PICTURES or (not kind and not self._is_setting(name)):
                found.append(link)
        return found

    def _of_several(self, links: list[list[Any]]) -> PictureText:
        return _same([self.picture(link) for link in links])

    @staticmethod
    def _is_setting(name: str) -> bool:
        settings = ("model", "clip", "vae", "mask", "control_net", "upscale_model", "seed")
        return name in settings or bool(_TEXT.match(name))

    def _sampled(self, node: str) -> PictureText:
        own = self._positive(node)
        anew = self._denoise(node)
        if own.text != "" and anew >= 1:
            return own
        earlier = self._of_several(self._given_pictures(node))
        if earlier.text == own.text == "":  # its conditioning may hold a latent, as a cascade's second stage
            further = [link for _, link in self.conditions(node)]
            for link in further:
                if earlier.text == "" and len(further) < len(self.graph):
                    earlier = self._of_several(self._given_pictures(link[0]))
                    further += [deeper for _, deeper in self.conditions(link[0]) if deeper not in further]
        if (
            earlier.text == ""
            or own.encoders == earlier.encoders
            or (own.text is not None and own.text == earlier.text)
        ):
            return own
        if own.text == "" or anew <= SURE_PASS:
            return earlier
        return PictureText(
            None, "Two passes made it, each from a text of its own.", encoders=own.encoders + earlier.encoders
        )

    def _denoise(self, node: str) -> float:
        """How much of what a sampler was given it makes anew, 0..1."""
        inputs = self.inputs(node)
        sigmas: Any = inputs.get("sigmas")
        if self.is_link(sigmas):
            return self._denoise_of_sigmas(sigmas, 8)
        if isinstance(start := self._value(inputs.get("start_at_step")), (int, float)) and start > 0:
            steps = self._value(inputs.get("steps"))
            return max(0.0, 1 - start / steps) if isinstance(steps, (int, float)) and steps > 0 else 0.5
        value = self._value(inputs.get("denoise", 1.0))
        return float(value) if isinstance(value, (int, float)) else 1.0

    def _denoise_of_sigmas(self, link: list[Any], depth: int) -> float:
        node, slot = link
        inputs = self.inputs(node)
        if "denoise" in inputs:
            value = self._value(inputs["denoise"])
            own = float(value) if isinstance(value, (int, float)) else 1.0
            if "SplitSigmas" not in self.graph[node]["class_type"]:
                return own
            return own if slot == 1 else 1.0
        if "SplitSigmas" in self.graph[node]["class_type"] and slot == 1:
            return SURE_PASS
        if isinstance(written := self._value(inputs.get("sigmas")), str):
            numbers = re.findall(r"\d+(?:\.\d+)?", written)
            return min(1.0, float(numbers[0])) if numbers else 1.0
        for name, further in self.links(node):
            if depth and self.type_of(node, name, further) == "SIGMAS":
                return self._denoise_of_sigmas(further, depth - 1)
        return 1.0

    # --- from the sampler to the encoder

    def _positive(self, node: str) -> PictureText:
        """The text of what conditions a sampler or guider positively."""
        found = [(name, link) for name, link in self.conditions(node) if not _NEGATIVE.search(name)]
        named = [pair for pair in found if _POSITIVE.search(pair[0])]
        numbered = [pair for pair in found if re.fullmatch(r"cond(itioning)?_?\d", pair[0])]
        if named:
            found = named
        elif len(numbered) == len(found) > 1:
            found = found[:1]  # guidance by several: each pushes away from the next, so the first is what is wanted
        if not found and any(PIPE.search(name) for name, _ in self.links(node)):
            found = [pair for pair in self.links(node) if PIPE.search(pair[0])]
        return self._all([self.conditioning(link) for _, link in found])

    def conditioning(self, link: list[Any]) -> PictureText:
        """The text behind a conditioning, guider or pipe."""
        return self._follow("conditioning", link, self._conditioning)

    def _conditioning(self, link: list[Any]) -> PictureText | list[Any]:
        node, slot = link
        class_type = self.graph[node]["class_type"]
        if re.search(r"zero_?out", class_type, re.IGNORECASE):
            return NOTHING
        kind = self.given_type(link)
        given = self.conditions(node)
        guides = kind == "GUIDER" or (not kind and re.search("guider", class_type, re.IGNORECASE))
        if given and (guides or PIPE.search(kind)):
            return self._positive(node)
        if (chosen := self._chosen(node)) is not None:
            return chosen if self.is_link(chosen) else NOTHING
        side = self._side(node, slot)
        if not given:
            return self._encoded(node, side)
        matching = [further for _, further in self._matching(node, slot, side, given)]
        places = self._texts(node, side)
        if not self._encodes(node):
            places = []
        if len(matching) == 1 and not places:
            only: PictureText | list[Any] = matching[0]
            return only
        texts = [self.conditioning(further) for further in matching]
        mixes = re.search(r"average|blend|lerp|interpol|mix", class_type, re.IGNORECASE)
        if mixes and len({t.text for t in texts}) > 1:
            return PictureText(None, f"{class_type} mixes several texts.", encoders=_of(t.encoders for t in texts))
        return self._all([*texts, self._encoded(node, side)] if places else texts)

    def _side(self, node: str, slot: int) -> int:
        """Which output of a node with two sides it is: 0 the positive or only one, 1 the negative."""
        told = self.define(node)
        outputs, names = told.get("output") or (), told.get("output_name") or ()
        if isinstance(slot, int) and 0 <= slot < len(names) and isinstance(names[slot], str):
            if _NEGATIVE.search(names[slot]) or names[slot].endswith("-"):
                return 1
            if _POSITIVE.search(names[slot]) or names[slot].endswith("+"):
                return 0
        if outputs:
            sides = [place for place, kind in enumerate(outputs) if kind == "CONDITIONING"]
            return sides.index(slot) if slot in sides else 0
        if (used := self._used_as(node)) and slot in used:
            return used[slot]
        return 1 if slot == 1 and any(_NEGATIVE.search(name) for name in self.inputs(node)) else 0

    def _used_as(self, node: str) -> Mapping[int, int]:
        """The side of each output of a node by the names of the inputs that it is linked to, where they agree: a
        loader that gives the model first has its positive side second."""
        found: dict[int, set[int]] = {}
        for key in self.graph:
            for name, link in self.links(key):
                if link[0] == node and (_NEGATIVE.search(name) or _POSITIVE.search(name)):
                    found.setdefault(link[1], set()).add(1 if _NEGATIVE.search(name) else 0)
        return {slot: sides.pop() for slot, sides in found.items() if len(sides) == 1}

    def _matching(self, node: str, slot: int, side: int, given: list[Any]) -> list[Any]:
        """The inputs that come out at an output: of its name, else on its side, else all that are not negative."""
        names = self.define(node).get("output_name") or ()
        named = names[slot] if isinstance(slot, int) and 0 <= slot < len(names) else None
        if same := [pair for pair in given if pair[0] == named]:
            return same
        negative = [pair for pair in given if _NEGATIVE.search(pair[0])]
        rest = [pair for pair in given if pair not in negative]
        if side and negative:
            return negative
        if not negative and self._outputs(node) == len(rest) > 1:
            return rest[side : side + 1]
        return rest or given

    def _outputs(self, node: str) -> int:
        return sum(kind == "CONDITIONING" for kind in self.define(node).get("output") or ())

    def _encoded(self, node: str, side: int) -> PictureText:
        places = self._texts(node, side)
        if not places:
            if self.define(node):
                return NOTHING  # it conditions by something else: a picture, a file
            return PictureText(None, f"It is not known what {self.graph[node]['class_type']} makes of its inputs.")
        return self._joined([self._text(*place) for place in places], places)

    def _texts(self, node: str, side: int) -> list[Place]:
        """The inputs of a node that hold the prompt of one side, the telling one first."""
        found = [name for name, value in self.inputs(node).items() if self._is_text(node, name, value)]
        negative = [name for name in found if _NEGATIVE.search(name)]
        if side and negative:
            return [(node, name) for name in negative]
        found = [name for name in found if name not in negative]
        if "populated_text" in found:  # a template stands beside it
            found = ["populated_text"]
        for sure in (_POSITIVE.search, _TEXT.match):
            found = [name for name in found if sure(name)] or found
        rank = {name: place for place, name in enumerate(_PREFERRED)}
        return [(node, name) for name in sorted(found, key=lambda n: rank.get(n.lower(), len(rank)))]

    def _is_text(self, node: str, name: str, value: Any) -> bool:
        last = name.rpartition(".")[2]  # of "model.prompt", the part of one model
        if self.graph[node]["class_type"].startswith("ComfyLoop") or _NO_PROMPT.search(last):
            return False
        spec = self.spec(node, name)
        linked = self.is_link(value)
        if not linked and not isinstance(value, str):
            return False
        if linked and self.type_of(node, name, value) not in ("STRING", ""):
            return False
        if spec is None:
            return bool(_TEXT.match(name) or ((_POSITIVE.search(name) or _NEGATIVE.search(name)) and not linked))
        options = spec[1] if isinstance(spec, (list, tuple)) and len(spec) > 1 else {}
        if type_in(spec) not in ("STRING", ""):
            return False
        return bool(_TEXT.match(name)) or bool(isinstance(options, Mapping) and options.get("multiline"))

    # --- from the encoder to the text

    def _text(self, node: str, name: str) -> PictureText:
        value = self.inputs(node)[name]
        written = self._written(value, (node, name), 32)
        if (node, name) not in self.heard:
            return written
        heard = self.heard[node, name]
        if heard is None:
            return PictureText(None, f"{self.graph[node]['class_type']} made another text of it, or was given several.")
        places = written.places if written.text == heard else ()
        return PictureText(heard, places=places)

    def _written(self, value: Any, place: Place, depth: int) -> PictureText:
        """A text as far as the workflow alone tells it."""
        if isinstance(value, str):
            return PictureText(value, places=(place,))
        if not self.is_link(value) or not depth:
            return PictureText(None, "A text has no form that can be read.")
        node = value[0]
        class_type, inputs = self.graph[node]["class_type"], self.inputs(node)

        def of(name: str) -> PictureText:
            return self._written(inputs.get(name, ""), (node, name), depth - 1)

        if class_type == "PrimitiveInt" or (class_type == "CustomCombo" and value[1] == 1):
            number = self._value(value)
            if isinstance(number, int) and not isinstance(number, bool):
                return PictureText(str(number), places=(place,))
        if class_type in LITERALS and (name := next((n for n in LITERALS[class_type] if n in inputs), None)):
            return of(name)
        if (chosen := self._chosen(node)) is not None:
            name = next((name for name, held in inputs.items() if held is chosen), "")
            return self._written(chosen, (node, name), depth - 1)
        if class_type in MAKES:
            names, make = MAKES[class_type]
            parts = [of(name) for name in names(inputs)]
            if unknown := next((part for part in parts if part.text is None), None):
                return unknown
            settings = {name: self._value(held) for name, held in inputs.items()}
            try:
                made = make([part.text or "" for part in parts], settings)
            except (ValueError, KeyError, IndexError, TypeError, re.error):
                made = None
            if made is not None:
                return PictureText(made, places=_of(part.places for part in parts if part.text))
        return PictureText(None, f"{class_type} writes the text while the workflow runs.")

    def _value(self, value: Any, depth: int = 8) -> Any:
        """A number, truth or text that is written in the workflow; None where a node works it out."""
        if not self.is_link(value):
            return value
        node = value[0]
        class_type, inputs = self.graph[node]["class_type"], self.inputs(node)
        if depth and (chosen := self._chosen(node)) is not None:
            return self._value(chosen, depth - 1)
        if class_type == "CustomCombo":
            return self._value(inputs.get("index" if value[1] == 1 else "choice"), depth - 1) if depth else None
        plain = class_type.startswith("Primitive") or class_type == "Reroute"
        return self._value(next(iter(inputs.values())), depth - 1) if depth and plain and inputs else None

    def _chosen(self, node: str) -> Any:
        """What a switch lets through; None for any other node, and where it is not known which."""
        inputs = self.inputs(node)
        if self.graph[node]["class_type"] == "Reroute" and len(inputs) == 1:
            return next(iter(inputs.values()))
        if {"switch", "on_true", "on_false"} & inputs.keys() != {"switch"} and "switch" in inputs:
            on = self._value(inputs["switch"])
            if isinstance(on, bool):
                return inputs.get("on_true" if on else "on_false", "")
        return None

    # --- several texts

    def _joined(self, texts: list[PictureText], places: list[Place]) -> PictureText:
        """Of one encoder with several inputs: the sentence, not the tags beside it."""
        if unknown := next((text for text in texts if text.text is None), None):
            return PictureText(None, unknown.why, encoders=tuple(places))
        held = [(place, text) for place, text in zip(places, texts, strict=True) if (text.text or "").strip()]
        sentences = [pair for pair in held if not _TAGS.match(pair[0][1])] or held
        if not sentences:
            return PictureText("", places=_of(text.places for text in texts), encoders=tuple(places))
        words = list(dict.fromkeys(str(text.text) for _, text in sentences))
        whole = [w for w in words if all(other in w for other in words)]
        told = whole[0] if whole else ", ".join(words)
        return PictureText(told, places=_of(text.places for _, text in sentences), encoders=tuple(places))

    @staticmethod
    def _all(texts: list[PictureText]) -> PictureText:
        """Of several conditionings that work together: all their texts, or none where one is not known."""
        encoders = _of(text.encoders for text in texts)
        if unknown := next((text for text in texts if text.text is None), None):
            return PictureText(None, unknown.why, encoders=encoders)
        words = list(dict.fromkeys(str(text.text) for text in texts if (text.text or "").strip()))
        return PictureText(", ".join(words), places=_of(text.places for text in texts if text.text), encoders=encoders)


def _same(found: list[PictureText]) -> PictureText:
    """One text, where all that have one have the same."""
    with_text = [text for text in found if text.text != ""]
    encoders = _of(text.encoders for text in with_text)
    if unknown := next((text for text in with_text if text.text is None and not text.several), None):
        return PictureText(None, unknown.why, encoders=encoders)
    texts = tuple(dict.fromkeys(each for text in with_text for each in text.several or (str(text.text),)))
    if len(texts) > 1:
        named = ", ".join(f"“{_short(text)}”" for text in texts[:MOST_NAMED]) + ", …" * (len(texts) > MOST_NAMED)
        why = f"It is put together from pictures that were made from several texts: {named}."
        return PictureText(None, why, _of(text.places for text in with_text), encoders, texts)
    if not with_text:
        return NOTHING
    return PictureText(with_text[0].text, places=_of(text.places for text in with_text), encoders=encoders)


def _short(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= LONGEST_NAMED else plain[: LONGEST_NAMED - 1] + "…"


def _of(groups: Any) -> tuple[Place, ...]:
    return tuple(dict.fromkeys(place for group in groups for place in group))
