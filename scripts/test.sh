#!/usr/bin/env bash
# Installs what is needed and runs the tests; further arguments go to pytest.
#
#     bash scripts/test.sh                    # fast tests, no network, no GPU
#     bash scripts/test.sh -m slow            # the slow ones (real data: LLMREC_DATA=/path/to/data)
#     bash scripts/test.sh tests/data -x
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh

python -m pytest "$@"
