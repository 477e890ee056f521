"""Query the Hugging Face hub once with a short timeout; its own libraries would retry for half a minute."""

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
    """Return the hub's answer and "", or None and the reason; with HF_HUB_OFFLINE the reason is `OFFLINE`.

    Args:
        question: the API call, with `timeout=TIMEOUT_S`.
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
        return None, "the hub has nothing with this name or revision"
    except transport_errors() as error:
        return None, f"the hub doesn't answer: {first_line(error)}"


def transport_errors() -> tuple[type[Exception], ...]:
    """Errors of the hub client for an unreachable or refusing host; its HTTP library differs between versions."""
    from huggingface_hub import errors

    http_error = next(base for base in errors.HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
    return http_error, OSError


def folder(repo: str, inside: str, revision: str | None, names: Sequence[str]) -> tuple[Path, str]:
    """Download the given files of a repository folder, as far as they exist; return the local folder and the commit.

    The hub is queried once, with a short timeout; if it doesn't answer, the local hub cache is used. No other files are
    downloaded.

    Args:
        repo: ORG/NAME.
        inside: folder in the repository; empty for its root.
        revision: branch, tag or commit; None for `main`.
        names: names of the files.

    Raises:
        SaescopeError: no such repository, revision or folder, and not in the local cache.
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
        raise SaescopeError(f"cannot download {repo} from the Hugging Face hub ({reason or first_line(error)}).") from None
    if not any((snapshot / pattern).is_file() for pattern in patterns):
        raise SaescopeError(
            f"{repo} has none of {', '.join(names)} in {inside or 'its root'} at {snapshot.name}"
            f"{f', according to the local cache ({reason})' if reason else ''}; give the folder that contains the SAE."
        )
    return snapshot / inside, snapshot.name


def _unavailable() -> tuple[type[Exception], ...]:
    return ValueError, *transport_errors()
