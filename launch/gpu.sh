#!/usr/bin/env bash
# Starts one run on the GPUs of one host or several hosts.
#
#   launch/gpu.sh -- imagen train --config=… --workdir=…
#
# On one host this runs the plain command: one process drives all GPUs, and the data are read once. On several hosts,
# start it on each:
#
#   launch/gpu.sh --hosts=2 --host=0 --coordinator=10.0.0.1:8476 -- imagen train …
#   launch/gpu.sh --hosts=2 --host=1 --coordinator=10.0.0.1:8476 -- imagen train …
#
# or let SLURM start it, with one task per node; then no flags are needed:
#
#   srun --nodes=2 --ntasks-per-node=1 launch/gpu.sh -- imagen train …
#
#   --hosts=N --host=I --coordinator=HOST:PORT   number of hosts, index of this host, address of host 0
#   --process_per_gpu   start a process per GPU: for hosts on which a single process cannot keep all GPUs busy
#   --grace=S           seconds that the other processes get after one has failed, before they are killed (10)
#
# The exit code is the highest of this host's processes.
set -euo pipefail
# shellcheck source=launch/group.sh
source "$(dirname "${BASH_SOURCE[0]}")/group.sh"

hosts='' host='' coordinator='' process_per_gpu='' grace=10
parse_flags "${BASH_SOURCE[0]}" 'hosts host coordinator grace' 'process_per_gpu' "$@"

if [[ -z $hosts$host$coordinator && ${SLURM_NNODES:-1} -gt 1 ]]; then
    [[ ${SLURM_NTASKS:-} == "$SLURM_NNODES" ]] ||
        fail_usage "SLURM runs ${SLURM_NTASKS:-no} tasks on $SLURM_NNODES nodes: use srun --ntasks-per-node=1"
    hosts=$SLURM_NNODES host=$SLURM_NODEID
    # the same port on every host, and another one for every job
    coordinator=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p):$((20000 + SLURM_JOB_ID % 12000))
elif [[ -z $hosts$host$coordinator ]]; then
    hosts=1 host=0 coordinator=127.0.0.1:8476
fi
check_number --hosts "$hosts" 1
check_number --host "$host" 0
((host < hosts)) || fail_usage "--host '$host' is not an index of $hosts hosts: use 0 to $((hosts - 1))"
[[ $coordinator =~ ^[A-Za-z0-9._-]+:[0-9]+$ ]] ||
    fail_usage "--coordinator '$coordinator' is not HOST:PORT: give the address of host 0, such as 10.0.0.1:8476"

if [[ -z $process_per_gpu ]]; then
    ((hosts > 1)) || exec "${program[@]}"
    start_process "$coordinator" "$hosts" "$host" "${program[@]}"
else
    gpus=${CUDA_VISIBLE_DEVICES:-$(nvidia-smi --query-gpu=index --format=csv,noheader | paste -sd , -)}
    IFS=, read -r -a gpus <<<"$gpus"
    ((${#gpus[@]})) || fail_usage "--process_per_gpu: this host has no GPU"
    for index in "${!gpus[@]}"; do
        start_process "$coordinator" $((hosts * ${#gpus[@]})) $((host * ${#gpus[@]} + index)) \
            env "CUDA_VISIBLE_DEVICES=${gpus[index]// /}" "${program[@]}"
    done
fi
wait_for_processes "$grace"
