"""Classify images as a machine without this package would: run as a script, by its path.

Standard input is JSON with ``model``, ``images`` (paths), ``top_k`` and ``trust_remote_code``;
standard output is JSON, for each image its classes with their scores. It imports nothing of this
package, whose registered classes would otherwise stand in for the files that are to be tried.
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
    answers = classifier(request["images"], top_k=request["top_k"])
    json.dump([{row["label"]: row["score"] for row in answer} for answer in answers], sys.stdout)


if __name__ == "__main__":
    main()
