#!/usr/bin/env bash
# One run on a Cloud TPU, from asking for the machines to deleting them. launch/README.md tells how to begin.
#
#   launch/tpu.sh COMMAND [--settings=FILE] [--SETTING=VALUE …] [--dry-run] [-- train --config=… --workdir=…]
#
#   create    ask for the TPU
#   state     READY, or what it is otherwise, and the state of the run
#   install   send the last commit of this folder to all workers and install it there from the lock
#   run       start on all workers what stands after --; it goes on when the connection ends
#   logs      follow what worker 0 says
#   watch     all of these, and again after every preemption, until the run is done
#   copy      fetch a folder of worker 0
#   delete    delete the TPU, with all that is on its own disks
#
#   --name=NAME --project=PROJECT --zone=ZONE
#   --accelerator=TYPE   such as v4-32, v5litepod-16 or v6e-16
#   --image=IMAGE        software of its workers; by default what suits the accelerator
#   --spot=yes           cheaper, and taken away at any time
#   --queue=no           a TPU VM at once or not at all, instead of a queued resource, which waits for one
#   --shared=PLACE       gs://BUCKET or HOST:/FOLDER (NFS), which all workers then find at /mnt/shared
#   --worker=N           whose log to follow (0)
#   --from=FOLDER --to=FOLDER   what copy fetches, and where to
#   --poll=SECONDS       how often watch looks (60)
#   --attempts=N         how often in a row watch tries again what failed by itself (3)
#   --settings=FILE      any of these, one a line, without the dashes
#   --dry-run            print the commands and run none
#
# Exit codes: 0 done, 1 failed, 2 wrong use.
set -euo pipefail
LC_ALL=C
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/group.sh
source "$root/launch/group.sh"

# == Settings ==

name='' project='' zone='' accelerator='' image='' spot=no queue=yes shared='' worker=0
from='' to='' poll=60 attempts=3 dry_run=no

# Assigns a setting that passes its check. Nothing with a meaning to a shell passes one: what is no name ends here.
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
        pattern='gs://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]|[A-Za-z0-9][A-Za-z0-9.-]*:/[A-Za-z0-9._/-]*'
        example='gs://my-bucket or 10.0.0.2:/imagen'
        ;;
    from) pattern='[A-Za-z0-9._~/][A-Za-z0-9._~/-]*' example=/mnt/shared/runs/base ;;
    to) pattern='[^:-][^:]*' example=runs ;;
    worker | poll | attempts) pattern='0|[1-9][0-9]{0,5}' example=3 ;;
    *) refuse "--$setting is not a setting: see --help" ;;
    esac
    [[ $value =~ ^($pattern)$ ]] || refuse "--$setting '$value' cannot be: give for example --$setting=$example"
    printf -v "$setting" '%s' "$value"
}

