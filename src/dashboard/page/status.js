// The status page. It asks the API every two seconds and shows what it hears. Whatever comes from the service goes in
// as text, never as markup.
"use strict";

const EVERY_MS = 2000;
const HISTORY_EVERY_MS = 15000;
const PATIENCE_MS = 8000;
const TOKEN = "showrunner-token";
const $ = (id) => document.getElementById(id);

const seen = { enabled: false, history: [], historyAt: -Infinity, rulesKey: null, cyclesKey: null, failedSince: null, timer: null };

// ---- asking

class Refused extends Error {
  constructor(status, detail) { super(detail); this.status = status; }
}

async function ask(path, method = "GET") {
  const headers = { Accept: "application/json" };
  const token = sessionStorage.getItem(TOKEN);
  if (token) headers.Authorization = `Bearer ${token}`;
  const signal = method === "GET" ? AbortSignal.timeout(PATIENCE_MS) : undefined;
  const response = await fetch(path, { method, headers, signal });
  const answer = await response.json().catch(() => null);
  if (response.ok && answer !== null) return answer;
  throw new Refused(response.status, answer?.detail ?? `The service answered ${response.status}.`);
}

async function poll() {
  clearTimeout(seen.timer);
  try {
    await refresh();
    reached();
  } catch (error) {
    missed(error);
  }
  if (!$("token-dialog").open) {
    clearTimeout(seen.timer);
    seen.timer = setTimeout(poll, document.hidden ? EVERY_MS * 5 : EVERY_MS);
  }
}

async function refresh() {
  const [status, look, newest, completed, failed] = await Promise.all([
    ask("/orchestrator/status"),
    ask("/orchestrator/snapshot"),
    ask("/v1/cycles?limit=20"),
    ask("/v1/cycles?status=completed&limit=20"),
    ask("/v1/cycles?status=error&limit=20"),
  ]);
  if (performance.now() - seen.historyAt > HISTORY_EVERY_MS) {
    seen.history = (await ask("/v1/health-history?minutes=60")).minutes;
    seen.historyAt = performance.now();
  }
  const rulesKey = JSON.stringify(status.rules);
  if (rulesKey !== seen.rulesKey) {
    showRules(await ask("/v1/rules"));
    seen.rulesKey = rulesKey;
  }
  showLoop(status);
  showHealth(look.snapshot.system);
  showChart(look.snapshot);
  showWork(look.snapshot);
  showCycles([newest, completed, failed].flatMap((page) => page.items));
  $("updated").textContent = `seen at ${clock(look.snapshot.at)}`;
}

function reached() {
  if (seen.failedSince !== null) {
    seen.failedSince = null;
    $("notice").hidden = true;
    document.querySelector("main").classList.remove("stale");
    say("The service answers again.");
  }
}

function missed(error) {
  if (error instanceof Refused && error.status === 401) return askForToken();
  if (seen.failedSince === null) {
    seen.failedSince = new Date();
    const since = clock(seen.failedSince.toISOString());
    const what = error instanceof Refused
      ? `The service cannot answer: ${error.message}`
      : "The service cannot be reached.";
    $("notice").textContent = `${what} What you see is from before ${since}; trying again every 2 seconds.`;
    $("notice").hidden = false;
    document.querySelector("main").classList.add("stale");
    $("switch").disabled = $("run-once").disabled = true;
  }
}

function askForToken() {
  if ($("token-dialog").open) return;
  if (sessionStorage.getItem(TOKEN)) {
    sessionStorage.removeItem(TOKEN);
    $("token-why").textContent = "That token is not known here. Try another; it is kept until this tab is closed.";
  }
  $("token").value = "";
  $("token-dialog").showModal();
}

$("token-dialog").addEventListener("close", () => {
  const token = $("token").value.trim();
  if (token) sessionStorage.setItem(TOKEN, token);
  poll();
});

// ---- doing

async function act(path, done) {
  $("switch").disabled = $("run-once").disabled = true;
  try {
    say(done(await ask(path, "POST")));
    seen.historyAt = -Infinity;
  } catch (error) {
    if (error instanceof Refused && error.status === 401) return askForToken();
    const what = error instanceof Refused ? error.message : "The service cannot be reached.";
    say(what);
    $("loop-line").textContent = what;
    setTimeout(poll, EVERY_MS * 2);
    $("switch").disabled = $("run-once").disabled = false;
    return;
  }
  poll();
}

$("switch").addEventListener("click", () => {
  if (seen.enabled) act("/orchestrator/disable", () => "The loop is switched off.");
  else act("/orchestrator/enable", () => "The loop is switched on.");
});

$("run-once").addEventListener("click", () => {
  act("/orchestrator/run-once", ({ result }) => `Cycle ${result.cycle_id} ran: ${count(result.execution?.total ?? 0, "action")}.`);
});

function say(text) { $("said").textContent = text; }

// ---- showing

