"""The Hugging Face hub, asked once and with a short limit: its own libraries would try for half a minute."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sae.errors import SaescopeError, first_line

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")
TIMEOUT_S = 10.0
OFFLINE = "HF_HUB_OFFLINE is set and it is not in the local cache"


def ask(question: Callable[["HfApi"], T]) -> tuple[T | None, str]:
    """What the hub answers and "", or None and why there is no answer; under HF_HUB_OFFLINE that is `OFFLINE`.

    Args:
        question: what is asked, with `timeout=TIMEOUT_S`.
    """
    from huggingface_hub import HfApi, errors
    from huggingface_hub.utils import HFValidationError

    try:
        return question(HfApi()), ""
    except errors.OfflineModeIsEnabled:
        return None, OFFLINE
    except errors.GatedRepoError:
        return None, "it is gated: accept its terms on the hub and log in with `hf auth login`"
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, HFValidationError):
        return None, "the hub has none of this name or revision"
    except transport_errors() as error:
        return None, f"the hub does not answer: {first_line(error)}"


def transport_errors() -> tuple[type[Exception], ...]:
    """What the hub client raises for an unreachable or refusing host: its HTTP library differs between versions."""
    from huggingface_hub import errors

    http_error = next(base for base in errors.HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
    return http_error, OSError


def folder(repo: str, inside: str, revision: str | None, names: Sequence[str]) -> tuple[Path, str]:
    """A folder of a repository with those of these files that it has, and the commit they are of.

    The hub is asked once, with a short limit; without an answer the hub's local cache is looked into. Nothing but these
    files is fetched.

    Args:
        repo: ORG/NAME.
        inside: the folder in the repository; empty for its root.
        revision: branch, tag or commit; None for `main`.
        names: the files that are wanted.

    Raises:
        SaescopeError: no such repository, revision or folder, and none in the local cache.
    """
    from huggingface_hub import snapshot_download

    commit, reason = ask(lambda api: api.model_info(repo, revision=revision, timeout=TIMEOUT_S).sha)
    patterns = [f"{inside}/{name}".lstrip("/") for name in names]
    try:
        snapshot = Path(snapshot_download(
            repo, revision=commit or revision, allow_patterns=patterns, local_files_only=commit is None,
            etag_timeout=TIMEOUT_S,
        ))
    except _unavailable() as error:
        raise SaescopeError(f"{repo} cannot be had from the Hugging Face hub ({reason or first_line(error)}).") from None
    if not any((snapshot / pattern).is_file() for pattern in patterns):
        raise SaescopeError(
            f"{repo} has none of {', '.join(names)} in {inside or 'its root'} at {snapshot.name}"
            f"{f', as far as the local cache goes ({reason})' if reason else ''}; name the folder that holds the SAE."
        )
    return snapshot / inside, snapshot.name


def _unavailable() -> tuple[type[Exception], ...]:
    return ValueError, *transport_errors()
