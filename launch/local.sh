#!/usr/bin/env bash
# One run of several processes on this machine: to try what a pod will do.
#
#   launch/local.sh --processes=2 --devices=4 -- python -m imagen_jax.train --config=… --workdir=…
#
#   --processes=N   how many processes
#   --devices=M     each simulates M devices on the CPU; without it each takes what jax finds
#   --grace=S       how long processes may go on after one has failed, before they are killed (10 seconds)
#
# The exit code is the worst of theirs.
set -euo pipefail
# shellcheck source=launch/group.sh
source "$(dirname "${BASH_SOURCE[0]}")/group.sh"

processes='' devices='' grace=10
while (($#)); do
    case $1 in
    --processes=*) processes=${1#*=} ;;
    --devices=*) devices=${1#*=} ;;
    --grace=*) grace=${1#*=} ;;
    --help) show_help "${BASH_SOURCE[0]}" && exit 0 ;;
    --) shift && break ;;
    *) refuse "'$1' is not known here: see --help, and put -- before the command" ;;
    esac
    shift
done
check_number --processes "$processes" 1
[[ -z $devices ]] || check_number --devices "$devices" 1
check_number --grace "$grace" 0
(($#)) || refuse "there is no command to run: give it after --"

# A port that nothing on this machine listens at.
free_port() {
    local port
    while port=$((20000 + RANDOM % 12000)); do
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}

if [[ -n $devices ]]; then
    export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=$devices
    # simulated devices on few cores can wait for each other for ever; a thread pool of this size prevents it
    export NPROC=${NPROC:-$((4 * devices))}
    # On CPUs, only process 0 would find its programs in the cache, and collectives do not wait as long as the others
    # would then compile: all of them compile, and at the same time.
    export JAX_ENABLE_COMPILATION_CACHE=false
fi

coordinator=127.0.0.1:$(free_port)
for ((index = 0; index < processes; index++)); do
    start_member "$coordinator" "$processes" "$index" "$@"
done
end_with_members "$grace"
