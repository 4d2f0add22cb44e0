#!/usr/bin/env bash
# One node:             recipes/cluster/torchrun.sh RECIPE [KEY=VALUE]... [--resume | --fresh | --dry-run]
# Each of two nodes:    NODES=2 HOST=name-of-the-first recipes/cluster/torchrun.sh RECIPE ...
#
# NODES  machines (1)     HOST, PORT  where they meet (localhost, 29500)     GPUS  processes on each (one for each GPU)
set -euo pipefail

exec torchrun --nnodes "${NODES:-1}" --nproc-per-node "${GPUS:-gpu}" \
    --rdzv-backend c10d --rdzv-endpoint "${HOST:-localhost}:${PORT:-29500}" --rdzv-id lrft \
    -m lrft train "$@"
