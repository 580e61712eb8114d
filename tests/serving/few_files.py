"""Serves where few files may be open, until its input ends: `python few_files.py <model folder> <scratch folder>`."""

import resource
import sys
from pathlib import Path

from http_fixtures import listening

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with listening(Path(sys.argv[1]), Path(sys.argv[2])) as (_, url):
        sys.stdout.write(f"{url}\n")
        sys.stdout.flush()
        sys.stdin.read()
