"""`smolmoe align`: SFT, DPO and CPO on the trainers of TRL, preference pairs, measured before and after."""
