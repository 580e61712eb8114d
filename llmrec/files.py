"""Writing to disk: every file or folder has one writer, appears whole or not at all, and carries a fingerprint."""

import atexit
import contextlib
import errno
import fcntl
import glob
import hashlib
import io
import json
import logging
import os
import shutil
import socket
import sys
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from llmrec.columns import plain_table

logger = logging.getLogger(__name__)
CHECKED = (".parquet", ".safetensors", ".npy", ".json", ".jinja")  # what `check_readable` can tell from a damaged file


class Lock:
    """The right to write a file or folder, which one process has at a time: until `release` or its end, whatever ends
    it.

    The kernel keeps it, on the hidden file `.<name>.lock` beside the output, which says who has it and goes when it is
    released; one that a killed process left is in nobody's way. Readers need none, forked children do not inherit it.
    What killed writers of this output left half-written beside it (`atomic_path`) is removed.

    Raises:
        ValueError: another process (or thread) writes there; its number, host and beginning. Or the folder that the
            output lies in cannot be written. A file system without locks is a warning.
    """

    _held: weakref.WeakSet = weakref.WeakSet()

    def __init__(self, path: str | Path):
        path = Path(path).resolve()
        self._file, self._handle = path.with_name(f".{path.name}.lock"), None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            while self._handle is None:
                self._handle = self._try()
        except BlockingIOError as error:
            owner = ""
            with contextlib.suppress(OSError):
                owner = self._file.read_text(encoding="utf-8")
            raise ValueError(
                f"{path} is being written by {owner or 'another process'}: wait until it is done, stop it, or choose "
                "another output"
            ) from error
        except OSError as error:
            raise ValueError(f"{self._file} cannot be locked ({error}): look who may write {path.parent}") from error
        me = f"process {os.getpid()} on {socket.gethostname()} since {datetime.now().astimezone():%Y-%m-%d %H:%M:%S%z}"
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, me.encode(), 0)
        Lock._held.add(self)
        remove_partial(path)

    def _try(self) -> int | None:
        """`None` where the file went meanwhile, as its owner was done."""
        handle = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), os.stat(self._file)):
                return handle
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                logger.warning("no locks where %s lies: take care that one process writes there", self._file.parent)
                return handle
            os.close(handle)
            raise
        os.close(handle)
        return None

    @property
    def held(self) -> bool:
        return self._handle is not None

    def release(self) -> None:
        if self._handle is not None:
            self._file.unlink(missing_ok=True)
            self._leave()

    def _leave(self) -> None:
        os.close(self._handle)
        self._handle = None
        Lock._held.discard(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.release()


os.register_at_fork(after_in_child=lambda: [lock._leave() for lock in [*Lock._held]])
atexit.register(lambda: [lock.release() for lock in [*Lock._held]])


def remove_partial(path: Path) -> None:
    """Removes what killed writers of `path` left half-written beside it (`atomic_path`)."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.partial-*"):
        shutil.rmtree(left, ignore_errors=True)


def check_folder(path: Path) -> Path:
    """`path`; raises `ValueError` where it is a file."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file, and should be a folder: move it, or choose another folder")
    return path


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is renamed to `path`, on an error it is removed.

    Works for a file (write to the yielded path) and for a folder (`mkdir` it). An existing folder is replaced; where
    `path` is a link, what it points to is. Raises `ValueError` where a file is in a folder's way, or a folder that has
    no name in common with the new one: it is somebody else's.
    """
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
    temporary = scratch / path.name
    try:
        yield temporary
        if temporary.is_dir() and path.exists():
            names = os.listdir(check_folder(path))
            if names and {*names}.isdisjoint(os.listdir(temporary)):
                raise ValueError(f"{path} holds files of somebody else: move them, or choose another folder")
            os.rename(path, scratch / "replaced")
        os.replace(temporary, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_json(path: str | Path, value) -> None:
    """Writes `value` as indented JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | Path, kind: type = dict):
    """Reads JSON that holds a mapping, or what `kind` says; a missing or damaged file, or one that holds something
    else, raises a `ValueError` that names it."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid UTF-8 JSON: {error}") from error
    if not isinstance(value, kind):
        raise ValueError(f"{path} holds {json.dumps(value)[:80]}, it should hold a mapping")
    return value


def write_parquet(path: str | Path, table: pa.Table) -> None:
    """Writes an Arrow table as parquet with checksums, whole or not at all."""
    with atomic_path(path) as temporary, parquet_writer(temporary, table.schema) as writer:
        writer.write_table(table)


def parquet_writer(path: str | Path, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True)


def read_parquet(path: str | Path, columns: list[str] | None = None) -> pa.Table:
    """Reads parquet, in plain types (`llmrec.columns`); a missing or unreadable file raises a `ValueError` that names
    it."""
    try:
        return plain_table(pq.read_table(path, columns=columns, page_checksum_verification=True))
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist") from error
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a readable parquet file: {error}") from error


def check_readable(path: str | Path) -> None:
    """Raises a `ValueError` that names a parquet, safetensors, `.npy`, JSON or `.jinja` file which is missing or cut
    short. Only JSON is read whole: of the others heads, ends and sizes must fit."""
    path = Path(path)
    try:
        if path.suffix == ".parquet":
            pq.read_metadata(path)
        elif path.suffix == ".safetensors":
            safe_open(path, "numpy").__exit__(None, None, None)
        elif path.suffix == ".npy":
            np.load(path, mmap_mode="r", allow_pickle=False)
        elif path.suffix == ".json":
            read_json(path, dict if path.name.endswith("config.json") else object)
        elif path.suffix == ".jinja":
            path.stat()
    except (OSError, ValueError, SafetensorError) as error:  # Arrow's are among them
        raise ValueError(f"{path} is missing or damaged ({error})") from error


def sizes_of(folder: Path) -> dict[str, int]:
    """Name and bytes of every file in a folder that `check_readable` knows; not of checkpoints and hidden files."""
    names = {file: file.relative_to(folder) for file in sorted(folder.rglob("*")) if file.suffix in CHECKED}
    passing = (".", "checkpoint-")
    return {
        str(name): file.stat().st_size
        for file, name in names.items()
        if not any(part.startswith(passing) for part in name.parts)
    }


def check_whole(folder: str | Path, sizes: dict[str, int] | None = None) -> None:
    """Raises a `ValueError` that names a file of a folder which is missing or damaged, or has another size than it had
    (`sizes_of`; a JSON may have been edited). Without `sizes` the files that are there are looked at."""
    folder = Path(folder)
    for name, size in (sizes_of(folder) if sizes is None else sizes).items():
        check_readable(file := folder / name)
        if file.suffix != ".json" and file.stat().st_size != size:
            raise ValueError(f"{file} has {file.stat().st_size:,} bytes, and had {size:,} when it was written")


@contextlib.contextmanager
def well_formed(path: str | Path) -> Iterator[None]:
    """Making something of what was read from a file or folder: what is missing there, or of another kind, becomes a
    `ValueError` that names it."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        said = f"{type(error).__name__}: {str(error)[:300]}"
        raise ValueError(f"{path} does not hold what it should ({said}): restore it, or make it again") from error


