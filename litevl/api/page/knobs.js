// The parameters of the playground: what is empty is left to the model, whose own values stand there.

import { $, el, word } from "./dom.js";
import { onServer, server } from "./server.js";
import { onLanguage, t } from "./words.js";

// name, least, most, step; what an empty field means where the model's defaults do not tell
const KNOBS = [
  ["temperature", 0, 2, "any"],
  ["top_p", 0.01, 1, "any"],
  ["top_k", 0, null, 1],
  ["repetition_penalty", 0.01, 100, "any"],
  ["max_tokens", 1, null, 1, "room"],
  ["seed", 0, null, 1, "random"],
  ["max_pixels", 1, null, 1, "models"],
  ["fps", 0.001, null, "any", "models"],
];
const OF_MEDIA = ["max_pixels", "fps"];

export function prepareKnobs() {
  for (const [name, min, max, step] of KNOBS) {
    const input = el("input", { id: name, type: "number", min, max, step, inputmode: "decimal" });
    $("knobs").append(el("label.field", { for: name }, word("span", name), input));
  }
  $("reset-knobs").addEventListener("click", () => $("parameters").reset());
  $("parameters").addEventListener("submit", (event) => event.preventDefault());
  const wide = matchMedia("(min-width: 60rem)");
  wide.addEventListener("change", () => ($("panel").open = wide.matches));
  $("panel").open = wide.matches;
  onLanguage(fill);
  onServer(fill);
}

function fill() {
  for (const [name, , , , otherwise] of KNOBS) {
    const own = server.status?.defaults?.[name];
    $(name).placeholder = otherwise ? t(otherwise) : own === undefined ? "" : String(+own.toFixed(4));
  }
}

/** The system prompt and the fields of a request that somebody has set; null if one is impossible. */
export function settings() {
  if (!$("parameters").checkValidity()) {
    $("panel").open = true;
    $("parameters").reportValidity();
    return null;
  }
  const set = KNOBS.filter(([name]) => $(name).value !== "").map(([name]) => [name, $(name).valueAsNumber]);
  const fields = Object.fromEntries(set.filter(([name]) => !OF_MEDIA.includes(name)));
  const media = Object.fromEntries(set.filter(([name]) => OF_MEDIA.includes(name)));
  if (Object.keys(media).length) fields.mm_processor_kwargs = media;
  return { system: $("system").value.trim(), fields };
}
