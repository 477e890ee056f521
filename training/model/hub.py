"""The Hugging Face hub, asked once and with a short limit: its own libraries would try for half a minute."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from sae.errors import first_line

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