function showLoop(status) {
  seen.enabled = status.enabled;
  const every = `every ${count(status.interval_seconds, "second")}`;
  $("loop-line").textContent = status.running ? `Running ${every}`
    : status.enabled ? "Switched on, waiting for a leader"
    : "Switched off: nothing is done unless you run a cycle";
  $("switch").setAttribute("aria-checked", String(status.enabled));
  $("switch-label").textContent = status.enabled ? "Loop on" : "Loop off";
  $("switch").disabled = $("run-once").disabled = false;
  const leader = status.leader === null ? "no leader"
    : status.leader === status.instance ? `leader: this instance (${status.leader})` : `leader: ${status.leader}`;
  $("leader").textContent = `${leader} · term ${status.term}`;
}

function showHealth(system) {
  const score = $("health-score"), status = $("health-status");
  score.textContent = String(system.health_score);
  score.className = system.status;
  if (status.textContent !== system.status) status.textContent = system.status;
  status.className = `badge ${system.status}`;
  document.title = `${system.health_score} ${system.status} · Showrunner`;
  const rows = system.deductions.map(({ points, reason }) => item("li", "", [item("b", "", `−${points}`), reason]));
  if (system.unobserved.length) rows.push(item("li", "", `Could not be read: ${system.unobserved.join(", ")}`));
  $("deductions").replaceChildren(...rows);
}

function showWork(snapshot) {
  const jobs = ["pending", "processing", "waiting", "retry", "failed", "completed"];
  const logs = ["scheduled", "pending", "publishing", "unknown", "retry", "failed", "published"];
  $("jobs").replaceChildren(...counts(snapshot.jobs, jobs));
  $("publications").replaceChildren(...counts(snapshot.publish_logs, logs));
}

function counts(section, names) {
  if (!section) return [item("tr", "zero", item("td", "", "could not be read"))];
  return names.map((name) => {
    const heading = item("th", "", name);
    heading.scope = "row";
    return item("tr", section[name] === 0 ? "zero" : "", [heading, item("td", "", section[name].toLocaleString("en"))]);
  });
}

function showRules(rules) {
  const where = rules.folder === null ? "the built-in set" : `from ${rules.folder}`;
  const parts = [item("p", "", [`${count(rules.count, "rule")} in force, ${where} `, item("code", "", rules.hash.slice(0, 12))])];
  if (rules.rejected_because.length) {
    const reasons = item("ul", "", rules.rejected_because.map((reason) => item("li", "", reason)));
    parts.push(item("div", "rejected", [item("p", "", "A newer set was rejected; the one before stays in force:"), reasons]));
  }
  parts.push(item("ul", "", rules.rules.map((rule) => item("li", "", [
    item("strong", "", rule.name), rule.mode === "act" ? "" : " (only observes)",
    item("span", "quiet", ` priority ${rule.priority}, then `), item("code", "", rule.action),
  ]))));
  $("rules").replaceChildren(...parts);
}

// Cycles in which something happened stand alone; those between them, in which nothing did, are one line.
function showCycles(rows) {
  const byId = new Map(rows.map((row) => [row.id, row]));
  const all = [...byId.values()].sort((one, other) => other.id - one.id);
  const key = all.map((row) => `${row.id}${row.status}`).join();
  if (key === seen.cyclesKey || all.length === 0) return;
  seen.cyclesKey = key;
  const lines = [];
  let next = all[0].id;
  const eventful = all.filter((row) => row.status !== "idle");
  for (const row of eventful.slice(0, 20)) {
    if (next > row.id) lines.push(idle(next - row.id, byId.get(next)));
    lines.push(kept(row));
    next = row.id - 1;
  }
  const before = eventful.length > 20 ? [] : all.filter((row) => row.id <= next);
  if (before.length) lines.push(idle(before.length, before[0], true));
  place($("cycles"), lines);
}

// A cycle that has ended is drawn once and stays where it is, so that nobody loses what they opened or focused.
const drawn = new Map();

function kept(row) {
  const key = `${row.id}${row.status}`;
  if (!drawn.has(key)) drawn.set(key, cycle(row));
  return drawn.get(key);
}

function place(parent, nodes) {
  const wanted = new Set(nodes);
  for (const child of [...parent.children]) if (!wanted.has(child)) child.remove();
  nodes.forEach((node, index) => {
    if (parent.children[index] !== node) parent.insertBefore(node, parent.children[index] ?? null);
  });
  for (const [key, element] of drawn) if (!wanted.has(element)) drawn.delete(key);
}

function idle(cycles, latest, more = false) {
  const text = [`${count(cycles, "idle cycle")}${more && cycles > 1 ? " or more" : ""}: nothing to do`];
  if (latest) text.push(", last at ", time(latest.started_at));
  return item("li", "quiet", text);
}

