"""What the teacher sees on the way: objectives over the outputs of layers."""
