#!/usr/bin/env bash
# One Ray cluster over several machines, for the experiment scripts.
#
#   bash scripts/ray_cluster.sh head                  # on the first machine; prints its address
#   bash scripts/ray_cluster.sh worker HEAD_IP        # on every other machine
#   bash scripts/ray_cluster.sh wait NODES            # on the first: until so many machines have joined
#   bash scripts/ray_cluster.sh stop                  # on every machine
#
# Then, on the first machine:  RAY_ADDRESS=auto NNODES=2 bash scripts/qwen2.5-math-7b_exgrpo.sh
# or from anywhere:            ray job submit --address http://HEAD_IP:8265 --no-wait \
#                                -- bash -c 'cd /shared/exgrpo && NNODES=2 bash scripts/qwen2.5-math-7b_exgrpo.sh'
# Environment: PORT (6379), DASHBOARD_PORT (8265), GPUS (a node; default: what Ray finds), WAIT_S (600), BIN (the folder of
# python and ray: .venv/bin, else PATH).
set -euo pipefail
case "${1:-}" in "" | -h | --help) sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//' && exit 0 ;; esac

BIN=${BIN:-$(dirname "${BASH_SOURCE[0]}")/../.venv/bin}
[ -d "$BIN" ] && PATH=$BIN:$PATH
PORT=${PORT:-6379}
common=(--disable-usage-stats ${GPUS:+--num-gpus="$GPUS"})

# How many machines have joined; 0 while the head does not answer.
joined() {
  python -c 'import ray; ray.init("auto", log_to_driver=False); print(sum(n["Alive"] for n in ray.nodes()))' 2>/dev/null || echo 0
}

wait_for() {
  local deadline=$((SECONDS + ${WAIT_S:-600}))
  until [ "$(joined)" -ge "$1" ]; do
    [ "$SECONDS" -lt "$deadline" ] || { echo "ray_cluster: $(joined) of $1 machines joined in time" >&2 && return 1; }
    sleep 5
  done
}

case $1 in
  head)
    ray start --head --port="$PORT" --dashboard-host=0.0.0.0 --dashboard-port="${DASHBOARD_PORT:-8265}" "${common[@]}"
    echo "head: $(hostname -I | cut -d' ' -f1):$PORT"
    ;;
  worker) ray start --address="${2:?worker needs the address of the head}:$PORT" "${common[@]}" ;;
  wait) wait_for "${2:?wait needs the number of machines}" ;;
  stop) ray stop ;;
  *) echo "ray_cluster: unknown command '$1' (--help)" >&2 && exit 2 ;;
esac
