"""The parts of one run of fine-tuning; `gode_zoo.finetune` is the way in."""
