"""An OpenAI-compatible endpoint on this machine that answers, or misbehaves as asked, and counts what it was asked."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What to send: a body (as it is, or as JSON) with a status and headers.

    `slow`: seconds to wait before it; `drip`: between its bytes; `cut`: bytes to send before the connection is closed.
    """

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    slow: float = 0.0
    drip: float = 0.0
    cut: int | None = None


def answer(text: str, *, usage: bool = True, finish: str = "stop", logprobs: Any = None, **reply: Any) -> Reply:
    """A chat completion."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": logprobs}
    body = {"id": "1", "object": "chat.completion", "created": 1, "model": "teacher-1", "choices": [choice]}
    if usage:
        body["usage"] = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return Reply(body, **reply)


def error(status: int, message: str, code: str | None = None, **headers: str) -> Reply:
    """An error as the API has them."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply({"error": {"message": message, "type": "x", "code": code}}, status, headers)


Script = Callable[[str, int], Reply]


class Teacher:
    """The server's address, and what it was asked: prompts with how often, in the order they came."""

    def __init__(self, script: Script):
        self.script = script
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()  # replies of status 200 that were sent whole
        self.times: list[float] = []
        self.bodies: list[dict[str, Any]] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self.url = ""

    def take(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        with self._lock:
            self.asked[prompt] += 1
            number = self.asked[prompt]
            self.times.append(time.monotonic())
            self.bodies.append({**body, "authorization": handler.headers["Authorization"]})
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            reply = self.script(prompt, number)
            time.sleep(reply.slow)
            with self._lock:
                self._at_once -= 1
                self.answered[prompt] += reply.status == 200 and reply.cut is None
            _send(handler, reply)
        except OSError:
            pass  # the client went away


def _send(handler: BaseHTTPRequestHandler, reply: Reply) -> None:
    body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
    handler.send_response(reply.status)
    for name, value in {"Content-Type": "application/json", **reply.headers}.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    for byte in body if reply.drip else ():
        handler.wfile.write(bytes([byte]))
        time.sleep(reply.drip)
    if not reply.drip:
        handler.wfile.write(body[: reply.cut])
    if reply.cut is not None:
        handler.close_connection = True
        handler.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def serving(script: Script = lambda prompt, number: answer(f"About {prompt}.")) -> Iterator[Teacher]:
    """A server that runs until the block ends."""
    teacher = Teacher(script)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            teacher.take(self)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
            pass

        def finish(self) -> None:
            with suppress(OSError):
                super().finish()

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # cut connections are meant

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    teacher.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield teacher
    finally:
        server.shutdown()
        server.server_close()


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])
