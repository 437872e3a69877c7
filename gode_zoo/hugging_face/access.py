"""How this package talks to the Hub: a bound on each wait, a retry of what may pass, and errors that say what to do.

The clients of huggingface_hub wait for ever by default, do not repeat a commit that met a 503, and raise a dozen kinds
of errors. Everything that publishes or downloads goes through here.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

__all__ = ["DEFAULT_TIMEOUT", "HubError", "bounded_requests", "explained", "is_offline", "repository", "with_retries"]

DEFAULT_TIMEOUT = 20.0  # seconds that one request may keep silent
_PAUSES = (1.0, 2.0, 4.0)  # seconds before each repetition
_TRANSIENT = (408, 429, 500, 502, 503, 504)

_logger = logging.getLogger(__name__)
T = TypeVar("T")


class HubError(RuntimeError):
    """The Hub could not be reached, refused, or does not have what was asked for; the message says what to do."""


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE is set, as huggingface_hub read it."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def repository(name: str) -> tuple[str, str | None]:
    """``[hf-hub:]ORG/NAME[@REVISION]`` as its id and its revision.

    Raises:
        ValueError: it is not of that form.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    repo_id, at, revision = name.removeprefix("hf-hub:").partition("@")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"repository {repo_id!r}: must be ORG/NAME ({' '.join(str(error).split())})") from None
    if repo_id.count("/") != 1 or (at and not revision):
        raise ValueError(f"repository {name!r}: must be ORG/NAME or ORG/NAME@REVISION")
    return repo_id, revision or None


@contextmanager
def bounded_requests(timeout: float) -> Iterator[None]:
    """Within it no request of huggingface_hub in this process is silent for more than `timeout` seconds.

    huggingface_hub has no such setting for its commits, uploads and tags, so its shared HTTP client is exchanged.

    Raises:
        ValueError: `timeout` is not positive.
    """
    if not timeout > 0:
        raise ValueError(f"timeout = {timeout} must be more than 0 seconds")
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    before = _http._GLOBAL_CLIENT_FACTORY  # there is no public way to ask for it

    def bounded() -> object:
        client = before()
        client.timeout = timeout
        return client

    set_client_factory(bounded)  # type: ignore[arg-type]
    try:
        yield
    finally:
        set_client_factory(before)


def with_retries(what: str, call: Callable[[], T]) -> T:
    """`call()`, up to three times again where the Hub is busy or the connection broke.

    Args:
        what: is being done, for the log.
    """
    for pause in _PAUSES:
        try:
            return call()
        except Exception as error:
            if not _may_pass(error):
                raise
            _logger.warning("%s: %s; again in %g s", what, _first_line(error), pause)
            time.sleep(pause)
    return call()


def _may_pass(error: BaseException) -> bool:
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return False
    if isinstance(error, json.JSONDecodeError):  # the page of a proxy that cannot reach the Hub
        return True
    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code in _TRANSIENT
    # No answer at all. After a time-out the user has waited long enough, and is told to run the command again.
    return isinstance(error, HTTPError) and "Timeout" not in type(error).__name__


@contextmanager
def explained(repo_id: str, revision: str | None, doing: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into one `HubError` that says what happened and what to do.

    Args:
        doing: what was tried, such as ``"publish"`` or ``"download"``.
    """
    from huggingface_hub import errors

    where = f"{repo_id}@{revision}" if revision else repo_id
    try:
        yield
    except errors.RevisionNotFoundError:
        raise HubError(
            f"cannot {doing} {where}: the repository has no revision {revision!r}: give a branch, tag or commit that it "
            f"has; `hf repos branch create {repo_id} BRANCH` makes a branch"
        ) from None
    except errors.LocalEntryNotFoundError as error:
        raise HubError(f"cannot {doing} {where}: {_reason(error.__cause__ or error, repo_id)}") from None
    except errors.EntryNotFoundError as error:
        raise HubError(
            f"cannot {doing} {where}: a file is missing ({_first_line(error)}): is it a repository of gode_zoo?"
        ) from None
    except (errors.HfHubHTTPError, errors.HTTPError, errors.OfflineModeIsEnabled) as error:
        raise HubError(f"cannot {doing} {where}: {_reason(error, repo_id)}") from None
    except json.JSONDecodeError:
        raise HubError(
            f"cannot {doing} {where}: the answer is not the Hub's: check HF_ENDPOINT and proxies, and run the same "
            "command again later"
        ) from None
    except RuntimeError as error:
        # huggingface_hub wraps what went wrong in an upload.
        if isinstance(error.__cause__, errors.HTTPError | OSError):
            raise HubError(f"cannot {doing} {where}: {_reason(error.__cause__, repo_id)}") from None
        raise


def _reason(error: BaseException, repo_id: str) -> str:
    from huggingface_hub import errors, get_token

    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    login = "log in with `hf auth login`, or set HF_TOKEN to a token that may"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it to use the network"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"the Hub knows no such repository, or it is private and you may not see it (HTTP {status}): check the "
            f"name, or {login} read it"
        )
    if status == 401:
        given = "the token was refused" if get_token() else "no token was given"
        return f"{given} (HTTP 401): {login} write to {repo_id.partition('/')[0]}"
    if status == 403:
        return f"your token may not do that (HTTP 403): {login} write to {repo_id.partition('/')[0]}"
    if status == 412:
        return (
            "somebody else committed to it meanwhile (HTTP 412): nothing of yours was published; look at their commit "
            "and run the same command again"
        )
    if status is not None:
        return f"the Hub answered with an error ({_first_line(error)}): run the same command again later"
    kind = "did not answer in time" if "Timeout" in type(error).__name__ else "cannot be reached"
    return (
        f"the Hub {kind} ({_first_line(error) or type(error).__name__}): check the network and HF_ENDPOINT, and run "
        "the same command again"
    )


def _first_line(error: BaseException) -> str:
    """The message on one line, without the token if it should be in there."""
    from huggingface_hub import get_token

    text = " ".join(str(error).split())[:300]
    token = get_token()
    return text.replace(token, "<token>") if token else text
