#!/usr/bin/env bash
# torchrun of PyTorch 2.13.0: which options of a script it passes on, also those behind the script's name.
#
# Behaviour: an option of the script that begins one of torchrun's own (--log, --start, --max, --node, --no) is refused as
# ambiguous before the script is begun, with its value behind a space or an "=". One that is torchrun's own to the letter
# (--role) arrives, and so does everything behind "--". accelerate 1.15.0 passes all of them on.
# Every option of torchrun is known with "-" and with "_" between its words, so that no abbreviation of one is unique.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
python3 -m venv venv
install="venv/bin/pip install -q --disable-pip-version-check"
$install torch==2.13.0 numpy==2.4.6
$install --no-deps accelerate==1.15.0 packaging==26.3 psutil==7.2.2 pyyaml==6.0.3 safetensors==0.8.0 huggingface-hub==2.4.0 \
    tqdm==4.70.1 httpx==0.28.1 anyio==4.16.0 httpcore==1.0.9 h11==0.16.0 idna==3.20 certifi==2026.10.18 hf-xet==1.8.0 \
    typer==0.29.2 click==8.5.1 shellingham==1.5.4 rich==15.0.0 httpx2==2.16.2 httpcore2==2.16.2 truststore==0.10.5
echo 'import sys; print("given", *sys.argv[1:])' > script.py
venv/bin/python -c 'import torch, accelerate; print("torch", torch.__version__, "accelerate", accelerate.__version__)'
changed=
check() {  # what is expected, then the program and what is behind it
    wanted=$1; shift
    seen=$("$@" 2>&1 | grep -Eo 'given.*|ambiguous option' | head -1 || true)
    echo "$(basename "$1") ... ${*: -2}: $seen"
    [[ $seen == "$wanted" ]] || changed+=" ${*: -2}"
}
torchrun=(venv/bin/torchrun --nproc-per-node 1 script.py)
accelerate=(venv/bin/accelerate launch --cpu --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no script.py)
for option in --log --start --max --node --no; do
    check "ambiguous option" "${torchrun[@]}" "$option" 3
    check "given $option 3" "${accelerate[@]}" "$option" 3
done
check "ambiguous option" "${torchrun[@]}" --rate 1 --log=3
check "given --role 3" "${torchrun[@]}" --role 3
check "given --log 3" "${torchrun[@]}" -- --log 3
[[ -z $changed ]] || { echo "changed:$changed"; exit 1; }
