// The frame around the three views: which one is shown, the language, the theme, the key, and what
// is said when the server is not ready.

import { preparePlayground } from "./chat.js";
import { $, el, word } from "./dom.js";
import { prepareLive } from "./live.js";
import { onServer, server, setKey, watch } from "./server.js";
import { prepareUse } from "./use.js";
import { knows, number, onLanguage, say, speak, switchLanguage, t } from "./words.js";

const VIEWS = ["playground", "use", "live"];
const TROUBLE = { draining: "noticeDraining", stalled: "noticeStalled", dead: "noticeDead", unreachable: "noticeUnreachable", refused: "noticeRefused" };

// The key comes in the fragment, which no server and no log sees; it does not stay there either.
function readAddress() {
  const key = new URLSearchParams(location.hash.slice(1).replaceAll("+", "%2B")).get("key");
  if (key !== null) {
    history.replaceState(null, "", location.pathname + location.search);
    setKey(key);
  }
  const asked = location.hash.slice(1);
  if (asked === "main") return;
  const view = VIEWS.includes(asked) ? asked : VIEWS[0];
  for (const section of document.querySelectorAll("[data-view]")) section.hidden = section.dataset.view !== view;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  scrollTo(0, view === "playground" ? document.scrollingElement.scrollHeight : 0);
}

let told = "";
let demands = 0; // that were answered by putting the cursor into the field

function drawState() {
  const state = server.isLocked ? "locked" : server.state;
  $("state").dataset.state = state;
  say($("state-word"), state);
  const model = server.status?.model ?? "";
  $("model").textContent = $("model").title = model;
  document.title = model ? `${model} · litevl` : "litevl";
  drawNotice();
  drawKeyForm();
}

function drawNotice() {
  const isLoading = server.state === "loading";
  const key = isLoading ? "noticeLoading" : TROUBLE[server.state];
  const phase = phaseOf(server.status?.loading);
  if (told === `${key} ${phase}`) return; // it would be read aloud again
  told = `${key} ${phase}`;
  $("notice").hidden = !key;
  $("notice").dataset.state = server.state;
  $("notice").replaceChildren(...(key ? [word("p", key, { phase, reason: server.reason })] : []));
  const progress = server.status?.loading?.progress;
  if (isLoading && progress != null) $("notice").append(progressOf(progress));
}

function phaseOf(loading) {
  const { phase = "starting", progress } = loading ?? {};
  const name = knows(`phase.${phase}`) ? t(`phase.${phase}`) : phase;
  return progress == null ? name : `${name} ${number(progress * 100)} %`;
}

const progressOf = (value) => el("progress", { value, max: 1, "aria-label": t("loading") });

function drawKeyForm() {
  $("key-form").hidden = !server.isLocked;
  if (!server.isLocked || demands === server.demands) return;
  demands = server.demands;
  say($("key-why"), server.key ? "keyWrong" : "keyNeeded");
  $("key-field").value = "";
  $("key-field").focus();
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey($("key-field").value);
});
$("language").addEventListener("click", switchLanguage);
$("theme").addEventListener("click", () => {
  const root = document.documentElement.dataset;
  root.theme = root.theme === "dark" ? "light" : "dark";
  localStorage.setItem("litevl.theme", root.theme);
});
addEventListener("hashchange", readAddress);
onLanguage(() => {
  told = "";
  drawState();
});

speak();
readAddress();
onServer(drawState);
preparePlayground();
prepareUse();
prepareLive();
watch();
