#!/bin/sh
# The demo: what happens to scripts and deploys without orbd and with it, in half a minute. `make demo` builds what it needs and runs it.
#
# BIN: the folder of orbd, orbd-ctl and orbctl-sim. VENV: a Python environment with pyinfra-orbd. VENV_PREDECESSOR: one with
# pyinfra-orbstack, the connector that calls orbctl itself. ORBCTL=sim (the default) uses orbctl-sim, the stand-in for OrbStack's orbctl;
# ORBCTL=real uses OrbStack, only with machines named orbd-demo-*, and leaves out what could harm it.
set -eu

: "${VENV:?run make demo}" "${VENV_PREDECESSOR:?run make demo}" "${BIN:?run make demo}" "${ORBCTL:=sim}"
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
for program in "$BIN/orbd" "$BIN/orbd-ctl" "$VENV/bin/pyinfra" "$VENV_PREDECESSOR/bin/pyinfra"; do
    [ -x "$program" ] || { echo "$program not found: run make demo" >&2 && exit 2; }
done

# Runs two scripts that know nothing of each other: A creates a machine, and B stops it during its initial setup. $1 is the folder with
# their `orbctl`.
two_scripts() {
    start with_path "$1" env PS4='A $ ' sh -x "$here/scripts/create-machine" "$machine"
    script_a=$started
    until_true is_machine "$machine" running
    # On a terminal, orbd removes its message about waiting once the wait is over. In a pipe it stays.
    {
        with_path "$1" env PS4='B $ ' sh -x "$here/scripts/stop-machine" "$machine" || echo "B failed with exit code $?"
    } 2>&1 | cat
    wait "$script_a" || echo "A failed with exit code $?"
    echo '$ orbctl list'
    with_path "$1" orbctl list
}

bare_scripts() {
    caption "1. Without orbd: two scripts meet" <<END
Script A creates a machine. Script B stops it during its initial setup, which
OrbStack then cancels: the machine is gone, although each script is correct.
END
    machine="${prefix}web"
    if [ "$ORBCTL" = real ]; then
        echo "Left out: it would make OrbStack lose a machine."
        lost_bare="not run"
        return
    fi
    two_scripts "$bare"
    if ! is_machine "$machine"; then
        lost_bare="1 of 1"
    else
        # This computer was too slow for the two to meet.
        lost_bare="0 of 1"
        orbctl-sim delete --force "$machine"
    fi
}

