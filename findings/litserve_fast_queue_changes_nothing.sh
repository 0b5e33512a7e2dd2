#!/usr/bin/env bash
# litserve 0.2.19. LitServer(fast_queue=True) asks for ZeroMQ between the processes ("for high-throughput scenarios").
# It changes nothing: the server passes transport_config="zmq" to a pydantic model whose field is called
# transport_type, and pydantic drops names that it does not know. Expected: the transport zmq. Seen:
#   asked False, transport mp
#   asked True, transport mp
# So the advice to turn it on above 100 requests a second has no effect; nothing warns. Beside it, litserve formats
# each request's payload for a debug line that is off; of 280 KB of bytes that takes 3 ms. Seen, of one request:
#   payload formatted 1 times
# A payload of bytes is spared this by a class of its own with a short __repr__. Exits with 1 if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "litserve==0.2.19" "fastapi==0.135.1" "pydantic==2.12.5"
"$folder/venv/bin/python" - <<'PYTHON' | tee "$folder/seen"
import asyncio

import litserve
from litserve.server import RegularRequestHandler


class Model(litserve.LitAPI):
    def predict(self, x):
        return x


class Payload:
    count = 0

    def __repr__(self):
        Payload.count += 1
        return ""




class Handler(RegularRequestHandler):
    async def _submit_request(self, payload):
        raise litserve.server.HTTPException(499)


for asked in (False, True):
    server = litserve.LitServer(Model(), accelerator="cpu", fast_queue=asked)
    print(f"asked {asked}, transport {server.transport_config.transport_type}")
try:
    asyncio.run(Handler(Model(), server).handle_request(Payload(), Payload))
except litserve.server.HTTPException:
    print(f"payload formatted {Payload.count} times")
PYTHON
sed -n 's/^#   \(asked\|payload\)/\1/p' "$0" > "$folder/expected"
if cmp -s "$folder/expected" "$folder/seen"; then
    echo "as seen"
else
    echo "changed"
    exit 1
fi
