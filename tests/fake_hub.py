"""A Hub that folders stand for: what huggingface_hub would send over the network is done here, all else is its own."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.hf_api
from huggingface_hub import CommitOperationAdd, DatasetCard, HfApi, ModelCard
from huggingface_hub.utils import filter_repo_objects

import llmrec.hub


class FakeHub:
    """Repositories in `folder/<model or dataset>/<owner>/<name>/<branch>`; `commits` says what each commit added and
    removed. Cards are validated as strictly as the library does."""

    def __init__(self, folder: Path, monkeypatch):
        self.folder, self.commits = folder, []
        for name in ("create_repo", "create_branch", "list_repo_files", "create_commit", "_validate_yaml"):
            method = getattr(self, name.strip("_"))
            monkeypatch.setattr(HfApi, name, lambda api, *args, _method=method, **kwargs: _method(*args, **kwargs))
        monkeypatch.setattr(huggingface_hub.hf_api, "is_xet_available", lambda: False)
        monkeypatch.setattr(llmrec.hub, "snapshot_download", self.snapshot_download)

    def at(self, repo_id: str, repo_type: str | None = None, revision: str | None = None) -> Path:
        return self.folder / (repo_type or "model") / repo_id / (revision or "main")

    def files(self, *args, **kwargs) -> set[str]:
        there = self.at(*args, **kwargs)
        return {path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()}

    def create_repo(self, repo_id, *, token=None, repo_type=None, private=None, exist_ok=False):
        repo_id = repo_id if "/" in repo_id else f"me/{repo_id}"
        self.at(repo_id, repo_type).mkdir(parents=True, exist_ok=exist_ok)
        return SimpleNamespace(repo_id=repo_id)

    def create_branch(self, repo_id, *, branch, repo_type=None, exist_ok=False):
        if not (there := self.at(repo_id, repo_type, branch)).exists():
            shutil.copytree(self.at(repo_id, repo_type), there)

    def list_repo_files(self, repo_id, *, revision=None, repo_type=None, token=None):
        return sorted(self.files(repo_id, repo_type, revision))

    def create_commit(self, repo_id, operations, *, commit_message, repo_type=None, revision=None, **kwargs):
        there, added, removed = self.at(repo_id, repo_type, revision), set(), set()
        for operation in operations:
            path = there / operation.path_in_repo
            if isinstance(operation, CommitOperationAdd):
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(operation.path_or_fileobj, path)
                added.add(operation.path_in_repo)
            else:
                path.unlink()
                removed.add(operation.path_in_repo)
        self.commits.append(SimpleNamespace(message=commit_message, added=added, removed=removed))
        return SimpleNamespace(repo_url=f"https://huggingface.co/{repo_id}")

    def validate_yaml(self, content, *, repo_type=None, token=None):
        card = {"model": ModelCard, "dataset": DatasetCard}[repo_type or "model"](content)  # raises where it is none
        assert card.data.to_dict()

    def snapshot_download(self, repo_id, *, repo_type=None, revision=None, token=None, ignore_patterns=None):
        if not self.at(repo_id, repo_type, revision).is_dir():
            raise OSError(f"404: there is no {repo_type} {repo_id} at {revision}")
        cache = self.folder / "cache" / (repo_type or "model") / repo_id / (revision or "main")
        shutil.rmtree(cache, ignore_errors=True)
        for name in filter_repo_objects(self.list_repo_files(repo_id, revision=revision, repo_type=repo_type),
                                        ignore_patterns=ignore_patterns):  # fmt: skip
            (cache / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.at(repo_id, repo_type, revision) / name, cache / name)
        return str(cache)
