#!/usr/bin/env bash
# Manages one run on a Cloud TPU, from creating the TPU to deleting it. See launch/README.md for a walkthrough.
#
#   launch/tpu.sh COMMAND [--settings=FILE] [--SETTING=VALUE …] [--dry-run] [-- train --config=… --workdir=…]
#
#   create    request the TPU
#   state     print the state of the TPU and of the run
#   install   copy the last commit of this folder to all workers and install it there from the lock
#   run       start the command after -- on all workers; it keeps running when the connection ends
#   logs      follow the output of a worker
#   watch     do all of these, and again after every preemption, until the run is done
#   copy      copy a folder from worker 0
#   delete    delete the TPU and its local disks
#
#   --name=NAME --project=PROJECT --zone=ZONE
#   --accelerator=TYPE   such as v4-32, v5litepod-16 or v6e-16
#   --image=IMAGE        software version of the workers; by default the one for the accelerator
#   --spot=yes           use spot VMs: cheaper, and preemptible
#   --queue=no           create a TPU VM immediately, instead of a queued resource, which waits for capacity
#   --shared=SOURCE      HOST:/FOLDER (NFS), mounted at /mnt/shared on all workers; gs:// needs no mount
#   --worker=N           the worker whose log to follow (0)
#   --from=FOLDER --to=FOLDER   source and destination of copy
#   --poll=SECONDS       how often watch polls (60)
#   --attempts=N         consecutive retries of watch after failures other than preemption (3)
#   --settings=FILE      read settings from a file, one NAME=VALUE per line
#   --dry-run            print the commands instead of running them
#
# Exit codes: 0 done, 1 failed, 2 usage error.
set -euo pipefail
LC_ALL=C
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/group.sh
source "$root/launch/group.sh"

# == Settings ==

name='' project='' zone='' accelerator='' image='' spot=no queue=yes shared='' worker=0
from='' to='' poll=60 attempts=3 dry_run=no

# Assigns a setting after checking its value. The patterns reject every character with a meaning to a shell.
set_setting() {
    local setting=$1 value=$2 pattern example
    case $setting in
    name) pattern='[a-z]([a-z0-9-]{0,38}[a-z0-9])?' example=imagen ;;
    project) pattern='([a-z][a-z0-9.-]{0,61}:)?[a-z][a-z0-9-]{4,28}[a-z0-9]' example=my-project-123 ;;
    zone) pattern='[a-z]+-[a-z]+[0-9]+-[a-z]' example=us-central2-b ;;
    accelerator) pattern='v[0-9]{1,2}[a-z]{0,7}-[0-9]{1,5}' example=v4-32 ;;
    image) pattern='[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?' example=tpu-ubuntu2204-base ;;
    spot | queue) pattern='yes|no' example=yes ;;
    shared)
        pattern='[A-Za-z0-9][A-Za-z0-9.-]*:/([A-Za-z0-9._-][A-Za-z0-9._/-]*)?'
        example='10.0.0.2:/imagen, or give --workdir=gs://BUCKET/FOLDER, which needs no mount'
        ;;
    from) pattern='[A-Za-z0-9._~/][A-Za-z0-9._~/-]*' example=/mnt/shared/runs/base ;;
    to) pattern='[^:-][^:]*' example=runs ;;
    worker | poll | attempts) pattern='0|[1-9][0-9]{0,5}' example=3 ;;
    *) fail_usage "--$setting is not a setting: see --help" ;;
    esac
    [[ $value =~ ^($pattern)$ ]] || fail_usage "--$setting '$value' is not valid: use for example --$setting=$example"
    # --from is a folder of a worker, whose home is another
    [[ $setting != to ]] || value=$(expand_home "$value")
    printf -v "$setting" '%s' "$value"
}