read_settings() {
    local line
    [[ -r $1 ]] || refuse "--settings '$1' cannot be read"
    while IFS= read -r line || [[ -n $line ]]; do
        [[ $line =~ ^[[:space:]]*(#.*)?$ ]] && continue
        [[ $line == *=* ]] || refuse "--settings '$1' has the line '$line': give SETTING=VALUE"
        set_setting "${line%%=*}" "${line#*=}"
    done <"$1"
}

required() {
    local setting
    for setting in "$@"; do
        [[ -n ${!setting} ]] || refuse "--$setting is missing: see --help"
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

# == Commands, printed and run ==

quoted() {
    local words
    printf -v words '%q ' "$@"
    printf '%s\n' "${words% }"
}

# Runs a command after saying so, or only prints it.
execute() {
    if [[ $dry_run == yes ]]; then
        quoted "$@"
    else
        printf '+ %s\n' "$(quoted "$@")" >&2
        "$@"
    fi
}

say() {
    printf '%s %s\n' "$(date '+%F %T')" "$*" >&2
}

# A command of gcloud's about this TPU: KIND VERB [FLAG …], and the command line of `gcloud compute tpus` is complete.
tpus() {
    execute gcloud compute tpus "$1" "$2" "$name" "--project=$project" "--zone=$zone" --quiet "${@:3}"
}

# Runs worker.sh on WORKER, a number or all. The words arrive there as they are here.
on_worker() {
    tpus tpu-vm ssh "--worker=$1" "--command=$(quoted bash imagen_jax/launch/worker.sh "${@:2}")"
}

# Copies between this machine and WORKER: WORKER [FLAG …] FROM TO.
copy_files() {
    execute gcloud compute tpus tpu-vm scp "${@:2}" "--project=$project" "--zone=$zone" --quiet "--worker=$1"
}

# == What tpu.sh can do ==

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

# One word: READY if the TPU can be used, ABSENT if there is none, UNKNOWN if nobody said, or what gcloud calls it.
tpu_state() {
    local found
    if [[ $queue == yes ]]; then
        found=$(describe_queued)
        if [[ $found != ACTIVE ]]; then
            echo "$found"
            return
        fi
    fi
    found=$(describe_node)
    # an active request whose TPU is gone is of no use
    [[ $queue$found == yesABSENT ]] && found=TERMINATED
    echo "$found"
}

describe_queued() {
    word tpus queued-resources describe '--format=value(state.state)'
}

describe_node() {
    word tpus tpu-vm describe '--format=value(state)'
}

# The state that a command says, among whatever else it says; ABSENT or UNKNOWN if it failed. In a dry run the command.
word() {
    local found
    if [[ $dry_run == yes ]]; then
        "$@"
    elif found=$("$@" 2>&1); then
        found=$(grep -Ex '[A-Z_]+|absent|idle|running|stopped|exited [0-9]+' <<<"$found" | tail -n 1) || true
        echo "${found:-UNKNOWN}"
    elif [[ $found == *NOT_FOUND* ]]; then
        echo ABSENT
    else
        say "${found##*$'\n'}"
        echo UNKNOWN
    fi
}

# absent, idle, running, stopped or "exited CODE", as worker 0 says; UNKNOWN if it does not answer.
run_state() {
    local script=imagen_jax/launch/worker.sh
    word tpus tpu-vm ssh --worker=0 "--command=if test -e $script; then bash $script state; else echo absent; fi"
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

# Each line ends it if it fails: in a condition, `set -e` does not.
install() {
    local archive=$root/.cache/launch/imagen_jax.tar.gz
    if [[ $dry_run == no && -n $(git -C "$root" status --porcelain) ]]; then
        say 'what is not committed stays here: the workers get the last commit'
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

# Until the run is done: looks, does what is due, waits. Whatever ended it, it goes on from its last checkpoint.
watch() {
    # what the last look found, and how often something failed although the TPU was still there
    local tpu now before='' failures=0
    if [[ $dry_run == yes ]]; then
        watch_dry "$@"
        return
    fi
    while true; do
        tpu=$(tpu_state) now=''
        [[ $tpu != READY ]] || now=$(run_state)
        say "TPU $tpu${now:+, run $now}"
        case $tpu:$now in
        READY:'exited 0') return 0 ;;
        READY:'exited 2') return 2 ;;
        READY:exited* | READY:stopped)
            # A run ends, too, when its TPU is being taken away, which the next look will show. One that was stopped has
            # saved, and has not failed.
            if [[ $now == "$before" ]]; then
                begin "$@"
            fi
            ;;
        READY:absent | READY:idle) begin "$@" ;;
        ABSENT:) create || true ;;
        PREEMPTED: | TERMINATED: | STOPPED: | SUSPENDED: | FAILED:) { delete && create; } || true ;;
        esac
        if ((failures > attempts)); then
            say "that failed $failures times, and not because a TPU was taken away; see: launch/tpu.sh logs"
            return 1
        fi
        before=$now
        sleep "$poll"
    done
}

# Installs and runs, for `watch`. What failed before the last look counts: then its TPU was not being taken away.
begin() {
    if [[ $before == failed || $before == exited* ]]; then
        failures=$((failures + 1))
    fi
    now=''
    if ((failures <= attempts)) && ! { install && run "$@"; }; then
        now=failed
    fi
}

# The commands of `watch`, each after the state in which it runs them.
watch_dry() {
    echo "# every $poll seconds, until the run has exited with 0, and not because a signal stopped it:"
    state
    echo '# when the TPU is ready and nothing runs:'
    install
    run "$@"
    echo '# when there is no TPU:'
    create
    echo '# when it was taken away:'
    delete
    create
}

# == The command line ==

command=${1:-}
case $command in
create | state | install | run | logs | watch | copy | delete) shift ;;
--help | '') show_help "${BASH_SOURCE[0]}" && exit 0 ;;
*) refuse "'$command' is not a command: give create, state, install, run, logs, watch, copy or delete" ;;
esac
for argument in "$@"; do
    case $argument in
    --settings=*) read_settings "${argument#*=}" ;;
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
    *) refuse "'$1' is not a setting: give --SETTING=VALUE, and put -- before what is to be run" ;;
    esac
    shift
done
required name project zone
case $command in
run | watch)
    [[ ${1:-} =~ ^[a-z_]+$ ]] ||
        refuse "what is to be run is missing: give for example -- train --config=configs/imagen_base_64.py --workdir=…"
    [[ $command == run ]] || required accelerator
    ;;
*) (($# == 0)) || refuse "'$1' is nothing that $command needs" ;;
esac
"$command" "$@"
