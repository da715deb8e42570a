# What the story in run.sh needs: output, a world of its own in a temporary folder, and its removal. Sourced by run.sh.

bold='' plain=''
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold='\033[1m' plain='\033[0m'; fi

# Prints a caption: a heading, then one or two sentences from stdin.
caption() {
    printf "\n$bold== %s$plain\n" "$1"
    cat
    echo
}

# Prints a command, then runs it.
show() {
    printf '$ %s\n' "$*"
    "$@"
}

# Runs a command with the given folder first on PATH, as a caller that knows nothing of it.
with_path() {
    (
        PATH="$1:$PATH"
        shift
        exec "$@"
    )
}

# Prints the seconds since 1970 with fractions, which `date` has not on every system.
now() { "$VENV/bin/python" -c 'import time; print(time.time())'; }

# Prints the seconds since $1.
seconds_since() { awk -v began="$1" -v ended="$(now)" 'BEGIN { printf "%.1f", ended - began }'; }

# Waits until a command succeeds, and fails after $patience seconds.
until_true() {
    tries=$((patience * 10))
    until "$@"; do
        tries=$((tries - 1))
        if [ "$tries" = 0 ]; then
            echo "still not true after $patience s: $*" >&2
            return 1
        fi
        sleep 0.1
    done
}

# Starts a command whose process a failure or Ctrl-C has to end. Sets $started.
start() {
    "$@" &
    started=$!
    background="$background $started"
}

# Asks OrbStack itself, past orbd and without the latency of the stand-in.
look() { ORBCTL_SIM_LATENCY=0 "$bare/orbctl" list; }

# Succeeds if machine $1 is in state $2, or in any state.
is_machine() { look | grep -Eq "^$1 +${2:-}"; }

# Creates the folder with everything that the demo starts or writes.
set_up() {
    orbctl=
    case $ORBCTL in
    sim) ;;
    real)
        orbctl=$(command -v orbctl) || { echo "orbctl not found on PATH: install OrbStack, or omit ORBCTL=real" >&2 && exit 2; }
        case $(readlink "$orbctl") in
        *orbd-ctl)
            echo "$orbctl is the drop-in of orbd; put the folder of OrbStack's orbctl before it on PATH" >&2
            exit 2
            ;;
        esac
        ;;
    *)
        echo "ORBCTL is '$ORBCTL'; it takes sim or real" >&2
        exit 2
        ;;
    esac

    # A socket's path is limited to about a hundred bytes.
    world=$(mktemp -d "${TMPDIR:-/tmp}/orbd-demo.XXXXXX")
    dropin="$world/dropin" ledger="$world/ledger.jsonl"
    background=
    machines=
    trap finish EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP

    export ORBD_SOCKET="$world/orbd.sock" ORBD_STATE_DIR="$world/state" ORBD_LOG_DIR="$world/log" ORBD_CONFIG="$world/config.toml"
    # PyInfra would start an installed orbd-ctl otherwise.
    export PATH="$BIN:$PATH" ORBD_CTL="$BIN/orbd-ctl" NO_COLOR=1
    : >"$ORBD_CONFIG"
    : >"$ledger"
    if [ "$ORBCTL" = real ]; then
        # A create may have to download its image first.
        prefix=orbd-demo- count=2 patience=600 bare=$(dirname "$orbctl")
    else
        prefix='' count=4 patience=60 bare="$world/bare"
        mkdir "$bare" "$world/home"
        ln -s "$BIN/orbctl-sim" "$bare/orbctl"
        # Machines are plain directories: the same on each system, for each user.
        export HOME="$world/home" ORBCTL_SIM_HOME="$world/sim" ORBCTL_SIM_LEDGER="$ledger" ORBCTL_SIM_ISOLATION=dir
        export ORBD_ORBCTL="$bare/orbctl"
        # 150 ms per call is what users of OrbStack see; a create takes seconds, most of them for the initial setup.
        : "${ORBCTL_SIM_LATENCY:=150,create=700,setup=2000,stop=300}"
        export ORBCTL_SIM_LATENCY
        # orbd refuses to run as root unless this is set.
        if [ "$(id -u)" = 0 ]; then export ORBD_ALLOW_ROOT=1; fi
    fi
    orbd-ctl dropin install --dir "$dropin" >/dev/null
}

# Ends and removes everything that the demo started, however it ends. Shows the logs if it failed.
finish() {
    status=$?
    trap '' INT TERM HUP
    trap - EXIT
    if [ "$status" != 0 ] && [ "$status" -lt 129 ]; then
        caption "The demo failed. The ends of its logs:" </dev/null
        for log in "$world"/log/* "$world"/*.log "$world"/*.err; do
            if [ -s "$log" ]; then
                echo "-- ${log#"$world"/}"
                tail -n 20 "$log"
            fi
        done
    fi
    for process in $background; do kill "$process" 2>/dev/null || true; done
    for process in $background; do wait "$process" 2>/dev/null || true; done
    if [ "$ORBCTL" = real ]; then
        # Some may not exist, or no longer. Those that remain are named below.
        for machine in $machines; do orbd-ctl delete --force "$machine" 2>/dev/null || true; done
    fi
    # A command that was interrupted may have started an orbd that does not listen yet. `start` waits until one does.
    orbd-ctl daemon start >/dev/null 2>&1 || true
    orbd-ctl daemon stop >/dev/null 2>&1 || true
    if [ "$ORBCTL" = sim ]; then orbctl-sim sim-cleanup || true; fi
    # The last process of the stand-in may still write its line into the ledger.
    rm -rf "$world" 2>/dev/null || { sleep 1 && rm -rf "$world"; }
    left=
    if [ "$ORBCTL" = real ]; then left=$(look | grep '^orbd-demo-' || true); fi
    if [ -e "$world" ]; then left="$left $world"; fi
    echo "Left behind: ${left:-nothing.}"
    exit "$status"
}
