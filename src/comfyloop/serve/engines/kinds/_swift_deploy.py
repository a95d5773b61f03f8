"""`swift deploy`, in ms-swift's own Python: ``python _swift_deploy.py ARGS``. Nothing of ComfyLoop is imported.

ms-swift names a model by its class, which many share, and then wants to be told which of them, and in which words it
is asked. A text model is asked in those of its own chat template, as it was trained here; another one in those that
ms-swift knows for it. What is said in `engine_args` stays.
"""

import json
import sys
from pathlib import Path

HOPELESS = 8
"""The exit code of `ModelError`."""


def told(argv: list[str]) -> list[str]:
    """What ms-swift would ask for."""
    model = Path(argv[argv.index("--model") + 1])
    if not model.is_dir():
        return []
    config = json.loads((model / "config.json").read_text("utf-8"))
    if config.get("auto_map"):
        refuse(f"{model} brings code of its own, which ms-swift would run.")
    from swift.model import MODEL_MAPPING
    from swift.model.model_meta import get_matched_model_types

    more: list[str] = []
    if "--model_type" in argv:
        kind = argv[argv.index("--model_type") + 1]
    else:
        kinds = get_matched_model_types(config.get("architectures"))
        if not kinds:
            refuse(
                f"ms-swift does not know the class of {model} ({(config.get('architectures') or ['none'])[0]})."
            )
        kind = config["model_type"] if config.get("model_type") in kinds else kinds[0]
        more += ["--model_type", kind]
    if "--template" not in argv and kind in MODEL_MAPPING and not MODEL_MAPPING[kind].is_multimodal:
        more += ["--template", "dummy"]  # that of the tokenizer
    return more


def refuse(sentence: str) -> None:
    print(f"{sentence} Serve it with the embedded engine or with vLLM.", file=sys.stderr)
    sys.exit(HOPELESS)


if __name__ == "__main__":
    # Beside this file lies a swift.py, and Pythons before 3.11 look there first whatever they are told.
    sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
    sys.argv += told(sys.argv)
    from swift.pipelines import deploy_main

    deploy_main()
