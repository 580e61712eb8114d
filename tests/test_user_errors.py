"""What people read where they made an error: one to three lines that say what is wrong and what to do.

tests/user_errors.yaml holds every message, before there was `llmrec.messages.message_of` and now. After a change of
words `python tests/test_user_errors.py` writes it anew: read what changed.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml
from user_errors import CASES, ROOT, error_of, make_world

from llmrec.messages import message_of

TABLE = Path(__file__).with_suffix("").with_name("user_errors.yaml")
SAID = yaml.safe_load(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


def said(case, folder: Path) -> str | None:
    error = error_of(case, folder)
    message = None if error is None else message_of(error)
    return None if message is None else message.replace(f"{folder}/", "").replace(f"{ROOT}/", "")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
def test_people_read_what_is_wrong_and_what_to_do(case, world, recwarn):
    message = said(case, world)
    assert message is not None and 1 <= len(message.splitlines()) <= 3
    assert message == SAID[case.what]["now"]
    assert not (world / "made").exists() or not [*(world / "made").glob("*.safetensors")]


def test_the_table_has_sixty_and_no_other():
    assert len(CASES) >= 60 and [case.what for case in CASES] == [*SAID]


def run_script(folder: Path, *argv: str, **more) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}", **more.pop("env", {})}
    command = [sys.executable, str(ROOT / "recipes" / "recommend.py"), *argv]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, **more)


def test_a_script_prints_the_message_alone_and_the_traceback_where_it_is_asked_for(world):
    argv = "--model", "begun", "--data_dir", "data"
    done = run_script(world, *argv, env={"LLMREC_TRACEBACK": ""})
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) <= 3 and "Traceback" not in done.stderr
    assert "begun is not finished" in done.stderr
    whole = run_script(world, *argv, env={"LLMREC_TRACEBACK": "1"})
    assert whole.returncode == 1 and "Traceback" in whole.stderr and "begun is not finished" in whole.stderr


def test_a_fault_of_the_program_is_no_users_error():
    assert message_of(TypeError("unsupported operand")) is None and message_of(KeyError("a")) is None
    assert message_of(KeyboardInterrupt()).startswith("Stopped")


FULL = """
import sys, numpy, pyarrow, torch
from safetensors.numpy import save_file
from llmrec.messages import message_of
from llmrec.files import write_json, write_parquet

many, at = numpy.arange(10**6, dtype=numpy.int32), sys.argv[1]
for write in (
    lambda: write_parquet(at + "/a.parquet", pyarrow.table({"a": numpy.random.default_rng(0).random(10**6)})),
    lambda: save_file({"a": many}, at + "/a.safetensors"),
    lambda: torch.save(torch.tensor(many), at + "/a.pt"),
    lambda: write_json(at + "/a.json", many.tolist()),
):
    try:
        write()
    except Exception as error:
        print(message_of(error).splitlines()[0])
"""


def test_a_full_disk_says_so(tmp_path):
    """On a disk of 64 KiB, which takes the right to mount one; by every library that writes here."""
    disk = f"mount -t tmpfs -o size=64k none {tmp_path}"
    if subprocess.run(["unshare", "-rm", "bash", "-c", disk], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    command = f"{disk} && {sys.executable} -c '{FULL}' {tmp_path}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["unshare", "-rm", "bash", "-c", command], capture_output=True, text=True, env=environment)
    lines = done.stdout.splitlines()
    assert len(lines) == 4 and {*lines} == {"Error: the disk is full: make room, and the same command goes on"}, (
        done.stderr
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        folder, old = make_world(Path(name)), SAID
        table = {
            case.what: {"before": old.get(case.what, {}).get("before", ""), "now": said(case, folder)}
            for case in CASES
        }
    TABLE.write_text(yaml.safe_dump(table, sort_keys=False, allow_unicode=True, width=100_000), encoding="utf-8")
