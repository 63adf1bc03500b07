"""Kill runs again and again and see that each ends with the weights of an undisturbed one.

    python -m tests.faults.soak --minutes 10

Prints the counts as JSON, and exits with 1 if any run ended otherwise than promised.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from safetensors.numpy import load_file

from tests.faults.harness import RECIPES, Outcome, Site, draw_fault, is_expected

MOST_FAULTS = 4


def read_result(directory: Path) -> dict[str, object]:
    """Return what must not depend on interruptions: weights, figures, the best step."""
    metrics = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))
    weights = load_file(directory / "model" / "model.safetensors")
    return {
        "weights": {name: value.tobytes() for name, value in weights.items()},
        "splits": metrics["splits"],
        "steps": [metrics["training"][name] for name in ("steps", "best_step", "epochs")],
    }


class Soak:
    """Counts what was done to runs and how they ended."""

    def __init__(self, root: Path, seed: int) -> None:
        self.site = Site(root)
        self.generator = random.Random(seed)
        self.kinds = [(recipe, world) for world in (1, 2) for recipe in RECIPES]
        self.references: dict[tuple[str, int], tuple[Outcome, dict[str, object]]] = {}
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []

    def refer(self, recipe: str, world: int) -> tuple[Outcome, dict[str, object]]:
        """Return the undisturbed run of a kind, made once."""
        if (recipe, world) not in self.references:
            name = f"reference-{recipe}-{world}"
            outcome = self.site.start(name, recipe, world)
            if outcome.codes != [0] * world:
                raise SystemExit(f"The undisturbed run {name} failed:\n{outcome.messages}")
            result = read_result(self.site.root / name / "run")
            self.references[recipe, world] = (outcome, result)
        return self.references[recipe, world]

    def do_round(self, number: int) -> None:
        """Disturb one run up to MOST_FAULTS times, let it end, and compare."""
        recipe, world = self.kinds[number % len(self.kinds)]
        reference, expected = self.refer(recipe, world)
        name = f"round-{number}"
        folder = self.site.root / name
        label = f"round {number} ({recipe}, {world} processes)"
        newest: str | None = None
        for _ in range(self.generator.randint(1, MOST_FAULTS)):
            fault = draw_fault(self.generator, reference, world)
            outcome = self.site.start(name, recipe, world, fault)
            self._note_start(label, outcome, newest)
            if not is_expected(fault, outcome):
                self.failures.append(f"{label}: {fault} -> {outcome}")
            if all(code == 0 for code in outcome.codes):
                self.counts["runs that ended before their fault"] += 1
                break
            self.counts[signal.Signals(fault.number).name] += 1
            if (folder / "run" / "metrics.json").is_file():
                break
            newest = self.site.newest(folder)
        else:
            outcome = self.site.start(name, recipe, world)
            self._note_start(label, outcome, newest)
            if outcome.codes != [0] * world:
                self.failures.append(f"{label}: did not end: {outcome}")
        self.counts["rounds"] += 1
        try:
            same = read_result(folder / "run") == expected
        except OSError as error:
            same = False
            self.failures.append(f"{label}: {error}")
        self.counts["bit-identical" if same else "different"] += 1
        if not same:
            self.failures.append(f"{label}: another result than the undisturbed run")
        else:
            self.site.remove(name)

    def _note_start(self, label: str, outcome: Outcome, newest: str | None) -> None:
        if outcome.resumed_from is not None:
            self.counts["resumed from a checkpoint"] += 1
        if outcome.began and outcome.resumed_from != newest:
            self.failures.append(f"{label}: resumed from {outcome.resumed_from}, not {newest}")


def main() -> int:
    """Do rounds until the number of rounds or the time is used up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10**9)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    deadline = time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory(prefix="siglip_flowers_soak_") as root:
        soak = Soak(Path(root), arguments.seed)
        for number in range(arguments.rounds):
            if time.monotonic() > deadline:
                break
            soak.do_round(number)
    report = {"counts": dict(sorted(soak.counts.items())), "failures": soak.failures}
    print(json.dumps(report, indent=2))
    return 1 if soak.failures else 0


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
