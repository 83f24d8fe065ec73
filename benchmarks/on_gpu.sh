#!/usr/bin/env bash
# Everything that only a GPU can show, in less than ten minutes on one card:
#
#     benchmarks/on_gpu.sh [WHEELS] [options of on_gpu.py]
#
# WHEELS is a folder with wheels of packages that the machine lacks, for one without a network. Without it, the script
# names what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if [[ $# -gt 0 && -d $1 ]]; then
    python3 -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$site" "$1"/*.whl
    shift
fi
export PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}"
python3 - <<'CHECK'
import importlib.util
import sys

# Import names, and the distributions where these differ.
needed = {name: name for name in ("filelock", "fire", "huggingface_hub", "jinja2", "matplotlib", "monai", "nibabel",
                                  "numpy", "ignite", "pytest", "safetensors", "scipy", "skimage", "tensorboard",
                                  "timm", "torch", "tqdm")}
needed |= {"ignite": "pytorch-ignite", "skimage": "scikit-image"}
missing = sorted(package for name, package in needed.items() if importlib.util.find_spec(name) is None)
if missing:
    sys.exit(f"Missing: {' '.join(missing)}. Give a folder with their wheels, made where there is a network by\n"
             f"  python3 -m pip download --dest WHEELS {' '.join(missing)}")
CHECK
python3 benchmarks/on_gpu.py "$@"
