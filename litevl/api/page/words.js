// Every word of the page, in English and Chinese, and the way they get onto it.
// `say` ties a text to an element, so that it follows the language; {names} are filled in.

const WORDS = {
  // the frame
  skip: ["Skip to content", "跳到正文"],
  sections: ["Sections", "栏目"],
  playground: ["Playground", "试用"],
  useNow: ["Use now", "接入"],
  live: ["Live", "运行状态"],
  otherLanguage: ["中文", "English"],
  theme: ["Switch between light and dark", "切换浅色与深色"],
  copy: ["Copy", "复制"],
  copied: ["Copied", "已复制"],
  notCopied: ["The browser did not let us copy", "浏览器不允许复制"],
  // states
  connecting: ["connecting", "连接中"],
  unreachable: ["unreachable", "无法连接"],
  locked: ["needs its key", "需要密钥"],
  refused: ["refused", "被拒绝"],
  loading: ["loading", "加载中"],
  ready: ["ready", "就绪"],
  draining: ["draining", "正在停止"],
  stalled: ["stalled", "无响应"],
  dead: ["failed", "已失败"],
  noticeLoading: ["The model is loading: {phase}. Everything here works as soon as it is ready.", "模型加载中：{phase}。就绪后即可使用。"],
  noticeDraining: ["The server is finishing its last answers and takes no new requests. It will be gone in half a minute.", "服务器正在完成最后的回答，不再接受新请求，半分钟内停止。"],
  noticeStalled: ["The engine has not finished a step for a while. If that lasts, restart litevl; its log says what it was doing.", "引擎长时间没有完成一步计算。如果持续如此，请重启 litevl；日志里有最后的动作。"],
  noticeDead: ["The engine has failed, and litevl ends. Start it again, if no supervisor does; its log says why.", "引擎已失败，litevl 即将退出。若没有守护进程，请重新启动；原因见日志。"],
  noticeUnreachable: ["The server cannot be reached. If it should be running, its terminal says why it is not. Trying again…", "无法连接服务器。如果它本应在运行，请查看终端里的原因。正在重试……"],
  noticeRefused: ["The server does not answer this page. It says: {reason}", "服务器不回应本页，它的说明：{reason}"],
  // what a loading is at; a phase that is not here is shown as the server calls it
  "phase.starting": ["starting", "启动"],
  "phase.downloading": ["downloading", "下载"],
  "phase.loading": ["reading the weights", "读取权重"],
  "phase.warming up": ["warming up", "预热"],
  // the key
  keyNeeded: ["This server asks for its API key: the start of litevl named the file that holds it.", "服务器需要 API 密钥：litevl 启动时说明了保存它的文件。"],
  keyWrong: ["This key is not accepted. Paste the right one:", "密钥不正确，请粘贴正确的密钥："],
  useKey: ["Use this key", "使用此密钥"],
  forgetKey: ["Forget the key", "清除密钥"],
  showKey: ["Show the key", "显示密钥"],
  hideKey: ["Hide the key", "隐藏密钥"],
  key: ["API key", "API 密钥"],
  noKey: ["none needed: only this machine can call", "无需密钥"],
  // the playground
  emptyTitle: ["Ask about a picture or a clip", "就图片或视频提问"],
  emptyText: ["Drop, paste or pick files. What the model really saw is drawn over them.", "拖入、粘贴或选择文件。模型真正看到的内容会画在上面。"],
  samplePicture: ["Try the sample picture", "试试示例图片"],
  sampleQuestion: ["How many sheep are there in the picture?", "图中有几只羊？"],
  sampleClip: ["Try the sample clip", "试试示例视频"],
  sampleClipQuestion: ["What moves in the clip, and which way?", "视频里什么在动？往哪个方向？"],
  conversation: ["Conversation", "对话"],
  question: ["Your question", "你的问题"],
  questionHint: ["Ask something…", "输入问题……"],
  attach: ["Picture or clip", "图片或视频"],
  attached: ["Attached files", "已添加的文件"],
  remove: ["Remove {name}", "移除 {name}"],
  newChat: ["New chat", "新对话"],
  enterHint: ["Enter sends, Shift+Enter breaks the line", "回车发送，Shift+回车换行"],
  send: ["Send", "发送"],
  stop: ["Stop", "停止"],
  dropHere: ["Drop pictures or clips here", "把图片或视频拖到这里"],
  you: ["You", "你"],
  model: ["Model", "模型"],
  tooLargePicture: ["{name} has {size}. Unless it was told otherwise, the server refuses pictures above 20 MiB.", "{name} 有 {size}。默认情况下服务器拒绝大于 20 MiB 的图片。"],
  tooLargeClip: ["{name} has {size}. Unless it was told otherwise, the server refuses clips above 64 MiB.", "{name} 有 {size}。默认情况下服务器拒绝大于 64 MiB 的视频。"],
  notMedia: ["{name} is no picture or clip that the model could see.", "{name} 不是模型能看的图片或视频。"],
  noPreview: ["The browser cannot show this file; the model may still see it.", "浏览器无法预览此文件，但模型可能可以看到。"],
  answering: ["Answering…", "正在回答……"],
  waiting: ["Waiting for the first token", "等待第一个 token"],
  thinking: ["Thinking…", "思考中……"],
  thought: ["Thought for {seconds} s", "思考了 {seconds} 秒"],
  firstToken: ["First token", "首 token"],
  speed: ["Speed", "速度"],
  perSecond: ["{n} tokens/s", "{n} token/秒"],
  prompt: ["Prompt", "提示"],
  promptTold: ["{n} tokens", "{n} token"],
  share: ["{n} tokens, {percent} % media", "{n} token，媒体占 {percent} %"],
  cached: ["Cached", "缓存命中"],
  answer: ["Answer", "回答"],
  end: ["End", "结束"],
  "end.stop": ["complete", "完整"],
  "end.length": ["cut at the longest answer", "达到长度上限"],
  "end.tool_calls": ["calls tools", "调用工具"],
  "end.stopped": ["stopped by you", "已手动停止"],
  copyAnswer: ["Copy", "复制"],
  copyCurl: ["Copy as curl", "复制为 curl"],
  copyCode: ["Copy the code", "复制代码"],
  again: ["Try again", "重试"],
  // the receipt
  seen: ["Seen at {seen} of {original}", "以 {seen} 观看，原图 {original}"],
  seenGrid: ["{columns} × {rows} cells, {tokens} tokens, scale {scale}", "{columns} × {rows} 格，{tokens} token，缩放 {scale}"],
  seenFrames: ["{frames} frames, {rate} a second, of a clip of {seconds} s", "{seconds} 秒的视频里看到 {frames} 帧，每秒 {rate} 帧"],
  showGrid: ["Show what the model saw", "显示模型看到的内容"],
  hideGrid: ["Hide what the model saw", "隐藏模型看到的内容"],
  frames: ["Frames that the model saw", "模型看到的帧"],
  // errors: what a person can do about them
  "error.invalid_api_key": ["The key is not accepted. Paste the right one above, then try again.", "密钥不正确。请在上方粘贴正确的密钥，然后重试。"],
  "error.unreachable": ["The server cannot be reached. Is litevl still running?", "无法连接服务器。litevl 还在运行吗？"],
  "error.cut": ["The connection ended before the answer did.", "回答尚未结束，连接就中断了。"],
  "error.context_length_exceeded": ["Too long for the model. Start a new chat, or lower “Most pixels”.", "超出模型长度。请开始新对话，或调低“最大像素”。"],
  "error.request_too_large": ["These files are larger than the server takes. Send smaller ones.", "文件超过服务器上限，请发送更小的文件。"],
  "error.rate_limit_exceeded": ["The server has its hands full. Try again in {seconds} s.", "服务器正忙，请 {seconds} 秒后重试。"],
  "error.server_is_overloaded": ["The server takes no requests now. Try again in {seconds} s.", "服务器暂不接受请求，请 {seconds} 秒后重试。"],
  "error.else": ["That did not work.", "请求失败。"],
  errorDetail: ["The server says: {message}", "服务器的说明：{message}"],
  // parameters
  parameters: ["Parameters", "参数"],
  system: ["System prompt", "系统提示词"],
  systemHint: ["none", "无"],
  temperature: ["Temperature", "温度"],
  top_p: ["Top-p", "Top-p"],
  top_k: ["Top-k", "Top-k"],
  repetition_penalty: ["Repeat penalty", "重复惩罚"],
  max_tokens: ["Longest answer", "最大回答长度"],
  seed: ["Seed", "随机种子"],
  max_pixels: ["Most pixels", "最大像素"],
  fps: ["Frames a second", "每秒帧数"],
  reset: ["Back to the model's own", "恢复模型默认值"],
  knobsHint: ["An empty field leaves it to the model. Only what you change is sent.", "留空即采用模型默认值，只发送改动过的参数。"],
  room: ["room left", "剩余长度"],
  random: ["random", "随机"],
  models: ["the model's", "模型默认"],
  // use now
  address: ["Address", "地址"],
  "address.here": ["This page", "本页"],
  "address.local": ["This machine", "本机"],
  "address.network": ["Your network", "内网"],
  "address.public": ["Public", "公网"],
  noNetwork: ["closed; --host 0.0.0.0 opens it", "未开放，用 --host 0.0.0.0 开放"],
  noPublic: ["not told; --public-url names it", "未设置，用 --public-url 说明"],
  afterKey: ["known after the key", "输入密钥后可见"],
  modelName: ["Model name", "模型名称"],
  context: ["Context", "上下文长度"],
  tokens: ["{n} tokens", "{n} token"],
  examples: ["Examples", "示例"],
  exampleHint: ["The button copies it whole, key included.", "按钮复制全部内容，包括密钥。"],
  characters: ["… {n} characters …", "…… {n} 个字符 ……"],
  "example.curl": ["Runs as pasted: the picture is inside.", "粘贴即可运行，图片已包含在内。"],
  "example.Python": ["Needs: pip install openai requests. Asks about a picture and a clip from the web.", "需要：pip install openai requests。就网上的一张图片和一段视频提问。"],
  "example.JavaScript": ["For Node 20 or newer, and for browsers as it is: the server answers other origins where it has a key.", "适用于 Node 20 以上版本和浏览器：设有密钥时服务器允许跨域访问。"],
  "example.Chatbox": ["Settings → Model provider → Add → OpenAI API compatible.", "设置 → 模型提供方 → 添加 → OpenAI API 兼容。"],
  "example.Cherry Studio": ["Settings → Model provider → Add → OpenAI. It adds /v1 by itself; mark the model as able to see.", "设置 → 模型服务 → 添加 → OpenAI。/v1 会自动补全；请给模型勾选“视觉”。"],
  "example.Open WebUI": ["Admin panel → Settings → Connections → OpenAI API. From inside its container, 127.0.0.1 is not this machine: take the network's address.", "管理员面板 → 设置 → 外部连接 → OpenAI API。容器里的 127.0.0.1 不是本机，请使用内网地址。"],
  "example.Dify": ["Settings → Model provider → OpenAI-API-compatible → Add model.", "设置 → 模型供应商 → OpenAI-API-compatible → 添加模型。"],
  mode: ["API mode", "API 模式"],
  host: ["API host", "API 域名"],
  path: ["API path", "API 路径"],
  network: ["Network compatibility", "改善网络兼容性"],
  on: ["on", "开启"],
  baseUrl: ["Base URL", "API 地址"],
  kind: ["Type", "类型"],
  completion: ["Completion mode", "模型类型"],
  chat: ["Chat", "对话"],
  vision: ["Vision", "视觉"],
  supported: ["supported", "支持"],
  // live
  state: ["State", "状态"],
  up: ["up {time}, litevl {version}", "已运行 {time}，litevl {version}"],
  running: ["Running", "运行中"],
  queued: ["Waiting", "排队"],
  runningHint: ["answers in the batch", "个回答在批次中"],
  queuedHint: ["answers in the queue", "个回答在队列中"],
  kv: ["KV cache", "KV 缓存"],
  kvHint: ["of {n} tokens", "共 {n} token"],
  rate: ["Tokens a second", "每秒 token"],
  rateHint: ["mean of 10 s", "10 秒平均"],
  rateCaption: ["Generated tokens a second, last minute", "最近一分钟每秒生成的 token"],
  peak: ["peak {n}", "峰值 {n}"],
  rateLabel: ["Generated tokens a second, last minute: now {now}, at most {most}", "最近一分钟每秒生成的 token：当前 {now}，最高 {most}"],
  first: ["First token, p50 / p95", "首 token p50 / p95"],
  firstHint: ["of the requests below", "以下请求"],
  recent: ["Recent requests", "最近的请求"],
  recentHint: ["Counts and times; what was asked and answered is not kept.", "只有数量和时间，不保存提问和回答的内容。"],
  noRecent: ["No request yet. Ask something in the playground.", "还没有请求。去“试用”里问点什么吧。"],
  when: ["Time", "时间"],
  result: ["Result", "结果"],
  media: ["Media", "媒体"],
  pictures: ["{n} pict.", "{n} 图"],
  clips: ["{n} clip", "{n} 视频"],
  total: ["Total", "总时长"],
  id: ["Request", "请求编号"],
  left: ["client left", "客户端断开"],
};
const LANGUAGES = ["en", "zh"];

