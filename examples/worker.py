#!/usr/bin/env python3
"""A worker in Python, standard library only: registers a service, pulls task runs, reports how they end.

    export PIPEWEAVE_SECRET_KEY=…       # the same as the service's
    python3 worker.py http://127.0.0.1:8000

Replace `TASKS` by your own functions. A task takes its input and returns its result; what it raises fails the try.
"""

import base64, hashlib, hmac, inspect, json, os, socket, sys, threading, time, urllib.error, urllib.request

SERVICE = os.environ.get("WORKER_SERVICE", "example-python")
KEY = bytes.fromhex(os.environ["PIPEWEAVE_SECRET_KEY"])
BASE = (sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000").rstrip("/")
HEARTBEAT_MS = int(os.environ.get("WORKER_HEARTBEAT_MS", "10000"))


def add(given):
    return {"sum": given["a"] + given["b"]}


def nap(given):
    time.sleep(given.get("seconds", 1))
    return {"slept": given.get("seconds", 1)}


TASKS = {"add": add, "nap": nap}


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


def beat(run, ended):
    """Says that the run is alive until it has ended. This example cannot stop a function that is given up."""
    while not ended.wait(run["heartbeatIntervalMs"] / 1000 / 2):
        post("/api/heartbeat", {"runId": run["runId"], "lease": run["lease"]}, run["token"])


def carry_out(run):
    ended = threading.Event()
    threading.Thread(target=beat, args=(run, ended), daemon=True).start()
    try:
        answer = {"status": "completed", "result": TASKS[run["taskId"]](run["input"])}
    except Exception as failure:
        answer = {"status": "failed", "error": f"{type(failure).__name__}: {failure}"}
    ended.set()
    status, said = post(f"/api/callback/{run['runId']}", answer | {"lease": run["lease"]}, run["token"])
    print(run["taskId"], run["runId"], answer["status"], status, flush=True)


def main():
    tasks = [
        {
            "id": name,
            "codeHash": hashlib.sha256(inspect.getsource(task).encode()).hexdigest(),
            "heartbeatIntervalMs": HEARTBEAT_MS,
        }
        for name, task in TASKS.items()
    ]
    status, said = post("/api/register", {"tasks": tasks}, token())
    if status != 200:
        sys.exit(f"not registered: {said}")
    print("registered", flush=True)
    name = f"{socket.gethostname()}-{os.getpid()}"
    while True:
        status, said = post("/api/pull", {"worker": name, "waitMs": 10000}, token())
        if status != 200:
            print(status, said, file=sys.stderr, flush=True)
            time.sleep(1)
            continue
        for run in said["runs"]:
            carry_out(run)


main()
