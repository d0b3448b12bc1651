#!/usr/bin/env bash
# What runs on each worker of a TPU. tpu.sh sends this folder there and calls this script; a person may as well.
#
#   launch/worker.sh install                  this folder's .venv from the lock, and libtpu
#   launch/worker.sh mount SHARED             gs://BUCKET or HOST:/FOLDER (NFS) at /mnt/shared
#   launch/worker.sh start COMMAND [FLAG …]   python -m imagen_jax.COMMAND, which goes on when the connection ends
#   launch/worker.sh stop                     end it
#   launch/worker.sh state                    idle, running, stopped (by a signal, to go on later), or exited CODE
#   launch/worker.sh log LINES                the last lines it said, and what it says from now on
#
# run/ has its log and its exit code.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

shared=/mnt/shared
run=run
# What a run says when a signal has ended it before its end: imagen_jax/training/stopping.py. It exits with 0 all the same.
stopped='stopped .*the same command (goes on|begins again)'

# apt, patient with the updates that a fresh machine is busy with
apt_install() {
    sudo apt-get -o DPkg::Lock::Timeout=600 update -q
    sudo DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -q -y "$@"
}

# The images for TPUs come with Python 3.10 and no newer one; uv brings a newer one that needs no root.
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
    case $1 in
    gs://*)
        install_gcsfuse
        sudo chown "$(id -u):$(id -g)" "$shared"
        # no cache of names: what one worker makes, the others must see at once
        gcsfuse --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "${1#gs://}" "$shared"
        ;;
    *)
        command -v mount.nfs >/dev/null || apt_install nfs-common
        sudo mount -t nfs -o hard "$1" "$shared"
        sudo chown "$(id -u):$(id -g)" "$shared"
        ;;
    esac
}

# From Google's own repository: Ubuntu has no gcsfuse.
install_gcsfuse() {
    local key=/usr/share/keyrings/cloud.google.asc release
    if command -v gcsfuse >/dev/null; then
        return
    fi
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    curl --fail --silent --show-error https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
    echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$release main" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    apt_install gcsfuse
}

start() {
    stop
    rm -f "$run/exit_code"
    mkdir -p "$run"
    setsid nohup bash launch/worker.sh supervise "$@" >>"$run/log.txt" 2>&1 </dev/null &
    echo "$!" >"$run/pid"
}

# The exit code becomes known at once or not at all: a rename.
supervise() {
    local code=0 command=$1 before
    shift
    printf '== %s: %s\n' "$(date -u '+%F %T')" "$command $*"
    before=$(wc -c <"$run/log.txt")
    PYTHONUNBUFFERED=1 .venv/bin/python -m "imagen_jax.$command" "$@" || code=$?
    # no -q: grep must read to the end, or tail fails
    if ((code == 0)) && tail -c "+$((before + 1))" "$run/log.txt" | grep -E "$stopped" >/dev/null; then
        code=stopped
    fi
    echo "$code" >"$run/exit_code.unfinished"
    mv "$run/exit_code.unfinished" "$run/exit_code"
}

# Whether what was started is still there. A number alone does not say so: after a restart it may be another's.
is_running() {
    [[ -f $run/pid ]] && tr '\0' ' ' <"/proc/$(cat "$run/pid")/cmdline" 2>/dev/null | grep -q 'worker.sh supervise'
}

stop() {
    if is_running; then
        # jax does not heed SIGTERM; with the process its hold on the chips must go
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
        echo 'exited 137' # killed, or the machine was restarted
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
