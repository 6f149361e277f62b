"""A generation server with the model `bytes`, as a program: it answers as vLLM (and SGLang),
llama-server and plain OpenAI-compatible ones do, or with one of their faults.

    python -m kit.generation_server WEIGHTS.safetensors [--port PORT] [--die-after 3]

It prints its port. With `--key KEY` it answers only who sends that; the fault `tattling` repeats it. What is asked for is in the path: `POST /FORM/FAULT/FACTOR/v1/completions`, with
weights times FACTOR. The fault `held-NAME` keeps answers back until `GET /held-NAME`. `--die-after N`
ends the process when one more than N questions came.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import threading
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.func import functional_call

from kit import TESTS, script
from node.config import GeneratorSection
from node.llm.generation import Sampling, generate
from node.llm.models import tiny_llama
from node.llm.tokens import Bytes
from node.maths.policy import Completions, Prompts

FORMS = ("vllm", "older-vllm", "llama-server", "text")
TOKENS = Bytes()


@dataclass(frozen=True, slots=True)
class Running:
    """A server in a process of its own."""

    popen: subprocess.Popen[str]
    port: int

    def section(
        self, form: str = "vllm", fault: str = "none", factor: float = 1.0
    ) -> GeneratorSection:
        url = f"http://127.0.0.1:{self.port}/{form}/{fault}/{factor}/v1"
        return GeneratorSection(url=url, timeout_s=60)

    def release(self, fault: str) -> None:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        direct.open(f"http://127.0.0.1:{self.port}/{fault}", timeout=10).close()


@contextmanager
def serving(
    folder: Path, weights: Mapping[str, Tensor], *options: str, port: int = 0
) -> Iterator[Running]:
    """With these weights of the model `bytes`, by name."""
    file = folder / "served.safetensors"
    save_file({name: value.detach().clone() for name, value in weights.items()}, file)
    command = script("generation_server", str(file), "--port", str(port), *options)
    popen = subprocess.Popen(command, cwd=TESTS, stdout=subprocess.PIPE, text=True)
    assert popen.stdout is not None
    try:
        yield Running(popen, int(popen.stdout.readline()))
    finally:
        popen.kill()
        popen.wait()
        popen.stdout.close()


class Model:
    def __init__(self, file: Path) -> None:
        self.model = tiny_llama(torch.float32, None, 0)
        self.weights = load_file(file)
        self.lock = threading.Lock()

    def complete(self, request: Mapping[str, Any], factor: float) -> Completions:
        """`n` answers, drawn by the request's seed with weights times the factor."""
        weights = {name: factor * value for name, value in self.weights.items()}

        def forward(ids: Tensor, **more: Any) -> Any:
            return functional_call(self.model, weights, (), {"input_ids": ids, **more})

        prompts = Prompts.of([request["prompt"]] * request["n"], TOKENS.pad)
        [end] = request["stop_token_ids"]
        sampling = Sampling(
            max_completion_length=request["max_tokens"],
            end=end,
            pad=TOKENS.pad,
            banned=tuple(int(token) for token in request["logit_bias"]),
            temperature=request["temperature"],
            top_p=request["top_p"],
        )
        generator = torch.Generator().manual_seed(request["seed"])
        with self.lock:
            return generate(forward, prompts, sampling, generator)


def choice(form: str, index: int, ids: Sequence[int], log_probs: Sequence[float]) -> dict[str, Any]:
    """An answer in the form of a server; ids with its end."""
    ended = ids[-1] == TOKENS.end
    told = {
        "index": index,
        "text": TOKENS.decode(ids),
        "finish_reason": "stop" if ended else "length",
    }
    names = [TOKENS.decode([token]) for token in ids]
    match form:
        case "vllm":
            told["token_ids"] = list(ids)
        case "older-vllm":
            names = [f"token_id:{token}" for token in ids]
        case "llama-server":
            entries = [
                {"id": token, "token": name, "bytes": list(name.encode()), "logprob": value}
                for token, name, value in zip(ids, names, log_probs, strict=True)
            ]
            return {**told, "logprobs": {"content": entries}}
    return {**told, "logprobs": {"tokens": names, "token_logprobs": list(log_probs)}}


def spoiled(fault: str, choices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Choices in vLLM's form with a fault, if it is one of theirs."""
    first = choices[0]
    match fault:
        case "no-logprobs":
            return [{**each, "logprobs": None} for each in choices]
        case "nan":
            first["logprobs"]["token_logprobs"][0] = float("nan")
        case "below-float32":
            first["logprobs"]["token_logprobs"][0] = -1e300
        case "long":
            first["token_ids"] = first["token_ids"][:1] * 1000
            first["logprobs"]["token_logprobs"] = [-1.0] * 1000
        case "other-tokenizer":
            return [
                {
                    **each,
                    "token_ids": [
                        token if token > 255 else token ^ 1 for token in each["token_ids"]
                    ],
                }
                for each in choices
            ]
        case "few":
            return choices[1:]
        case "within-a-character":
            first |= {"text": "é", "token_ids": [0xA9], "finish_reason": "length"}
            first["logprobs"] |= {"tokens": ["é"], "token_logprobs": [-1.0]}
    return choices


def handler(model: Model, die_after: int | None, key: str | None) -> type[BaseHTTPRequestHandler]:
    held: dict[str, threading.Event] = defaultdict(threading.Event)
    asked = count()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            held[self.path[1:]].set()
            self.reply(200, b"")

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            form, fault, factor, *place = self.path[1:].split("/")
            assert place == ["v1", "completions"]
            sent = self.headers["Authorization"]
            if fault == "tattling":
                self.reply(500, f"What is {sent.removeprefix('Bearer ')}?".encode())
                return
            if key and sent != f"Bearer {key}":
                self.reply(401, f'{{"error": {{"message": "Not {sent}"}}}}'.encode())
                return
            if die_after is not None and next(asked) >= die_after:
                os._exit(1)
            drawn = model.complete(request, float(factor))
            lengths = drawn.mask.sum(1).tolist()
            rows = zip(drawn.ids.tolist(), drawn.log_probs.tolist(), lengths, strict=True)
            choices = [
                choice(form, index, ids[:length], log_probs[:length])
                for index, (ids, log_probs, length) in enumerate(rows)
            ]
            if fault.startswith("held"):
                held[fault].wait()
            self.answer(fault, spoiled(fault, choices))

        def answer(self, fault: str, choices: list[dict[str, Any]]) -> None:
            match fault:
                case "not-json":
                    self.reply(200, b"<html>hello</html>")
                case "dying":
                    self.reply(200, b'{"choices": [', size=1000)
                case "huge":
                    self.reply(200, b" " * (65 << 20))
                case "failing":
                    self.reply(503, b'{"error": {"message": "The engine is gone.\\nSorry."}}')
                case "unknown-model":
                    self.reply(404, b'{"error": {"message": "The model `x` does not exist."}}')
                case _:
                    self.reply(200, json.dumps({"choices": choices}).encode())

        def reply(self, status: int, body: bytes, size: int | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(size or len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--die-after", type=int)
    parser.add_argument("--key")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = Model(options.weights)
    server = ThreadingHTTPServer(
        ("127.0.0.1", options.port), handler(model, options.die_after, options.key)
    )
    print(server.server_port, flush=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # who gave up broke its connection
    server.serve_forever()


if __name__ == "__main__":
    main()
