"""What strangers send, at random: schemathesis' requests to a real server, and model folders that are damaged.

Two campaigns of scripts/reliability.py, which go on until they have their cases, or its minutes are over.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from serving_runs import random_folder, running_server

ROOT = Path(__file__).parents[1]
TESTS = [str(ROOT / "tests"), str(ROOT / "tests/serving")]
ITEMS, ROUND, CHUNK = 500, 20, 100


def requests(campaign, seed: int) -> None:
    """Requests that the schema of a running server allows, and some that it forbids: every answer is one that it
    documents, none is a 5xx, and at the end the server recommends."""
    sys.path += TESTS
    import httpx
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from hypothesis.errors import Unsatisfiable
    from schema_requests import CONFIG, know_items
    from schemathesis import GenerationMode

    os.environ |= {"LLMREC_API_KEY": "key", "LLMREC_ADMIN_KEY": "root", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    root, asked = {"Authorization": "Bearer root"}, settings(
        max_examples=ROUND, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=[*HealthCheck]
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        folder = random_folder(Path(temporary) / "shop", ITEMS, 0, "vocabulary", num_beams=20)
        with running_server(folder, "--max_k", "50") as server:
            schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json", config=CONFIG)
            know_items(schema, [f"item-{number}" for number in range(ITEMS)])
            operations = [found.ok() for found in schema.get_all_operations()]
            kinds = [(operation, mode) for mode in GenerationMode for operation in operations]
            campaign.begin("requests")
            while campaign.goes_on:
                for operation, mode in [*kinds]:
                    seed += 1

                    @seeded(seed)
                    @asked
                    @given(operation.as_strategy(generation_mode=mode))
                    def ask(case) -> None:
                        if campaign.goes_on:
                            response = case.call(headers=root)
                            campaign.did(1, {f"answered {response.status_code}": 1})
                            case.validate_response(response, headers=root)

                    try:
                        ask()
                    except Unsatisfiable:  # a route without parameters forbids nothing
                        kinds.remove((operation, mode))
                    except (Exception, BaseExceptionGroup) as error:
                        said = " ".join(str(part) for part in (error, *getattr(error, "exceptions", ())))
                        campaign.check(False, f"{operation.label}, {mode.value}, seed {seed}: {said[:600]}")
            answer = httpx.post(f"{server.url}/v1/recommend", json={"history": ["item-7"], "k": 5}, headers=root)
            campaign.check(answer.status_code == 200, f"at the end: {answer.text[:200]}")


def folders(campaign, seed: int) -> None:
    """Model folders damaged at random, in processes that may die of them, every second one without its checksums:
    refused by name, or loaded; with checksums the lists are those that were written."""
    sys.path += TESTS
    from tiny import tiny_data, tiny_index, write_tiny_base

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *TESTS])}
    script = str(ROOT / "tests/models/damaged_folders.py")
    with tempfile.TemporaryDirectory() as temporary:
        data = tiny_data()
        folder = write_tiny_base(Path(temporary) / "model", data, tiny_index(data))
        campaign.begin("folders")
        for number in range(10**9):
            if not (count := min(CHUNK, campaign.left)):
                break
            checked, one = 1 - number % 2, 10**6 * seed + number
            command = [sys.executable, script, str(folder), temporary, str(one), str(count), str(checked)]
            ended = subprocess.run(command, capture_output=True, text=True, env=environment)
            if ended.returncode:
                lines = ended.stderr.strip().splitlines() or [""]
                campaign.check(False, f"seed {one}, checked {checked}: status {ended.returncode}: {lines[-1][:300]}")
            else:
                said = ended.stdout.splitlines()[-1]  # libraries print too
                campaign.did(count, Counter(json.loads(said)))
