"""Writing to disk: every file or folder appears whole or not at all, and carries a fingerprint."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is renamed to `path`, on an error it is removed.

    Works for a file (write to the yielded path) and for a folder (`mkdir` it). An existing folder is replaced.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    temporary = scratch / path.name
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir():
            os.rename(path, scratch / "replaced")
        os.replace(temporary, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_json(path: str | Path, value) -> None:
    """Writes `value` as indented JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | Path):
    """Reads JSON; a missing or damaged file raises a `ValueError` that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid UTF-8 JSON: {error}") from error


def write_parquet(path: str | Path, table: pa.Table) -> None:
    """Writes an Arrow table as parquet, whole or not at all."""
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_parquet(path: str | Path, columns: list[str] | None = None) -> pa.Table:
    """Reads parquet; a missing or unreadable file raises a `ValueError` that names it."""
    try:
        return pq.read_table(path, columns=columns)
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist") from error
    except pa.ArrowException as error:
        raise ValueError(f"{path} is not a readable parquet file: {error}") from error


def fingerprint(*parts: str | bytes | memoryview | pa.Table) -> str:
    """16 hex digits of the SHA-256 over strings, bytes and the logical content of Arrow tables."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, pa.Table):
            digest.update(str(part.schema.remove_metadata()).encode())
            sink = pa.BufferOutputStream()
            flat = part.replace_schema_metadata(None).combine_chunks()
            with pa.ipc.new_stream(sink, flat.schema) as writer:
                writer.write_table(flat)
            digest.update(sink.getvalue())
        else:
            digest.update(part.encode() if isinstance(part, str) else part)
        digest.update(b"\0")
    return digest.hexdigest()[:16]
