#!/usr/bin/env bash
# Starts one run with several processes on this machine, to test multi-host behavior.
#
#   launch/local.sh --processes=2 --devices=4 -- imagen train --config=… --workdir=…
#
#   --processes=N   number of processes
#   --devices=M     each process simulates M devices on the CPU; by default each uses the devices that jax finds
#   --grace=S       seconds that the other processes get after one has failed, before they are killed (10)
#
# The exit code is the highest of the processes.
set -euo pipefail
# shellcheck source=launch/group.sh
source "$(dirname "${BASH_SOURCE[0]}")/group.sh"

processes='' devices='' grace=10
parse_flags "${BASH_SOURCE[0]}" 'processes devices grace' '' "$@"
check_number --processes "$processes" 1
[[ -z $devices ]] || check_number --devices "$devices" 1

# Prints a port of this machine that is not in use.
free_port() {
    local port
    while port=$((20000 + RANDOM % 12000)); do
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}

if [[ -n $devices ]]; then
    export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=$devices
    # On few cores, simulated devices can deadlock; a thread pool of this size prevents it.
    export NPROC=${NPROC:-$((4 * devices))}
    # On CPUs only process 0 reads the compilation cache. The other processes would still compile when process 0 enters
    # its first collective, which would time out. Without the cache all processes compile at the same time.
    export JAX_ENABLE_COMPILATION_CACHE=false
fi

coordinator=127.0.0.1:$(free_port)
for ((index = 0; index < processes; index++)); do
    start_process "$coordinator" "$processes" "$index" "${program[@]}"
done
wait_for_processes "$grace"
