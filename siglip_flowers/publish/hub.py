"""Push a directory to the Hugging Face Hub."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import logging as hub_logging

from siglip_flowers.base.errors import RunError
from siglip_flowers.model.weights import first_line

LOGIN = "log in with 'hf auth login' or set HF_TOKEN"
REMEDIES = {
    401: LOGIN,
    403: "use a token with write access, or another name",
    404: "check the name and the rights of the token",
}
# Weights and code that an earlier push of another model may have left.
REPLACED_FILES = ["*.safetensors", "*.safetensors.index.json", "*.py"]
# Base class of the errors of the HTTP library, which differs between versions of the client.
HTTPError: type[Exception] = HfHubHTTPError.__mro__[1]


def check_hub_access(hub_model_id: str) -> None:
    """Raise RunError unless the Hub can be reached and accepts the token."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() not in ("", "0", "FALSE", "NO", "OFF"):
        raise RunError(f"{hub_model_id} cannot be pushed while HF_HUB_OFFLINE is set; unset it.")
    if get_token() is None:
        raise RunError(f"{hub_model_id} cannot be pushed without a token; {LOGIN}.")
    with _explained_errors(hub_model_id):
        HfApi().whoami()


def push_directory(
    directory: Path, hub_model_id: str, *, private: bool | None = None, message: str
) -> str:
    """Upload a directory in one commit and return its address.

    Files that an interrupted push has uploaded already are not uploaded again.

    Args:
        directory: The files.
        hub_model_id: ``ORG/NAME``; created if missing.
        private: Whether a new repository is private; None uses the organization's setting.
        message: Title of the commit.

    Raises:
        RunError: The Hub refused, failed or could not be reached.
    """
    api = HfApi()
    with _explained_errors(hub_model_id):
        api.create_repo(hub_model_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=hub_model_id,
            folder_path=directory,
            commit_message=message,
            delete_patterns=REPLACED_FILES,
        )
    return f"{constants.ENDPOINT}/{hub_model_id}"


@contextmanager
def _explained_errors(hub_model_id: str) -> Iterator[None]:
    verbosity = hub_logging.get_verbosity()
    # The client would log the addresses of uploads, which are signed.
    hub_logging.set_verbosity_error()
    try:
        yield
    except (HTTPError, OSError, RuntimeError) as error:
        raise RunError(f"{hub_model_id} could not be pushed: {explain_failure(error)}.") from error
    finally:
        hub_logging.set_verbosity(verbosity)


def explain_failure(error: BaseException) -> str:
    """Return why a call of the Hub failed, in the words of the library, and what to do."""
    # Uploads wrap the error of the request.
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    retry = "try again later with the same command, which uploads only what is missing"
    if isinstance(error, HfHubHTTPError):
        status: int = error.response.status_code
        told = " ".join((error.server_message or "").split()).rstrip(".") or first_line(error)
        return f"the Hub answered {status} ({told}); {REMEDIES.get(status, retry)}"
    reason = f"{type(error).__name__}: {first_line(error)}"
    return f"{constants.ENDPOINT} could not be reached ({reason}); check the network and {retry}"
