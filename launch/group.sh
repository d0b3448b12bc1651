# Flags, usage errors and process groups of the launchers: local.sh, gpu.sh and tpu.sh source it.
# shellcheck shell=bash

processes_started=()
# shellcheck disable=SC2034  # the launchers use it
program=()

# Prints an error and ends the script with exit code 2.
fail_usage() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

# Prints a path with a leading ~/ replaced by the home folder: in --to=~/runs the shell leaves it as it is.
expand_home() {
    # shellcheck disable=SC2088  # the tilde is compared, not expanded
    if [[ $1 == '~' || $1 == '~/'* ]]; then printf '%s\n' "$HOME${1#\~}"; else printf '%s\n' "$1"; fi
}

# Prints the comment at the head of a script.
show_help() {
    sed -n '2,/^[^#]/ { s/^# \{0,1\}//p; }' "$1"
}

# Checks that a value is an integer of at least a minimum: FLAG VALUE MINIMUM.
check_number() {
    if ! [[ $2 =~ ^(0|[1-9][0-9]{0,5})$ ]] || (($2 < $3)); then
        fail_usage "$1 '$2' is not an integer of at least $3"
    fi
}

# Assigns flags to variables of the same names, and the words after -- to `program`. Checks `grace`.
#   parse_flags SCRIPT 'FLAGS_WITH_VALUE …' 'SWITCHES …' ARGUMENT…
parse_flags() {
    local script=$1 with_value=" $2 " switches=" $3 " name
    shift 3
    while (($#)); do
        name=${1#--} && name=${name%%=*}
        case $1 in
        --help) show_help "$script" && exit 0 ;;
        --) shift && break ;;
        esac
        if [[ $1 =~ ^--[a-z_]+= && $with_value == *" $name "* ]]; then
            printf -v "$name" '%s' "${1#*=}"
        elif [[ $1 =~ ^--[a-z_]+$ && $switches == *" $name "* ]]; then
            printf -v "$name" yes
        else
            fail_usage "'$1' is not a flag: see --help, and put -- before the command"
        fi
        shift
    done
    check_number --grace "$grace" 0
    (($#)) || fail_usage "the command is missing: give it after --"
    # shellcheck disable=SC2034  # as above
    program=("$@")
}

# Starts process INDEX of a run, with its place in the environment. The output of process 0 is shown unchanged, with its
# progress bar; lines of the other processes are prefixed with their index.
#   start_process COORDINATOR COUNT INDEX COMMAND…
start_process() {
    local coordinator=$1 count=$2 index=$3
    shift 3
    set -- env "JAX_COORDINATOR_ADDRESS=$coordinator" "JAX_NUM_PROCESSES=$count" "JAX_PROCESS_ID=$index" "$@"
    # job control gives each process a process group, so that its children are killed with it
    set -m
    if ((index == 0)); then
        "$@" &
    else
        "$@" > >(prefix_lines "$index") 2> >(prefix_lines "$index" >&2) &
    fi
    set +m
    processes_started+=("$!")
}

prefix_lines() {
    local line
    while IFS= read -r line || [[ -n $line ]]; do
        printf '[%s] %s\n' "$1" "$line"
    done
}

# Waits for all processes and ends the script with their highest exit code. After a failure or a signal, the remaining
# processes have GRACE seconds to end; then they are killed, because jax does not end on SIGTERM.
#   wait_for_processes GRACE
wait_for_processes() {
    local grace=$1 worst=0 deadline='' code pid running
    trap 'worst=143; signal_processes TERM' TERM
    trap 'worst=130; signal_processes INT' INT
    while ((${#processes_started[@]})); do
        running=()
        for pid in "${processes_started[@]}"; do
            if kill -0 "$pid" 2>/dev/null; then
                running+=("$pid")
                continue
            fi
            code=0
            wait "$pid" || code=$?
            # the exit code of a process that was killed after the deadline says nothing about the run
            [[ $deadline == past ]] || ((code <= worst)) || worst=$code
        done
        processes_started=(${running[@]+"${running[@]}"})
        if ((worst)) && [[ -z $deadline ]]; then
            deadline=$((SECONDS + grace))
        fi
        if [[ -n $deadline && $deadline != past ]] && ((SECONDS >= deadline)); then
            deadline=past
            signal_processes KILL
        fi
        sleep 0.2
    done
    exit "$worst"
}

signal_processes() {
    local pid
    for pid in ${processes_started[@]+"${processes_started[@]}"}; do
        kill -s "$1" -- "-$pid" 2>/dev/null || true
    done
}
