"""Addresses of published runs: hf://user/name, hf://user/name@revision, or the name of one that comes with the package.

A revision is a branch, a tag or a commit.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from taming_jax import console, published
from taming_jax.errors import UserError, reason, show

WRITTEN = "an address is written hf://user/name, or hf://user/name@revision"
LIKE = re.compile(r"(hf|huggingface):|https?:/+(www\.)?(huggingface\.co|hf\.co)/", re.IGNORECASE)
FOLDERS = ("", *(f"{copy}/" for copy in published.COPIES.values()))
NETS = tuple(f"{folder}{file}" for folder in FOLDERS for file in (published.CONFIG, published.WEIGHTS))
OURS = Path(__file__).parents[1] / "nets"
NAMES = {"openmoji": OURS / "openmoji", "openmoji_tokenizer": OURS / "openmoji" / "first_stage"}  # of `make demo`
BESIDE = ("README.md", "evaluation.json", "pictures/*.png", "pictures/*.gif")  # what else a published run has


def is_hub(place: str | Path) -> bool:
    """Whether a text is an address on the hub, or is meant to be one."""
    return LIKE.match(str(place)) is not None


def is_name(place: str | Path) -> bool:
    """Whether a text is one of NAMES, and no file or folder here is called so."""
    return str(place) in NAMES and not os.path.lexists(place)


def is_address(place: str | Path) -> bool:
    """Whether a text leads to a published run and is no path of this machine."""
    return is_hub(place) or is_name(place)


def parse(address: str, kind: type[UserError] = UserError) -> tuple[str, str | None]:
    """-> ('user/name', revision or None). Raises `kind` for what is no address."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    found = re.fullmatch(r"hf://([^/@\s]+/[^/@\s]+)(?:@([^@\s]+))?", address)
    if found is None:
        raise kind(f"{show(address)}: {WRITTEN}")
    try:
        validate_repo_id(found[1])
    except HFValidationError as e:
        raise kind(f"{show(address)}: {reason(e).split(':')[0]}; {WRITTEN}") from e
    return found[1], found[2]


def find(place: str | Path, also: tuple[str, ...] = ()) -> Path:
    """The folder of a run: a path is as it is, a published run is downloaded into the hub's cache, unless it is there.

    also: patterns of files besides its nets. Raises UserError.
    """
    if not is_hub(place):
        return NAMES[str(place)] if is_name(place) else Path(place)
    from huggingface_hub import snapshot_download

    folder = begin(str(place))  # another repository's files may be large
    with telling(str(place)):
        snapshot_download(
            parse(str(place))[0],
            revision=folder.name,  # the commit
            allow_patterns=[*NETS, *also],
            tqdm_class=console.bar_class(),
            **client(),
        )
    return folder


def begin(address: str) -> Path:
    """Downloads the description of a published run alone, -> its folder. Raises UserError where it is none."""
    from huggingface_hub import hf_hub_download

    repo, revision = parse(address)
    with telling(address):
        folder = Path(hf_hub_download(repo, published.CONFIG, revision=revision, **client())).parent
    if not published.is_published(folder):
        raise UserError(f"{address} is no published run: its {published.CONFIG} is not of taming_jax")
    return folder


def client() -> dict[str, str]:
    """How we name ourselves to the hub."""
    from taming_jax import __version__

    return dict(library_name="taming_jax", library_version=__version__)


@contextmanager
def telling(address: str) -> Iterator[None]:
    """Within, what the hub or the network refuses is a UserError."""
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as e:
        raise UserError(
            f"{address} is given to those alone who accept its terms: do so on its page, then {LOGIN}"
        ) from e
    except errors.RepositoryNotFoundError as e:
        raise UserError(
            f"{address}: there is no such repository, or it is private and you are not logged in: {LOGIN}"
        ) from e
    except errors.RevisionNotFoundError as e:
        raise UserError(f"{address}: the repository has no such revision; it is a branch, a tag or a commit") from e
    except errors.RemoteEntryNotFoundError as e:
        raise UserError(f"{address} is no published run of taming_jax: it has no {published.CONFIG}") from e
    except errors.LocalTokenNotFoundError as e:
        raise UserError(f"{address}: you are not logged in: {LOGIN}") from e
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, httpx2.RequestError) as e:
        raise UserError(f"{address} cannot be reached, and is not in this machine's cache: {why_not(e)}") from e
    except errors.HfHubHTTPError as e:
        status, said = e.response.status_code, e.server_message or reason(e)
        what = {401: f"you are not logged in: {LOGIN}", 403: f"your token may not do this ({said}): {LOGIN}"}
        raise UserError(f"{address}: {what.get(status, f'the hub answers {status}: {said}')}") from e


LOGIN = "run `hf auth login`, or set HF_TOKEN"


def why_not(error: BaseException) -> str:
    """What keeps this machine from the hub, on one line."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    return f"is there a network? ({reason(error.__cause__ or error).split('. ')[0]})"