read_settings() {
    local line
    [[ -r $1 ]] || fail_usage "--settings '$1' cannot be read"
    while IFS= read -r line || [[ -n $line ]]; do
        [[ $line =~ ^[[:space:]]*(#.*)?$ ]] && continue
        [[ $line == *=* ]] || fail_usage "--settings '$1' has the line '$line': use SETTING=VALUE"
        set_setting "${line%%=*}" "${line#*=}"
    done <"$1"
}

required() {
    local setting
    for setting in "$@"; do
        [[ -n ${!setting} ]] || fail_usage "--$setting is missing: see --help"
    done
}

image_for() {
    case $1 in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) echo tpu-ubuntu2204-base ;;
    esac
}

# == Printing and running commands ==

quote() {
    local words
    printf -v words '%q ' "$@"
    printf '%s\n' "${words% }"
}

# Prints a command and runs it; in a dry run only prints it.
execute() {
    if [[ $dry_run == yes ]]; then
        quote "$@"
    else
        printf '+ %s\n' "$(quote "$@")" >&2
        "$@"
    fi
}

log_message() {
    printf '%s %s\n' "$(date '+%F %T')" "$*" >&2
}

# Runs `gcloud compute tpus` on this TPU: KIND VERB [FLAG …].
tpus() {
    execute gcloud compute tpus "$1" "$2" "$name" "--project=$project" "--zone=$zone" --quiet "${@:3}"
}

# Runs worker.sh on WORKER, an index or "all". Arguments arrive unchanged.
on_worker() {
    tpus tpu-vm ssh "--worker=$1" "--command=$(quote bash imagen_jax/launch/worker.sh "${@:2}")"
}

# Copies between this machine and WORKER: WORKER [FLAG …] FROM TO.
copy_files() {
    execute gcloud compute tpus tpu-vm scp "${@:2}" "--project=$project" "--zone=$zone" --quiet "--worker=$1"
}

# == Commands of tpu.sh ==

create() {
    required accelerator
    local software=${image:-$(image_for "$accelerator")} flags=("--accelerator-type=$accelerator")
    [[ $spot == no ]] || flags+=(--spot)
    if [[ $queue == yes ]]; then
        tpus queued-resources create "--node-id=$name" "--runtime-version=$software" "${flags[@]}"
    else
        tpus tpu-vm create "--version=$software" "${flags[@]}"
    fi
}

delete() {
    if [[ $queue == yes ]]; then
        tpus queued-resources delete --force
    else
        tpus tpu-vm delete
    fi
}

# Prints READY if the TPU can be used, ABSENT if it does not exist, UNKNOWN if gcloud failed, or gcloud's state.
tpu_state() {
    local current
    if [[ $queue == yes ]]; then
        current=$(describe_queued)
        if [[ $current != ACTIVE ]]; then
            echo "$current"
            return
        fi
    fi
    current=$(describe_node)
    # an active request without a TPU never gets one again
    [[ $queue$current == yesABSENT ]] && current=TERMINATED
    echo "$current"
}

describe_queued() {
    read_state tpus queued-resources describe '--format=value(state.state)'
}

describe_node() {
    read_state tpus tpu-vm describe '--format=value(state)'
}

# Runs a command and prints the state in its output; ABSENT or UNKNOWN if it failed. In a dry run prints the command.
read_state() {
    local output
    if [[ $dry_run == yes ]]; then
        "$@"
    elif output=$("$@" 2>&1); then
        output=$(grep -Ex '[A-Z_]+|absent|idle|running|stopped|exited [0-9]+' <<<"$output" | tail -n 1) || true
        echo "${output:-UNKNOWN}"
    elif [[ $output == *NOT_FOUND* ]]; then
        echo ABSENT
    else
        log_message "${output##*$'\n'}"
        echo UNKNOWN
    fi
}

# Prints the state of the run on worker 0: absent, idle, running, stopped or "exited CODE"; UNKNOWN without an answer.
run_state() {
    local script=imagen_jax/launch/worker.sh
    read_state tpus tpu-vm ssh --worker=0 "--command=if test -e $script; then bash $script state; else echo absent; fi"
}

state() {
    local tpu
    if [[ $dry_run == yes ]]; then
        [[ $queue == no ]] || describe_queued
        describe_node
        run_state
        return
    fi
    tpu=$(tpu_state)
    if [[ $tpu == READY ]]; then
        echo "TPU READY, run $(run_state)"
    else
        echo "TPU $tpu"
    fi
}

# Returns at the first failing command: within a condition, `set -e` has no effect.
install() {
    local archive=$root/.cache/launch/imagen_jax.tar.gz
    if [[ $dry_run == no && -n $(git -C "$root" status --porcelain) ]]; then
        log_message 'uncommitted changes are not sent: the workers get the last commit'
    fi
    execute mkdir -p "${archive%/*}" || return
    execute git -C "$root" archive --format=tar.gz "--output=$archive" HEAD || return
    copy_files all "$archive" "$name:" || return
    tpus tpu-vm ssh --worker=all \
        '--command=mkdir -p imagen_jax && tar -xzf imagen_jax.tar.gz -C imagen_jax' || return
    on_worker all install || return
    [[ -z $shared ]] || on_worker all mount "$shared"
}

run() {
    on_worker all start "$@"
}

logs() {
    on_worker "$worker" log 100
}

copy() {
    required from to
    copy_files 0 --recurse "$name:$from" "$to"
}

# Polls the TPU and the run, and does what is due, until the run is done. The run resumes from its last checkpoint.
watch() {
    # before: the state at the last poll; failures: consecutive failures that were not preemptions
    local tpu now before='' failures=0
    if [[ $dry_run == yes ]]; then
        watch_dry "$@"
        return
    fi
    while true; do
        tpu=$(tpu_state) now=''
        [[ $tpu != READY ]] || now=$(run_state)
        log_message "TPU $tpu${now:+, run $now}"
        case $tpu:$now in
        READY:'exited 0') return 0 ;;
        READY:'exited 2') return 2 ;;
        READY:exited* | READY:stopped)
            # A run also ends when its TPU is being preempted, which the next poll will show. A stopped run has saved
            # its state and has not failed.
            if [[ $now == "$before" ]]; then
                install_and_run "$@"
            fi
            ;;
        READY:absent | READY:idle) install_and_run "$@" ;;
        ABSENT:) create || true ;;
        PREEMPTED: | TERMINATED: | STOPPED: | SUSPENDED: | FAILED:) { delete && create; } || true ;;
        esac
        if ((failures > attempts)); then
            log_message "failed $failures times without a preemption; see launch/tpu.sh logs"
            return 1
        fi
        before=$now
        sleep "$poll"
    done
}

