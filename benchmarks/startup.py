"""Time --help and a usage error of every command against importing torch.

    python benchmarks/startup.py --rounds 10

Every round starts each command once as a process of its own, so that a busy machine slows all of
them alike; the first round warms the file cache and does not count. Writes startup.json and
startup.md to --output_dir.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
BASELINE = "import torch"
# What is shown, the arguments of python, and the exit code.
COMMANDS: dict[str, tuple[list[str], int]] = {
    BASELINE: (["-c", "import torch"], 0),
    "train.py --help": (["train.py", "--help"], 0),
    "eval.py --help": (["eval.py", "--help"], 0),
    "-m siglip_flowers experiment --help": (["-m", "siglip_flowers", "experiment", "--help"], 0),
    "train.py --lerning_rate 1": (["train.py", "--lerning_rate", "1"], 2),
}
LIMIT = 1.5


def measure_seconds(arguments: list[str], exit_code: int) -> float:
    """Start python once and return the wall-clock seconds until it has ended."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - start
    if done.returncode != exit_code:
        raise RuntimeError(f"python {' '.join(arguments)} gave {done.returncode}: {done.stderr}")
    return seconds


def measure_all(rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each command in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(rounds + 1):
        for name, (arguments, exit_code) in COMMANDS.items():
            measured = measure_seconds(arguments, exit_code)
            if number > 0:
                seconds[name].append(measured)
    return seconds


def format_table(seconds: dict[str, list[float]], facts: str) -> str:
    """Return the medians, the spread and the ratio to importing torch as Markdown."""
    baseline = statistics.median(seconds[BASELINE])
    lines = [
        "| python ... | median, s | fastest to slowest, s | times import torch |",
        "|---|---:|---:|---:|",
    ]
    for name, values in seconds.items():
        median = statistics.median(values)
        lines.append(
            f"| `{name}` | {median:.2f} | {min(values):.2f} to {max(values):.2f} "
            f"| {median / baseline:.2f} |"
        )
    return "\n".join([*lines, "", facts, ""])


def main() -> int:
    """Measure, write the results, and return 1 if a command takes more than LIMIT times torch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="Rounds that count.")
    parser.add_argument("--output_dir", type=Path, default=REPOSITORY / "benchmarks" / "results")
    options = parser.parse_args()
    seconds = measure_all(options.rounds)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {name: median / medians[BASELINE] for name, median in medians.items()}
    packages = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    command = f"python benchmarks/startup.py --rounds {options.rounds}"
    facts = (
        f"`{command}`; Python {platform.python_version()}, "
        + ", ".join(f"{name} {version}" for name, version in packages.items())
        + f", {os.cpu_count()} CPU cores."
    )
    result = {
        "command": command,
        "python": platform.python_version(),
        "packages": packages,
        "cpu_cores": os.cpu_count(),
        "limit": LIMIT,
        "median_seconds": medians,
        "ratio_to_import_torch": ratios,
        "seconds": seconds,
    }
    table = format_table(seconds, facts)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    (options.output_dir / "startup.json").write_text(json.dumps(result, indent=2) + "\n")
    (options.output_dir / "startup.md").write_text(table)
    print(table)
    return int(max(ratios.values()) > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
