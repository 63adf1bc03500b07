"""Whether the page can be served at an address; without anything slow to import."""

import socket

from siglip_flowers.base.errors import InputError


def check_port(host: str, port: int) -> None:
    """Raise InputError unless the address can be served on."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            # As the server does: an address that a server has just left is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"The page cannot be served on {host}:{port} ({reason}); choose another --port or "
            "--host."
        ) from error
