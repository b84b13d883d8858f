// The playground: a conversation, the requests that it makes, and what became of each.

import { $, announce, copyButton, el, icon, word } from "./dom.js";
import { prepareKnobs, settings } from "./knobs.js";
import { Attachment, attachments, onFiles } from "./media.js";
import { chat, lock, origin, server, ServerError, url } from "./server.js";
import { curl } from "./snippets.js";
import { show } from "./text.js";
import { knows, number, say, span, t } from "./words.js";

let turns = []; // {text, media, answer, reply}; one that failed has no answer and is not sent again
let tray = []; // attachments that wait for their question
let running = null; // the AbortController of the answer that comes
let follows = true; // the page is at its end, and stays there
let top = 0; // where it was scrolled to

export function preparePlayground() {
  prepareKnobs();
  onFiles(attach);
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  $("question").addEventListener("input", settle);
  $("question").addEventListener("keydown", (event) => {
    // An input method's Enter chooses a word, and sends nothing.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  $("stop").addEventListener("click", () => running?.abort());
  $("new-chat").addEventListener("click", startAnew);
  $("sample-picture").addEventListener("click", () => sample("page/sample.jpg", "sampleQuestion"));
  $("sample-clip").addEventListener("click", () => sample("page/sample.mp4", "sampleClipQuestion"));
  settle();
}

// What is about to be asked ---------------------------------------------------------------------

function attach(files) {
  for (const file of files.filter((each) => !each.isMedia)) file.forget();
  tray.push(...files.filter((each) => each.isMedia));
  const fault = [...files, ...tray].map((each) => each.fault).find(Boolean);
  fault ? say($("warning"), ...fault) : clearWarning();
  drawTray();
  $("question").focus();
}

function clearWarning() {
  delete $("warning").dataset.t;
  $("warning").textContent = "";
}

function drawTray() {
  const chips = tray.map((each) =>
    each.chip(() => {
      tray = tray.filter((other) => other !== each);
      each.forget();
      clearWarning();
      drawTray();
      $("question").focus();
    }),
  );
  $("tray").replaceChildren(...chips);
  settle();
}

async function sample(path, question) {
  const blob = await (await fetch(url(path))).blob();
  const name = path.split("/").at(-1);
  tray = [new Attachment(new File([blob], name, { type: blob.type }))];
  $("question").value = t(question);
  send();
}

/** Buttons and sizes follow what there is. */
function settle() {
  const field = $("question");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
  $("send").disabled = !field.value.trim() && !tray.length;
  $("send").hidden = Boolean(running);
  $("stop").hidden = !running;
  $("new-chat").hidden = !turns.length;
  $("empty").hidden = turns.length > 0;
}

function startAnew() {
  running?.abort();
  for (const each of turns.flatMap((turn) => turn.media)) each.forget();
  turns = [];
  $("thread").replaceChildren();
  settle();
  $("question").focus();
}

// Asking ------------------------------------------------------------------------------------------

function send() {
  const text = $("question").value.trim();
  const asked = settings();
  if (running || !asked || (!text && !tray.length)) return;
  const turn = { text, media: tray, asked, answer: null };
  tray = [];
  $("question").value = "";
  clearWarning();
  drawTray();
  const figures = turn.media.map((each) => each.figure());
  const question = el("div.ask", {}, word("h3.unseen", "you"), ...figures, text ? el("p", {}, text) : null);
  turn.node = el("article.turn", {}, question);
  $("thread").append(turn.node);
  turns.push(turn);
  answer(turn);
}

async function answer(turn) {
  turn.reply?.node.remove();
  const reply = (turn.reply = new Reply(turn.node));
  const controller = (running = new AbortController());
  settle();
  announce(t("answering"));
  follows = true;
  scrollDown();
  try {
    const body = JSON.stringify(await bodyOf(turn));
    reply.curl = () => curl({ origin: origin(), key: server.key, body });
    reply.begin();
    for await (const chunk of chat(body, controller.signal)) {
      reply.take(chunk);
      (chunk.litevl?.media ?? []).forEach((receipt, index) => turn.sent[index]?.receive(receipt));
    }
    reply.end(reply.reason);
    turn.answer = reply.content;
  } catch (error) {
    if (controller.signal.aborted) {
      turn.answer = reply.content || null;
      reply.end("stopped");
    } else {
      const told = error instanceof ServerError ? error : new ServerError({ code: "cut" });
      reply.fail(told, () => turn === turns.at(-1) && !running && answer(turn));
      if (told.status === 401) lock();
    }
  }
  if (running === controller) running = null;
  settle();
}

async function bodyOf(turn) {
  const asked = turns.filter((each) => each.answer !== null || each === turn);
  turn.sent = asked.flatMap((each) => each.media);
  const messages = turn.asked.system ? [{ role: "system", content: turn.asked.system }] : [];
  for (const { text, media, answer } of asked) {
    const parts = await Promise.all(media.map((each) => each.part()));
    if (parts.length && text) parts.push({ type: "text", text });
    messages.push({ role: "user", content: parts.length ? parts : text });
    if (answer !== null) messages.push({ role: "assistant", content: answer });
  }
  return {
    model: server.status?.model ?? undefined,
    messages,
    ...turn.asked.fields,
    stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true },
    media_receipt: turn.sent.length ? true : undefined,
  };
}

/** Whoever is at the end of the page stays there, whatever grows: text, and pictures as they load. */
function scrollDown() {
  const isShown = $("thread").offsetParent !== null; // another view has its own place
  if (follows && isShown) document.scrollingElement.scrollTop = document.scrollingElement.scrollHeight;
}
new ResizeObserver(scrollDown).observe($("thread"));
addEventListener("scroll", () => {
  // Told late, when a fast answer has grown beyond the end again: only who goes up stops following.
  const page = document.scrollingElement;
  const isAtEnd = page.scrollHeight - page.scrollTop - innerHeight < 80;
  follows = isAtEnd || (follows && page.scrollTop >= top);
  top = page.scrollTop;
});

// An answer as it comes -----------------------------------------------------------------------------

class Reply {
  content = "";
  thoughts = "";
  reason = null;
  usage = null;

  constructor(turn) {
    this.text = el("div.text");
    this.wait = word("p.wait", "waiting");
    this.node = el("div.reply", { "aria-busy": "true" }, word("h3.unseen", "model"), this.wait, this.text);
    turn.append(this.node);
  }

  begin() {
    this.began = performance.now();
  }

  take({ choices: [choice], usage }) {
    const now = performance.now();
    this.usage = usage ?? this.usage;
    if (!choice) return;
    if (this.first === undefined) {
      this.first = now;
      this.firstTokens = this.usage?.completion_tokens ?? 1;
      this.wait.remove();
    }
    this.last = now;
    this.thoughts += choice.delta.reasoning_content ?? "";
    this.content += choice.delta.content ?? "";
    this.reason = choice.finish_reason ?? this.reason;
    // The screen is drawn less often than tokens come.
    this.frame ??= requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.frame = null;
    if (this.thoughts) this.drawThoughts();
    show(this.text, this.content.trim());
  }

  /** Open while the model thinks, closed when it answers, unless somebody decides otherwise. */
  drawThoughts() {
    if (!this.thinking) {
      this.thought = el("p");
      this.thinking = el("details.thinking", { open: true }, word("summary", "thinking"), this.thought);
      this.text.before(this.thinking);
    }
    this.thought.textContent = this.thoughts.trim();
    if (this.hasThought || !(this.content.trim() || this.reason)) return;
    this.hasThought = true;
    this.thinking.open = false;
    const seconds = number((performance.now() - this.first) / 1000, 1);
    say(this.thinking.firstChild, "thought", { seconds });
  }

  end(reason) {
    this.wait.remove();
    this.reason = reason;
    this.draw();
    this.node.setAttribute("aria-busy", "false");
    const buttons = el("div.buttons", {}, copyButton(() => this.content, "copyAnswer", true), this.curl ? copyButton(this.curl, "copyCurl", true) : null);
    this.node.append(el("footer", {}, this.stats(reason), buttons));
    announce(this.content || t(`end.${reason}`));
  }

  stats(reason) {
    const rows = [];
    const { prompt_tokens_details: details, ...counts } = this.usage ?? {};
    if (this.first !== undefined) rows.push(["firstToken", el("dd", {}, span(this.first - this.began))]);
    const more = (counts.completion_tokens ?? 0) - this.firstTokens;
    if (more > 0 && this.last > this.first) {
      const rate = (more * 1000) / (this.last - this.first);
      rows.push(["speed", word("dd", "perSecond", { n: number(rate, rate < 10 ? 1 : 0) })]);
    }
    if (details) {
      const media = details.image_tokens + details.video_tokens;
      const percent = Math.round((100 * media) / counts.prompt_tokens);
      const n = number(counts.prompt_tokens);
      rows.push(["prompt", word("dd", media ? "share" : "promptTold", { n, percent })]);
      if (details.cached_tokens) rows.push(["cached", word("dd", "promptTold", { n: number(details.cached_tokens) })]);
      rows.push(["answer", word("dd", "promptTold", { n: number(counts.completion_tokens) })]);
    }
    rows.push(["end", word(reason === "length" ? "dd.warn" : "dd", `end.${reason}`)]);
    return el("dl.stats", {}, ...rows.map(([name, value]) => el("div", {}, word("dt", name), value)));
  }

  fail(error, again) {
    this.wait.remove();
    this.draw();
    this.node.setAttribute("aria-busy", "false");
    const key = `error.${error.code}`;
    const title = word("p", knows(key) ? key : "error.else", { seconds: error.retryAfter ?? "5" });
    const detail = error.message ? word("p.detail", "errorDetail", { message: error.message }) : null;
    const button = el("button.quiet", { type: "button", onclick: again }, icon("again"), word("span", "again"));
    this.node.append(el("div.failed", { role: "alert" }, title, detail, button));
  }
}
