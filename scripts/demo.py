"""A page to look at a served model: recommendations, filters, wishes and the tree of Semantic IDs.

    python -m llmrec.serving out/industrial/model              # the server, elsewhere
    python scripts/demo.py --url http://127.0.0.1:8000         # the page, on http://127.0.0.1:7860
    python scripts/demo.py --data out/industrial/data          # with the users of a prepared data folder
    python scripts/demo.py --url http://127.0.0.1:8000 http://127.0.0.1:8001    # two models side by side

Needs `pip install llmrec[demo]`. It talks to the server over HTTP alone. Where that wants a key, set LLMREC_API_KEY:
the page calls with it for everybody who can open the page, and it does not reach the browser.
"""

import argparse
import os


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = "where the server listens; several: their lists stand side by side"
    parser.add_argument("--url", nargs="+", default=["http://127.0.0.1:8000"], help=where)
    parser.add_argument("--data", help="prepared data folder, for its users")
    parser.add_argument("--host", default="127.0.0.1", help="address that the page listens on")
    parser.add_argument("--port", type=int, default=7860, help="port of the page")
    return parser


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(arguments)
    try:
        from llmrec.serving.demo.page import look, page
    except ImportError as error:
        parser.error(f"the page needs Gradio: pip install llmrec[demo] ({error})")
    from llmrec.serving.demo.client import Client
    from llmrec.serving.demo.users import Users

    try:
        clients = [Client(url, os.environ.get("LLMREC_API_KEY", "")) for url in args.url]
        users = Users(args.data) if args.data else None
    except ValueError as error:
        parser.error(str(error))
    page(clients, users).launch(server_name=args.host, server_port=args.port, **look())


if __name__ == "__main__":
    main()
