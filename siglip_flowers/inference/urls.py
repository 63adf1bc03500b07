"""URLs of images: told from paths, and fetched within limits of size and time."""

import time
import urllib.error
import urllib.request

MAX_BYTES = 64 * 2**20
TIMEOUT_SECONDS = 20.0
CHUNK_BYTES = 2**16


def _build_opener() -> urllib.request.OpenerDirector:
    """Return an opener that knows http and https only, also when it is redirected."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def is_url(source: object) -> bool:
    """Return whether this is an http or https URL."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def fetch_image(
    url: str, *, max_bytes: int = MAX_BYTES, timeout_seconds: float = TIMEOUT_SECONDS
) -> bytes:
    """Return the bytes behind an http or https URL.

    Raises:
        OSError: It cannot be reached, answers with an error, is too large or takes too long.
        ValueError: It is no such URL.
    """
    if not is_url(url):
        raise ValueError("not an http or https URL")
    deadline = time.monotonic() + timeout_seconds
    request = urllib.request.Request(url, headers={"User-Agent": "siglip-flowers"})
    content = bytearray()
    try:
        with _build_opener().open(request, timeout=timeout_seconds) as response:
            # The socket's timeout is one of silence; a server that drips needs the deadline.
            while chunk := response.read1(CHUNK_BYTES):
                content += chunk
                if len(content) > max_bytes:
                    raise OSError(f"larger than {max_bytes / 2**20:g} MiB")
                if time.monotonic() > deadline:
                    raise TimeoutError
    except TimeoutError as error:
        raise OSError(f"no whole answer within {timeout_seconds:g} seconds") from error
    except urllib.error.HTTPError as error:
        raise OSError(f"HTTP {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise OSError(f"cannot be reached ({error.reason})") from error
    return bytes(content)
