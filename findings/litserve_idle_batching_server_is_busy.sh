#!/usr/bin/env bash
# litserve 0.2.19. A server with max_batch_size=8 and the default batch_timeout (0.0) that nobody asks keeps two
# processes busy: the one with the model and the one of multiprocessing's manager. The batched loop takes from the
# queue without waiting, and begins anew when it is empty; each turn goes over a socket to the manager. Expected: a
# server that waits uses no processor time, as it does without batching. Seen, processor seconds of all its
# processes in 5 seconds of waiting, on 2 cores that other programs used too (1.3 to 4.7 with batches, 0.0 without):
#   max_batch_size 1: less than 0.7
#   max_batch_size 8: more than 0.7
# With batch_timeout=0.01 it asks once a millisecond, which took 0.4. Exits with 1 if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "litserve==0.2.19" "fastapi==0.135.1" "pydantic==2.12.5"
cat > "$folder/serve.py" <<'PYTHON'
import sys

import litserve


class Model(litserve.LitAPI):
    def predict(self, batch):
        return [0 for _ in batch]


if __name__ == "__main__":
    api = Model(max_batch_size=int(sys.argv[1]))
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="error")
PYTHON
cat > "$folder/measure.py" <<'PYTHON'
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path


def seconds(process):
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


for size in ("1", "8"):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, str(Path(__file__).parent / "serve.py"), size, str(port)], stderr=subprocess.DEVNULL)
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            time.sleep(0.2)
    time.sleep(2)
    processes = [server.pid]
    for each in processes:
        processes += map(int, Path(f"/proc/{each}/task/{each}/children").read_text().split())
    before = sum(map(seconds, processes))
    time.sleep(5)
    used = sum(map(seconds, processes)) - before
    print(f"{used:.1f} s", file=sys.stderr)
    print(f"max_batch_size {size}: {'more' if used > 0.7 else 'less'} than 0.7")
    server.send_signal(signal.SIGINT)
    server.wait()
PYTHON
"$folder/venv/bin/python" "$folder/measure.py" | tee "$folder/seen"
sed -n 's/^#   max/max/p' "$0" > "$folder/expected"
if cmp -s "$folder/expected" "$folder/seen"; then
    echo "as seen"
else
    echo "changed"
    exit 1
fi
