"""Photographs to test on, never to train on: twenty fixed ones, and a larger set of cut-outs for choices.

All come from packages whose licences allow it. The twenty were fixed before the first result was seen.
"""

import bz2
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .features import plain

WHEELS = {
    "skimage": "scikit-image==0.26.0",
    "sklearn": "scikit-learn==1.9.1",
    "matplotlib": "matplotlib==3.11.2",
    "scipy": "scipy==1.9.3",  # the last one that carried the raccoon
}
STAMPS = (
    "tuxpaint-stamps-default"  # a Debian package, 2022.06.04-1, GPL-2: photographs cut out of their ground
)


@dataclass(frozen=True)
class Photo:
    name: str
    source: str
    words: tuple[str, ...]  # any of these names the main subject
    licence: str


def _photo(name: str, source: str, words: str, licence: str) -> Photo:
    return Photo(name, source, tuple(words.split()), licence)


TEST = [
    _photo("chelsea", "skimage/data/chelsea.png", "cat kitten tabby", "CC0, Stéfan van der Walt"),
    _photo("coffee", "skimage/data/coffee.png", "coffee espresso cup mug", "CC0, Rachel Michetti"),
    _photo("astronaut", "skimage/data/astronaut.png", "astronaut woman spacesuit", "public domain, NASA"),
    _photo("rocket", "skimage/data/rocket.jpg", "rocket missile spaceship", "CC0, SpaceX"),
    _photo("camera", "skimage/data/camera.png", "camera tripod photographer", "CC0, Lav Varshney"),
    _photo("coins", "skimage/data/coins.png", "coin money", "no known restrictions, Brooklyn Museum"),
    _photo("moon", "skimage/data/moon.png", "moon crater", "public domain, NASA"),
    _photo(
        "motorcycle", "skimage/data/motorcycle_left.png", "motorcycle motorbike", "CC0, Daniel Scharstein"
    ),
    _photo("page", "skimage/data/page.png", "page text document book paper", "public domain"),
    _photo("brick", "skimage/data/brick.png", "brick wall", "CC0, CC0Textures"),
    _photo("grass", "skimage/data/grass.png", "grass lawn hay", "CC0, CC0Textures"),
    _photo("gravel", "skimage/data/gravel.png", "gravel stone rock pebble", "CC0, CC0Textures"),
    _photo(
        "china",
        "sklearn/datasets/images/china.jpg",
        "palace temple pagoda castle",
        "CC-BY 2.0, Danielle Buma",
    ),
    _photo("flower", "sklearn/datasets/images/flower.jpg", "flower dahlia daisy", "CC-BY 2.0, dan6000"),
    _photo(
        "hopper", "matplotlib/mpl-data/sample_data/grace_hopper.jpg", "woman officer uniform", "public domain"
    ),
    _photo("raccoon", "scipy/misc/face.dat", "raccoon", "public domain, Judy Weggelaar"),
    _photo("lion", "stamps/animals/mammals/cats/lion.png", "lion", "GPL-2, Tux Paint"),
    _photo("elephant", "stamps/animals/mammals/elephant.png", "elephant", "GPL-2, Tux Paint"),
    _photo("horse", "stamps/animals/mammals/equines/horse.png", "horse", "GPL-2, Tux Paint"),
    _photo("pineapple", "stamps/food/fruit/pineapple.png", "pineapple", "GPL-2, Tux Paint"),
]

# Folders of stamps that hold photographs of things with a plain English name.
_CHOICE_FOLDERS = ("animals", "food", "plants", "vehicles", "hobbies", "household", "clothes", "sports")


def wheel(key: str, work: Path) -> Path:
    folder = work / "wheels"
    stem = WHEELS[key].split("==")[0].replace("-", "_")
    if not list(folder.glob(f"{stem}-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
        if key == "scipy":
            command += ["--only-binary", ":all:", "--python-version", "3.10"]
        subprocess.run([*command, WHEELS[key]], check=True)
    return next(folder.glob(f"{stem}-*.whl"))


def stamps(work: Path) -> Path:
    place = work / "stamps"
    if not place.is_dir():
        subprocess.run(["apt-get", "download", STAMPS], cwd=work, check=True)
        package = next(work.glob(f"{STAMPS}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", str(package), str(place)], check=True)
    return place / "usr/share/tuxpaint/stamps"


def cut_out(path: Path) -> Image.Image:
    return plain(Image.open(path).convert("RGBA"))


def load(photo: Photo, work: Path) -> Image.Image:
    package, _, inner = photo.source.partition("/")
    if package == "stamps":
        return cut_out(stamps(work) / inner)
    with zipfile.ZipFile(wheel(package, work)) as archive, archive.open(photo.source) as file:
        if photo.source.endswith(".dat"):
            raw = np.frombuffer(bz2.decompress(file.read()), dtype=np.uint8)
            return Image.fromarray(raw.reshape(768, 1024, 3))
        return Image.open(file).convert("RGB")
