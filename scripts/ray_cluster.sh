#!/usr/bin/env bash
# One Ray cluster over several machines, for the experiment scripts.
#
#   bash scripts/ray_cluster.sh head                  # on the first machine; prints its address
#   bash scripts/ray_cluster.sh token                 # on the first: the secret that lets others join, see below
#   bash scripts/ray_cluster.sh worker HEAD_IP        # on every other machine
#   bash scripts/ray_cluster.sh wait NODES            # on the first: until so many machines have joined
#   bash scripts/ray_cluster.sh stop                  # on every machine: ends every Ray of yours there
#
# Then, on the first machine:  RAY_ADDRESS=auto NNODES=2 bash scripts/qwen2.5-math-7b_exgrpo.sh
# or from anywhere:            ray job submit --address http://HEAD_IP:8265 --no-wait \
#                                -- bash -c 'cd /shared/exgrpo && NNODES=2 bash scripts/qwen2.5-math-7b_exgrpo.sh'
# Environment: PORT (6379), DASHBOARD_PORT (8265), GPUS and CPUS (of this node; default: what Ray finds), NODE_IP (which of its
# addresses the others reach it by), WAIT_S (600); PYTHON, HARDWARE and TINY choose the environment, as for a run.
# Token: `head` makes ~/.ray/auth_token where there is none. A home that all machines share is enough; else copy that file, or put
# RAY_AUTH_TOKEN="$(what token prints)" before `worker`. RAY_AUTH_MODE=disabled everywhere, the run included, lets anybody join.
set -euo pipefail
case "${1:-}" in "" | -h | --help) sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//' && exit 0 ;; esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/environment.sh
source scripts/environment.sh

fail() { echo "ray_cluster: $*" >&2 && exit 2; }

# `ray` and `python` of the environment that the run will take.
choose() {
  choose_python "$(device_of ${HARDWARE:+"hardware=$HARDWARE"} ${TINY:+hardware=tiny})"
  [ "$PYTHON" = python ] || PATH=$(dirname "$PYTHON"):$PATH
}

PORT=${PORT:-6379}
node=(--disable-usage-stats ${GPUS:+--num-gpus="$GPUS"} ${CPUS:+--num-cpus="$CPUS"} ${NODE_IP:+--node-ip-address="$NODE_IP"})

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
    choose
    [ "${RAY_AUTH_MODE:-token}" = disabled ] || ray get-auth-token --generate >/dev/null
    use_ray_token
    ray start --head --port="$PORT" --dashboard-host=0.0.0.0 --dashboard-port="${DASHBOARD_PORT:-8265}" "${node[@]}"
    echo "head: ${NODE_IP:-$(hostname -I | cut -d' ' -f1)}:$PORT"
    ;;
  worker)
    [ $# -ge 2 ] || fail "worker needs the address of the head"
    use_ray_token
    [ -n "${RAY_AUTH_MODE:-}" ] ||
      fail "no token on this machine, the head would refuse it: copy the head's ~/.ray/auth_token here, or set RAY_AUTH_TOKEN (--help)"
    choose
    ray start --address="$2:$PORT" "${node[@]}"
    ;;
  token) choose && ray get-auth-token ;;
  wait)
    [ $# -ge 2 ] || fail "wait needs the number of machines"
    use_ray_token
    choose
    wait_for "$2"
    ;;
  stop) choose && ray stop ;;
  *) fail "unknown command '$1' (--help)" ;;
esac