const stored = localStorage.getItem("litevl.language");
let language = stored ?? (navigator.language.startsWith("zh") ? "zh" : "en");
const values = new WeakMap();
const listeners = new Set();

/** The text of a key; a key without words is shown as it is. */
export function t(key, filled = {}) {
  const text = WORDS[key]?.[LANGUAGES.indexOf(language)] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => filled[name] ?? whole);
}

/** Tie a text to an element (or fill what its data-t, data-label and data-hint name). */
export function say(node, key = node.dataset.t, filled = values.get(node)) {
  values.set(node, filled);
  if (key !== undefined) {
    node.dataset.t = key;
    node.textContent = t(key, filled);
  }
  const { label, hint } = node.dataset;
  if (label) node.setAttribute("aria-label", t(label, filled));
  if (label && node.matches("button")) node.title = t(label, filled);
  if (hint) node.placeholder = t(hint, filled);
  return node;
}

export function speak(other = language) {
  language = other;
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const node of document.querySelectorAll("[data-t], [data-label], [data-hint]")) say(node);
  for (const listener of listeners) listener();
}

export function switchLanguage() {
  speak(LANGUAGES[1 - LANGUAGES.indexOf(language)]);
  localStorage.setItem("litevl.language", language);
}

export function onLanguage(listener) {
  listeners.add(listener);
}

export const knows = (key) => key in WORDS;

export function number(value, digits = 0) {
  const options = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  return value.toLocaleString(document.documentElement.lang, options);
}

/** Milliseconds as people read them. */
export function span(ms) {
  if (ms < 1000) return `${number(ms)} ms`;
  if (ms < 100_000) return `${number(ms / 1000, ms < 10_000 ? 2 : ms < 60_000 ? 1 : 0)} s`;
  if (ms < 7_200_000) return `${number(ms / 60_000)} min`;
  return `${number(ms / 3_600_000)} h`;
}

export function size(bytes) {
  return bytes < 2 ** 20 ? `${number(bytes / 1024)} KiB` : `${number(bytes / 2 ** 20, 1)} MiB`;
}
