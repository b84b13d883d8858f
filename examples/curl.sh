#!/bin/sh
# A picture of any size by curl: the body goes through a file, since a shell argument ends at 128 KiB.
# usage: API_KEY=... sh examples/curl.sh [PICTURE] [QUESTION]
set -eu
base_url=${BASE_URL:-http://127.0.0.1:8000/v1}
picture=${1:-litevl/demo/sample.jpg}
question=${2:-How many sheep are there in the picture?}

body=$(mktemp)
trap 'rm -f "$body"' EXIT
{
  printf '{"stream": true, "messages": [{"role": "user", "content": ['
  printf '{"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,'
  base64 < "$picture" | tr -d '\n'
  printf '"}}, {"type": "text", "text": "%s"}]}]}' "$question"
} > "$body"

curl -sS --fail-with-body -N "$base_url/chat/completions" \
  -H "Content-Type: application/json" -H "Authorization: Bearer ${API_KEY:-}" -d "@$body"
