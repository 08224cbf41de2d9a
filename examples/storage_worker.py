#!/usr/bin/env python3
"""A worker in Python that goes to storage by itself: it decrypts the credentials that come with a task run, fetches an
input that is too large for a message, and puts a large result where the service finds it.

    pip install joserfc boto3
    export PIPEWEAVE_SECRET_KEY=…       # the same as the service's
    python3 storage_worker.py http://127.0.0.1:8000
"""

import base64, hashlib, hmac, inspect, json, os, sys, threading, time, urllib.error, urllib.request

import boto3
from joserfc import jwe
from joserfc.jwk import OctKey

SERVICE = os.environ.get("WORKER_SERVICE", "storage-python")
KEY = bytes.fromhex(os.environ["PIPEWEAVE_SECRET_KEY"])
BASE = (sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000").rstrip("/")
LARGE = 256 * 1024  # the service keeps what is smaller in its database


def reverse(given):
    return {"text": given["text"][::-1]}


TASKS = {"reverse": reverse}


def encode(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def token():
    """A JWT that proves that we hold the key: short-lived, and used once. The key itself is never sent."""
    now = int(time.time())
    claims = {"iss": SERVICE, "iat": now, "exp": now + 60, "jti": os.urandom(16).hex()}
    text = encode(b'{"alg":"HS256","typ":"JWT"}') + "." + encode(json.dumps(claims).encode())
    return text + "." + encode(hmac.new(KEY, text.encode(), hashlib.sha256).digest())


def post(path, body, bearer):
    """The status and the answer; a problem is an answer too."""
    headers = {"content-type": "application/json", "authorization": "Bearer " + bearer}
    request = urllib.request.Request(BASE + path, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as problem:
        return problem.code, json.load(problem)


def opened(run):
    """The back ends that this run may use, by id, with their credentials. The token is good for this run only."""
    text = jwe.decrypt_compact(run["storage"], OctKey.import_key(KEY), algorithms=["dir", "A256GCM"]).plaintext
    claims = json.loads(text)
    if claims["aud"] != "worker" or claims["exp"] < time.time() or claims["lease"] != run["lease"]:
        raise ValueError("the storage token is not for this run")
    return claims["backends"]


class Bucket:
    """A back end, whatever its provider."""

    def __init__(self, backend):
        self.backend = backend
        if backend["provider"] != "local":
            credentials = backend["credentials"]
            self.s3 = boto3.client(
                "s3",
                endpoint_url=backend.get("endpoint"),
                region_name=backend.get("region"),
                aws_access_key_id=credentials.get("accessKeyId") or credentials.get("accessKey"),
                aws_secret_access_key=credentials.get("secretAccessKey") or credentials.get("secretKey"),
            )

    def get(self, key):
        if self.backend["provider"] == "local":
            with open(os.path.join(self.backend["path"], key), "rb") as file:
                return file.read()
        return self.s3.get_object(Bucket=self.backend["bucket"], Key=key)["Body"].read()

    def put(self, key, data):
        if self.backend["provider"] == "local":
            path = os.path.join(self.backend["path"], key)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(data)
        else:
            self.s3.put_object(Bucket=self.backend["bucket"], Key=key, Body=data)


def fetched(run):
    """The input itself, also where a reference stands for it."""
    reference = run["input"].get("$storage") if isinstance(run["input"], dict) else None
    if not reference:
        return run["input"]
    data = Bucket(opened(run)[reference["backend"]]).get(reference["key"])
    if hashlib.sha256(data).hexdigest() != reference["sha256"]:
        raise ValueError("the input is not the one that was given")
    return json.loads(data)


def kept(run, result):
    """The result, or a reference to it where it is large."""
    data = json.dumps(result).encode()
    if len(data) < LARGE:
        return result
    name, backend = next(iter(opened(run).items()))
    digest = hashlib.sha256(data).hexdigest()
    key = f"results/task-run-{run['runId']}/{digest}.json"
    Bucket(backend).put(key, data)
    return {"$storage": {"backend": name, "key": key, "size": len(data), "sha256": digest}}


def beat(run, ended):
    while not ended.wait(run["heartbeatIntervalMs"] / 1000 / 2):
        post("/api/heartbeat", {"runId": run["runId"], "lease": run["lease"]}, run["token"])


def carry_out(run):
    ended = threading.Event()
    threading.Thread(target=beat, args=(run, ended), daemon=True).start()
    try:
        answer = {"status": "completed", "result": kept(run, TASKS[run["taskId"]](fetched(run)))}
    except Exception as failure:
        answer = {"status": "failed", "error": f"{type(failure).__name__}: {failure}"}
    ended.set()
    status, _ = post(f"/api/callback/{run['runId']}", answer | {"lease": run["lease"]}, run["token"])
    print(run["taskId"], run["runId"], answer["status"], status, flush=True)


def main():
    tasks = [
        {"id": name, "codeHash": hashlib.sha256(inspect.getsource(task).encode()).hexdigest()}
        for name, task in TASKS.items()
    ]
    status, said = post("/api/register", {"tasks": tasks}, token())
    if status != 200:
        sys.exit(f"not registered: {said}")
    print("registered", flush=True)
    while True:
        status, said = post("/api/pull", {"worker": str(os.getpid()), "waitMs": 10000}, token())
        if status != 200:
            print(status, said, file=sys.stderr, flush=True)
            time.sleep(1)
            continue
        for run in said["runs"]:
            carry_out(run)


main()
