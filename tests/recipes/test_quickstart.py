"""scripts/quickstart.sh with stages that only say that they ran: what runs beside, what fails, what is left behind."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts/quickstart.sh"
# The stage whose arguments hold $FAILS fails; the control takes its time, so that the script waits for it.
STAGES = """
say() { echo "$*" >>"$RAN"; case "$*" in *"$FAILS"*) echo "no such thing"; return 3 ;; esac; }
python() { say "$@"; }
accelerate() { case "$*" in *control*) sleep "$CONTROL_TAKES" ;; esac; say "$@"; }
"""


def start(folder: Path, fails: str = "nothing", control_takes: float = 0.2) -> subprocess.Popen:
    (folder / "scripts").mkdir()
    for script in (SCRIPT, SCRIPT.with_name("stages.sh")):
        shutil.copy(script, folder / "scripts")
    (folder / "scripts/setup.sh").write_text(STAGES)
    more = {"RAN": str(folder / "ran"), "FAILS": fails, "CONTROL_TAKES": str(control_takes)}
    command = ["bash", str(folder / "scripts/quickstart.sh")]
    return subprocess.Popen(command, env=os.environ | more, stdout=-1, stderr=-1, text=True, start_new_session=True)


def test_evaluation_waits_for_what_runs_beside(tmp_path):
    process = start(tmp_path)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "Done in" in out
    ran = (tmp_path / "ran").read_text().splitlines()
    assert len(ran) == 9
    assert ran[-1].startswith("recipes/evaluate.py")
    control = (tmp_path / "out/quickstart/logs/control.log").read_text()
    assert "--shuffle_semids true" in control and "recipes/sft.py" in control


def test_a_stage_beside_that_fails_fails_the_script_and_names_its_log(tmp_path):
    process = start(tmp_path, fails="train_baselines")
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "no such thing" in error and "out/quickstart/logs/baselines.log" in error
    assert "evaluate.py" not in (tmp_path / "ran").read_text()


def test_a_stage_that_fails_stops_what_runs_beside(tmp_path):
    process = start(tmp_path, fails="recommend.py", control_takes=1)
    process.communicate(timeout=60)
    assert process.returncode == 3
    time.sleep(1.5)
    assert "--output_dir out/quickstart/control\n" not in (tmp_path / "ran").read_text()


def test_nothing_outlives_a_script_that_was_stopped(tmp_path):
    process = start(tmp_path, control_takes=1)
    ran = tmp_path / "ran"
    while not (ran.exists() and "recommend.py" in ran.read_text()):  # what is left is to wait for the control
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    before = ran.read_text()
    time.sleep(1.5)
    assert ran.read_text() == before
    assert "--output_dir out/quickstart/control\n" not in before