# Installs and runs, for `watch`. Counts a failure that the last poll saw too: its TPU was not being preempted.
install_and_run() {
    if [[ $before == failed || $before == exited* ]]; then
        failures=$((failures + 1))
    fi
    now=''
    if ((failures <= attempts)) && ! { install && run "$@"; }; then
        now=failed
    fi
}

# Prints the commands of `watch`, each after the state in which it runs them.
watch_dry() {
    echo "# every $poll seconds, until the run has exited with 0 without being stopped by a signal:"
    state
    echo '# when the TPU is ready and no run is active:'
    install
    run "$@"
    echo '# when the TPU does not exist:'
    create
    echo '# when the TPU was preempted:'
    delete
    create
}

# == The command line ==

command=${1:-}
case $command in
create | state | install | run | logs | watch | copy | delete) shift ;;
--help | '') show_help "${BASH_SOURCE[0]}" && exit 0 ;;
*) fail_usage "'$command' is not a command: use create, state, install, run, logs, watch, copy or delete" ;;
esac
for argument in "$@"; do
    case $argument in
    --settings=*) read_settings "$(expand_home "${argument#*=}")" ;;
    --) break ;;
    esac
done
while (($#)); do
    case $1 in
    --settings=*) ;;
    --dry-run) dry_run=yes ;;
    --help) show_help "${BASH_SOURCE[0]}" && exit 0 ;;
    --) shift && break ;;
    --*=*) setting=${1%%=*} && set_setting "${setting#--}" "${1#*=}" ;;
    *) fail_usage "'$1' is not a setting: use --SETTING=VALUE, and put -- before the command to run" ;;
    esac
    shift
done
required name project zone
case $command in
run | watch)
    [[ ${1:-} =~ ^[a-z_]+$ ]] ||
        fail_usage "the command to run is missing: use for example -- train --config=configs/imagen_base_64.py --workdir=…"
    [[ $command == run ]] || required accelerator
    ;;
*) (($# == 0)) || fail_usage "'$1' is not an argument of $command: leave it out" ;;
esac
"$command" "$@"