function cycle(row) {
  const head = [item("strong", "", `Cycle ${row.id}`), time(row.started_at), item("span", "quiet", summary(row))];
  if (row.health_score !== null) head.push(item("span", "score", `health ${row.health_score}`));
  const parts = [item("div", "cycle-head", head)];
  if (row.error) parts.push(item("p", "why", row.error));
  const plan = row.decision?.actions ?? [];
  const results = row.result?.results ?? [];
  const held = (row.decision?.proposals ?? []).filter(({ fate }) => fate === "held");
  if (plan.length) parts.push(item("ul", "actions", plan.map((planned, index) => action(planned, results[index]))));
  if (held.length) parts.push(heldBack(held));
  return item("li", "", parts);
}

function summary(row) {
  const by = row.trigger === "manual" ? "by hand, " : "";
  if (row.status === "running") return `${by}running`;
  if (row.status === "error") return `${by}failed`;
  return `${by}${row.succeeded} done${row.failed ? `, ${row.failed} not` : ""}`;
}

function action(planned, result) {
  const outcome = result?.outcome ?? "planned";
  const refusal = outcome === "executed" ? [] : Object.values(result?.detail ?? {}).filter((text) => typeof text === "string");
  return item("li", "", [
    item("span", `tag ${outcome}`, outcome),
    item("span", "what", [item("code", "", planned.action), ` ${planned.target}`]),
    item("span", "why", [...planned.reasons, ...refusal].join("; ")),
  ]);
}

function heldBack(proposals) {
  const lines = proposals.slice(0, 20).map((proposal) => item("li", "", [
    item("span", "tag idle", "held back"),
    item("span", "what", [item("code", "", proposal.action), ` ${proposal.target}`]),
    item("span", "why", [proposal.reason, proposal.because].filter(Boolean).join("; ")),
  ]));
  const details = item("details", "", [item("summary", "quiet", `${count(proposals.length, "proposal")} held back`)]);
  details.append(item("ul", "actions", lines));
  return details;
}

// ---- the chart

const LEFT = 30, RIGHT = 474, TOP = 8, BOTTOM = 166;

function showChart(snapshot) {
  const now = Date.parse(snapshot.at);
  const x = (at) => LEFT + (RIGHT - LEFT) * (1 - (now - at) / 3600000);
  const y = (score) => BOTTOM - (BOTTOM - TOP) * score / 100;
  const band = (name, from, to) =>
    shape("rect", { class: `band-${name}`, x: LEFT, y: y(to), width: RIGHT - LEFT, height: y(from) - y(to) });
  const parts = [band("good", 80, 100), band("warn", 50, 80), band("bad", 0, 50)];
  for (const score of [0, 50, 80, 100]) parts.push(label(LEFT - 6, y(score) + 4, "end", String(score)));
  for (const back of [60, 45, 30, 15, 0]) {
    const at = now - back * 60000;
    parts.push(shape("line", { class: "grid", x1: x(at), x2: x(at), y1: TOP, y2: BOTTOM }));
    parts.push(label(x(at), BOTTOM + 17, back === 60 ? "start" : back === 0 ? "end" : "middle", back === 0 ? "now" : `${back} min ago`));
  }
  const points = seen.history
    .map(({ minute, min }) => ({ at: Date.parse(minute), score: min }))
    .filter(({ at }) => at <= now && at >= now - 3600000);
  points.push({ at: now, score: snapshot.system.health_score });
  for (const stretch of stretches(points)) {
    const path = stretch.map(({ at, score }, index) => `${index ? "L" : "M"}${x(at).toFixed(1)} ${y(score).toFixed(1)}`).join("");
    if (stretch.length > 1) parts.push(shape("path", { class: "line", d: path }));
  }
  parts.push(...stretches(points).filter((stretch) => stretch.length === 1).flat().concat(points.slice(-1))
    .map(({ at, score }) => shape("circle", { class: "dot", cx: x(at), cy: y(score), r: 3 })));
  $("health-chart").replaceChildren(...parts);
  const scores = points.map(({ score }) => score);
  $("health-chart").setAttribute("aria-label",
    `Health over the last hour: now ${scores.at(-1)}, lowest ${Math.min(...scores)}, highest ${Math.max(...scores)}`);
}

// The line breaks where nothing was seen for over two minutes: what was not seen is not drawn.
function stretches(points) {
  const all = [];
  for (const point of points) {
    const last = all.at(-1)?.at(-1);
    if (last && point.at - last.at <= 125000) all.at(-1).push(point);
    else all.push([point]);
  }
  return all;
}

// ---- small things

function item(name, className, children) {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.append(...[children].flat());
  return element;
}

function shape(name, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function label(x, y, anchor, text) { return shape("text", { class: "label", x, y, "text-anchor": anchor }, text); }

function time(at) {
  const element = item("time", "", clock(at));
  element.dateTime = at;
  return element;
}

function clock(at) { return new Date(at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" }); }

function count(number, noun) { return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`; }

document.addEventListener("visibilitychange", () => { if (!document.hidden && !$("token-dialog").open) poll(); });
poll();
