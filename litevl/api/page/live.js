// How the server fares: what /v1/status says, once a second. Nothing of a request but numbers.

import { $, el, svg, word } from "./dom.js";
import { onServer, server } from "./server.js";
import { number, onLanguage, say, span, t } from "./words.js";

const SECONDS = 60;
const rates = []; // tokens a second, the newest last
const COLUMNS = ["when", "result", "media", "prompt", "answer", "firstToken", "total", "id"];
const tiles = {};

export function prepareLive() {
  for (const name of ["state", "running", "queued", "kv", "rate", "first"]) {
    const parts = { value: el("span.value"), about: el("span.about") };
    tiles[name] = parts;
    $("tiles").append(el("div", {}, word("dt", name), el("dd", {}, parts.value, parts.about)));
  }
  tiles.kv.bar = el("meter", { min: 0, max: 1, value: 0, high: 0.9, "data-label": "kv" });
  tiles.kv.value.after(say(tiles.kv.bar));
  $("recent").tHead.append(el("tr", {}, ...COLUMNS.map((name) => word("th", name, {}, { scope: "col", class: name }))));
  onLanguage(draw);
  onServer(() => {
    if (server.status) rates.push(server.status.tokens_per_second);
    if (rates.length > SECONDS) rates.shift();
    draw();
  });
}

function draw() {
  const { status } = server;
  tell("state", word("span", server.state));
  tiles.state.value.dataset.state = server.state;
  if (!status) {
    for (const name of ["running", "queued", "kv", "rate", "first"]) tell(name, "–");
    tiles.kv.bar.value = 0;
    return;
  }
  const { running, waiting, kv_cache: kv, tokens_per_second: rate, recent } = status;
  tell("state", word("span", server.state), "up", { time: span(status.uptime_seconds * 1000), version: status.version });
  tell("running", number(running), "runningHint");
  tell("queued", number(waiting), "queuedHint");
  if (kv) tell("kv", `${number(kv.usage * 100, kv.usage && kv.usage < 0.1 ? 1 : 0)} %`, "kvHint", { n: number(kv.blocks * kv.block_size) });
  else tell("kv", "–");
  tiles.kv.bar.value = kv?.usage ?? 0;
  tell("rate", number(rate, rate && rate < 10 ? 1 : 0), "rateHint");
  const firsts = recent.map((each) => each.ttft_ms).filter((each) => each !== null);
  tell("first", firsts.length ? `${span(quantile(firsts, 0.5))} / ${span(quantile(firsts, 0.95))}` : "–", "firstHint");
  drawRates(rate);
  drawRecent(recent);
}

function tell(name, value, hint = "", filled = {}) {
  const { value: shown, about } = tiles[name];
  if (typeof value === "string") shown.textContent = value;
  else shown.replaceChildren(value);
  say(about, hint, filled);
}

function quantile(values, share) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.ceil(share * sorted.length) - 1)];
}

function drawRates(now) {
  const most = Math.max(...rates, 1);
  const x = (index) => 600 - ((rates.length - 1 - index) * 600) / (SECONDS - 1);
  const points = rates.map((each, index) => `${x(index).toFixed(1)},${(76 - (each / most) * 70).toFixed(1)}`);
  const line = svg("polyline", { points: points.join(" "), class: "line", "vector-effect": "non-scaling-stroke" });
  const area = svg("polygon", { points: `${x(0)},80 ${points.join(" ")} 600,80`, class: "area" });
  $("spark").replaceChildren(area, line);
  const peak = number(Math.max(...rates), most > 1 && most < 10 ? 1 : 0);
  say($("peak"), "peak", { n: peak });
  $("spark").setAttribute("aria-label", t("rateLabel", { now: number(now), most: peak }));
}

function drawRecent(recent) {
  $("no-recent").hidden = recent.length > 0;
  $("recent").hidden = !recent.length;
  $("recent").tBodies[0].replaceChildren(...recent.map(row));
}

function row(each) {
  const time = new Date(each.when * 1000).toLocaleTimeString(document.documentElement.lang);
  const media = [];
  if (each.images) media.push(t("pictures", { n: each.images }));
  if (each.videos) media.push(t("clips", { n: each.videos }));
  const isGood = each.status === 200 && !each.error;
  const result = each.error ?? (each.status === 499 ? t("left") : each.finish_reason);
  const cells = {
    when: time,
    result: el("span", { class: isGood ? "good" : "bad" }, `${each.status} ${result ?? ""}`),
    media: media.join(", ") || "–",
    prompt: number(each.prompt_tokens) + (each.cached_tokens ? ` (${t("cached")} ${number(each.cached_tokens)})` : ""),
    answer: number(each.completion_tokens),
    firstToken: each.ttft_ms === null ? "–" : span(each.ttft_ms),
    total: span(each.total_ms),
    id: el("code", { title: each.id }, each.id),
  };
  return el("tr", {}, ...COLUMNS.map((name) => el("td", { class: name, "data-column": t(name) }, cells[name])));
}
