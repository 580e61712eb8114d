"""Serves a model folder over HTTP.

    python -m llmrec.serving out/quickstart/model
    python -m llmrec.serving out/quickstart/model --modes recommend,generate --port 8000

The key that clients must send is read from LLMREC_API_KEY, that for changes of the catalogue from LLMREC_ADMIN_KEY. To
be reached from other machines a server has a key, or is told --no_keys.
"""

import argparse
import asyncio
import json
import logging
import re
from dataclasses import fields
from pathlib import Path

from llmrec.hub import is_hub_name, local_folder, repository
from llmrec.serving.http.settings import Settings, check_port
from llmrec.serving.vllm.engines import MODES

# Limits of the front, as flags
_LIMITS = ("max_k", "max_beams", "max_history", "max_batch", "max_concurrent", "max_queue", "timeout_s", "drain_s")
_CHOICES = ("log_histories", "no_keys", "closed", "follow", "never_stale")
_CATALOGUE = "catalogue"


_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class Lines(logging.Formatter):
    """A record begins a line, and all further lines of it begin with `| `; control characters are spelt. So no id or
    title in a message or a traceback can read as a record of its own."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record).replace("\n", "\n| ")
        return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _modes(text: str) -> list[str]:
    modes = [] if text == _CATALOGUE else text.split(",")
    if not set(modes) <= set(MODES) or len(set(modes)) != len(modes):
        raise argparse.ArgumentTypeError(f"{text!r} should be recommend, generate, recommend,generate or catalogue")
    return modes


def json_object(text: str) -> dict:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} should be a JSON object, e.g. '{{\"max_num_seqs\": 64}}'")
    return value


def port(text: str) -> int:
    if not 0 < int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"{text} should be from 1 to 65535")
    return int(text)


def served(model: str, revision: str | None = None) -> tuple[Path, Path | None]:
    """`(folder, where changes of its catalogue go)` of a folder or of a model of the Hub, whose folder is a cache;
    `None` is `<folder>/catalogue`."""
    return local_folder(model, revision), Path("catalogue") if is_hub_name(model) else None


def name_of(model: str, revision: str | None = None) -> str:
    """A folder's name, or that of a model of the Hub without its owner and revision."""
    return Path(repository(model, revision)[0]).resolve().name


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m llmrec.serving", description=__doc__.split("\n")[0])
    parser.add_argument(
        "folder", help="model folder, of recipes/sft.py or grpo.py, LoRA merged; or its name on the Hub"
    )
    parser.add_argument("--revision", help="branch, tag or commit on the Hub; owner/name@revision says the same")
    parser.add_argument(
        "--modes", type=_modes, default=["recommend"], help="recommend, generate, both with a comma; or catalogue: no "
        "engine, changes alone, for servers that follow"
    )  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 to be reached from other machines")
    parser.add_argument("--port", type=port, default=8000)
    parser.add_argument("--no_keys", action="store_true", help="other machines may ask without any key")
    parser.add_argument("--closed", action="store_true", help="/docs, /openapi.json and /metrics ask for a key, too")
    parser.add_argument("--ssl_certfile", help="PEM: serve HTTPS, beside --ssl_keyfile")
    parser.add_argument("--ssl_keyfile", help="PEM: the key of the certificate")
    parser.add_argument("--name", help="of the model, in requests and answers; by default the folder's")
    parser.add_argument("--catalogue_dir", type=Path, help="where changes of the catalogue are kept; by default "
                        "<folder>/catalogue, of a model of the Hub ./catalogue")  # fmt: skip
    parser.add_argument("--follow", help="URL of the server whose catalogue this one follows; changes are made there")
    parser.add_argument("--never_stale", action="store_true", help="with --follow: no answers while that is cut off")
    parser.add_argument("--dtype", help="of the weights, e.g. bfloat16; by default as the folder has them")
    parser.add_argument("--vllm", type=json_object, default={}, help="JSON: more arguments of vLLM, for every engine")
    for mode in MODES:
        parser.add_argument(
            f"--vllm_{mode}", type=json_object, default={}, help=f"the same for the {mode} engine alone"
        )
    defaults = {field.name: field.default for field in fields(Settings)}
    for name in _LIMITS:
        parser.add_argument(f"--{name}", type=type(defaults[name]), default=defaults[name], help="see Settings")
    parser.add_argument("--engine_timeout_s", type=float, default=120.0, help="an engine that is silent so long hangs")
    parser.add_argument("--restarts", type=int, default=0, help="how often an engine that failed is started again; "
                        "after that, or by default, the process exits with status 3 for its supervisor")  # fmt: skip
    parser.add_argument("--log_histories", action="store_true", help="the log repeats what requests ask")
    args = parser.parse_args(arguments)
    logging.basicConfig()
    logging.getLogger().handlers[0].setFormatter(Lines("%(message)s"))
    logging.getLogger("llmrec").setLevel(logging.INFO)
    limits = {name: getattr(args, name) for name in (*_LIMITS, *_CHOICES)}
    tls = {name: getattr(args, name) for name in ("ssl_certfile", "ssl_keyfile")}
    engine = ({"dtype": args.dtype} if args.dtype else {}) | args.vllm
    modes = {mode: engine | getattr(args, f"vllm_{mode}") for mode in args.modes}
    logger = logging.getLogger("llmrec.serving")
    try:
        settings = Settings.of_environment(args.name or name_of(args.folder, args.revision), **limits)
        settings.check_host(args.host)
        check_port(args.host, args.port)
        folder, directory = served(args.folder, args.revision)
        from llmrec.serving.server import FAILED, serve  # brings vLLM, which takes its time

        where = args.host, args.port, args.catalogue_dir or directory, args.engine_timeout_s, args.restarts
        try:
            asyncio.run(serve(folder, modes, settings, *where, **tls))
        except FAILED as error:
            logger.error("%s: giving up", error)
            parser.exit(3)
    except KeyboardInterrupt:
        logger.info("stopped")
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
