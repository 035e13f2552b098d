"""The stitch stage of ms-moe-maker on given models: `python stitch.py OUT TOP_K SOURCE...`; writes OUT/moe_untrained.

`ms-moe-maker build` trains its specialists first; the stage reads them from disk, where the given models are linked.
"""

import sys
from pathlib import Path

from ms_moe_maker.config.recipe import MoE
from ms_moe_maker.moe.stitch import stitch_moe, verify_stitch

out, top_k, *sources = sys.argv[1:]
config = MoE(experts_per_tok=int(top_k))
names = [f"expert{number}" for number in range(len(sources))]
vars(config).update(
    output_root=out, force=True, seed=0, expert_names=names, mlp_only_layers=[], router_aux_loss_coef=0.02
)
Path(out).mkdir(parents=True)
for name, source in zip(names, sources, strict=True):
    (Path(out) / f"specialist_{name}").symlink_to(source)
if not verify_stitch(stitch_moe(config, names), router_init=config.router_init):
    sys.exit("verify_stitch: the tensors are not those of the sources")
