"""A client written from the document alone: every call that it shows, every answer checked."""

import json
import os
import threading
import time

import requests
import websocket

PLACE = "localhost:" + os.environ["PORT"]
AGENT = os.environ["AGENT_ID"]
PATIENCE = 60

updates = []
arrived = threading.Condition()
opened = threading.Event()


def on_message(ws, message):
    with arrived:
        updates.append(json.loads(message))
        arrived.notify_all()


ws = websocket.WebSocketApp(f"ws://{PLACE}/ui", on_message=on_message, on_open=lambda ws: opened.set())
threading.Thread(target=ws.run_forever, daemon=True).start()
assert opened.wait(PATIENCE), "the WebSocket opens"


def update(kind, fits, since=0):
    """The first update from `since` on that is of that type and fits; waits for it."""

    def found():
        return next((one["payload"] for one in updates[since:] if one["type"] == kind and fits(one["payload"])), None)

    with arrived:
        assert arrived.wait_for(lambda: found() is not None, PATIENCE), f"no {kind} in time, but {updates[since:]}"
        return found()


def call(method, path, body=None):
    return requests.request(method, f"http://{PLACE}{path}", json=body, timeout=PATIENCE)


def good(method, path, body=None):
    response = call(method, path, body)
    assert response.ok, f"{method} {path}: {response.status_code} {response.text}"
    return response.json() if response.text else None


def until(path, fits):
    """Asks until the answer fits."""
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE:
        answer = good("GET", path)
        if fits(answer):
            return answer
        time.sleep(0.05)
    raise AssertionError(f"{path} never fitted: {answer}")


def config(number):
    return {"streamUrl": "rtmp://example.com/live", "quality": "1080p", "file": f"python-{number}.mkv"}


# Health, and the agent.
assert call("GET", "/healthz").status_code == 200
agent = update("ui.agent.update", lambda one: one["id"] == AGENT and one["state"] == "IDLE")
assert agent["currentJobId"] is None and agent["drain"] is False and agent["capabilities"]["slots"] == 1
assert any(one["id"] == AGENT for one in good("GET", "/v1/agents"))

# Submit; the same key is the same job.
order = {"inlineConfig": config(1), "idempotencyKey": "python-story-1", "restartPolicy": "never"}
job = good("POST", "/v1/jobs", order)
assert good("POST", "/v1/jobs", order)["id"] == job["id"]
path = f"/v1/jobs/{job['id']}"
running = update("ui.job.update", lambda one: one["id"] == job["id"] and one["status"] == "RUNNING")
assert running["agentId"] == AGENT and running["createdAt"] <= running["startedAt"]
update("ui.agent.update", lambda one: one["id"] == AGENT and one["currentJobId"] == job["id"])
assert good("GET", path)["status"] == "RUNNING"
times = [one["createdAt"] for one in good("GET", "/v1/jobs")]
assert times == sorted(times), "sorted by creation time"

# Metadata is merged.
good("PUT", f"{path}/metadata", {"title": "Python Stream", "viewers": 1})
good("PUT", f"{path}/metadata", {"viewers": 2, "platform": "custom"})
metadata = good("GET", f"{path}/metadata")
assert (metadata["title"], metadata["viewers"], metadata["platform"]) == ("Python Stream", 2, "custom"), metadata

# Sound off and on: true once the agent has said so.
good("POST", f"{path}/mute")
until(f"{path}/metadata", lambda metadata: metadata.get("isMuted") is True and metadata["title"] == "Python Stream")
time.sleep(1)  # a second of silence, to be found in the recording
good("POST", f"{path}/unmute")
until(f"{path}/metadata", lambda metadata: metadata.get("isMuted") is False)

# Stop; what is over cannot be muted.
good("POST", f"{path}/stop")
update("ui.job.update", lambda one: one["id"] == job["id"] and one["status"] == "STOPPED")
assert call("POST", f"{path}/mute").status_code == 409

# A draining agent takes nothing new; what waits runs once it takes jobs again.
mark = len(updates)
good("POST", f"/v1/agents/{AGENT}/drain", {"drain": True})
update("ui.agent.update", lambda one: one["id"] == AGENT and one["state"] == "DRAINING" and one["drain"], mark)
waiting = good("POST", "/v1/jobs", {"inlineConfig": config(2), "idempotencyKey": "python-story-2"})
update("ui.job.update", lambda one: one["id"] == waiting["id"] and one["status"] == "PENDING")
mark = len(updates)
good("POST", f"/v1/agents/{AGENT}/drain", {"drain": False})
update("ui.job.update", lambda one: one["id"] == waiting["id"] and one["status"] == "RUNNING", mark)
good("POST", f"/v1/jobs/{waiting['id']}/stop")
update("ui.job.update", lambda one: one["id"] == waiting["id"] and one["status"] == "STOPPED", mark)

# What does not exist, and what does not fit.
assert call("GET", "/v1/jobs/job-999999").status_code == 404
for wrong in ({}, {"templateId": "none-such"}, {"templateId": "a", "inlineConfig": {}}):
    assert 400 <= call("POST", "/v1/jobs", wrong).status_code < 500, wrong
print("all as the document says")
ws.close()
