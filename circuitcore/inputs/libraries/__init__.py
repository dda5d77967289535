"""Networks as their own libraries make them: torchvision's, timm's, and checkpoints of either."""