@contextlib.contextmanager
def made_again(path: Path) -> Iterator[None]:
    """Reading what would be made again if it were not there, such as a cache: a `ValueError` says so."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{error}: remove {path}, and it is made again") from error


def fingerprint(*parts: str | bytes | memoryview | pa.Table | Iterator[pa.Table], rows_at_once: int = 2**20) -> str:
    """16 hex digits of the SHA-256 over strings, bytes and the logical content of Arrow tables, or of a table that
    comes in pieces (at least one), however it is cut. Of so many rows a copy is made at once; with another number
    longer tables have another fingerprint."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, pa.Table | Iterator):
            pieces = _in_slices(iter([part]) if isinstance(part, pa.Table) else part, rows_at_once)
            for number, rows in enumerate(pieces):
                if not number:
                    digest.update(str(rows.schema.remove_metadata()).encode())
                _digest_rows(digest, rows.replace_schema_metadata(None))
        else:
            digest.update(part.encode() if isinstance(part, str) else part)
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def is_fingerprint_of(recorded: str, *tables: pa.Table) -> bool:
    """Whether tables have this fingerprint, by today's `fingerprint` or that of llmrec 0.2, which read them whole."""
    return recorded == fingerprint(*tables) or recorded == fingerprint(*tables, rows_at_once=sys.maxsize)


def _in_slices(pieces: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    left = next(pieces)
    for piece in pieces:
        left = pa.concat_tables([left, piece])
        while len(left) > rows:
            yield left.slice(0, rows)
            left = left.slice(rows)
    for start in range(0, max(1, len(left)), rows):
        yield left.slice(start, rows)


def _digest_rows(digest, rows: pa.Table) -> None:
    try:  # an empty chunk more, so that a copy is made: buffers of a slice hold what stands beside it
        flat = pa.concat_tables([rows, rows.slice(0, 0)]).combine_chunks()
    except pa.ArrowInvalid:  # a column holds more than an Arrow array can, 2 GiB of text
        if len(rows) < 2:
            raise
        half = len(rows) // 2
        _digest_rows(digest, rows.slice(0, half))
        _digest_rows(digest, rows.slice(half))
        return
    with pa.ipc.new_stream(pa.PythonFile(_Digesting(digest), "w"), flat.schema) as writer:
        writer.write_table(flat)


class _Digesting(io.RawIOBase):
    """A file that keeps nothing."""

    def __init__(self, digest):
        self.digest = digest

    def writable(self) -> bool:
        return True

    def write(self, content) -> int:
        self.digest.update(content)
        return len(content)


def file_sha256(path: Path) -> str:
    """64 hex digits, as `sha256sum` prints them."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_fingerprint(paths: Sequence[Path]) -> str:
    """Changes with the content of the files, and with name, size or time of change of any file in the folders that is
    not hidden (locks, and what the use of a model remembers, are)."""
    parts = []
    for path in paths:
        if path.is_dir():
            files = sorted(file for file in path.rglob("[!.]*") if file.is_file())
            parts += [f"{file.relative_to(path)} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
        elif path.exists():
            parts.append(file_sha256(path))
        else:
            raise ValueError(f"{path} does not exist")
    return fingerprint(*parts)


def save_state(folder: str | Path, config: dict, arrays: dict[str, np.ndarray]) -> None:
    """Writes a folder of `config.json` and `model.safetensors`, whole or not at all. Raises `FloatingPointError` where
    an array holds NaN or inf, as what was trained at too high a learning rate may."""
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise FloatingPointError(f"{folder}: {name} holds NaN or inf, so nothing is written: lower learning_rate")
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        write_json(temporary / "config.json", config)
        save_file(
            {name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary / "model.safetensors"
        )


def part_of(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def load_state(folder: str | Path) -> tuple[dict, dict[str, np.ndarray]]:
    """Reads a folder written by `save_state`; raises `ValueError` naming the file that is missing or damaged."""
    folder = Path(folder)
    config = read_json(folder / "config.json")
    try:
        return config, load_file(folder / "model.safetensors")
    except (FileNotFoundError, SafetensorError) as error:
        raise ValueError(f"{folder / 'model.safetensors'} is missing or damaged: {error}") from error
