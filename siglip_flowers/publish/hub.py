"""Push a directory to the Hugging Face Hub, and say in a sentence why that failed."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import logging as hub_logging

from siglip_flowers.base.errors import RunError

TOKEN_PLACES = "log in with 'hf auth login', or set HF_TOKEN"
# Left by an earlier push of another kind of model, they would be loaded beside or for this one.
REPLACED_FILES = ["*.safetensors", "*.safetensors.index.json", "*.py"]
# Of the client's errors, without naming the HTTP library, which differs between its versions.
NETWORK_ERRORS = (
    "CloseError",
    "ConnectError",
    "ConnectTimeout",
    "NetworkError",
    "PoolTimeout",
    "ProxyError",
    "ReadError",
    "ReadTimeout",
    "RemoteProtocolError",
    "WriteError",
    "WriteTimeout",
)


def check_hub_access(hub_model_id: str) -> None:
    """Raise RunError unless somebody is logged in to the Hub and it can be reached."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() not in ("", "0", "FALSE", "NO", "OFF"):
        raise RunError(
            f"{hub_model_id} cannot be pushed while HF_HUB_OFFLINE is set; unset it, or publish "
            "later from a machine with network."
        )
    if get_token() is None:
        raise RunError(f"{hub_model_id} cannot be pushed without a token; {TOKEN_PLACES}.")
    with explained_errors(hub_model_id):
        HfApi().whoami()


def push_directory(
    directory: Path, hub_model_id: str, *, private: bool | None = None, message: str
) -> str:
    """Upload a directory in one commit and return its address.

    What the Hub has already, from a push that broke off, is not uploaded again.

    Args:
        directory: The files.
        hub_model_id: ``ORG/NAME``; created if need be.
        private: Whether a new repository is private; None leaves that to the Hub.
        message: Title of the commit.

    Raises:
        RunError: The Hub refused, failed or was not reached.
    """
    api = HfApi()
    with explained_errors(hub_model_id):
        api.create_repo(hub_model_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=hub_model_id,
            folder_path=directory,
            commit_message=message,
            delete_patterns=REPLACED_FILES,
        )
    return f"{constants.ENDPOINT}/{hub_model_id}"


@contextmanager
def explained_errors(hub_model_id: str) -> Iterator[None]:
    """Turn what goes wrong between here and the Hub into a RunError of one sentence."""
    verbosity = hub_logging.get_verbosity()
    # It would name addresses of uploads, which carry signatures.
    hub_logging.set_verbosity_error()
    try:
        yield
    except Exception as error:
        reason = explain_failure(error)
        if reason is None:
            raise
        raise RunError(f"{hub_model_id} could not be pushed: {reason}.") from error
    finally:
        hub_logging.set_verbosity(verbosity)


def explain_failure(error: BaseException) -> str | None:
    """Return why talking to the Hub failed and what to do, or None for another kind of error."""
    cause: BaseException | None = error
    # Uploads wrap what happened in an error of their own.
    while cause is not None:
        if isinstance(cause, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set; unset it"
        if isinstance(cause, HfHubHTTPError):
            return _explain_response(cause)
        if type(cause).__name__ == "XetAuthenticationError":
            return _explain_status(_find_status(cause) or 401)
        if isinstance(cause, ConnectionError) and (status := _find_status(cause)):
            return _explain_status(status)
        if type(cause).__name__ in NETWORK_ERRORS or isinstance(cause, ConnectionError):
            return (
                f"{constants.ENDPOINT} cannot be reached or dropped the connection "
                f"({type(cause).__name__}); check the network and type the command again, which "
                "uploads only what is missing"
            )
        cause = cause.__cause__ or cause.__context__
    return None


def _explain_response(error: HfHubHTTPError) -> str:
    response: Any = error.response
    wait = str(response.headers.get("Retry-After", ""))
    told = error.server_message or "no reason given"
    return _explain_status(response.status_code, wait, " ".join(told.split()).rstrip("."))


def _find_status(error: BaseException) -> int | None:
    """Return the status that hf_xet, which has no errors for it, names in its text."""
    known = r"(401|403|404|429|5\d\d)"
    found = re.search(rf"\b{known} [A-Z]|[Ss]tatus\D{{0,20}}{known}\b", str(error))
    return int(found[1] or found[2]) if found else None


def _explain_status(status: int, wait: str = "", told: str = "no reason given") -> str:
    known = {
        401: f"the Hub does not accept the token (401); {TOKEN_PLACES}",
        403: "the token may not write there (403); use one with write access, or another name",
        404: "the Hub does not know that organization or model, or hides it from this token (404); "
        "check the name",
        429: "the Hub takes no more requests for now (429); wait "
        f"{f'{wait} seconds' if wait.isdigit() else 'a while'} and type the command again",
    }
    if status in known:
        return known[status]
    if status >= 500:
        return (
            f"the Hub failed ({status}); type the command again later, which uploads only what is "
            "missing"
        )
    return f"the Hub refused ({status}: {told})"
