#!/bin/sh
# The main HTTP requests to a served classifier. MODEL_URL and MODEL_KEY as in client.py.
set -eu
url=${MODEL_URL:-http://localhost:8000/models/mail}
server=${url%/models/*}
ask() { curl -sS ${MODEL_KEY:+-H "Authorization: Bearer $MODEL_KEY"} "$@"; echo; }

ask "$server/health"                                  # the gateway runs
ask "$server/ready"                                   # every model answers
ask "$server/models"                                  # the models, with their status
ask "$url"                                            # labels, limits, the run it came from

json='Content-Type: application/json'
ask "$url" -H "$json" -d '{"inputs": "Where is my parcel?"}'
ask "$url" -H "$json" -d '{"inputs": ["Where is my parcel?", "I was charged twice."]}'
ask "$url" -H "$json" -d '{"inputs": "Where is my parcel?", "parameters": {"top_k": 2}}'
# A mistake: the answer is one sentence, with status 422.
ask "$url" -H "$json" -d '{"inputs": "Where is my parcel?", "parameters": {"topk": 2}}'
