"""Which text made a picture: by what inputs are for, over the shapes that people's workflows have."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyloop.comfyui.workflow import Unusable, ready
from comfyui import roles
from comfyui.roles import text_of_picture

BOAT, BAD = "a paper boat on a pond", "blurry, watermark"
Graph = dict[str, Any]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def encode(text: Any) -> dict[str, Any]:
    return node("CLIPTextEncode", text=text, clip=["1", 1])


def workflow(**changes: Any) -> Graph:
    """A plain text-to-image graph; `n7=` puts another node in the place of 7, or a further one in."""
    sampler = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["7", 0]}
    graph = {
        "1": node("CheckpointLoaderSimple", ckpt_name="any.safetensors"),
        "2": encode(BOAT),
        "3": encode(BAD),
        "4": node("KSampler", **sampler, seed=1, steps=4, cfg=3, denoise=1.0),
        "5": node("VAEDecode", samples=["4", 0], vae=["1", 2]),
        "6": node("ComfyLoopPickImages", images=["5", 0], mode="pass", timeout=600),
        "7": node("EmptyLatentImage", width=64, height=64, batch_size=1),
    }
    return graph | {name[1:]: found for name, found in changes.items()}


def both_ways(**through: Any) -> Graph:
    """Both conditions go through one node before the sampler."""
    graph = workflow(**through)
    graph["4"]["inputs"] |= {"positive": ["20", 0], "negative": ["20", 1]}
    return graph


def guided(**guider: Any) -> Graph:
    inputs = {"noise": ["41", 0], "guider": ["42", 0], "sigmas": ["44", 0], "latent_image": ["7", 0]}
    rest = {
        "n41": node("RandomNoise", noise_seed=5),
        "n44": node("BasicScheduler", model=["1", 0], denoise=1.0),
    }
    return workflow(
        n4=node("SamplerCustomAdvanced", **inputs), n45=encode("what is pushed away"), **rest, **guider
    )


def second_pass(denoise: float) -> Graph:
    sampler = {"model": ["1", 0], "positive": ["25", 0], "negative": ["3", 0], "latent_image": ["4", 0]}
    graph = workflow(
        n25=encode("fine detail, sharp"), n26=node("KSampler", **sampler, seed=1, denoise=denoise)
    )
    graph["5"]["inputs"]["samples"] = ["26", 0]
    return graph


SIDES = {"positive": ["2", 0], "negative": ["3", 0]}
UPSCALED = workflow(
    n25=encode("sharp"),
    n8=node("ImageScaleBy", image=["9", 0], scale_by=2.0),
    n9=node("VAEDecode", samples=["4", 0], vae=["1", 2]),
    n10=node("VAEEncode", pixels=["8", 0], vae=["1", 2]),
    n11=node("KSampler", positive=["25", 0], negative=["3", 0], latent_image=["10", 0], denoise=0.4),
    n5=node("VAEDecode", samples=["11", 0], vae=["1", 2]),
)
LATER_STEPS = workflow(
    n25=encode("sharp"),
    n26=node(
        "KSamplerAdvanced",
        positive=["25", 0],
        negative=["3", 0],
        latent_image=["4", 0],
        start_at_step=15,
        steps=20,
    ),
    n5=node("VAEDecode", samples=["26", 0], vae=["1", 2]),
)

KNOWN = {
    "controlnet": (
        both_ways(n20=node("ControlNetApplyAdvanced", **SIDES, control_net=["9", 0], image=["8", 0])),
        BOAT,
        "2",
    ),
    "inpainting": (both_ways(n20=node("InpaintModelConditioning", **SIDES, vae=["1", 2])), BOAT, "2"),
    "image to video": (both_ways(n20=node("WanImageToVideo", **SIDES, vae=["1", 2])), BOAT, "2"),
    "a pair of other people's nodes": (both_ways(n20=node("TheirPair", **SIDES)), BOAT, "2"),
    "behind guidance": (
        both_ways(
            n10=node("FluxGuidance", conditioning=["2", 0], guidance=3.5),
            n20=node("ControlNetApplyAdvanced", positive=["10", 0], negative=["3", 0]),
        ),
        BOAT,
        "2",
    ),
    "flux": (guided(n42=node("BasicGuider", model=["1", 0], conditioning=["2", 0])), BOAT, "2"),
    "guider of two sides": (guided(n42=node("CFGGuider", positive=["2", 0], negative=["3", 0])), BOAT, "2"),
    "guider of three": (
        guided(n42=node("DualCFGGuider", cond1=["2", 0], cond2=["45", 0], negative=["3", 0])),
        BOAT,
        "2",
    ),
    "perpendicular": (
        guided(n42=node("PerpNegGuider", positive=["2", 0], negative=["3", 0], empty_conditioning=["45", 0])),
        BOAT,
        "2",
    ),
    "a text's own node": (
        workflow(n2=encode(["30", 0]), n30=node("PrimitiveStringMultiline", value=BOAT)),
        BOAT,
        "30",
    ),
    "on one line": (workflow(n2=encode(["30", 0]), n30=node("PrimitiveString", value=BOAT)), BOAT, "30"),
    "through a reroute": (
        workflow(
            n2=encode(["31", 0]),
            n31=node("Reroute", value=["30", 0]),
            n30=node("PrimitiveString", value=BOAT),
        ),
        BOAT,
        "30",
    ),
    "a switch": (
        workflow(
            n2=encode(["31", 0]), n31=node("ComfySwitchNode", switch=False, on_false=BOAT, on_true="a ship")
        ),
        BOAT,
        "31",
    ),
    "concatenated": (
        workflow(
            n2=encode(["31", 0]), n31=node("StringConcatenate", string_a="a", string_b="b", delimiter=", ")
        ),
        "a, b",
        "31",
    ),
    "concatenated from two nodes": (
        workflow(
            n2=encode(["31", 0]),
            n30=node("PrimitiveString", value="a lighthouse"),
            n31=node("StringConcatenate", string_a=["30", 0], string_b="storm", delimiter=", "),
        ),
        "a lighthouse, storm",
        None,
    ),
    "formatted": (
        workflow(
            n2=encode(["31", 0]),
            n31=node("StringFormat", **{"f_string": "a {a} at sea", "values.a": "lighthouse"}),
        ),
        "a lighthouse at sea",
        "31",
    ),
    "a plain pattern replaced": (
        workflow(
            n2=encode(["31", 0]),
            n30=node("PrimitiveStringMultiline", value="a {Thing} on a pond"),
            n31=node("RegexReplace", string=["30", 0], regex_pattern="{thing}", replace="paper boat"),
        ),
        BOAT,
        None,
    ),
    "a line chosen by its number": (
        workflow(
            n2=encode(["33", 0]),
            n30=node("CustomCombo", choice="toy", index=1, option1="ship", option2="boat"),
            n31=node("PreviewAny", source=["30", 1]),
            n32=node(
                "StringReplace", string=r"^(?:[^\n]*\n){at}([^\n]*)(?:\n|$)", find="at", replace=["31", 0]
            ),
            n33=node(
                "RegexExtract",
                **{"string": f"a ship\n{BOAT}\n", "regex_pattern": ["32", 0]},
                **{"mode": "First Group", "group_index": 1},
            ),
        ),
        BOAT,
        None,
    ),
    "joined": (
        workflow(
            n4=node("KSampler", positive=["20", 0], negative=["3", 0], latent_image=["7", 0]),
            n22=encode("storm at night"),
            n20=node("ConditioningConcat", conditioning_to=["2", 0], conditioning_from=["22", 0]),
        ),
        f"{BOAT}, storm at night",
        None,
    ),
    "combined": (
        workflow(
            n4=node("KSampler", positive=["20", 0], negative=["3", 0], latent_image=["7", 0]),
            n22=encode("storm at night"),
            n20=node("ConditioningCombine", conditioning_1=["2", 0], conditioning_2=["22", 0]),
        ),
        f"{BOAT}, storm at night",
        None,
    ),
    "tags and a sentence": (
        workflow(
            n2=node("CLIPTextEncodeFlux", clip_l="boat, paper", t5xxl=BOAT, guidance=3.5, clip=["1", 1])
        ),
        BOAT,
        "2",
    ),
    "two encoders of one text": (
        workflow(n2=node("CLIPTextEncodeSDXL", text_g=BOAT, text_l=BOAT, clip=["1", 1])),
        BOAT,
        "2",
    ),
    "a sentence in one of four": (
        workflow(
            n2=node(
                "CLIPTextEncodeHiDream", clip_l="boat", clip_g="boat", t5xxl="", llama=BOAT, clip=["1", 1]
            )
        ),
        BOAT,
        "2",
    ),
    "both texts in one node": (
        both_ways(n20=node("BothTextsEncoder", positive_text=BOAT, negative_text=BAD, clip=["1", 1])),
        BOAT,
        "20",
    ),
    "both, called otherwise": (both_ways(n20=node("Styler", positive=BOAT, negative=BAD)), BOAT, "20"),
    "both, the prompt first": (
        both_ways(n20=node("Encoder", prompt=BOAT, negative_prompt=BAD, clip=["1", 1])),
        BOAT,
        "20",
    ),
    "both in a loader, the model first": (
        workflow(
            n1=node("Efficient Loader", ckpt_name="any", positive=BOAT, negative=BAD),
            n4=node("KSampler (Efficient)", positive=["1", 1], negative=["1", 2], latent_image=["1", 3]),
        ),
        BOAT,
        "1",
    ),
    "both in a loader, through a pair": (
        workflow(
            n1=node("Efficient Loader", ckpt_name="any", positive=BOAT, negative=BAD),
            n20=node("TheirPair", positive=["1", 1], negative=["1", 2]),
            n4=node("KSampler", positive=["20", 3], negative=["20", 4], latent_image=["1", 3]),
        ),
        BOAT,
        "1",
    ),
    "a wildcard's outcome": (
        workflow(
            n2=node("TheirWildcards", wildcard_text="a {paper|toy} boat", populated_text=BOAT, clip=["1", 1])
        ),
        BOAT,
        "2",
    ),
    "a second pass": (second_pass(0.3), BOAT, "2"),
    "a second pass over pixels": (UPSCALED, BOAT, "2"),
    "a second pass by its steps": (LATER_STEPS, BOAT, "2"),
    "all of it anew": (second_pass(1.0), "fine detail, sharp", "25"),
}


@pytest.mark.parametrize(("graph", "text", "holder"), KNOWN.values(), ids=KNOWN)
def test_the_text_that_conditions_positively_is_found(graph: Graph, text: str, holder: str | None) -> None:
    found = text_of_picture(graph, "6", "images", lambda _: None)
    assert found.text == text
    assert (found.holder or [None])[0] == holder


UNKNOWN = {
    "a model writes it": workflow(
        n2=encode(["31", 0]), n31=node("TextGenerate", prompt="a boat", clip=["1", 1])
    ),
    "chance has a part": workflow(
        n2=encode(["31", 0]), n31=node("TheirWildcards", text="a {paper|toy} boat")
    ),
    "part of it is a model's": workflow(
        n2=encode(["32", 0]),
        n31=node("TextGenerate", prompt="a boat", clip=["1", 1]),
        n32=node("StringConcatenate", string_a="oil, ", string_b=["31", 0], delimiter=""),
    ),
    "a pattern with signs": workflow(
        n2=encode(["31", 0]),
        n31=node("RegexReplace", string="a boat", regex_pattern="(a+)+$", replace=""),
    ),
    "a pattern that takes what it likes": workflow(
        n2=encode(["31", 0]),
        n31=node("RegexExtract", string="a" * 40, regex_pattern="(a+)+b", mode="First Group", group_index=1),
    ),
    "a line that is not there": workflow(
        n2=encode(["31", 0]),
        n31=node(
            "RegexExtract",
            **{"string": "a boat", "regex_pattern": r"(?:[^\n]*\n){4}([^\n]+)"},
            **{"mode": "First Group", "group_index": 1},
        ),
    ),
    "two texts mixed": workflow(
        n4=node("KSampler", positive=["20", 0], negative=["3", 0], latent_image=["7", 0]),
        n22=encode("storm"),
        n20=node("ConditioningAverage", conditioning_to=["2", 0], conditioning_from=["22", 0]),
    ),
    "neither pass alone": second_pass(0.8),
    "a switch that is worked out": workflow(
        n2=encode(["31", 0]),
        n30=node("TheirChoice"),
        n31=node("ComfySwitchNode", switch=["30", 0], on_false=BOAT, on_true="a ship"),
    ),
    "two pictures in one": workflow(
        n21=encode("a ship"),
        n24=node("KSampler", positive=["21", 0], negative=["3", 0], latent_image=["7", 0]),
        n8=node("VAEDecode", samples=["24", 0]),
        n9=node("ImageStitch", image1=["5", 0], image2=["8", 0]),
        n6=node("ComfyLoopPickImages", images=["9", 0]),
    ),
}


@pytest.mark.parametrize("graph", UNKNOWN.values(), ids=UNKNOWN)
def test_what_cannot_be_known_is_said_and_is_never_a_part_of_it(graph: Graph) -> None:
    found = text_of_picture(graph, "6", "images", lambda _: None)
    assert found.text is None and found.why.endswith(".")


def test_a_picture_from_a_file_or_without_a_text_has_none() -> None:
    loaded = workflow(n6=node("ComfyLoopPickImages", images=["8", 0]), n8=node("LoadImage", image="a.png"))
    assert text_of_picture(loaded, "6", "images", lambda _: None).text == ""
    zeroed = workflow(n2=node("ConditioningZeroOut", conditioning=["3", 0]))
    assert text_of_picture(zeroed, "6", "images", lambda _: None).text == ""
    assert text_of_picture(workflow(), "nowhere", "images", lambda _: None).text == ""


def test_definitions_tell_what_names_do_not() -> None:
    """A node of another language: its second output is the negative one, and which input holds what, it says."""
    told = {
        "Kodierer": {
            "input": {"required": {"a": ["STRING", {"multiline": True}], "clip": ["CLIP"]}},
            "output": ["CONDITIONING"],
            "output_name": ["c"],
        },
        "Paar": {
            "input": {"required": {"x": ["CONDITIONING"], "y": ["CONDITIONING"]}},
            "output": ["CONDITIONING", "CONDITIONING"],
            "output_name": ["a", "b"],
        },
    }
    graph = both_ways(n20=node("Paar", x=["2", 0], y=["3", 0]))
    graph["2"] = node("Kodierer", a=BOAT, clip=["1", 1])
    assert text_of_picture(graph, "6", "images", told.get).text == BOAT
    graph["4"]["inputs"] |= {"positive": ["20", 1]}
    assert text_of_picture(graph, "6", "images", told.get).text == BAD


def picture_node(**inputs: Any) -> dict[str, Any]:
    return {"input": {"required": inputs}, "output": ["IMAGE"], "output_name": ["image"]}


TEXTS_OF_PICTURE_NODES = {
    "a shader": (node("GLSLShader", images=["5", 0], fragment_shader="void main() {}"), BOAT),
    "letters on it": (node("TextOverlay", images=["5", 0], text="SALE", font_size=5.0), BOAT),
    "letters by a service": (node("SloganService", image=["5", 0], text="as a woodcut"), "as a woodcut"),
    "a model by its name": (node("LocalEditor", image=["5", 0], text="as a woodcut"), "as a woodcut"),
    "a loaded model": (node("LoadedEditor", image=["5", 0], text="as a woodcut"), "as a woodcut"),
    "a prompt": (node("PromptEditor", image=["5", 0], prompt="as a woodcut"), "as a woodcut"),
    "an instruction": (node("ReveImageEditNode", image=["5", 0], edit_instruction="ink"), "ink"),
    "a text alone": (node("TextToPicture", text="a ship"), "a ship"),
}


@pytest.mark.parametrize(("last", "text"), TEXTS_OF_PICTURE_NODES.values(), ids=TEXTS_OF_PICTURE_NODES)
def test_a_text_that_draws_nothing_is_no_prompt(last: dict[str, Any], text: str) -> None:
    """Code and letters go onto a picture that another text made; a model or a service makes one anew."""
    service = picture_node(image=["IMAGE"], text=["STRING"])
    service["input"]["hidden"] = {"auth_token_comfy_org": ["AUTH_TOKEN_COMFY_ORG"]}
    classes = CLASSES | {
        "GLSLShader": picture_node(images=["IMAGE"], fragment_shader=TEXT),
        "TextOverlay": picture_node(images=["IMAGE"], text=TEXT, font_size=["FLOAT"], color=["COLOR"]),
        "SloganService": service,
        "LocalEditor": picture_node(image=["IMAGE"], text=TEXT, model_name=[["edit.safetensors"]]),
        "LoadedEditor": picture_node(image=["IMAGE"], text=TEXT, pipe=["EDIT_MODEL"]),
        "PromptEditor": picture_node(image=["IMAGE"], prompt=TEXT),
        "ReveImageEditNode": picture_node(image=["IMAGE"], edit_instruction=TEXT),
        "TextToPicture": picture_node(text=TEXT),
    }
    graph = workflow(n8=last, n6=node("ComfyLoopPickImages", images=["8", 0]))
    assert text_of_picture(graph, "6", "images", classes.get).text == text


def test_the_texts_of_a_picture_put_together_are_told_one_by_one() -> None:
    graph = UNKNOWN["two pictures in one"]
    two = text_of_picture(graph, "6", "images", lambda _: None)
    assert two.several == (BOAT, "a ship") and two.why.endswith(f"several texts: “{BOAT}”, “a ship”.")
    assert two.holder is None and len(two.places) == 2
    three = graph | {
        "6": node("ComfyLoopPickImages", images=["11", 0]),
        "10": node("ImageOfAService", prompt="a pier"),
        "11": node("ImageBatch", image1=["9", 0], image2=["10", 0]),
    }
    assert text_of_picture(three, "6", "images", lambda _: None).several == (BOAT, "a ship", "a pier")
    written = three | {"21": encode(["31", 0]), "31": node("TextGenerate", prompt="a ship")}
    found = text_of_picture(written, "6", "images", lambda _: None)
    assert (found.text, found.several) == (None, ()) and "TextGenerate" in found.why


def test_a_sentence_names_long_and_many_texts_by_their_beginnings() -> None:
    pictures = {str(n): node("ImageOfAService", prompt=f"{n} " + "水" * 100) for n in range(100, 106)}
    batch = node("BatchImages", **{f"images.image{n}": [n, 0] for n in pictures})
    graph = pictures | {"5": batch, "6": node("ComfyLoopPickImages", images=["5", 0])}
    found = text_of_picture(graph, "6", "images", lambda _: None)
    assert len(found.several) == 6
    assert found.why.endswith(f"“103 {'水' * 55}…”, ….") and "104" not in found.why


def test_what_a_run_has_heard_comes_first() -> None:
    graph = UNKNOWN["a model writes it"]
    assert text_of_picture(graph, "6", "images", lambda _: None, {("2", "text"): "a ship"}).text == "a ship"
    several = text_of_picture(graph, "6", "images", lambda _: None, {("2", "text"): None})
    assert several.text is None and several.why


@given(st.text(max_size=40), st.text(max_size=40))
def test_the_negative_text_is_never_the_prompt(positive: str, negative: str) -> None:
    graph = both_ways(n20=node("ControlNetApplyAdvanced", **SIDES))
    graph["2"], graph["3"] = encode(positive), encode(f"-{negative}")
    assert text_of_picture(graph, "6", "images", lambda _: None).text == (
        positive if positive.strip() else ""
    )


def test_a_circle_ends() -> None:
    graph = both_ways(n20=node("ControlNetApplyAdvanced", positive=["20", 0], negative=["20", 1]))
    graph["7"] = node("Latent", samples=["4", 0])
    assert text_of_picture(graph, "6", "images", lambda _: None).text == ""


def test_a_long_chain_is_read() -> None:
    graph = workflow()
    for number in range(100, 900):
        before = ["2", 0] if number == 100 else [str(number - 1), 0]
        graph[str(number)] = node("FluxGuidance", conditioning=before, guidance=3.5)
    graph["4"]["inputs"]["positive"] = ["899", 0]
    for number in range(1000, 1900):
        graph[str(number)] = node("ImageBlur", image=["5" if number == 1000 else str(number - 1), 0])
    graph["6"]["inputs"]["images"] = ["1899", 0]
    assert text_of_picture(graph, "6", "images", lambda _: None).text == BOAT


def test_ways_that_part_and_meet_again_are_walked_once() -> None:
    graph = workflow()
    for number in range(100, 150):
        before = ["2" if number == 100 else str(number - 1), 0]
        graph[str(number)] = node("ConditioningCombine", conditioning_1=before, conditioning_2=before)
    graph["4"]["inputs"]["positive"] = ["149", 0]
    assert text_of_picture(graph, "6", "images", lambda _: None).text == BOAT


# --- the gate writes where this reads

TEXT = ["STRING", {"multiline": True}]
CLASSES = {
    name: {"input": {"required": inputs}, "output": output, "output_name": output}
    for name, output, inputs in (
        ("CheckpointLoaderSimple", ["MODEL", "CLIP", "VAE"], {"ckpt_name": [["any.safetensors"]]}),
        ("CLIPTextEncode", ["CONDITIONING"], {"text": TEXT, "clip": ["CLIP"]}),
        ("CLIPTextEncodeFlux", ["CONDITIONING"], {"clip_l": TEXT, "t5xxl": TEXT, "clip": ["CLIP"]}),
        (
            "ControlNetApplyAdvanced",
            ["CONDITIONING", "CONDITIONING"],
            {"positive": ["CONDITIONING"], "negative": ["CONDITIONING"]},
        ),
        ("ConditioningConcat", ["CONDITIONING"], {"conditioning_to": ["CONDITIONING"]}),
        (
            "KSampler",
            ["LATENT"],
            {"positive": ["CONDITIONING"], "negative": ["CONDITIONING"], "model": ["MODEL"]},
        ),
        ("EmptyLatentImage", ["LATENT"], {"batch_size": ["INT"]}),
        ("VAEDecode", ["IMAGE"], {"samples": ["LATENT"]}),
        ("PrimitiveStringMultiline", ["STRING"], {"value": TEXT}),
        ("TextGenerate", ["STRING"], {"prompt": TEXT}),
        ("ComfyLoopPickImages", ["IMAGE"], {"images": ["IMAGE"]}),
        ("ComfyLoopLiveLora", ["MODEL"], {"model": ["MODEL"]}),
    )
}
CLASSES["ControlNetApplyAdvanced"]["output_name"] = ["positive", "negative"]


def drawn(graph: Graph) -> Graph:
    return ready(graph, CLASSES, "a linen pillow", 7, "acme@1")[0]


def test_the_gate_draws_its_prompt_in_the_place_of_the_positive_text() -> None:
    graph = drawn(both_ways(n20=node("ControlNetApplyAdvanced", **SIDES)))
    assert graph["2"]["inputs"]["text"] == "a linen pillow" and graph["3"]["inputs"]["text"] == BAD
    graph = drawn(KNOWN["a text's own node"][0])
    assert graph["30"]["inputs"]["value"] == "a linen pillow" and graph["2"]["inputs"]["text"] == ["30", 0]
    graph = drawn(KNOWN["tags and a sentence"][0])
    assert graph["2"]["inputs"]["t5xxl"] == graph["2"]["inputs"]["clip_l"] == "a linen pillow"
    graph = drawn(UNKNOWN["a model writes it"])
    assert graph["2"]["inputs"]["text"] == "a linen pillow"


def test_the_gate_draws_nothing_where_several_texts_make_the_picture() -> None:
    with pytest.raises(Unusable, match="put together from several"):
        drawn(KNOWN["joined"][0])


@pytest.mark.parametrize(
    "stored",
    [
        {"1": {"inputs": {}}},
        {"1": {"class_type": "A"}},
        {"nodes": [], "links": []},
        {"prompt": workflow()},
        {},
    ],
)
def test_a_stored_workflow_of_another_form_is_unusable_and_breaks_nothing(stored: Graph) -> None:
    with pytest.raises(Unusable):
        ready(copy.deepcopy(stored), CLASSES, "x", 1, "acme@1")


def test_pictures_are_told_from_settings() -> None:
    assert roles.pictures_of(workflow(), "6", CLASSES.get) == ["images"]
    assert roles.pictures_of(workflow(), "5", CLASSES.get) == ["samples"]
