"""The demos' pages, and the brand with its posters."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from comfyloop.demo import page as before_after
from comfyloop.demo.brand import material, page, posters
from tools.starter.image.data import COMMON_NAMES

BRAND = material.load()


def test_what_is_sent_has_pictures_in_the_brands_colours() -> None:
    for product in [*BRAND.catalogue, *BRAND.corrections]:
        with Image.open(product.picture) as picture:
            assert posters.palette_distance(picture, BRAND.palette) < 0.08, product.name


def test_no_product_is_on_two_sides_and_the_image_starter_knows_them_all() -> None:
    names = [p.name for part in (BRAND.catalogue, BRAND.corrections, BRAND.held_out) for p in part]
    assert len(names) == len(set(names))
    assert set(names) <= COMMON_NAMES


def test_the_style_guide_is_questions_with_their_answers() -> None:
    assert len(BRAND.guide) == 3
    assert all(question.endswith("?") and answer for question, answer in BRAND.guide)
    assert all(product.copy.endswith("Made slowly, sold honestly. #slowgoods") for product in BRAND.held_out)


def test_questions_name_the_product_with_its_article() -> None:
    products = (*BRAND.catalogue, *BRAND.corrections, *BRAND.held_out)
    asked = {product.name: product.ask_prompt for product in products}
    assert asked["alarm clock"] == "Write a short image prompt for an alarm clock."
    assert asked["umbrella"].endswith(" an umbrella.")
    assert asked["teapot"].endswith(" a teapot.")


def test_the_palette_distance_is_nought_on_the_palette_and_grows_away_from_it() -> None:
    teal, white, blue = (
        Image.new("RGB", (8, 8), colour) for colour in (BRAND.palette["teal"], "white", "blue")
    )
    distances = [posters.palette_distance(image, BRAND.palette) for image in (teal, white, blue)]
    assert distances[0] == 0
    assert distances == sorted(distances)


@pytest.mark.parametrize("copy", ["Meet the teapot.", "a word " * 200, "Pneumono" * 40, "见见这把茶壶", ""])
def test_a_sketch_has_the_picture_above_and_the_copy_below(copy: str) -> None:
    red = Image.new("RGB", (128, 128), "red")
    made = posters.sketch(red, "teapot", copy, BRAND.palette)
    assert made.size == (posters.WIDTH, posters.WIDTH + posters.TEXT_HEIGHT)
    assert made.getpixel((posters.WIDTH // 2, posters.WIDTH // 2)) == (255, 0, 0)
    below = made.crop((0, posters.WIDTH, *made.size))
    assert BRAND.palette["teal"] in {colour for _, colour in below.getcolors(1 << 16)}
    bottom = made.crop((0, made.height - 4, *made.size))  # nothing runs over the edge
    assert bottom.getcolors() == [(posters.WIDTH * 4, BRAND.palette["cream"])]


def test_a_sheet_has_a_column_a_title_and_a_row_a_product() -> None:
    colours = ("red", "green", "blue")
    poster = {c: Image.new("RGB", (posters.WIDTH, posters.WIDTH + posters.TEXT_HEIGHT), c) for c in colours}
    sheet = posters.contact_sheet([(c, [poster[c], poster[c]]) for c in colours])
    found = [sheet.getpixel((posters.GAP + n * (posters.WIDTH + posters.GAP) + 9, 200)) for n in range(3)]
    assert found == [(255, 0, 0), (0, 128, 0), (0, 0, 255)]
    assert sheet.getpixel((posters.GAP + 9, sheet.height - posters.GAP - 9)) == (255, 0, 0)


def test_the_page_shows_every_poster_and_escapes_what_models_say() -> None:
    poster = Image.new("RGB", (posters.WIDTH, posters.WIDTH + posters.TEXT_HEIGHT), "red")
    work = {"product": "teapot", "copy": "<script>alert(1)</script>", "prompt": "a & b"}
    column = {"works": [work], "edit_distance": 0.7, "palette_distance": 0.2}
    log = [
        {"side": side, "step": step, "loss": 1 / step} for side in ("text", "image") for step in range(1, 4)
    ]
    turn = {
        "sent": "43 pieces of material",
        "outcome": "not_enough_evidence",
        "states": {"training": 9.0},
        "log": log,
        "gate_text": "brand: version 1 against the base model: not enough evidence.",
    }
    report = {
        "brand": BRAND.name,
        "guide": BRAND.guide,
        "columns": [{"title": title, **column} for title in ("Before", "Turn 1's, not promoted")],
        "turns": [turn],
        "background": {"asked": 30, "failed": 0},
        "peak_memory_gib": 3.2,
        "seconds": {"demo": 100.0},
    }
    html = page.render(report, [[poster], [poster]])
    assert len(re.findall(r'<img alt="teapot" src="data:image/webp', html)) == 2
    assert "<script>" not in html
    assert "not enough evidence" in html
    assert "Loss of the text side: 1.00 at step 1" in html
    assert "Loss of the image side: 1.00 at step 1" in html


def test_the_before_and_after_page_stands_alone_and_escapes_what_models_say(tmp_path: Path) -> None:
    (tmp_path / "cat.webp").write_bytes(b"RIFF")
    item = {"scene": "pet", "question": "A holiday?", "picture": "cat.webp"}
    turn = {
        "outcome": "promoted",
        "seconds": 61.0,
        "corrections": [{}, {}],
        "gate_text": "demo: version 1 against the base model: promote.\nIt is better.\n  More <numbers>",
        "log": [{"step": 0, "loss": None}, {"step": 1, "loss": 2.0}, {"step": 2, "loss": 0.5}],
    }
    report = {
        "scenes": [{"name": "pet", "title": "The pet", "voice": "Always surfing."}],
        "turns": [turn],
        "held_out": [{**item, "answers": ["<b>dull</b>", "It surfs."]}],
        "general": [{"question": "Two and two?", "answers": ["Four.", "Four."]}],
        "edit_distance": [0.75, 0.04],
        "background": {"asked": 10, "failed": 0},
        "peak_memory_gib": 2.0,
        "seconds": {"promote_to_first_token": 0.5, "demo": 100.0},
    }
    html = before_after.render(report, tmp_path)
    assert "&lt;b&gt;dull&lt;/b&gt;" in html and '<td class="good">It surfs.</td>' in html
    assert '<p class="said">It is better.</p>' in html and "More &lt;numbers&gt;" in html
    assert "Loss: 2.00 at step 1, 0.50 at the end" in html
    assert "0.75 → 0.04" in html
    fetched = re.findall(r"(?:src|href)=\"([^\"]*)|url\(([^)]*)\)", html)
    assert fetched and all(
        (a or b).startswith("data:") for a, b in fetched
    )  # a file that can be sent to anyone
