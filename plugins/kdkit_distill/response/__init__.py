"""Response distillation: objectives over the teacher's logits."""
