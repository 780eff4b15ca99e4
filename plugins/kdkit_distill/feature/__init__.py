"""Feature distillation: objectives over the outputs of layers."""
