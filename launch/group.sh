# Processes that live and die together, and what the launchers say of wrong use. local.sh and gpu.sh source it.
# shellcheck shell=bash

members=()

# Ends the script with exit code 2 and one sentence.
refuse() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

# The comment at the head of a script is its help.
show_help() {
    sed -n '2,/^[^#]/ { s/^# \{0,1\}//p; }' "$1"
}

# Refuses a value that is not a whole number of at least some: FLAG VALUE LEAST.
check_number() {
    if ! [[ $2 =~ ^(0|[1-9][0-9]{0,5})$ ]] || (($2 < $3)); then
        refuse "$1 '$2' is not a number of at least $3"
    fi
}

# Starts member INDEX of a group: its command, told by the environment where it stands. What the first one says is
# shown as it is, progress bar and all; the lines of the others get their number.
#   start_member COORDINATOR COUNT INDEX COMMAND…
start_member() {
    local coordinator=$1 count=$2 index=$3
    shift 3
    set -- env "JAX_COORDINATOR_ADDRESS=$coordinator" "JAX_NUM_PROCESSES=$count" "JAX_PROCESS_ID=$index" "$@"
    # job control gives each member a process group of its own, so that what it starts ends with it
    set -m
    if ((index == 0)); then
        "$@" &
    else
        "$@" > >(label "$index") 2> >(label "$index" >&2) &
    fi
    set +m
    members+=("$!")
}

label() {
    local line
    while IFS= read -r line || [[ -n $line ]]; do
        printf '[%s] %s\n' "$1" "$line"
    done
}

# Waits for all members; ends the script with the worst of their exit codes. Once one has failed, or the script is told
# to end, the others have GRACE seconds to end by themselves. Then they are killed: jax does not heed a mere SIGTERM.
#   end_with_members GRACE
end_with_members() {
    local grace=$1 worst=0 deadline='' code pid alive
    trap 'worst=143; signal_members TERM' TERM
    trap 'worst=130; signal_members INT' INT
    while ((${#members[@]})); do
        alive=()
        for pid in "${members[@]}"; do
            if kill -0 "$pid" 2>/dev/null; then
                alive+=("$pid")
                continue
            fi
            code=0
            wait "$pid" || code=$?
            # one that was killed because another had failed says nothing about the run
            [[ $deadline == past ]] || ((code <= worst)) || worst=$code
        done
        members=(${alive[@]+"${alive[@]}"})
        if ((worst)) && [[ -z $deadline ]]; then
            deadline=$((SECONDS + grace))
        fi
        if [[ -n $deadline && $deadline != past ]] && ((SECONDS >= deadline)); then
            deadline=past
            signal_members KILL
        fi
        sleep 0.2
    done
    exit "$worst"
}

signal_members() {
    local pid
    for pid in ${members[@]+"${members[@]}"}; do
        kill -s "$1" -- "-$pid" 2>/dev/null || true
    done
}
