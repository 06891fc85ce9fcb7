"""A judge for tests: an OpenAI-compatible server that decides by a rule, and fails in every way when it is told to.

    python judge_server.py PLAN    prints its port; PLAN is a JSON list of what becomes of the first requests

A member of the plan is one of BEHAVIOURS, "429 SECONDS" (a Retry-After), a status, or a text to be said; "*" before it
makes it the answer to all later requests as well. Behind the plan every request is answered properly. `GET /seen` gives
what was asked and when, and how many requests there were at a time.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-right-4f2a"
MODEL = "judge-1"


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, plan: list[str]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan, self.seen, self.lock = plan, [], threading.Lock()
        self.now = self.most = 0  # requests at a time

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left is no error of ours."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *words: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.reply(200, {"seen": self.server.seen, "most": self.server.most})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
            self.server.seen.append({"time": time.monotonic(), "body": body, "path": self.path})
            plan = self.server.plan
            behaviour = "" if not plan else plan[0][1:] if plan[0].startswith("*") else plan.pop(0)
        try:
            self.answer(behaviour, body)
        finally:
            with self.server.lock:
                self.server.now -= 1

    def answer(self, behaviour: str, body: dict[str, Any]) -> None:
        if self.path != "/v1/chat/completions":
            return self.fail(404, "no such path")
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            return self.fail(401, f"Incorrect API key provided: {self.headers.get('Authorization')}")
        if body["model"] != MODEL:
            return self.fail(404, f"The model `{body['model']}` does not exist")
        return self.behave(behaviour, body)

    def behave(self, behaviour: str, body: dict[str, Any]) -> None:
        status, _, seconds = behaviour.partition(" ")
        if behaviour == "hang":
            time.sleep(60)
        elif behaviour == "slow":
            time.sleep(1)
            self.say(decide(body))
        elif behaviour == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
            self.close_connection = True
        elif behaviour == "no json":
            self.send(200, b"<html>Bad gateway</html>")
        elif behaviour == "no choices":
            self.reply(200, {"object": "chat.completion", "choices": []})
        elif behaviour == "refuse":
            self.say(None, refusal="I cannot help with that.")
        elif behaviour == "length":
            self.say("{'pred': ", finish="length")
        elif behaviour == "parts":
            self.say([{"type": "text", "text": decide(body)[:9]}, {"type": "text", "text": decide(body)[9:]}])
        elif behaviour == "half a character":
            self.say("\ud83d " + decide(body))
        elif behaviour == "too deep":
            self.send(200, b"[" * 100_000)
        elif behaviour == "empty":
            self.say("")
        elif status.isdigit():
            self.fail(int(status), f"status {status}", {"Retry-After": seconds} if seconds else {})
        else:
            self.say(behaviour or decide(body))

    def say(self, text: Any, refusal: str | None = None, finish: str = "stop") -> None:
        message = {"role": "assistant", "content": text, **({"refusal": refusal} if refusal else {})}
        self.reply(200, {"object": "chat.completion", "model": f"{MODEL}-0613",
                         "choices": [{"index": 0, "message": message, "finish_reason": finish}]})

    def fail(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        self.reply(status, {"error": {"message": message}}, headers)

    def reply(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        self.send(status, json.dumps(value).encode(), headers)

    def send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})
                            }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def decide(body: dict[str, Any]) -> str:
    """A verdict on whether the words of the right answer stand in the predicted one; of a caption, its last word."""
    text = body["messages"][-1]["content"]
    caption = re.search(r"detailed description: (.*), question: ", text, re.DOTALL)
    if caption:
        return caption[1].split()[-1]
    right, given = (re.search(rf"{name} Answer: (.*)\n", text)[1].lower() for name in ("Correct", "Predicted"))
    yes = right.strip(" .") in given
    return f"{{'pred': '{'yes' if yes else 'no'}', 'score': {5 if yes else 1}}}"


if __name__ == "__main__":
    server = Server(json.loads(sys.argv[1]))
    print(server.server_address[1], flush=True)  # noqa: T201
    server.serve_forever()
