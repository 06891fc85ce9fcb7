#!/usr/bin/env bash
# Several nodes on one machine: network namespaces with addresses of their own. Needs root.
#
#   tools/nodes.sh train N OVERRIDES…     `aurora train --nodes N OVERRIDES…` on all of them, until they are through
#   tools/nodes.sh check                  trains on two and three, kills nodes, relaunches them or not, compares curves
#
# and for scripts:  up N | down | on NODE COMMAND…
# The nodes are 10.77.0.1, 10.77.0.2, …; AURORA_NODES (aurora) begins the names of what is made, PYTHON runs Aurora.
set -euo pipefail
name=${AURORA_NODES:-aurora}
python=${PYTHON:-python3}
bridge=$name-br

up() {
    down
    ip link add "$bridge" type bridge
    ip link set "$bridge" up
    for node in $(seq 0 $(($1 - 1))); do
        ip netns add "$name-$node"
        ip link add "$name-v$node" type veth peer name e0 netns "$name-$node"
        ip link set "$name-v$node" master "$bridge" up
        ip -n "$name-$node" addr add "10.77.0.$((node + 1))/24" dev e0
        ip -n "$name-$node" link set e0 up
        ip -n "$name-$node" link set lo up
    done
}

# ends whatever still runs on the nodes
down() {
    for node in $(ip netns list | grep -o "^$name-[0-9]*" || true); do
        ip netns pids "$node" | xargs -r kill -9
        ip netns del "$node"
        ip link del "$name-v${node##*-}" 2>/dev/null || true
    done
    ip link del "$bridge" 2>/dev/null || true
}

on() {
    local node=$1
    shift
    exec ip netns exec "$name-$node" "$@"
}

train() {
    local nodes=$1
    shift
    trap down EXIT
    up "$nodes"
    local started=()
    for node in $(seq 0 $((nodes - 1))); do
        (on "$node" "$python" -m aurora train --nodes "$nodes" --first-node 10.77.0.1 "$@") &
        started+=($!)
    done
    for process in "${started[@]}"; do wait "$process"; done
}

case ${1:-} in
    up | down | on | train) "$@" ;;
    check) AURORA_LONG=1 exec "$python" -m pytest "$(dirname "$0")/../tests/aurora/training/test_nodes.py" ;;
    *) sed -n '2,8s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac
