"""Files of stages, for the tests of leaderboards and sweeps."""

from pathlib import Path

import yaml


def write_yaml(path: Path, settings: dict) -> str:
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return str(path)
