"""Puts the files of a plan into a repository of the Hub in one commit, and checks what arrived."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import file_digest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import torch
from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelInfo,
    get_token,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..loading import load_checkpoint
from .plan import WEIGHTS, UploadPlan

logger = logging.getLogger(__name__)

_TRIES = 4
_FIRST_WAIT = 1.0  # seconds, doubled after every try
_Answer = TypeVar("_Answer")
# Broken connections and time-outs: HTTPError of httpx or httpx2, whichever this version of huggingface_hub uses, and
# what a download that does not reach the Hub ends with.
_HTTP_ERRORS: tuple[type[Exception], ...] = (HfHubHTTPError.__bases__[0], LocalEntryNotFoundError)
_FAILURES: tuple[type[Exception], ...] = (*_HTTP_ERRORS, RuntimeError)  # a failed upload is wrapped in the latter


@dataclass(frozen=True)
class Published:
    """What was published.

    Attributes:
        repo_id: name of the repository.
        commit: hash of the commit, for `revision=`.
        url: page of the commit.
        pull_request: page of the pull request, if one was opened.
        removed: weights of an earlier checkpoint that the commit removes.
    """

    repo_id: str
    commit: str
    url: str
    pull_request: str | None
    removed: tuple[str, ...]


def publish(
    plan: UploadPlan,
    repo_id: str,
    *,
    revision: str | None = None,
    private: bool = False,
    create_pr: bool = False,
    message: str = "Upload D-RMM detector",
) -> Published:
    """Create or update a model repository, then download the commit and compare it with the plan.

    All files, and the removal of weights that the new ones replace, are one commit on top of the state seen at the
    start: readers see the old checkpoint or the new one, never a mixture. Large files go first. Server errors and
    broken connections are tried again. The token is the one of `hf auth login` or HF_TOKEN.

    Args:
        plan: from `plan_upload`.
        repo_id: `user/name` or `organization/name`; created if there is none.
        revision: branch to publish on, created if there is none; main by default.
        private: create the repository as a private one; an existing public one is refused.
        create_pr: open a pull request (against `revision`) in place of a commit on the branch.
        message: title of the commit.

    Raises:
        PermissionError: no token, or the Hub refuses it.
        ConnectionError: the Hub cannot be reached or fails.
        ValueError: the repository is public, changed meanwhile, or does not hold what was sent.
    """
    if get_token() is None:
        raise PermissionError("no token for the Hub; run `hf auth login` or set HF_TOKEN")
    api = HfApi(library_name="drmm-hf")
    with _explained(repo_id, "Nothing was published"):
        before = _open_repository(api, repo_id, revision, private, create_pr)
        additions = [CommitOperationAdd(name, plan.staged / name) for name in plan.files]
        # apart from the commit, which is not tried again in the same way
        upload = partial(api.preupload_lfs_files, revision=revision, create_pr=create_pr, free_memory=False)
        _again(lambda: upload(repo_id, additions))
    present = [file.rfilename for file in before.siblings or ()]
    stale = tuple(name for name in present if WEIGHTS.fullmatch(name) and name not in plan.files)
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *additions,
        *(CommitOperationDelete(name) for name in stale),
    ]
    options: dict[str, Any] = {"revision": revision, "parent_commit": before.sha, "commit_message": message}
    if create_pr:  # tried once, because a second try could open a second one
        with _explained(repo_id, "Look whether the pull request is there before you run it again"):
            commit = api.create_commit(repo_id, operations, create_pr=True, **options)
    else:
        with _explained(repo_id, "Nothing was published"):
            commit = _commit_once(api, repo_id, operations, options)
    what = f"{repo_id} at {commit.oid}"
    with TemporaryDirectory(prefix="published-") as cache:
        with _explained(repo_id, f"{what} is published but not verified"):
            arrived = _again(lambda: api.snapshot_download(repo_id, revision=commit.oid, cache_dir=cache))
        _verify(plan, Path(arrived), what)
    return Published(repo_id, commit.oid, commit.commit_url, commit.pr_url, stale)


def _open_repository(api: HfApi, repo_id: str, revision: str | None, private: bool, create_pr: bool) -> ModelInfo:
    """The state to commit on; repository and branch are created if there are none."""
    _again(lambda: api.create_repo(repo_id, private=private or None, exist_ok=True))
    before = _again(lambda: api.model_info(repo_id))
    if private and not before.private:
        raise ValueError(f"{repo_id} exists and is public; make it private in its settings, or choose another name")
    if revision in (None, "main"):
        return before
    if not create_pr and not str(revision).startswith("refs/"):
        _again(lambda: api.create_branch(repo_id, branch=str(revision), exist_ok=True))
    return _again(lambda: api.model_info(repo_id, revision=revision))


def _commit_once(
    api: HfApi, repo_id: str, operations: list[CommitOperationAdd | CommitOperationDelete], options: dict[str, Any]
) -> CommitInfo:
    """Commit; made once even if the answer to it is lost and it is tried again."""
    tried = False

    def commit() -> CommitInfo:
        nonlocal tried
        if tried:
            now = api.model_info(repo_id, revision=options["revision"])
            if now.sha != options["parent_commit"]:  # the commit was made; if it is another's, the comparison tells
                return CommitInfo(
                    commit_url=f"{api.endpoint}/{repo_id}/commit/{now.sha}",
                    commit_message=options["commit_message"],
                    commit_description="",
                    oid=str(now.sha),
                )
        tried = True
        return api.create_commit(repo_id, operations, **options)

    return _again(commit)


def _verify(plan: UploadPlan, arrived: Path, what: str) -> None:
    """Compare files and the model's answers with those of the plan."""
    wrong = [name for name in plan.files if _digest(plan.staged / name) != _digest(arrived / name)]
    if wrong:
        raise ValueError(
            f"{what} does not hold what was sent: {', '.join(wrong)} missing or different; publish again, and tell "
            "your users to wait"
        )
    expected, found = _answers(plan.staged), _answers(arrived)
    for name, tensor in expected.items():
        if not torch.equal(tensor, found[name]):
            raise ValueError(f"{what}: the model's {name} differ from those of {plan.source}; publish again")


