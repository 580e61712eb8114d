"""Writing to disk: every file or folder appears whole or not at all, and carries a fingerprint."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from llmrec.columns import plain_table


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
    """Reads parquet, in plain types (`llmrec.columns`); a missing or unreadable file raises a `ValueError` that names
    it."""
    try:
        return plain_table(pq.read_table(path, columns=columns))
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


def files_fingerprint(paths: Sequence[Path]) -> str:
    """Changes with the content of the files, and with name, size or time of change of any file in the folders."""
    parts = []
    for path in paths:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            parts += [f"{file.relative_to(path)} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
        elif path.exists():
            with path.open("rb") as file:
                parts.append(hashlib.file_digest(file, "sha256").hexdigest())
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
