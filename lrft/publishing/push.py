"""Upload of a folder to the hub, as a private repository unless it is said otherwise."""

from __future__ import annotations

from pathlib import Path

from lrft.errors import LrftError, MissingError
from lrft.model.load import quiet
from lrft.utils.hub_connection import unreachable


def upload(folder: Path, repo: str, *, public: bool, message: str) -> str:
    """Returns the address. What the hub has of an interrupted upload is not sent again.

    Raises MissingError when the hub cannot be reached or does not let this user in, LrftError for what else it refuses.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    if trouble := unreachable():
        raise MissingError(f"the hub cannot be reached ({trouble})", "Run the command again with network access.")
    api = HfApi(endpoint=constants.ENDPOINT)
    try:
        with quiet():
            made = api.create_repo(repo, private=not public, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
    except (HfHubHTTPError, LocalTokenNotFoundError) as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else 401
        said = str(error).strip().splitlines()[0]
        if status in (401, 403):
            raise MissingError(f"the hub does not let you write to {repo}: {said}", "Log in: hf auth login") from error
        raise LrftError(f"the hub refused {repo} ({status}): {said}", "Run the command again.") from error
    return str(made)
