"""The Hugging Face Hub: names of it stand wherever a folder may, and what of a stage's folder is shared there.

A name is `owner/name`, or `owner/name@revision` with a branch, tag or commit.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, snapshot_download

from llmrec.files import read_json, write_json

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt", "*.h5", "*.msgpack", "*.onnx")
# What a run keeps for itself: how to go on, and paths of this machine. No copy of its result has it.
OF_THE_RUN = ("checkpoint-*", "stage.json", "trainer_state.json", "training_args.bin", "runs")
_NOT_SHARED = (*OF_THE_RUN, *_PICKLES, "adapter*", "completions", "catalogue", "_*", ".*")
_SETTINGS = ("config", "settings", "spec")  # of JSON files of ours, which may name files of this machine
_KINDS = {"model": "model", "dataset": "data set"}


def is_hub_name(name: str | Path) -> bool:
    """Whether a text can be a name of the Hub, and is no folder or file here."""
    return bool(_NAME.fullmatch(str(name))) and not Path(name).exists()


def without_revision(name: str) -> str:
    """`owner/name` of `owner/name@revision`."""
    return name.partition("@")[0]


def named_revision(revision: str | None) -> str | None:
    """Of TRL's `model_revision`, which says main where nobody named one."""
    return None if revision == "main" else revision


def repository(name: str | Path, revision: str | None = None) -> tuple[str, str | None]:
    """`(owner/name, revision)` of a name of the Hub; anything else is given back as it is, without one.

    Raises:
        ValueError: two revisions, or a revision of what is no name of the Hub.
    """
    if not is_hub_name(name):
        if revision is not None:
            raise ValueError(f"{name} is a folder on this machine: revision={revision!r} is for names of the Hub")
        return str(name), None
    called, _, named = str(name).partition("@")
    if named and revision not in (None, named):
        raise ValueError(f"{name} names a revision, and revision={revision!r} another one")
    return called, named or revision


def local_folder(
    name: str | Path, revision: str | None = None, token: str | bool | None = None, kind: str = "model"
) -> Path:
    """The folder of that name, or that of a model (`kind="dataset"`: a data set) of the Hub, which is downloaded once,
    without what is no data (pickles). What can be neither is given back as it is. Raises `ValueError`: the Hub has
    none of that name and revision, or cannot be reached; or as `repository` does.
    """
    called, revision = repository(name, revision)
    if not is_hub_name(name):
        return Path(name)
    try:
        wanted = {"revision": revision, "token": token, "ignore_patterns": list(_PICKLES)}
        return Path(snapshot_download(called, repo_type=kind, **wanted))
    except Exception as error:
        raise ValueError(f"{name} is neither a folder nor a {_KINDS[kind]} of the Hub that can be reached") from error


@contextmanager
def shared_files(*folders: str | Path) -> Iterator[Path]:
    """A temporary folder with links to what of these is for others: nothing of a run, no pickle, no hidden file, no
    changes of a served catalogue, and no card, which is written anew. A file that shall differ is replaced there."""
    with tempfile.TemporaryDirectory() as temporary:
        for folder in folders:
            source, ignored = Path(folder).resolve(), shutil.ignore_patterns(*_NOT_SHARED, "README.md")
            shutil.copytree(source, temporary, ignore=ignored, copy_function=os.symlink, dirs_exist_ok=True)
        yield Path(temporary)


def upload(
    folders: list[str | Path],
    repo_id: str,
    finish: Callable[[Path, str], None],
    kind: str = "model",
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload with llmrec",
) -> CommitInfo:
    """Uploads what of these folders is for others; the repository and the branch are made where there are none.

    Args:
        finish: called with the files, in a temporary folder, and the repository's whole name: writes the card.

    What runs of older versions left in the repository (checkpoints, paths) is removed from it.
    """
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(repo_id, repo_type=kind, branch=revision, exist_ok=True)
    with shared_files(*folders) as files:
        finish(files, repo_id)
        return api.upload_folder(
            repo_id=repo_id,
            repo_type=kind,
            folder_path=files,
            revision=revision,
            commit_message=commit_message,
            delete_patterns=[*OF_THE_RUN, "runs/*", "adapter_*"],
        )


def without_paths(value):
    """`value`, in whose nested dicts and lists a text that names a place on this machine is the name of the file or
    folder alone."""
    if isinstance(value, dict):
        return {key: without_paths(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(part) for part in value]
    if isinstance(value, Path) or (isinstance(value, str) and os.sep in value):
        path = Path(value)
        if path.is_absolute() or path.exists() or path.parent.is_dir():
            return path.name
    return value


def name_no_places(paths: Iterable[Path]) -> None:
    """Replaces, among shared files, JSON of ours whose settings name places on this machine."""
    for path in paths:
        value = read_json(path)
        clean = {name: without_paths(part) if name in _SETTINGS else part for name, part in value.items()}
        if clean != value:
            path.unlink()  # it may be a link
            write_json(path, clean)
