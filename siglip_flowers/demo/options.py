"""Options of ``siglip-flowers demo``."""

import socket
from dataclasses import dataclass

from siglip_flowers.base.errors import InputError
from siglip_flowers.config.evaluation import DTYPE_HELP, MODEL_HELP
from siglip_flowers.config.fields import DTYPES, Options, between, option, positive


@dataclass
class DemoArguments(Options):
    """The model of the page, and where the page is served."""

    model: str | None = option(None, MODEL_HELP, path=True)
    host: str = option(
        "127.0.0.1",
        "Address to serve on. 127.0.0.1: this machine alone; 0.0.0.0: all who can reach it.",
    )
    port: int = option(7860, "Port to serve on.", between(1, 65535))
    top_k: int = option(5, "Classes to list for an image.", positive)
    neighbors: int = option(
        6, "Nearest training images to show; 0 shows none and requires no data.", between(0, 1000)
    )
    dtype: str = option("auto", DTYPE_HELP, DTYPES)

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
