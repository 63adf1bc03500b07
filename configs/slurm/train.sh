#!/bin/bash
# A run under SLURM, on one machine or several, that survives preemption and its time limit: it is
# warned, writes a checkpoint and queues itself again, and the next start resumes from there.
#
#   sbatch --nodes 2 --gpus-per-node 8 configs/slurm/train.sh \
#     --config configs/default.yaml --output_dir /shared/results/run-1
#
# The options after the script are train.py's. All machines must see the data and --output_dir.
# Do not use --overwrite_output_dir: with it the run starts again whenever the job does.
# ACCELERATE_CONFIG names another configuration, such as configs/accelerate/fsdp2.yaml.
#SBATCH --job-name=siglip-flowers
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
# Sent to this script (B:) two minutes before the end: time for one step and one checkpoint.
#SBATCH --signal=B:USR1@120

set -u

machines=${SLURM_JOB_NUM_NODES:-1}
processes=$((machines * ${SLURM_GPUS_ON_NODE:-1}))
export FIRST_MACHINE PORT
FIRST_MACHINE=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Another port for every job, so that two of them on one machine do not meet.
PORT=$((20000 + SLURM_JOB_ID % 20000))
# If inherited, they would name processes that this job does not have.
unset MASTER_ADDR MASTER_PORT RANK LOCAL_RANK WORLD_SIZE

if [ "$processes" -gt 1 ]; then
    # Evaluated on each machine, which alone knows its rank.
    launcher="accelerate launch
        --config_file ${ACCELERATE_CONFIG:-configs/accelerate/multi_machine.yaml}
        --num_machines $machines --num_processes $processes
        --main_process_ip \$FIRST_MACHINE --main_process_port \$PORT --machine_rank \$SLURM_NODEID"
    launcher=$(echo $launcher)
else
    launcher=python
fi

warnings=0
# The signal reaches every process of the step: train.py handles it, launchers ignore it.
trap 'warnings=$((warnings + 1)); scancel --signal=USR1 "$SLURM_JOB_ID"' USR1
srun --kill-on-bad-exit=0 bash -c "trap '' USR1; exec $launcher train.py \"\$@\"" train "$@" &
step=$!
while :; do
    seen=$warnings
    wait "$step"
    code=$?
    # A wait that the signal interrupted says nothing about the step.
    [ "$warnings" -eq "$seen" ] && break
done

if [ "$warnings" -gt 0 ] && [ "$code" -ne 0 ]; then
    echo "stopped before the end (exit code $code); queued again"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
