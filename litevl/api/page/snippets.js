// Calls of this server, ready to paste: texts with an address, a key and a model filled in.
// use.js shows them; chat.js tells its own requests as curl.

/** One request as curl. A body beyond the shell's limit for one argument goes through a here-document. */
export function curl({ origin, key, body }) {
  const head = [`curl -N ${origin}/v1/chat/completions`, '-H "Content-Type: application/json"'];
  if (key) head.push(`-H ${quoted(`Authorization: Bearer ${key}`)}`);
  const short = body.length < 100_000;
  const tail = short ? `-d ${quoted(body)}` : `-d @- <<'LITEVL'\n${body}\nLITEVL`;
  return `${[...head, tail].join(" \\\n  ")}\n`;
}

/** For a shell, whatever is in it. */
const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

export const sampleBody = (model, picture) => `{
    "model": ${JSON.stringify(model)},
    "stream": true,
    "messages": [{"role": "user", "content": [
      {"type": "image_url", "image_url": {"url": "${picture}"}},
      {"type": "text", "text": "How many sheep are there in the picture?"}
    ]}]
  }`;

/** The script of the usage document, word for word. */
export const python = ({ origin, key }) => `import base64

import requests
from openai import OpenAI

##### API 配置 #####
openai_api_key = "${key || "none"}"
openai_api_base = "${origin}/v1"

client = OpenAI(
    api_key=openai_api_key,
    base_url=openai_api_base,
)

models = client.models.list()
model = models.data[0].id


def encode_base64_content_from_url(content_url: str) -> str:
    """Encode a content retrieved from a remote url to base64 format."""

    with requests.get(content_url) as response:
        response.raise_for_status()
        result = base64.b64encode(response.content).decode("utf-8")

    return result


def infer_image():
    image_url = "https://qianwen-res.oss-cn-beijing.aliyuncs.com/QVQ/demo.png"

    stream = True

    image_base64 = encode_base64_content_from_url(image_url)

    chat_completion_from_base64 = client.chat.completions.create(
        messages=[
            {
                "role": "user",
                "content": [
                    {
                        "type": "text",
                        "text": "使用中文回答，图中方框处应该是数字多少?",
                    },
                    {
                        "type": "image_url",
                        "image_url": {"url": f"data:image/jpeg;base64,{image_base64}"},
                    },
                ],
            }
        ],
        model=model,
        max_completion_tokens=1024,
        stream=stream,
    )

    if stream:
        for chunk in chat_completion_from_base64:
            print(chunk.choices[0].delta.content, end="")
    else:
        result = chat_completion_from_base64.choices[0].message.content
        print(result)


def infer_video():
    video_url = "https://pai-quickstart-predeploy-hangzhou.oss-cn-hangzhou.aliyuncs.com/modelscope/algorithms/ms-swift/video_demo.mp4"

    stream = True

    video_base64 = encode_base64_content_from_url(video_url)

    chat_completion_from_base64 = client.chat.completions.create(
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "请描述下视频内容"},
                    {
                        "type": "video_url",
                        "video_url": {"url": f"data:video/mp4;base64,{video_base64}"},
                    },
                ],
            }
        ],
        model=model,
        max_completion_tokens=512,
        stream=stream,
    )

    if stream:
        for chunk in chat_completion_from_base64:
            print(chunk.choices[0].delta.content, end="")
    else:
        result = chat_completion_from_base64.choices[0].message.content
        print(result)


if __name__ == "__main__":
    infer_image()
    infer_video()
`;

export const javascript = ({ origin, key, model, picture }) => `const answer = await fetch("${origin}/v1/chat/completions", {
  method: "POST",
  headers: {
    "Content-Type": "application/json",${key ? `\n    Authorization: "Bearer ${key}",` : ""}
  },
  body: JSON.stringify({
    model: ${JSON.stringify(model)},
    messages: [
      {
        role: "user",
        content: [
          { type: "image_url", image_url: { url: "${picture}" } },
          { type: "text", text: "How many sheep are there in the picture?" },
        ],
      },
    ],
  }),
});
const { choices, error } = await answer.json();
console.log(error?.message ?? choices[0].message.content);
`;

/** What to fill into other people's programs: names of words.js and values. */
export const programs = {
  Chatbox: ({ origin, key, model }) => [
    ["mode", "OpenAI API"],
    ["host", origin],
    ["path", "/v1/chat/completions"],
    ["network", { word: "on" }],
    ["key", key || "none"],
    ["modelName", model],
    ["vision", { word: "on" }],
  ],
  "Cherry Studio": ({ origin, key, model }) => [
    ["kind", "OpenAI"],
    ["host", origin],
    ["key", key || "none"],
    ["modelName", model],
    ["vision", { word: "on" }],
  ],
  "Open WebUI": ({ origin, key, model }) => [
    ["baseUrl", `${origin}/v1`],
    ["key", key || "none"],
    ["modelName", model],
  ],
  Dify: ({ origin, key, model, context }) => [
    ["modelName", model],
    ["key", key || "none"],
    ["baseUrl", `${origin}/v1`],
    ["completion", { word: "chat" }],
    ["context", context ? String(context) : ""],
    ["vision", { word: "supported" }],
  ],
};
