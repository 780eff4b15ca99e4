"""Relation distillation: objectives over the relations between the items of a batch, or between two layers."""
