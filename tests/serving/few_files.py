"""Serves "ok" where only 300 files may be open, until its input ends; prints its URL."""

import resource
import sys
import threading
import time

from llmrec.serving.http.connections import Server, web_config


async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    web = Server(web_config(app, port=0, loop="asyncio"))
    thread = threading.Thread(target=web.run)
    thread.start()
    while not web.started:
        time.sleep(0.01)
    sys.stdout.write(f"http://127.0.0.1:{web.servers[0].sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    sys.stdin.read()
    web.should_exit = True
    thread.join()
