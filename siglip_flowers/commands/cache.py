"""List or remove what is kept of decoded images: ``siglip-flowers cache``."""

import time

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.text import align_columns, count
from siglip_flowers.commands.entry import Command, run_command
from siglip_flowers.config import DataArguments
from siglip_flowers.config.data import CacheArguments

COMMAND = Command(
    "siglip-flowers cache",
    "List decoded pixels and encoded features with their sizes, or remove them.",
    (CacheArguments,),
    (),
    ("siglip-flowers cache", "siglip-flowers cache --remove_unused 30"),
)
SECONDS_PER_DAY = 86400


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and list the cache, without what was removed."""
    return run_command(COMMAND, _tidy, argv)


def _tidy(parsed: tuple[CacheArguments]) -> None:
    # Imports datasets, which --help does not need.
    from siglip_flowers.data.pixels.array_cache import (
        ARRAY_FILE,
        ENTRY_FILE,
        list_entries,
        locate_cache,
        remove_entry,
    )

    (options,) = parsed
    directory = locate_cache(DataArguments(cache_dir=options.cache_dir))
    entries, named = list_entries(directory), set(options.remove or ())
    unknown = named - {entry.name for entry in entries}
    if unknown:
        raise InputError(
            f"{directory} has no entry {min(unknown)!r}. 'siglip-flowers cache' lists all of them."
        )
    freed, rows, total = 0, [], 0
    for entry in entries:
        array = entry / ARRAY_FILE
        nbytes = array.stat().st_size if array.is_file() else 0
        days = (time.time() - (entry / ENTRY_FILE).stat().st_mtime) / SECONDS_PER_DAY
        unused = options.remove_unused is not None and days >= options.remove_unused
        if unused or entry.name in named:
            remove_entry(entry)
            freed += nbytes
        else:
            total += nbytes
            used = f"used {count(round(days), 'day')} ago"
            rows.append((entry.name, f"{nbytes / 1e6:,.1f} MB", used))
    if rows:
        print(align_columns(rows))
    removed = len(entries) - len(rows)
    if removed:
        print(f"removed {count(removed, 'entry', 'entries')}, {freed / 1e6:,.1f} MB")
    print(f"{directory}: {count(len(rows), 'entry', 'entries')}, {total / 1e6:,.1f} MB")
