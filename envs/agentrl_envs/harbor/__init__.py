"""Tasks in the format of Harbor: an image, an instruction, and tests that tell the reward."""
