#!/usr/bin/env bash
# What docs/performance.md says of GPUs, measured in one process; about seven minutes on an H100.
#
#   bash benchmarks/gpu.sh OUT                                                # a random model of Gemma-2-2B's size
#   bash benchmarks/gpu.sh OUT --device cpu --model llama --dtype float32 --limit 2    # a rehearsal without a GPU
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/gpu.py" "$@"
