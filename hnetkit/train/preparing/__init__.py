"""From a folder of pictures to a folder to train on: sizes, crops, captions, and a look at them before training."""
