"""How fast training goes, and how much of the time it waits for data."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Throughput:
    """Counts images and seconds of training; evaluation and saving are left out.

    Seconds are those of the host. On a GPU, whose work the host only queues, they are right over
    many steps, and the wait for data is what remains visible of it.
    """

    def __init__(self) -> None:
        self.images = 0
        self.seconds = 0.0
        self.waited = 0.0
        self._window_images = 0
        self._window_waited = 0.0
        self._window_start: float | None = None
        self._paused = 0.0
        self._pauses = 0

    def start(self) -> None:
        """Begin to count time."""
        self._window_start = time.perf_counter()
        self._paused = 0.0

    def count(self, images: int) -> None:
        """Count images that were trained on."""
        self._window_images += images

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block as waiting for data."""
        began = time.perf_counter()
        yield
        self._window_waited += time.perf_counter() - began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of the block out; a block within another counts as part of it."""
        began = time.perf_counter()
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1
        if self._pauses == 0:
            self._paused += time.perf_counter() - began

    def close_window(self) -> dict[str, float]:
        """Return ``images_per_second`` and ``data_wait``, a share, since the last call."""
        if self._window_start is None:
            return {}
        seconds = time.perf_counter() - self._window_start - self._paused
        images, waited = self._window_images, self._window_waited
        self.images += images
        self.seconds += seconds
        self.waited += waited
        self._window_images, self._window_waited = 0, 0.0
        self.start()
        if seconds <= 0 or not images:
            return {}
        return {"images_per_second": images / seconds, "data_wait": min(1.0, waited / seconds)}
