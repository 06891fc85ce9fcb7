#!/usr/bin/env bash
# Two nodes on one machine: network namespaces with addresses of their own. Needs root.
#
#   tools/two_nodes.sh train OVERRIDES…   `aurora train --nodes 2 OVERRIDES…` on both, until both are through
#   tools/two_nodes.sh check              trains, kills a node, relaunches it or not, and compares the curves
#
# and for scripts:  up | down | on 0|1 COMMAND…
# The nodes are 10.77.0.1 and 10.77.0.2; AURORA_NODES (aurora) begins the names of what is made, PYTHON runs Aurora.
set -euo pipefail
name=${AURORA_NODES:-aurora}
python=${PYTHON:-python3}
bridge=${name}br

up() {
    down
    ip link add "$bridge" type bridge
    ip link set "$bridge" up
    for node in 0 1; do
        ip netns add "$name$node"
        ip link add "${name}v$node" type veth peer name e0 netns "$name$node"
        ip link set "${name}v$node" master "$bridge" up
        ip -n "$name$node" addr add "10.77.0.$((node + 1))/24" dev e0
        ip -n "$name$node" link set e0 up
        ip -n "$name$node" link set lo up
    done
}

# ends whatever still runs on the nodes
down() {
    for node in 0 1; do
        if ip netns list | grep -qw "$name$node"; then
            ip netns pids "$name$node" | xargs -r kill -9
            ip netns del "$name$node"
        fi
        ip link del "${name}v$node" 2>/dev/null || true
    done
    ip link del "$bridge" 2>/dev/null || true
}

on() {
    local node=$1
    shift
    exec ip netns exec "$name$node" "$@"
}

train() {
    trap down EXIT
    up
    (on 1 "$python" -m aurora.cli train --nodes 2 --first-node 10.77.0.1 "$@") &
    (on 0 "$python" -m aurora.cli train --nodes 2 --first-node 10.77.0.1 "$@")
    wait %1
}

case ${1:-} in
    up | down | on | train) "$@" ;;
    check) AURORA_LONG=1 exec "$python" -m pytest "$(dirname "$0")/../tests/aurora/training/test_nodes.py" ;;
    *) sed -n '2,8s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac
