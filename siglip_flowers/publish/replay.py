"""Classify images as a machine without this package would: run as a script, by its path.

Standard input is JSON with ``model``, ``images`` (paths), ``top_k``, ``trust_remote_code`` and
``load_image``, the lines of the model card that load an image. Standard output is JSON: for each
image its classes with their scores, once loaded by those lines and once by the pipeline itself.
"""

import json
import sys


def main() -> None:
    """Answer one request."""
    request = json.load(sys.stdin)
    from transformers import pipeline

    classifier = pipeline(
        "image-classification",
        model=request["model"],
        trust_remote_code=request["trust_remote_code"],
    )

    def classify(images: list) -> list[dict[str, float]]:
        answers = classifier(images, top_k=request["top_k"])
        return [{row["label"]: row["score"] for row in answer} for answer in answers]

    loaded = []
    for path in request["images"]:
        names: dict = {}
        exec(request["load_image"].replace('"image.jpg"', repr(path)), names)
        loaded.append(names["image"])
    answers = {"loaded": classify(loaded), "pipeline": classify(request["images"])}
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
