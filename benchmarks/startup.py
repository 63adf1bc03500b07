"""Time --help and a usage error of every command against importing torch.

    python -m benchmarks.startup --rounds 10

Every round starts each command once as a process of its own, so that a busy machine slows all of
them alike; the first round warms the file cache and does not count. Writes startup.json and
startup.md to --output_dir.
"""

import argparse
import os
import statistics
import sys
from pathlib import Path

from benchmarks.harness import time_commands
from benchmarks.report import RESULTS, format_table
from siglip_flowers.base.environment import describe_environment
from siglip_flowers.base.files import write_json, write_text

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


def main() -> int:
    """Measure, write the results, and return 1 if a command takes more than LIMIT times torch."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="Rounds that count.")
    parser.add_argument("--output_dir", type=Path, default=RESULTS)
    options = parser.parse_args()
    seconds = time_commands(COMMANDS, options.rounds)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {name: median / medians[BASELINE] for name, median in medians.items()}
    result = {
        "command": f"python -m benchmarks.startup --rounds {options.rounds}",
        **describe_environment(f"{os.cpu_count()} CPU cores"),
        "limit": LIMIT,
        "median_seconds": medians,
        "ratio_to_import_torch": ratios,
        "seconds": seconds,
    }
    table = format_table(
        ["python ...", "median, s", "fastest, s", "slowest, s", "times import torch"],
        [
            [f"`{name}`", medians[name], min(values), max(values), ratios[name]]
            for name, values in seconds.items()
        ],
    )
    write_json(options.output_dir / "startup.json", result)
    write_text(options.output_dir / "startup.md", f"{table}\n\n`{result['command']}`\n")
    print(table)
    return int(max(ratios.values()) > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
