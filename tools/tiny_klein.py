"""A FLUX.2 klein pipeline of diffusers with random weights, small enough to try plumb's commands on: it makes noise.

    python tools/tiny_klein.py FOLDER     (from the repository's root; needs diffusers, transformers)

Writes FOLDER as `Flux2KleinPipeline.save_pretrained` does, from the goldens of `tools/goldens/flux2.py` and `vae.py`.
"""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).resolve().parent / "goldens"))
from flux2 import tiny_pipeline  # noqa: E402

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    tiny_pipeline().save_pretrained(sys.argv[1])
