#!/bin/bash
# One participant of participants.tsv per task of a SLURM array, in Apptainer (or Singularity).
#
#     mkdir -p logs
#     sbatch --array=1-$(grep -c "^sub-" "$BIDS_DIR/participants.tsv")%20 docs/slurm_array.sh
#
# Export before: IMAGE (the .sif file), BIDS_DIR, OUTPUT_DIR; more arguments for the app after the script's name.
#SBATCH --job-name=bids_lesionfill
#SBATCH --output=logs/%x_%A_%a.log
#SBATCH --cpus-per-task=2
#SBATCH --mem=6G
#SBATCH --time=00:30:00
set -euo pipefail
: "${IMAGE:?the .sif file}" "${BIDS_DIR:?the BIDS dataset}" "${OUTPUT_DIR:?where the derivatives go}"

subject=$(grep '^sub-' "$BIDS_DIR/participants.tsv" | sed -n "${SLURM_ARRAY_TASK_ID}p" | tr -d '\r' | cut -f 1)
mkdir -p "$OUTPUT_DIR"
# --nv only where the node has a GPU. All tasks may write to one OUTPUT_DIR: files are whole or absent.
exec "$(command -v apptainer || command -v singularity)" run --cleanenv --containall ${SLURM_GPUS_ON_NODE:+--nv} \
    --bind "$BIDS_DIR:/data:ro,$OUTPUT_DIR:/out,${TMPDIR:-/tmp}:/tmp" \
    "$IMAGE" /data /out participant --participant-label "$subject" --omp-nthreads "${SLURM_CPUS_PER_TASK:-1}" "$@"