orbd_scripts() {
    caption "2. With orbd: the same two scripts" <<END
Now \`orbctl\` on PATH is orbd's drop-in. B waits and says for which job; then
both scripts succeed, and the machine is there.
END
    show orbd-ctl daemon start
    machines="$machines $machine"
    export ORBD_VERBOSE=1
    two_scripts "$dropin"
    unset ORBD_VERBOSE
    if is_machine "$machine"; then lost_orbd="0 of 1"; else lost_orbd="1 of 1"; fi
}

# Creates the two sets of machines for the deploys, without the stand-in's latency.
create_sets() {
    creates=
    for number in $(seq "$count"); do
        for set in bare orbd; do
            machines="$machines $prefix$set-$number"
            start env ORBCTL_SIM_LATENCY=0 "$bare/orbctl" create ubuntu:24.04 "$prefix$set-$number"
            creates="$creates $started"
        done
    done
    for create in $creates; do wait "$create"; done
    orbd-ctl cache invalidate >/dev/null
}

# Deploys to the set of machines $1 with the environment $2, whose connector is $3. Sets $seconds.
deploy() {
    hosts=$(for number in $(seq "$count"); do printf '%s' "@orbstack/$prefix$1-$number,"; done)
    echo "\$ pyinfra @orbstack/$prefix$1-1,... demo/deploy.py"
    calls_before=$(grep -c '"event":"start"' "$ledger" || true)
    began=$(now)
    start with_path "$bare" "$2/bin/pyinfra" -y "${hosts%,}" "$here/deploy.py" >"$world/deploy-$1.log" 2>&1
    wait "$started"
    seconds=$(seconds_since "$began")
    calls=$(($(grep -c '"event":"start"' "$ledger" || true) - calls_before))
    if [ "$ORBCTL" = sim ]; then calls_text=", $calls processes of orbctl"; else calls_text=""; fi
    echo "$3 took $seconds s$calls_text"
}

# Prints the checksums of what a deploy left in the set of machines $1: once, if it is the same in all.
deployed() {
    for number in $(seq "$count"); do
        ORBCTL_SIM_LATENCY=0 "$bare/orbctl" run -m "$prefix$1-$number" sh -c 'cd app && find . | sort && cat run conf/app.conf logs/first' |
            cksum
    done | sort -u
}

deploys() {
    caption "3. The same PyInfra deploy, without and with orbd" <<END
PyInfra sets up an application on $count machines: first with pyinfra-orbstack, which
calls \`orbctl\` itself, then with pyinfra-orbd.$call_time
END
    create_sets
    deploy bare "$VENV_PREDECESSOR" pyinfra-orbstack
    seconds_bare=$seconds
    deploy orbd "$VENV" pyinfra-orbd
    seconds_orbd=$seconds
    sed -n '/Results/,/Grand total/p' "$world/deploy-orbd.log"
    if [ "$(deployed bare)" != "$(deployed orbd)" ]; then
        echo "the two deploys left different files" >&2
        exit 1
    fi
    echo "Both left the same files in each machine."
}

# Prints the changes of machine $1 that the stand-in carried out, one on each line.
changes_of() { sed -n 's/.*"event":"work_end".*"command":"\([a-z]*\)","machine":"'"$1"'","done":true.*/\1/p' "$ledger"; }

# Prints how many of the three changes of machine $1 were not carried out exactly once.
count_lost() {
    lost=0
    for command in create stop rename; do
        [ "$(changes_of "$1" | grep -c -x "$command")" = 1 ] || lost=$((lost + 1))
    done
    echo "$lost of 3"
}

killed_daemon() {
    caption "4. kill -9 in the middle of work" <<END
orbd is killed while it carries out the first of three detached changes. The
next command starts orbd again: it waits until OrbStack has finished the first
change, carries out the others, and repeats none.
END
    api="${prefix}api" backend="${prefix}backend"
    machines="$machines $api $backend"
    jobs=
    for command in "create ubuntu:24.04 $api" "stop $api" "rename $api $backend"; do
        echo "$ orbd-ctl $command --detach"
        # shellcheck disable=SC2086 # a command is words
        jobs="$jobs $(orbd-ctl $command --detach)"
    done
    until_true is_machine "$api"
    pid=$(orbd-ctl daemon status --json | sed 's/.*"pid":\([0-9]*\).*/\1/')
    show kill -9 "$pid"
    show orbd-ctl jobs
    for job in $jobs; do orbd-ctl job wait "$job" >/dev/null 2>&1 || true; done
    show orbd-ctl jobs --all --limit 3 2>/dev/null
    echo "$ orbd-ctl list | grep $backend"
    orbd-ctl list | grep "$backend"
    echo "The create is 'unknown' because orbd was not there when it ended."
    # OrbStack keeps no ledger. The stopped machine under its new name is what the three changes leave.
    lost_at_kill="0 of 3"
    if [ "$ORBCTL" = sim ]; then
        lost_at_kill=$(count_lost "$api")
        # shellcheck disable=SC2046 # one word for each change
        echo "The stand-in for OrbStack carried out, in this order:" $(changes_of "$api")
    fi
}

tool_unaware() {
    caption "5. A tool that knows nothing of orbd" <<END
A shell script prints a report with \`orbctl\`. The drop-in sends its calls
through orbd's queue, where you see, limit and measure them.
END
    echo "$ machine-report ${prefix}orbd-"
    with_path "$dropin" "$here/scripts/machine-report" "${prefix}orbd-"
    show orbd-ctl jobs --all --limit 4 2>/dev/null
    show orbd-ctl metrics
}

# The commands' messages belong to the story, also in a file.
exec 2>&1
set_up
began_demo=$(now)
if [ "$ORBCTL" = sim ]; then call_time=" Each call takes 150 ms."; else call_time=; fi
# Python's files are read once, so that neither deploy is the first to read them.
modules='pyinfra_cli.main, pyinfra.operations.files, pyinfra.operations.server'
start "$VENV/bin/python" -c "import $modules, pyinfra_orbd.connector"
start "$VENV_PREDECESSOR/bin/python" -c "import $modules, pyinfra_orbstack.connector"
bare_scripts
orbd_scripts
deploys
killed_daemon
tool_unaware
caption "Measured in this run" </dev/null
printf '%-38s %14s %14s\n' '' 'without orbd' 'with orbd'
printf '%-38s %14s %14s\n' 'machines lost when two scripts met' "$lost_bare" "$lost_orbd"
printf '%-38s %14s %14s\n' "seconds for the deploy on $count machines" "$seconds_bare" "$seconds_orbd"
printf '%-38s %14s %14s\n' 'operations lost at kill -9' - "$lost_at_kill"
echo
echo "The demo took $(seconds_since "$began_demo") s."
