#!/usr/bin/env bash
# Trains the demo's model for a step by own kernels on the emulated GPU, to see that they are tried once, and left out where one is wrong, and
# that CUDA graphs change no bit:
# tools/emulated-gpu/try.sh EMULATED PROGRAM, the folder that build.sh filled and a plumb built with CUDA.
set -euo pipefail
[ $# -eq 2 ] || { sed -n 4p "$0" | cut -c3- >&2; exit 2; }
emulated=$(cd "$1" && pwd) program=$(realpath "$2")
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r assets/tiny-sd3 assets/tiny-style "$work"
sed 's/^steps = 240/steps = 1/; s/^warmup_steps = .*/warmup_steps = 0/' configs/demo/sd3.toml > "$work/sd3.toml"
export XDG_CACHE_HOME="$work/cache"

# train FAULT: what it says of a step, with a fault put into the kernels.
train() {
    rm -rf "$work/out"
    EMULATED_GPU_BREAK="$1" LD_LIBRARY_PATH="$emulated" "$program" train "$work/sd3.toml" --device cuda --own-kernels ${more:-} 2>&1
}
# check WHAT TEXT PATTERN
check() {
    grep -q "$3" <<< "$2" || { printf '%s\n%s\n' "$1: expected to read: $3" "$2" >&2; exit 1; }
}
kept() { find "$XDG_CACHE_HOME/plumb/kernels" -type f 2>/dev/null | wc -l; }
count() { [ "$(kept)" = "$2" ] || { echo "$1: $(kept) results are kept, not $2" >&2; exit 1; }; }

"$program" encode "$work/sd3.toml" --device cpu > /dev/null 2>&1
said=$(train 'c % 2 < reach;=>c % 2 <= reach;')
check "a wrong kernel" "$said" "own kernels are not used on this GPU: gradients of attention"
check "a wrong kernel" "$said" "1 step done"
count "a wrong kernel" 0
check "kernels that agree" "$(train '')" "1 step done"
count "kernels that agree" 1
# The same fault is not seen: they are not tried again.
said=$(train 'c % 2 < reach;=>c % 2 <= reach;')
check "kernels that agreed before" "$said" "1 step done"
! grep -q "own kernels are not used" <<< "$said" || { echo "tried again: $said" >&2; exit 1; }
said=$(more=--cudnn train '')
check "cuDNN" "$said" "1 step done"
! grep -q "is not used\|are not used" <<< "$said" || { echo "cuDNN was left out: $said" >&2; exit 1; }
count "cuDNN" 2
# The passes of steps as a whole: not a bit of the LoRA may differ.
sed -i 's/^steps = .*/steps = 5/' "$work/sd3.toml"
train '' > /dev/null
mv "$work/out/style.safetensors" "$work/each.safetensors"
said=$(more=--cuda-graphs train '')
check "CUDA graphs" "$said" "a recorded step gives the same bits"
cmp "$work/out/style.safetensors" "$work/each.safetensors"
echo "own kernels are tried once, and left out where one is wrong; a step asked for as a whole is the same"
