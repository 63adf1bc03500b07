"""Options of ``siglip-flowers demo``."""

import socket
from dataclasses import dataclass

from siglip_flowers.base.errors import InputError
from siglip_flowers.config.fields import DTYPES, check_choice, check_positive, check_range, option


@dataclass
class DemoArguments:
    """The model of the page, and where the page is served."""

    model: str | None = option(
        None,
        "A model directory (results/my-run/model, or the run's directory) or a Hub "
        "id; default: the newest model under results/.",
        path=True,
    )
    host: str = option(
        "127.0.0.1",
        "Address to serve on. 127.0.0.1 is this machine alone; 0.0.0.0 admits "
        "everybody who can reach it.",
    )
    port: int = option(7860, "Port to serve on.")
    top_k: int = option(5, "Classes named for an image.")
    neighbors: int = option(
        6,
        "Nearest training images to show; 0 shows none and requires no data. The data "
        "are those of the model's training, unless data options name others.",
    )
    dtype: str = option(
        "auto",
        "dtype of the encoder: auto (bfloat16 if the device computes it natively, else "
        "float32), float32, bfloat16, or float16 on CUDA.",
    )

    def __post_init__(self) -> None:
        check_range("port", self.port, 1, 65535)
        check_positive("top_k", self.top_k)
        check_range("neighbors", self.neighbors, 0, 1000)
        check_choice("dtype", self.dtype, DTYPES)

    def check_address(self) -> None:
        """Raise InputError unless the page can be served on host and port."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            socket.create_server((self.host, self.port), family=family).close()
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"The page cannot be served on {self.host}:{self.port} ({reason}); choose another "
                "--port or --host."
            ) from error
