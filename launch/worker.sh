#!/usr/bin/env bash
# Runs on each worker of a TPU. tpu.sh copies this folder there and calls this script; it can also be called by hand.
#
#   launch/worker.sh install                  install .venv from the lock, and libtpu
#   launch/worker.sh mount SHARED             mount HOST:/FOLDER (NFS) at /mnt/shared
#   launch/worker.sh start COMMAND [FLAG …]   start `imagen COMMAND`, which keeps running when the connection ends
#   launch/worker.sh stop                     kill it
#   launch/worker.sh state                    print idle, running, stopped (by a signal, can be resumed) or exited CODE
#   launch/worker.sh log LINES                print the last lines of its output, and follow it
#
# The log and the exit code are in run/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

shared=/mnt/shared
run=run
# Matches the message of a run that a signal has stopped, see imagen_jax/training/preemption.py. Its exit code is 0 too.
stopped='stopped (by|before) .*the same command'

# Installs packages, and waits for the automatic updates of a fresh machine.
apt_install() {
    sudo apt-get -o DPkg::Lock::Timeout=600 update -q
    sudo DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -q -y "$@"
}

# TPU images have Python 3.10 only; uv installs a newer one without root.
install() {
    local python=''
    command -v make >/dev/null || apt_install make
    if ! python3 -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'; then
        python3 -m pip install --user --require-hashes -r launch/uv.lock
        python3 -m uv python install 3.12
        python=$(python3 -m uv python find --no-project 3.12)
    fi
    make setup ${python:+"PYTHON=$python"}
    .venv/bin/python -m pip install --no-deps --require-hashes -r launch/libtpu.lock
}

mount_shared() {
    if mountpoint -q "$shared"; then
        return
    fi
    sudo mkdir -p "$shared"
    command -v mount.nfs >/dev/null || apt_install nfs-common
    sudo mount -t nfs -o hard "$1" "$shared"
    sudo chown "$(id -u):$(id -g)" "$shared"
}

start() {
    stop
    rm -f "$run/exit_code"
    mkdir -p "$run"
    setsid nohup bash launch/worker.sh supervise "$@" >>"$run/log.txt" 2>&1 </dev/null &
    echo "$!" >"$run/pid"
}

# Runs the command and writes its exit code, atomically by a rename.
supervise() {
    local code=0 command=$1 before
    shift
    printf '== %s: %s\n' "$(date -u '+%F %T')" "$command $*"
    before=$(wc -c <"$run/log.txt")
    PYTHONUNBUFFERED=1 .venv/bin/python -m imagen_jax "$command" "$@" || code=$?
    # without -q: grep must read to the end, or tail fails
    if ((code == 0)) && tail -c "+$((before + 1))" "$run/log.txt" | grep -E "$stopped" >/dev/null; then
        code=stopped
    fi
    echo "$code" >"$run/exit_code.unfinished"
    mv "$run/exit_code.unfinished" "$run/exit_code"
}

# Checks that the process is still running. The pid alone does not tell: after a restart another process may have it.
is_running() {
    [[ -f $run/pid ]] && tr '\0' ' ' <"/proc/$(cat "$run/pid")/cmdline" 2>/dev/null | grep -q 'worker.sh supervise'
}

stop() {
    if is_running; then
        # SIGKILL, because jax does not end on SIGTERM, and the chips must be released
        kill -s KILL -- "-$(cat "$run/pid")"
    fi
}

state() {
    if [[ -f $run/exit_code ]]; then
        local code
        code=$(cat "$run/exit_code")
        [[ $code == stopped ]] && echo stopped || echo "exited $code"
    elif is_running; then
        echo running
    elif [[ -f $run/pid ]]; then
        echo 'exited 137' # it was killed, or the machine was restarted
    else
        echo idle
    fi
}

case ${1:-} in
install) install ;;
mount) mount_shared "$2" ;;
start) start "${@:2}" ;;
supervise) supervise "${@:2}" ;;
stop) stop ;;
state) state ;;
log) tail -n "$2" -F "$run/log.txt" ;;
*)
    sed -n '2,/^[^#]/ { s/^# \{0,1\}//p; }' launch/worker.sh >&2
    exit 2
    ;;
esac
