// An answer's text as it grows: paragraphs, code with a button to copy it, `code` and **strong**.
// Everything else stays as the model wrote it; nothing it writes becomes markup.

import { copyButton, el } from "./dom.js";

const FENCE = /^ {0,3}(```+|~~~+)\s*([\w+#.-]*)[^\n`]*$/;

/** Shows a text in `node`; blocks that have not changed since the last call are left alone. */
export function show(node, text) {
  const found = blocks(text);
  found.forEach((block, index) => {
    const old = node.children[index];
    if (old?.source === block.text && old.kind === block.kind) return;
    const made = block.kind === "code" ? code(block) : el("p", {}, ...inline(block.text));
    made.source = block.text;
    made.kind = block.kind;
    old ? old.replaceWith(made) : node.append(made);
  });
  while (node.children.length > found.length) node.lastChild.remove();
}

function blocks(text) {
  const found = [];
  let open = null; // the fence that must come again
  let fresh = true; // the next line begins a block
  for (const line of text.split("\n")) {
    const fence = line.match(FENCE);
    if (open && fence && fence[1].startsWith(open) && !fence[2]) {
      open = null;
      fresh = true;
    } else if (!open && fence) {
      open = fence[1];
      found.push({ kind: "code", text: "", name: fence[2] });
      fresh = false;
    } else if (open) {
      const block = found.at(-1);
      block.text += block.begun ? `\n${line}` : line;
      block.begun = true;
    } else if (!line.trim()) {
      fresh = true;
    } else if (fresh) {
      found.push({ kind: "text", text: line });
      fresh = false;
    } else {
      found.at(-1).text += `\n${line}`;
    }
  }
  return found;
}

function code({ text, name }) {
  const head = el("figcaption", {}, el("span", {}, name), copyButton(() => text, "copyCode"));
  return el("figure.code", {}, head, el("pre", { tabindex: "0" }, el("code", {}, text)));
}

function inline(text) {
  return text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/).map((part, index) => {
    if (index % 2 === 0) return part;
    return part[0] === "`" ? el("code", {}, part.slice(1, -1)) : el("strong", {}, part.slice(2, -2));
  });
}
