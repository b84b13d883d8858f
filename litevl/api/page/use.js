// "Use now": under which address, model and key this server is called, and examples of it.

import { $, copyButton, el, iconButton, setIcon, word } from "./dom.js";
import { onServer, origin, server, setKey, url } from "./server.js";
import { curl, javascript, programs, python, sampleBody } from "./snippets.js";
import { number, onLanguage, say, t } from "./words.js";

const EXAMPLES = ["curl", "Python", "JavaScript", ...Object.keys(programs)];
let chosen = "curl"; // of the examples
let address = null; // that they show; null: the one under which the page came
let isShown = false; // the key
let picture = ""; // a data: URL
let drawn = ""; // what the view was last made of

export async function prepareUse() {
  const tabs = EXAMPLES.map((name) =>
    el("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": "example", onclick: () => choose(name) }, name),
  );
  $("tabs").append(...tabs);
  $("tabs").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    choose(EXAMPLES.at((EXAMPLES.indexOf(chosen) + step) % EXAMPLES.length));
    $(`tab-${chosen}`).focus();
  });
  onServer(draw);
  onLanguage(() => draw(true));
  const bytes = new Uint8Array(await (await fetch(url("page/sheep.jpg"))).arrayBuffer());
  picture = `data:image/jpeg;base64,${btoa(String.fromCharCode(...bytes))}`;
  draw(true);
}

function choose(name) {
  chosen = name;
  drawExample();
}

/** The same again only when something of it has changed: focus and selections stay. */
function draw(again = false) {
  const { model, addresses, max_model_len: context } = server.status ?? {};
  const now = JSON.stringify([model, addresses, context, server.key, server.isLocked]);
  if (now === drawn && again !== true) return;
  drawn = now;
  drawAddresses(addresses);
  drawFacts();
  drawExample();
}

// Addresses, model, key -----------------------------------------------------------------------------

function drawAddresses(told) {
  const here = origin();
  const rows = [["here", here]];
  const missing = { network: "noNetwork", public: "noPublic" };
  for (const name of ["local", "network", "public"]) {
    const value = told?.[name];
    if (value !== here) rows.push([name, value, told ? missing[name] : "afterKey"]);
    else rows[0] = [name, here];
  }
  if (!rows.some(([, value]) => value === (address ?? here))) address = null;
  const legend = $("addresses").firstElementChild;
  $("addresses").replaceChildren(legend, ...rows.map(addressRow));
}

function addressRow([name, value, otherwise]) {
  const id = `address-${name}`;
  const label = word("b", `address.${name}`);
  if (!value) return el("div.row.off", {}, el("span", {}, label, word("span", otherwise)));
  const onchange = () => {
    address = value;
    drawExample();
  };
  const checked = value === (address ?? origin());
  const radio = el("input", { type: "radio", name: "address", id, checked, onchange });
  const text = el("label", { for: id }, label, el("code", {}, `${value}/v1`));
  return el("div.row", {}, radio, text, copyButton(() => `${value}/v1`));
}

function drawFacts() {
  const { model, max_model_len: context } = server.status ?? {};
  const rows = [];
  rows.push(["modelName", model ? el("code", {}, model) : word("span.off", server.isLocked ? "afterKey" : server.state), model && copyButton(() => model)]);
  rows.push(["key", ...keyCells()]);
  if (context) rows.push(["context", word("span", "tokens", { n: number(context) })]);
  $("facts").replaceChildren(...rows.map(([name, ...cells]) => el("div.row", {}, word("dt", name), el("dd", {}, ...cells.filter(Boolean)))));
}

function keyCells() {
  if (!server.key) return [word("span.off", server.status ? "noKey" : server.isLocked ? "locked" : server.state)];
  const text = el("code", {}, shownKey());
  const eye = iconButton(isShown ? "hide" : "eye", isShown ? "hideKey" : "showKey", () => {
    isShown = !isShown;
    text.textContent = shownKey();
    eye.dataset.label = isShown ? "hideKey" : "showKey";
    setIcon(eye, isShown ? "hide" : "eye");
    say(eye);
    drawExample();
  });
  return [text, eye, copyButton(() => server.key), iconButton("close", "forgetKey", () => setKey(""))];
}

/** Enough of a key to recognise it by, as the terminal masks it. */
function shownKey() {
  const { key } = server;
  if (isShown || !key) return key;
  return key.length > 12 ? `${key.slice(0, 4)}…${key.slice(-2)}` : "…";
}

// Examples ------------------------------------------------------------------------------------------

function drawExample() {
  for (const name of EXAMPLES) {
    $(`tab-${name}`).setAttribute("aria-selected", String(name === chosen));
    $(`tab-${name}`).tabIndex = name === chosen ? 0 : -1;
  }
  $("example").setAttribute("aria-labelledby", `tab-${chosen}`);
  const about = el("p.hint", {}, word("span", `example.${chosen}`));
  if (chosen in programs) return $("example").replaceChildren(about, fields());
  about.append(" ", word("span", "exampleHint"));
  const button = copyButton(() => text(server.key, picture), "copy", true);
  const shown = el("code", {}, text(shownKey(), shortened(picture)));
  $("example").replaceChildren(el("div.bar", {}, about, button), el("pre", { tabindex: "0", "aria-label": chosen }, shown));
}

const text = (key, picture) => {
  const filled = values(key);
  if (chosen === "Python") return python(filled);
  if (chosen === "JavaScript") return javascript({ ...filled, picture });
  return curl({ ...filled, body: sampleBody(filled.model, picture) });
};

const shortened = (data) => data.slice(0, 34) + t("characters", { n: number(Math.max(0, data.length - 44)) }) + data.slice(-10);

function values(key) {
  const { model, max_model_len: context } = server.status ?? {};
  return { origin: address ?? origin(), key, model: model ?? "MODEL", context };
}

function fields() {
  const real = programs[chosen](values(server.key));
  const shown = programs[chosen](values(shownKey()));
  return el(
    "dl.facts",
    {},
    ...real.map(([name, value], index) => {
      const cells = value.word ? [word("span", value.word)] : [el("code", {}, shown[index][1]), copyButton(() => value)];
      return el("div.row", {}, word("dt", name), el("dd", {}, ...cells));
    }),
  );
}
