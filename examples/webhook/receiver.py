#!/usr/bin/env python3
"""A receiver of publications for Showrunner's `webhook` connector, with nothing but Python's standard library.

It checks each request's signature (Standard Webhooks), accepts every idempotency key once, remembers what it accepted
in a SQLite file, and answers Showrunner's questions about it. Put your own upload where `post_to_platform` stands.

    WEBHOOK_SECRET=whsec_... python3 receiver.py [port]        # 127.0.0.1, port 9090 unless given
"""
import base64
import hashlib
import hmac
import json
import os
import sqlite3
import sys
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRET = base64.b64decode(os.environ["WEBHOOK_SECRET"].removeprefix("whsec_"))
DATABASE = os.environ.get("RECEIVER_DATABASE", "receiver.db")
TOLERANCE_SECONDS = 300
LONGEST_BODY = 1 << 20


def database():
    """A connection that commits by itself; SQLite keeps two requests with one key apart."""
    connection = sqlite3.connect(DATABASE, timeout=10, isolation_level=None)
    connection.row_factory = sqlite3.Row
    connection.execute(
        "CREATE TABLE IF NOT EXISTS posts (key TEXT PRIMARY KEY, status TEXT NOT NULL, external_id TEXT, error TEXT)"
    )
    return connection


def signature_fits(headers, body):
    """HMAC-SHA256 over `id.timestamp.body`; the header may carry several signatures while a secret is changed."""
    key, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not key or not timestamp.isdigit() or abs(time.time() - int(timestamp)) > TOLERANCE_SECONDS:
        return False
    expected = hmac.new(SECRET, f"{key}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    wanted = b"v1," + base64.b64encode(expected)
    given = headers.get("webhook-signature", "").encode().split()
    return any(hmac.compare_digest(one, wanted) for one in given)


def post_to_platform(publication):
    """Your part: upload the clip, and return the platform's id of the post. Raise ValueError if it surely refused."""
    print(f"posting {publication['clip']['title']!r} to {publication['platform']}", flush=True)
    return f"{publication['platform']}-{publication['publication_id']}"


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, code, **body):
        text = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        try:
            self.wfile.write(text)
        except ConnectionError:
            pass  # Showrunner has stopped waiting; it will ask by the status URL

    def do_POST(self):
        length = int(self.headers.get("content-length", 0))
        if length > LONGEST_BODY:
            self.close_connection = True
            return self.answer(413, error="too long")
        body = self.rfile.read(length)
        if self.path != "/publish":
            return self.answer(404, error="no such path")
        if not signature_fits(self.headers, body):
            return self.answer(401, error="the signature does not fit")
        publication = json.loads(body)
        key = publication["idempotency_key"]
        posts = database()
        # First the intent, then the upload: a crash in between leaves `processing`, never a second post.
        if posts.execute("INSERT OR IGNORE INTO posts VALUES (?, 'processing', NULL, NULL)", [key]).rowcount == 0:
            if not self.retry_of_failed(posts, key):
                return self.answer_again(posts, key)
        try:
            external_id = post_to_platform(publication)
        except ValueError as refusal:
            posts.execute("UPDATE posts SET status = 'failed', error = ? WHERE key = ?", [str(refusal), key])
            return self.answer(422, error=str(refusal))
        posts.execute("UPDATE posts SET status = 'published', external_id = ? WHERE key = ?", [external_id, key])
        self.answer(200, external_id=external_id)

    def retry_of_failed(self, posts, key):
        """A key that failed for sure may be tried again: Showrunner keeps the key of a publication that it retries."""
        again = "UPDATE posts SET status = 'processing', error = NULL WHERE key = ? AND status = 'failed'"
        return posts.execute(again, [key]).rowcount == 1

    def answer_again(self, posts, key):
        post = posts.execute("SELECT * FROM posts WHERE key = ?", [key]).fetchone()
        if post["status"] == "published":
            return self.answer(200, external_id=post["external_id"])
        self.answer(409, error="under way")  # Showrunner takes that as "unknown" and asks later

    def do_GET(self):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        if not path.startswith("/publications/"):
            return self.answer(404, error="no such path")
        post = database().execute("SELECT * FROM posts WHERE key = ?", [path.removeprefix("/publications/")]).fetchone()
        if post is None:
            return self.answer(404, error="never seen")
        self.answer(200, status=post["status"], external_id=post["external_id"], error=post["error"])

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 9090
    print(f"receiving on http://127.0.0.1:{port}/publish", flush=True)
    ThreadingHTTPServer(("127.0.0.1", port), Receiver).serve_forever()
