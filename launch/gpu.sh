#!/usr/bin/env bash
# One run on the GPUs of one host or of several.
#
#   launch/gpu.sh -- python -m imagen_jax.train --config=… --workdir=…
#
# On one host this is the bare command: one process drives all GPUs, and the data are read once. On several hosts,
# start it on each:
#
#   launch/gpu.sh --hosts=2 --host=0 --coordinator=10.0.0.1:8476 -- python -m imagen_jax.train …
#   launch/gpu.sh --hosts=2 --host=1 --coordinator=10.0.0.1:8476 -- python -m imagen_jax.train …
#
# or let SLURM do so, with one task on each host; then the hosts need not be named:
#
#   srun --nodes=2 --ntasks-per-node=1 launch/gpu.sh -- python -m imagen_jax.train …
#
#   --hosts=N --host=I --coordinator=HOST:PORT   how many hosts, which one this is, where host 0 can be reached
#   --process_per_gpu   a process for each GPU: for hosts on which a single process cannot keep all of them busy
#   --grace=S           how long processes may go on after one has failed, before they are killed (10 seconds)
#
# The exit code is the worst of the processes of this host.
set -euo pipefail
# shellcheck source=launch/group.sh
source "$(dirname "${BASH_SOURCE[0]}")/group.sh"

hosts='' host='' coordinator='' process_per_gpu='' grace=10
while (($#)); do
    case $1 in
    --hosts=*) hosts=${1#*=} ;;
    --host=*) host=${1#*=} ;;
    --coordinator=*) coordinator=${1#*=} ;;
    --process_per_gpu) process_per_gpu=yes ;;
    --grace=*) grace=${1#*=} ;;
    --help) show_help "${BASH_SOURCE[0]}" && exit 0 ;;
    --) shift && break ;;
    *) refuse "'$1' is not known here: see --help, and put -- before the command" ;;
    esac
    shift
done
check_number --grace "$grace" 0
(($#)) || refuse "there is no command to run: give it after --"

if [[ -z $hosts$host$coordinator && ${SLURM_NNODES:-1} -gt 1 ]]; then
    [[ ${SLURM_NTASKS:-} == "$SLURM_NNODES" ]] ||
        refuse "SLURM runs ${SLURM_NTASKS:-no} tasks on $SLURM_NNODES nodes: give srun --ntasks-per-node=1"
    hosts=$SLURM_NNODES host=$SLURM_NODEID
    # the same on every host, and another for every job
    coordinator=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p):$((20000 + SLURM_JOB_ID % 12000))
elif [[ -z $hosts$host$coordinator ]]; then
    hosts=1 host=0 coordinator=127.0.0.1:8476
fi
check_number --hosts "$hosts" 1
check_number --host "$host" 0
((host < hosts)) || refuse "--host '$host' is not one of the $hosts hosts: give 0 to $((hosts - 1))"
[[ $coordinator =~ ^[A-Za-z0-9._-]+:[0-9]+$ ]] ||
    refuse "--coordinator '$coordinator' is not HOST:PORT: give where host 0 can be reached, such as 10.0.0.1:8476"

if [[ -z $process_per_gpu ]]; then
    ((hosts > 1)) || exec "$@"
    start_member "$coordinator" "$hosts" "$host" "$@"
else
    gpus=${CUDA_VISIBLE_DEVICES:-$(nvidia-smi --query-gpu=index --format=csv,noheader | paste -sd , -)}
    IFS=, read -r -a gpus <<<"$gpus"
    ((${#gpus[@]})) || refuse "--process_per_gpu: there is no GPU on this host"
    for index in "${!gpus[@]}"; do
        start_member "$coordinator" $((hosts * ${#gpus[@]})) $((host * ${#gpus[@]} + index)) \
            env "CUDA_VISIBLE_DEVICES=${gpus[index]// /}" "$@"
    done
fi
end_with_members "$grace"
