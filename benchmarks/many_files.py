"""Time until the first step, and memory, as files become many: image folders and tables.

    python -m benchmarks.many_files --photographs ../shared/flowers102-full-size

Hard links to photographs make image folders of 1,000 classes and Parquet tables of the same files,
below --work_dir on the same disk. train.py takes one step of each, with an empty cache. Writes
many_files_cpu.json and .md.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import torch

from benchmarks.harness import REPOSITORY, SAMPLING_SECONDS, read_status
from benchmarks.images import SHARED
from benchmarks.report import RESULTS, format_bytes, format_table, write_report
from siglip_flowers.base.errors import RunError

CLASSES = 1000
COLUMNS = ["files", "source", "seconds to step 1", "of processors", "anonymous memory"]


def write_links(folder: Path, photographs: list[Path], count: int) -> None:
    """Make an image folder of hard links, and a table of the same files beside it."""
    columns: dict[str, list[str]] = {"image": [], "label": []}
    for label in range(CLASSES):
        name = f"class {label:04d}"
        place = folder / "images" / name
        place.mkdir(parents=True)
        for number in range(label, count, CLASSES):
            path = f"{place}/{number:07d}.jpg"
            os.link(photographs[number % len(photographs)], path)
            columns["image"].append(path)
            columns["label"].append(name)
    pa.parquet.write_table(pa.table(columns), folder / "table.parquet")


def train_one_step(data: Path, model: str, work_dir: Path) -> dict[str, float]:
    """Run train.py to the line of step 1; return the seconds until then, and peak memory."""
    words = [
        *("--data_dir", str(data), "--model_name_or_path", model, "--allow_duplicates"),
        *("--max_steps", "1", "--logging_steps", "1", "--report_to", "none"),
        *("--max_eval_samples", "256", "--train_eval_samples", "256"),
        *("--output_dir", str(work_dir / "run"), "--cache_dir", str(work_dir / "cache")),
    ]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(work_dir / "datasets")}
    log, began, peak = work_dir / "log", time.perf_counter(), 0
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "train.py", *words], cwd=REPOSITORY, env=environment, stdout=file
        )
        while "\nstep 1/1" not in log.read_text(encoding="utf-8"):
            if process.poll() is not None:
                raise RunError(f"train.py {' '.join(words)} ended with {process.returncode}.")
            peak = max(peak, read_status("RssAnon", process.pid) or 0)
            time.sleep(SAMPLING_SECONDS)
    seconds = time.perf_counter() - began
    process.kill()
    _, _, used = os.wait4(process.pid, 0)
    processors = used.ru_utime + used.ru_stime
    return {"seconds": seconds, "processor_seconds": processors, "anonymous_bytes": peak}


def main() -> None:
    """Measure every size, each as a folder and as a table, and write the results."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--photographs", type=Path, default=SHARED / "flowers102-full-size")
    parser.add_argument("--model_name_or_path", default=str(SHARED / "siglip-nano"))
    parser.add_argument("--files", type=int, nargs="+", default=[10**4, 10**5, 10**6])
    parser.add_argument("--work_dir", type=Path, default=REPOSITORY / "results")
    parser.add_argument("--output_dir", type=Path, default=RESULTS)
    options = parser.parse_args()
    photographs = sorted(options.photographs.resolve().rglob("*.jpg"))
    settings = {"classes": CLASSES, "photographs": len(photographs)}
    results: dict[str, dict[str, Any]] = {}
    rows = []
    for count in options.files:
        with tempfile.TemporaryDirectory(prefix="many_", dir=options.work_dir) as directory:
            write_links(Path(directory), photographs, count)
            for source, name in (("folder", "images"), ("table", "table.parquet")):
                with tempfile.TemporaryDirectory(dir=directory) as work_dir:
                    data = Path(directory) / name
                    cell = train_one_step(data, options.model_name_or_path, Path(work_dir))
                results.setdefault(str(count), {})[source] = cell
                seconds, used, memory = cell.values()
                rows.append([f"{count:,}", source, seconds, used, format_bytes(int(memory))])
                print(rows[-1], flush=True)
        facts = ("many_files", torch.device("cpu"), "python -m benchmarks.many_files", settings)
        write_report(*facts, results, format_table(COLUMNS, rows), options.output_dir)


if __name__ == "__main__":
    main()