def _digest(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


@torch.inference_mode()
def _answers(folder: Path) -> dict[str, torch.Tensor]:
    """What a checkpoint says about one picture of noise."""
    model, processor = load_checkpoint(str(folder))
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    outputs = model.eval()(**processor(images=[image], return_tensors="pt"))
    return {"logits": outputs.logits, "boxes": outputs.pred_boxes}


def _again(call: Callable[[], _Answer]) -> _Answer:
    """Call it until the Hub answers without a failure of its own, at most `_TRIES` times."""
    wait = _FIRST_WAIT
    for left in reversed(range(_TRIES)):
        try:
            return call()
        except _FAILURES as error:
            failure = _passing_failure(error)
            if failure is None or not left:
                raise
            logger.warning("The Hub %s; trying again in %.0f s", failure, wait)
        time.sleep(wait)
        wait *= 2
    raise AssertionError("unreachable")


def _passing_failure(error: Exception) -> str | None:
    """What the Hub did, if it may do better the next time."""
    cause = error.__cause__ if isinstance(error, RuntimeError) else error
    if isinstance(cause, HfHubHTTPError):
        status = cause.response.status_code
        return f"answered {status}" if status >= 500 or status == 429 else None
    return f"broke off ({type(cause).__name__})" if isinstance(cause, _HTTP_ERRORS) else None


@contextmanager
def _explained(repo_id: str, state: str) -> Iterator[None]:
    """Errors of the Hub as one sentence with `state` and what to do; nothing of the request, which holds the token."""
    try:
        yield
    except (RuntimeError, ConnectionError, TimeoutError) as error:  # of an upload, by LFS or by Xet; offline mode
        cause = f" ({_first_line(error.__cause__)})" if error.__cause__ else ""
        raise ConnectionError(f"{_first_line(error)}{cause}. {state}; run it again") from None
    except RevisionNotFoundError:
        raise ValueError(f"{repo_id} has no such branch; a pull request needs one that exists") from None
    except HfHubHTTPError as error:
        raise _refusal(error, repo_id, state) from None
    except _HTTP_ERRORS as error:
        reason = f"{type(error).__name__}: {_first_line(error)}"
        raise ConnectionError(f"the Hub cannot be reached ({reason}). {state}; run it again") from None


def _refusal(error: HfHubHTTPError, repo_id: str, state: str) -> Exception:
    status = error.response.status_code
    said = f"the Hub answered {status}" + (f": {error.server_message}" if error.server_message else "")
    if status == 401 and not isinstance(error, RepositoryNotFoundError):
        return PermissionError(f"{said}. {state}: the Hub does not know the token; run `hf auth login` or set HF_TOKEN")
    if status in (401, 403, 404):
        return PermissionError(
            f"{said}. {state}: the token may not write to {repo_id}; check the name, and that the token has write "
            "access to it"
        )
    if status in (409, 412):
        return ValueError(f"{said}. {state}: {repo_id} changed meanwhile; run it again")
    return ConnectionError(f"{said}. {state}; run it again later")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
