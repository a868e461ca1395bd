"""What a training step costs: time, memory and compilation, relative to Adam's."""
