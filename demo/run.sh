#!/bin/sh
# A real PyInfra deploy through orbd, with everything it starts in a folder of its own and nothing left behind.
#
# Called by `make demo`, which builds first. VENV: the virtual environment with PyInfra. BIN: the folder of the programs.
# ORBCTL=sim: the stand-in for OrbStack (the default). ORBCTL=real: OrbStack itself, with machines named orbd-demo-*.
set -eu

: "${VENV:?call make demo}" "${BIN:?call make demo}" "${ORBCTL:=sim}"
here=$(cd "$(dirname "$0")" && pwd)
began=$(date +%s)

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
[ -t 1 ] || say() { printf '\n== %s\n' "$*"; }

# A short path: a Unix socket's is limited to about a hundred bytes.
world=$(mktemp -d /tmp/orbd-demo.XXXXXX)
export ORBD_SOCKET="$world/orbd.sock" ORBD_STATE_DIR="$world/state" ORBD_LOG_DIR="$world/log" ORBD_CONFIG="$world/config.toml"
export PATH="$BIN:$PATH" NO_COLOR=1
: >"$ORBD_CONFIG"
prefix=
machines=

case $ORBCTL in
sim)
    export ORBD_ORBCTL="$BIN/orbctl-sim" ORBCTL_SIM_HOME="$world/sim" ORBCTL_SIM_LEDGER="$world/ledger.jsonl"
    # The stand-in isolates machines where it is root on Linux; the daemon refuses root unless told.
    [ "$(id -u)" != 0 ] || export ORBD_ALLOW_ROOT=1
    ;;
real)
    prefix=orbd-demo-
    ;;
*)
    echo "ORBCTL is sim or real, not $ORBCTL" >&2
    exit 2
    ;;
esac

finish() {
    status=$?
    trap - EXIT INT TERM
    if [ "$status" != 0 ]; then
        say "It failed. The daemon's log:"
        cat "$world"/log/* "$world"/*.err 2>/dev/null | tail -n 40 || true
    fi
    if [ "$ORBCTL" = real ]; then
        for machine in $machines; do orbd-ctl delete --force "$machine" || true; done
    fi
    orbd-ctl daemon stop || true
    if [ "$ORBCTL" = sim ]; then orbctl-sim sim-cleanup || true; fi
    rm -rf "$world"
    echo "left behind: nothing ($(($(date +%s) - began)) s in all)"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say "The daemon, on a socket of its own"
orbd-ctl daemon start
orbd-ctl version

say "Three machines, created through orbd (two at a time; the third waits)"
pids=
for name in web db cache; do
    machines="$machines $prefix$name"
    orbd-ctl create ubuntu:24.04 "$prefix$name" &
    pids="$pids $!"
done
tries=50
until [ "$tries" = 0 ] || orbd-ctl jobs --json 2>/dev/null | grep -q '"state":"waiting"'; do
    tries=$((tries - 1))
    sleep 0.1
done
orbd-ctl jobs
for pid in $pids; do wait "$pid"; done
orbd-ctl list

if [ "$ORBCTL" = real ] || { [ "$(uname)" = Linux ] && [ "$(id -u)" = 0 ]; }; then
    deploy="$here/deploy.py"
    options="--data orbstack_user=root"
    say "PyInfra: packages, a user, templates, files and commands on all three"
else
    deploy="$here/deploy_small.py"
    options=
    say "PyInfra: the smaller deploy. Machines are not isolated here, so nothing needs root or sudo"
fi
inventory=@orbstack
if [ "$ORBCTL" = real ]; then
    # Other machines of yours are none of the demo's business.
    inventory=$(for machine in $machines; do printf '@orbstack/%s,' "$machine"; done)
fi

# shellcheck disable=SC2086 # options are words
"$VENV/bin/pyinfra" -y $options "$inventory" "$deploy" >"$world/pyinfra.log" 2>&1 &
deploying=$!
looks=0
while kill -0 "$deploying" 2>/dev/null; do
    if [ "$looks" -lt 5 ] && [ "$(orbd-ctl jobs --json 2>/dev/null | grep -c '"state":"running"')" -gt 0 ]; then
        looks=$((looks + 1))
        say "The queue while it runs ($looks)"
        orbd-ctl jobs
    fi
    sleep 1
done
if ! wait "$deploying"; then
    cat "$world/pyinfra.log"
    exit 1
fi
say "Output of PyInfra"
tail -n 60 "$world/pyinfra.log"

say "The machines"
orbd-ctl list
say "The last jobs"
orbd-ctl jobs --all --limit 12
say "Durations"
orbd-ctl metrics
if [ "$ORBCTL" = sim ]; then
    say "What orbctl was asked"
    orbctl-sim sim-ledger
fi
say "Done"
