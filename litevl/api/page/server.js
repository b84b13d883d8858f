// The server as the page knows it: the key, the state that is asked for once a second, and answers.
// Tells its listeners when something has changed; draws nothing.

const KEY = "litevl.key";
const EVERY_MS = 1000;
const LOCKED_EVERY_MS = 4000;

/** state: connecting, unreachable, refused, loading, ready, draining, stalled or dead. */
export const server = {
  key: sessionStorage.getItem(KEY) ?? "",
  state: "connecting",
  isLocked: false, // it asks for a key, or for another one
  demands: 0, // how often it began to, or refused a request
  status: null, // the last /v1/status
  reason: "", // why it was refused
};
const listeners = new Set();
let timer = 0;
let rounds = 0;

export const url = (path) => new URL(path, new URL(".", document.baseURI)).href;

/** This server as the page reached it, a proxy's folder included. */
export const origin = () => url("").replace(/\/$/, "");

export function onServer(listener) {
  listeners.add(listener);
  listener();
}

export function setKey(key) {
  server.key = key.trim();
  server.isLocked = false;
  if (server.key) sessionStorage.setItem(KEY, server.key);
  else sessionStorage.removeItem(KEY);
  return watch();
}

/** A request was refused for its key: another one is asked for. */
export function lock() {
  server.isLocked = true;
  server.demands += 1;
  return watch();
}

/** Ask now, and from now on: often, seldom without a right key, not at all in a hidden tab. */
export async function watch() {
  clearTimeout(timer);
  const round = ++rounds;
  const seen = await look();
  if (round !== rounds) return; // a newer look began with what is known now: another key, perhaps
  if (seen.isLocked && !server.isLocked) server.demands += 1;
  Object.assign(server, seen);
  for (const listener of listeners) listener();
  if (document.hidden) return;
  timer = setTimeout(watch, server.isLocked ? LOCKED_EVERY_MS : EVERY_MS);
}
document.addEventListener("visibilitychange", () => document.hidden || watch());

async function look() {
  const asked = { cache: "no-store", signal: AbortSignal.timeout(8000) };
  try {
    if (!server.isLocked) {
      const answer = await fetch(url("v1/status"), { ...asked, headers: authorization() });
      if (answer.ok) {
        const status = await answer.json();
        return { state: status.status, status, isLocked: false };
      }
      if (answer.status !== 401) {
        const { error } = await answer.json();
        return { state: "refused", status: null, reason: error.message };
      }
    }
    const health = await (await fetch(url("health"), asked)).json();
    return { state: health.status, status: null, isLocked: true };
  } catch {
    return { state: "unreachable", status: null };
  }
}

function authorization() {
  return server.key ? { authorization: `Bearer ${server.key}` } : {};
}

/** What the server, or the way to it, says against a request. */
export class ServerError extends Error {
  constructor({ message = "", code, param } = {}, status = 0, headers = new Headers()) {
    super(message);
    Object.assign(this, { code, param, status });
    this.retryAfter = headers.get("retry-after");
    this.request = headers.get("x-request-id");
  }
}

/** The chunks of a streamed answer to `body`, a JSON text. Leaving the loop ends the work. */
export async function* chat(body, signal) {
  let answer;
  try {
    const headers = { ...authorization(), "content-type": "application/json" };
    answer = await fetch(url("v1/chat/completions"), { method: "POST", headers, body, signal });
  } catch (error) {
    throw signal.aborted ? error : new ServerError({ code: "unreachable" });
  }
  if (!answer.ok) {
    const { error } = await answer.json().catch(() => ({}));
    throw new ServerError(error, answer.status, answer.headers);
  }
  const headers = answer.headers;
  for await (const frame of frames(answer.body)) {
    if (frame === "[DONE]") return;
    const chunk = JSON.parse(frame);
    if (chunk.error) throw new ServerError(chunk.error, 200, headers);
    yield chunk;
  }
  throw new ServerError({ code: "cut" }, 200, headers);
}

async function* frames(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) yield part.replace(/^data: /, "");
  }
}
